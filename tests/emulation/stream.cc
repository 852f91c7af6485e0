/* Streams, events and graphs: work as a graph of nodes, each behind those it waits for.
 *
 * Nothing runs when it is issued.  When the host waits for something, what that depends on runs, in an order drawn from all that the
 * dependencies allow, and now and then other work that is ready.  A launch that may start early does so, sometimes, as far as it
 * can without what is before it.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <thread>

namespace emu {

struct Stream;

/* What is done, apart from when: shared by a graph and its launches. */
struct Work {
    std::shared_ptr<const Launch> launch; /* or */
    std::function<void()> action;         /* or, neither: only an order */
};

struct Node {
    Work work;
    std::vector<std::shared_ptr<Node>> after;
    std::weak_ptr<Node> early_follower; /* the launch that may start before this one has ended */
    std::shared_ptr<Grid> grid;
    bool done = false;
};

struct GraphNode {
    Work work;
    std::vector<size_t> after;
};

struct Graph {
    std::vector<GraphNode> nodes;
};

struct GraphExec {
    Graph graph;
    std::shared_ptr<Node> last;
};

struct Capture {
    Graph graph;
    Stream *origin = nullptr;
    cudaStreamCaptureMode mode;
    std::thread::id thread; /* that began it */
    bool spoiled = false;
};

struct Stream {
    std::shared_ptr<Node> last;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> captured; /* what its next node is behind */
};

struct Event {
    std::shared_ptr<Node> node;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> captured;
};

}

/* What the C names stand for. */
struct CUstream_st : emu::Stream {};
struct CUevent_st : emu::Event {};
struct CUgraph_st : emu::Graph {};
struct CUgraphExec_st : emu::GraphExec {};

namespace emu {

static std::vector<std::shared_ptr<Node>> pending; /* in the order of issue, which is a possible one */
static std::set<Stream *> streams;
static std::map<const void *, int> shared_limit;

typedef std::lock_guard<std::recursive_mutex> Hold;

/* ---- running ------------------------------------------------------------------------------------------------------------------- */

static bool ready(const Node &n)
{
    return std::all_of(n.after.begin(), n.after.end(), [](const std::shared_ptr<Node> &p) { return p->done; });
}

static void execute(const std::shared_ptr<Node> &n)
{
    if (lost())
        return;
    if (n->work.launch) {
        if (!n->grid)
            n->grid = grid_create(n->work.launch);
        auto follower = n->early_follower.lock();
        if (follower && !follower->grid && draw(2)
            && std::all_of(follower->after.begin(), follower->after.end(),
                           [&](const std::shared_ptr<Node> &p) { return p->done || p == n; })) {
            follower->grid = grid_create(follower->work.launch);
            grid_start(follower->grid.get(), 1 + (unsigned)draw(4));
        }
        grid_finish(n->grid.get());
        n->grid.reset();
    } else if (n->work.action) {
        n->work.action();
    }
    n->done = true;
    n->after.clear();
}

/* Run all that target is behind, and it; with all, whatever is pending. */
static void run(const std::shared_ptr<Node> &target, bool all)
{
    std::set<Node *> needed;
    std::vector<std::shared_ptr<Node>> stack;

    if (target)
        stack.push_back(target);
    for (const auto &n : pending)
        if (all || !draw(8)) /* and some that nobody waits for */
            stack.push_back(n);
    while (!stack.empty()) {
        auto n = stack.back();
        stack.pop_back();
        if (!n->done && needed.insert(n.get()).second)
            stack.insert(stack.end(), n->after.begin(), n->after.end());
    }
    DeviceAccess open;
    while (!lost()) {
        std::vector<std::shared_ptr<Node>> can;
        for (const auto &n : pending)
            if (!n->done && needed.count(n.get()) && ready(*n))
                can.push_back(n);
        if (can.empty())
            break;
        execute(can[draw(can.size())]);
    }
    if (lost())
        for (const auto &n : pending) { /* a lost device does no more */
            n->after.clear();
            n->grid.reset();
            n->done = true;
        }
    pending.erase(std::remove_if(pending.begin(), pending.end(), [](const std::shared_ptr<Node> &n) { return n->done; }), pending.end());
}

void forget_streams()
{
    for (const auto &n : pending) {
        n->after.clear();
        n->done = true;
    }
    pending.clear();
}

static void issue(Stream *s, Work work, bool early)
{
    if (s->capture) {
        s->capture->graph.nodes.push_back({std::move(work), s->captured});
        s->captured = {s->capture->graph.nodes.size() - 1};
        return;
    }
    auto n = std::make_shared<Node>();
    n->work = std::move(work);
    if (s->last && !s->last->done) {
        n->after.push_back(s->last);
        if (early && s->last->work.launch)
            s->last->early_follower = n;
    }
    pending.push_back(n);
    s->last = n;
}

/* How the calling thread is bound by captures: by its own, and those of others that are Global; by its own; by none. */
static thread_local cudaStreamCaptureMode bound_by = cudaStreamCaptureModeGlobal;

bool unsafe()
{
    bool found = false;

    for (Stream *s : streams) {
        Capture *c = s->capture.get();
        if (!c || bound_by == cudaStreamCaptureModeRelaxed || c->mode == cudaStreamCaptureModeRelaxed
            || (c->thread != std::this_thread::get_id() && (bound_by != cudaStreamCaptureModeGlobal || c->mode != cudaStreamCaptureModeGlobal)))
            continue;
        c->spoiled = found = true;
    }
    return found;
}

void finish_all()
{
    count_wait();
    run(nullptr, true);
}

static cudaError_t check(Stream *s)
{
    if (!streams.count(s)) {
        record("a stream that does not exist, or the default stream, was used"); /* the backend works in its own streams only */
        return returned(cudaErrorInvalidResourceHandle);
    }
    return returned(cudaSuccess);
}

cudaError_t enqueue(cudaStream_t s, std::function<void()> action)
{
    Hold hold(lock);
    cudaError_t e = check(s);

    if (e == cudaSuccess)
        issue(s, {nullptr, std::move(action)}, false);
    return e;
}

/* ---- launches ------------------------------------------------------------------------------------------------------------------ */

/* Shared memory that a block can ask for (CUDA programming guide, compute capabilities). */
static int shared_optin()
{
    return machine.major == 9 || machine.major == 10 ? 227 << 10 : machine.major == 8 && machine.minor == 0 ? 163 << 10 : 99 << 10;
}

cudaError_t set_attribute(const void *kernel, cudaFuncAttribute attr, int value)
{
    Hold hold(lock);

    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > shared_optin())
        return returned(cudaErrorInvalidValue);
    shared_limit[kernel] = value;
    return returned(cudaSuccess);
}

cudaError_t occupancy(int *blocks, int threads, size_t shared)
{
    size_t by_shared = shared ? (size_t)shared_optin() / shared : 32;

    *blocks = (int)std::min<size_t>(std::min<size_t>(by_shared, 2048 / (size_t)threads), 32);
    return returned(cudaSuccess);
}

cudaError_t launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> body)
{
    Hold hold(lock);
    auto l = std::make_shared<Launch>();
    size_t threads = (size_t)config->blockDim.x * config->blockDim.y * config->blockDim.z;
    size_t blocks = (size_t)config->gridDim.x * config->gridDim.y * config->gridDim.z;

    if (check(config->stream) != cudaSuccess)
        return cudaPeekAtLastError();
    l->grid = config->gridDim;
    l->block = config->blockDim;
    l->shared = config->dynamicSmemBytes;
    l->body = std::move(body);
    for (unsigned i = 0; i < config->numAttrs; i++) {
        l->cooperative |= config->attrs[i].id == cudaLaunchAttributeCooperative && config->attrs[i].val.cooperative;
        l->early |= config->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization
                    && config->attrs[i].val.programmaticStreamSerializationAllowed;
    }
    if (!threads || threads > 1024 || config->blockDim.z > 64 || !blocks || config->gridDim.x > 0x7FFFFFFFu || config->gridDim.y > 65535
        || config->gridDim.z > 65535)
        return returned(cudaErrorInvalidConfiguration);
    auto limit = shared_limit.find(kernel);
    if (l->shared > (size_t)(limit == shared_limit.end() ? 48 << 10 : std::max(limit->second, 48 << 10)))
        return returned(cudaErrorInvalidValue);
    if (l->cooperative) {
        int per_sm = 0;
        occupancy(&per_sm, (int)threads, l->shared);
        if (blocks > (size_t)per_sm * (size_t)machine.sms)
            return returned(cudaErrorCooperativeLaunchTooLarge);
    }
    if (!pass_launch())
        record("the device was lost, as the test asked");
    if (lost())
        return returned(cudaSuccess);
    issue(config->stream, {l, nullptr}, l->early);
    return cudaSuccess;
}

}

using namespace emu;

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *user)
{
    Hold hold(lock);

    return enqueue(s, [fn, user] { fn(user); });
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t s)
{
    Hold hold(lock);

    if (!is_device(to))
        return returned(cudaErrorInvalidValue);
    if (check(s) == cudaSuccess)
        issue(s, {nullptr, [=] { std::memset(to, value, size); }}, false);
    return returned(cudaSuccess);
}

/* Pinned memory is read and written when the copy runs; other host memory is read at once, and written before the call returns. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind, cudaStream_t s)
{
    Hold hold(lock);
    bool to_device = is_device(to), from_device = is_device(from);

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (kind != cudaMemcpyDefault && (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice)
                                      || from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)))
        return returned(cudaErrorInvalidValue);
    if (!from_device && !is_pinned(from, size)) {
        if (s->capture)
            return returned(cudaErrorStreamCaptureUnsupported);
        std::string now(static_cast<const char *>(from), size);
        issue(s, {nullptr, [to, now] { std::memcpy(to, now.data(), now.size()); }}, false);
        return returned(cudaSuccess);
    }
    bool waits = !to_device && !is_pinned(to, size);
    if (waits && s->capture)
        return returned(cudaErrorStreamCaptureUnsupported);
    issue(s, {nullptr, [=] { std::memcpy(to, from, size); }}, false);
    if (waits) {
        count_wait();
        run(s->last, false);
    }
    return returned(cudaSuccess);
}

/* ---- streams and events -------------------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    Hold hold(lock);

    *stream = nullptr;
    if (flags != cudaStreamNonBlocking) /* one that waits for the default stream touches other people's work */
        return returned(cudaErrorInvalidValue);
    if (lost())
        return returned(cudaSuccess);
    if (!pass_allocation())
        return returned(cudaErrorMemoryAllocation);
    *stream = new CUstream_st;
    streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    Hold hold(lock);

    if (!streams.erase(s))
        return returned(cudaErrorInvalidResourceHandle);
    delete s; /* what it was given still runs */
    return returned(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    Hold hold(lock);

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (s->capture)
        return returned(cudaErrorStreamCaptureUnsupported);
    count_wait();
    if (s->last)
        run(s->last, false);
    return returned(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    Hold hold(lock);

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (s->last && !draw(4))
        run(s->last, false);
    return returned(!s->last || s->last->done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaDeviceSynchronize()
{
    Hold hold(lock);

    for (Stream *s : streams)
        if (s->capture) /* it is one of those to wait for */
            return returned(cudaErrorStreamCaptureUnsupported);
    finish_all();
    return returned(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    Hold hold(lock);

    *event = nullptr;
    if (lost())
        return returned(cudaSuccess);
    if (!pass_allocation())
        return returned(cudaErrorMemoryAllocation);
    *event = new CUevent_st;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    Hold hold(lock);

    delete event;
    return returned(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s)
{
    Hold hold(lock);

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    event->capture = s->capture;
    event->captured = s->captured;
    event->node = s->capture ? nullptr : s->last;
    return returned(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned)
{
    Hold hold(lock);

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (event->capture) {
        if (s->capture && s->capture != event->capture)
            return returned(cudaErrorStreamCaptureInvalidated);
        s->capture = event->capture; /* it takes part from here */
        s->captured.insert(s->captured.end(), event->captured.begin(), event->captured.end());
        return returned(cudaSuccess);
    }
    if (s->capture)
        return returned(event->node && !event->node->done ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
    if (event->node && !event->node->done) {
        issue(s, {}, false);
        s->last->after.push_back(event->node);
    }
    return returned(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    Hold hold(lock);

    count_wait();
    if (event->node)
        run(event->node, false);
    return returned(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    Hold hold(lock);

    if (event->node && !draw(4))
        run(event->node, false);
    return returned(!event->node || event->node->done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t)
{
    *ms = 1; /* there is no time here */
    return returned(cudaSuccess);
}

/* ---- graphs --------------------------------------------------------------------------------------------------------------------- */

namespace emu {
static long captures_left;

void fail_capture(long n) { captures_left = n; }
static bool spoiled() { return captures_left > 0 && --captures_left == 0; }
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode)
{
    std::swap(*mode, bound_by);
    return returned(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    Hold hold(lock);

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (s->capture || spoiled())
        return returned(cudaErrorStreamCaptureInvalidated);
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->thread = std::this_thread::get_id();
    s->captured.clear();
    return returned(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    Hold hold(lock);

    *graph = nullptr;
    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (!s->capture || s->capture->origin != s)
        return returned(cudaErrorStreamCaptureInvalidated);
    auto capture = s->capture;
    std::vector<size_t> stack = s->captured;
    std::set<size_t> joined;
    while (!stack.empty()) {
        size_t i = stack.back();
        stack.pop_back();
        if (joined.insert(i).second)
            stack.insert(stack.end(), capture->graph.nodes[i].after.begin(), capture->graph.nodes[i].after.end());
    }
    for (Stream *other : streams)
        if (other->capture == capture) {
            other->capture = nullptr;
            other->captured.clear();
        }
    if (spoiled() || capture->spoiled)
        return returned(cudaErrorStreamCaptureInvalidated);
    if (joined.size() != capture->graph.nodes.size())
        return returned(cudaErrorStreamCaptureUnjoined);
    if (lost())
        return returned(cudaSuccess);
    *graph = new CUgraph_st;
    (*graph)->nodes = std::move(capture->graph.nodes);
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    Hold hold(lock);

    *exec = nullptr;
    if (lost())
        return returned(cudaSuccess);
    if (!pass_allocation())
        return returned(cudaErrorMemoryAllocation);
    *exec = new CUgraphExec_st;
    (*exec)->graph = *graph;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t s)
{
    Hold hold(lock);

    return check(s);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    Hold hold(lock);
    std::vector<std::shared_ptr<Node>> nodes;

    if (check(s) != cudaSuccess)
        return returned(cudaSuccess);
    if (s->capture)
        return returned(cudaErrorStreamCaptureUnsupported);
    issue(s, {}, false); /* what roots are behind: the stream, and this graph's launch before */
    auto root = s->last;
    if (exec->last && !exec->last->done)
        root->after.push_back(exec->last);
    auto end = std::make_shared<Node>();
    for (const GraphNode &g : exec->graph.nodes) {
        auto n = std::make_shared<Node>();
        n->work = g.work;
        n->after.push_back(root);
        for (size_t i : g.after)
            n->after.push_back(nodes[i]);
        if (g.work.launch && g.work.launch->early && g.after.size() == 1 && nodes[g.after[0]]->work.launch)
            nodes[g.after[0]]->early_follower = n;
        pending.push_back(n);
        nodes.push_back(n);
        end->after.push_back(n);
    }
    end->after.push_back(root);
    pending.push_back(end);
    s->last = exec->last = end;
    return returned(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    Hold hold(lock);

    delete exec; /* launches that are pending have what they need */
    return returned(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    Hold hold(lock);

    delete graph;
    return returned(cudaSuccess);
}

/* ---- devices -------------------------------------------------------------------------------------------------------------------- */

cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return returned(cudaSuccess); }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; return returned(cudaSuccess); }
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return returned(cudaSuccess); }
cudaError_t cudaGetDevice(int *device) { *device = 0; return returned(cudaSuccess); }
cudaError_t cudaSetDevice(int device) { return returned(device ? cudaErrorInvalidDevice : cudaSuccess); }

cudaError_t emu::func_attributes(cudaFuncAttributes *attr, const void *)
{
    *attr = {};
    return returned(machine.has_code ? cudaSuccess : cudaErrorNoKernelImageForDevice);
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device)
{
    if (device)
        return returned(cudaErrorInvalidDevice);
    switch (attr) {
    case cudaDevAttrMultiProcessorCount: *value = machine.sms; break;
    case cudaDevAttrComputeCapabilityMajor: *value = machine.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = machine.minor; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_optin(); break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    }
    return returned(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    if (device)
        return returned(cudaErrorInvalidDevice);
    *p = cudaDeviceProp{};
    snprintf(p->name, sizeof p->name, "emulated sm_%d%d", machine.major, machine.minor);
    p->major = machine.major;
    p->minor = machine.minor;
    p->multiProcessorCount = machine.sms;
    p->l2CacheSize = 50 << 20;
    p->totalGlobalMem = machine.memory;
    p->sharedMemPerBlockOptin = (size_t)shared_optin();
    return returned(cudaSuccess);
}
