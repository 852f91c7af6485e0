/* The token that the C library's sampler chooses from each row of logits, and its log-probability: spec section 7, lib/sampler.c.
 *
 * Every comparison that decides is one of sampling.h's numbers, with the same bits as on the CPU, or of integer sums, which depend on no
 * order.  What only makes this fast (bins, bounds on a race) never decides.
 *
 *   look   a block for 4,096 logits: edits them if the row has any (to a copy), looks for the greatest, sums exp.  The row's last block
 *          puts these together; a greedy row ends here.
 *   count  a histogram over the row of how many logits stand in each bin below the greatest, and of their masses.
 *   limit  a block for a row: top_k's and top_p's borders.  The histogram says in which bin; a border's bin is listed, few logits of many,
 *          and searched by radix, eleven bits at a time.  A bin with more than the list holds (equal logits) is searched in the row itself.
 *   race   who of those above the border wins.  A logit whose luck cannot make it the winner, which the leading ones of its random word
 *          tell, costs no logarithm.
 *
 * Bound: latency at few rows: four launches, each a few dependent trips to the L2 cache, and limit's one block, which takes 400 KB of
 * logits once for each border.  At many rows: reading a row from the L2 cache or memory up to five times, and race's Philox, 25
 * instructions a logit.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "../sampling.h"
#include "warp.cuh"

typedef unsigned long long u64; /* as atomicAdd has it */

static const int chunk = 4096, threads = 256, held = chunk / threads / 4; /* logits of a block at a time; groups of 4 of a thread */
static const int bins = 2048, limit_threads = 512, own = bins / limit_threads, listed = 3072; /* own: bins of a thread of limit's */
static const float infinity = __builtin_inff();

/* What the kernels of a call tell each other of a row. */
struct sample_row {
    double log_sum;      /* of exp of the raw logits */
    float max;           /* of the edited ones */
    int done;            /* nothing is left to do */
    unsigned border;     /* dsv2i_order of the least logit that may win, and the greatest id that may with that one */
    int border_id;
    unsigned looked, raced; /* blocks that have; 0 between calls */
};

struct sample_chunk {
    double sum;          /* of exp(raw - max) */
    float max;           /* of the raw logits */
    int bad;             /* a NaN or +infinity */
    u64 best;            /* of the edited ones, by best_of */
};

struct sample_racer {
    double score;
    int id;
};

/* A row's scratch. */
struct sample_scratch {
    sample_row *row;
    sample_chunk *chunks;
    sample_racer *racers; /* of each block; at most as many as chunks */
    u64 *mass;            /* (bins) */
    unsigned *count;      /* (bins) */
    float *edited;        /* (vocab) */
};

static __host__ __device__ size_t round_up(size_t n) { return (n + 15) / 16 * 16; }

static __host__ __device__ size_t row_bytes(int vocab, sample_scratch *out, char *at)
{
    size_t chunks = (size_t)(vocab + chunk - 1) / chunk, n = round_up(sizeof(sample_row));

    out->row = (sample_row *)at;
    out->chunks = (sample_chunk *)(at + n);
    n += round_up(chunks * sizeof(sample_chunk));
    out->racers = (sample_racer *)(at + n);
    n += round_up(chunks * sizeof(sample_racer));
    out->mass = (u64 *)(at + n);
    out->count = (unsigned *)(out->mass + bins);
    n += bins * (sizeof(u64) + sizeof(unsigned));
    out->edited = (float *)(at + n);
    return n + round_up((size_t)vocab * sizeof(float));
}

/* What a launch is for. */
struct sample_call {
    const int32_t *n_rows;
    const dsv2i_sampling *how;
    int32_t *token;
    float *logprob;
    const float *logits;
    int ld, vocab;
    const uint32_t *is_token;
    char *scratch;

    __device__ sample_scratch of(int row) const
    {
        sample_scratch s;
        size_t bytes = row_bytes(vocab, &s, scratch);

        row_bytes(vocab, &s, scratch + (size_t)row * bytes);
        return s;
    }
};

static __device__ __forceinline__ bool is_edited(const dsv2i_sampling *how)
{
    return how->n_banned || how->n_bias || how->n_seen;
}

/* The four logits from 4 group on; -infinity past the last. */
static __device__ __forceinline__ float4 read_four(const float *logits, int group, int vocab)
{
    float4 l = {-infinity, -infinity, -infinity, -infinity};

    if (4 * group + 4 <= vocab)
        return *(const float4 *)(logits + 4 * group);
    if (4 * group < vocab)
        l.x = logits[4 * group];
    if (4 * group + 1 < vocab)
        l.y = logits[4 * group + 1];
    if (4 * group + 2 < vocab)
        l.z = logits[4 * group + 2];
    return l;
}

/* The same with -infinity for ids that are no tokens: none of them is chosen, or counts. */
static __device__ __forceinline__ float4 read_tokens(const float *logits, int group, int vocab, const uint32_t *is_token)
{
    float4 l = read_four(logits, group, vocab);
    unsigned bits = is_token && 4 * group < vocab ? is_token[group / 8] >> group % 8 * 4 : 15;

    l.x = bits & 1 ? l.x : -infinity;
    l.y = bits & 2 ? l.y : -infinity;
    l.z = bits & 4 ? l.z : -infinity;
    l.w = bits & 8 ? l.w : -infinity;
    return l;
}

static __device__ __forceinline__ float part(const float4 &l, int i)
{
    return i == 0 ? l.x : i == 1 ? l.y : i == 2 ? l.z : l.w;
}

/* Greater for a greater logit, or an equal one of lower id. */
static __device__ __forceinline__ u64 best_of(float logit, int id)
{
    return (u64)dsv2i_order(logit) << 32 | ~(unsigned)id;
}

/* The inverse of dsv2i_order. */
static __device__ __forceinline__ float logit_of(unsigned order)
{
    return __uint_as_float(order >> 31 ? order & 0x7FFFFFFFu : ~order);
}

static __device__ __forceinline__ bool is_bad(float l) { return !(l < infinity); }

/* ---- look */

/* The edits to this block's logits from begin to end, in place. */
static __device__ void edit(float *logits, const dsv2i_sampling *how, int begin, int end)
{
    for (int i = (int)threadIdx.x; i < how->n_banned; i += threads)
        if (how->banned[i] >= begin && how->banned[i] < end)
            logits[how->banned[i]] = -infinity;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < how->n_bias; i += threads) {
        int token = how->bias[i].token;

        if (token < begin || token >= end || (i > 0 && how->bias[i - 1].token == token))
            continue;
        for (int j = i; j < how->n_bias && how->bias[j].token == token; j++)
            logits[token] = dsv2i_biased(logits[token], how->bias[j].bias);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < how->n_seen; i += threads) {
        int token = how->seen[i].token;

        if (token >= begin && token < end)
            logits[token] = dsv2i_penalized(logits[token], how->seen[i].count, how->repetition_penalty, how->presence_penalty,
                                            how->frequency_penalty);
    }
    __syncthreads();
}

template <class T> static __device__ __forceinline__ T block_max(T x, T least, T *parts)
{
    int lane = (int)threadIdx.x % 32;

    x = dsv2i_warp_max(x);
    __syncthreads();
    if (lane == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    return dsv2i_warp_max(lane < (int)blockDim.x / 32 ? parts[lane] : least);
}

static __device__ __forceinline__ double block_sum(double x, double *parts)
{
    int lane = (int)threadIdx.x % 32;

    x = dsv2i_warp_sum(x);
    __syncthreads();
    if (lane == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    return dsv2i_warp_sum(lane < (int)blockDim.x / 32 ? parts[lane] : 0.0);
}

/* Is this the last of the row's blocks to come here?  What the others wrote before can then be read. */
static __device__ bool is_last(unsigned *came, unsigned of, int *shared)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared = atomicAdd(came, 1u) == of - 1;
        if (*shared)
            *came = 0;
        __threadfence();
    }
    __syncthreads();
    return *shared;
}

/* What a row ends with: token -1 where there is none to choose. */
static __device__ void finish(const sample_call &call, int row, int id, double log_sum)
{
    call.token[row] = id;
    call.logprob[row] = id < 0 ? __builtin_nanf("") : (float)((double)call.logits[(size_t)row * (size_t)call.ld + (size_t)id] - log_sum);
}

/* The first warp, from all chunks. */
static __device__ void put_together(const sample_call &call, int row, const sample_scratch &s)
{
    int lane = (int)threadIdx.x, chunks = (call.vocab + chunk - 1) / chunk, bad = 0;
    const volatile sample_chunk *c = s.chunks;
    float max = -infinity;
    double sum = 0, log_sum;
    u64 best = 0;

    for (int i = lane; i < chunks; i += 32) {
        float m = c[i].max;
        u64 b = c[i].best;

        max = m > max ? m : max;
        best = b > best ? b : best;
        bad |= c[i].bad;
    }
    max = dsv2i_warp_max(max);
    best = dsv2i_warp_max(best);
    bad = __any_sync(DSV2I_ALL_LANES, bad);
    for (int i = lane; i < chunks; i += 32)
        if (c[i].max > -infinity)
            sum += c[i].sum * exp((double)c[i].max - (double)max);
    sum = dsv2i_warp_sum(sum);
    if (lane)
        return;
    log_sum = (double)max + log(sum);
    bad |= best >> 32 <= dsv2i_order(-infinity);
    s.row->log_sum = log_sum;
    s.row->max = logit_of((unsigned)(best >> 32));
    s.row->done = bad || call.how[row].greedy;
    if (s.row->done)
        finish(call, row, bad ? -1 : (int)~(unsigned)best, log_sum);
}

static __global__ void __launch_bounds__(threads) look_kernel(sample_call call)
{
    const int row = (int)blockIdx.y, at = (int)blockIdx.x, first = at * (chunk / 4), end = min(call.vocab, (at + 1) * chunk);
    double *parts = (double *)dsv2i_shared();
    int bad = 0;
    float4 l[held];
    u64 best = 0;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= *call.n_rows)
        return;
    const float *logits = call.logits + (size_t)row * (size_t)call.ld;
    const dsv2i_sampling *how = &call.how[row];
    sample_scratch s = call.of(row);
    float max = -infinity;
    double sum = 0;

    for (int i = at * threads + (int)threadIdx.x; i < bins; i += (int)gridDim.x * threads) {
        s.mass[i] = 0;
        s.count[i] = 0;
    }
#pragma unroll
    for (int j = 0; j < held; j++)
        l[j] = read_four(logits, first + j * threads + (int)threadIdx.x, call.vocab);
#pragma unroll
    for (int j = 0; j < held; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bad |= is_bad(part(l[j], i));
            max = part(l[j], i) > max ? part(l[j], i) : max;
        }
    max = block_max(max, -infinity, (float *)parts);
#pragma unroll
    for (int j = 0; j < held; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum += part(l[j], i) > -infinity ? (double)expf(part(l[j], i) - max) : 0.0;
    sum = block_sum(sum, parts + 32);

    if (is_edited(how)) {
        for (int i = 4 * first + (int)threadIdx.x; i < end; i += threads)
            s.edited[i] = logits[i];
        __syncthreads();
        edit(s.edited, how, 4 * first, end);
        logits = s.edited;
        for (int i = 4 * first + (int)threadIdx.x; i < end; i += threads)
            bad |= is_bad(logits[i]);
    }
#pragma unroll
    for (int j = 0; j < held; j++) {
        int group = first + j * threads + (int)threadIdx.x;

        l[j] = read_tokens(logits, group, call.vocab, call.is_token);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u64 b = 4 * group + i < call.vocab ? best_of(part(l[j], i), 4 * group + i) : 0;
            best = b > best ? b : best;
        }
    }
    best = block_max(best, (u64)0, (u64 *)parts + 64);
    bad = block_max(bad, 0, (int *)(parts + 96));
    if (threadIdx.x == 0)
        s.chunks[at] = {sum, max, bad, best};
    if (is_last(&s.row->looked, gridDim.x, (int *)(parts + 128)) && threadIdx.x < 32)
        put_together(call, row, s);
}

/* ---- count */

/* Which bin a logit is in: finer nearer to the greatest.  Logits in a lower bin are greater. */
static __device__ __forceinline__ int bin_of(float logit, float max)
{
    unsigned below = (__float_as_uint(1 + (max - logit)) - __float_as_uint(1.0f)) >> 16;

    return below < bins ? (int)below : bins - 1;
}

/* A row that is to be drawn from. */
struct sample_drawn {
    const float *logits;
    const uint32_t *is_token;
    int vocab;
    float max;
    double per_temperature, lowest;

    __device__ sample_drawn(const sample_call &call, int row, const sample_scratch &s)
        : logits(is_edited(&call.how[row]) ? s.edited : call.logits + (size_t)row * (size_t)call.ld), is_token(call.is_token),
          vocab(call.vocab), max(s.row->max), per_temperature(call.how[row].per_temperature), lowest(call.how[row].lowest)
    {
    }
    __device__ double x(float logit) const { return dsv2i_x(logit, max, per_temperature); }
    __device__ bool open(float logit) const { return logit > -infinity && x(logit) >= lowest; }

    /* each(four logits, their group) for groups first, first + step and so on, of which a few are under way at a time. */
    template <class F> __device__ void walk_groups(int first, int step, F each) const
    {
        const int groups = (vocab + 3) / 4;

        for (; first < groups; first += held * step) {
            float4 l[held];

#pragma unroll
            for (int j = 0; j < held; j++)
                l[j] = read_tokens(logits, first + j * step, vocab, is_token);
#pragma unroll
            for (int j = 0; j < held; j++)
                if (first + j * step < groups)
                    each(l[j], first + j * step);
        }
    }
    /* each(logit, id). */
    template <class F> __device__ void walk(int first, int step, F each) const
    {
        walk_groups(first, step, [&](const float4 &l, int group) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                each(part(l, i), 4 * group + i);
        });
    }
};

static __device__ __forceinline__ bool has_limits(const dsv2i_sampling *how)
{
    return how->top_k > 0 || how->top_p < 1;
}

static __constant__ double constant_roots[16] = DSV2I_ROOTS; /* to be copied, as lanes read different ones */

static __device__ void load_roots(double *roots)
{
    if (threadIdx.x < 16)
        roots[threadIdx.x] = constant_roots[threadIdx.x];
}

static __global__ void __launch_bounds__(threads) count_kernel(sample_call call)
{
    const int row = (int)blockIdx.y;
    double *roots = (double *)dsv2i_shared();
    u64 *mass = (u64 *)(roots + 16);
    unsigned *count = (unsigned *)(mass + bins);

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= *call.n_rows)
        return;
    const dsv2i_sampling *how = &call.how[row];
    sample_scratch s = call.of(row);
    if (s.row->done || !has_limits(how))
        return;
    const sample_drawn from(call, row, s);
    const bool by_count = how->top_k > 0, by_mass = how->top_p < 1;

    load_roots(roots);
    for (int i = (int)threadIdx.x; i < bins; i += threads) {
        mass[i] = 0;
        count[i] = 0;
    }
    __syncthreads();
    from.walk((int)(blockIdx.x * threads + threadIdx.x), (int)gridDim.x * threads, [&](float l, int) {
        if (!from.open(l))
            return;
        int bin = bin_of(l, from.max);
        u64 m = by_mass ? dsv2i_mass(from.x(l), roots) : 0;

        if (by_count)
            atomicAdd(&count[bin], 1u);
        if (m)
            atomicAdd(&mass[bin], m);
    });
    __syncthreads();
    for (int i = (int)threadIdx.x; i < bins; i += threads) {
        if (count[i])
            atomicAdd(&s.count[i], count[i]);
        if (mass[i])
            atomicAdd(&s.mass[i], mass[i]);
    }
}

/* ---- limit */

struct limit_shared {
    u64 bucket[bins];
    float logit[listed];
    int id[listed];
    double roots[16];
    u64 warp[32];
    u64 above, sum;
    int found, n; /* n: listed, if not too many */
};

/* Each thread gives its own of a histogram's bins: where, counted from the first, do they reach target >= 1?  -1 if nowhere; else
 * sh->above is what stands before it. */
static __device__ int find(limit_shared *sh, const u64 (&in)[own], u64 target)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    u64 mine = 0, until, before = 0;

#pragma unroll
    for (int j = 0; j < own; j++)
        mine += in[j];
    until = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        u64 other = __shfl_up_sync(DSV2I_ALL_LANES, until, (unsigned)d);
        until += lane >= d ? other : 0;
    }
    __syncthreads();
    if (lane == 31)
        sh->warp[warp] = until;
    if (threadIdx.x == 0)
        sh->found = -1;
    __syncthreads();
    for (int w = 0; w < warp; w++)
        before += sh->warp[w];
    before += until - mine;
#pragma unroll
    for (int j = 0; j < own; j++) {
        if (before < target && target <= before + in[j]) {
            sh->found = own * (int)threadIdx.x + j;
            sh->above = before;
        }
        before += in[j];
    }
    __syncthreads();
    return sh->found;
}

static __device__ u64 total(limit_shared *sh, u64 x)
{
    x = dsv2i_warp_sum(x);
    __syncthreads();
    if (threadIdx.x == 0)
        sh->sum = 0;
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        atomicAdd(&sh->sum, x);
    __syncthreads();
    return sh->sum;
}

/* List the logits of a bin. */
static __device__ void gather(limit_shared *sh, const sample_drawn &from, int bin)
{
    volatile int *n = &sh->n;

    __syncthreads();
    if (threadIdx.x == 0)
        sh->n = 0;
    __syncthreads();
    from.walk((int)threadIdx.x, limit_threads, [&](float l, int id) {
        if (bin_of(l, from.max) == bin && *n <= listed && from.open(l)) {
            int at = atomicAdd(&sh->n, 1);

            if (at < listed) {
                sh->logit[at] = l;
                sh->id[at] = id;
            }
        }
    });
    __syncthreads();
}

/* each(logit, id) for all of the bin. */
template <class F> static __device__ void walk_bin(limit_shared *sh, const sample_drawn &from, int bin, F each)
{
    if (sh->n <= listed) {
        for (int i = (int)threadIdx.x; i < sh->n; i += limit_threads)
            each(sh->logit[i], sh->id[i]);
        return;
    }
    for (int id = (int)threadIdx.x; id < from.vocab; id += limit_threads) {
        float l = from.logits[id];

        if (bin_of(l, from.max) == bin && from.open(l) && (!from.is_token || from.is_token[id / 32] >> id % 32 & 1))
            each(l, id);
    }
}

/* The key at which the bin's logits, counted from the greatest key down, reach target: key(logit, id), weight(logit, id), 0 for those
 * to be left out.  sh->above: the sum over those with greater keys. */
template <class K, class W>
static __device__ unsigned border(limit_shared *sh, const sample_drawn &from, int bin, u64 target, K key, W weight)
{
    unsigned prefix = 0, known = 0;
    u64 above = 0;

#pragma unroll 1
    for (int round = 0; round < 3; round++) {
        const int shift = round == 0 ? 21 : round == 1 ? 10 : 0;
        const unsigned mask = round == 2 ? 1023 : 2047;

        for (int i = (int)threadIdx.x; i < bins; i += limit_threads)
            sh->bucket[i] = 0;
        __syncthreads();
        walk_bin(sh, from, bin, [&](float l, int id) {
            unsigned k = key(l, id);

            if ((k & known) == prefix)
                atomicAdd(&sh->bucket[mask - (k >> shift & mask)], (u64)weight(l, id)); /* the greatest first */
        });
        __syncthreads();
        u64 in[own];
#pragma unroll
        for (int j = 0; j < own; j++)
            in[j] = sh->bucket[own * (int)threadIdx.x + j];
        int found = find(sh, in, target - above);
        above += sh->above;
        prefix |= (mask - (unsigned)found) << shift;
        known |= mask << shift;
        __syncthreads();
    }
    if (threadIdx.x == 0)
        sh->above = above;
    __syncthreads();
    return prefix;
}

static __global__ void __launch_bounds__(limit_threads, 2) limit_kernel(sample_call call)
{
    const int row = (int)blockIdx.x, mine = own * (int)threadIdx.x; /* its first bin */
    limit_shared *sh = (limit_shared *)dsv2i_shared();

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= *call.n_rows)
        return;
    const dsv2i_sampling *how = &call.how[row];
    sample_scratch s = call.of(row);
    if (s.row->done)
        return;
    const sample_drawn from(call, row, s);
    auto order = [](float l, int) { return dsv2i_order(l); };
    unsigned least = 0;      /* dsv2i_order of the last that is kept */
    int least_id = 0x7FFFFFFF, bin = -1, listed_bin = -1;
    u64 in[own];

    load_roots(sh->roots);
    __syncthreads();
    if (how->top_k > 0) {
#pragma unroll
        for (int j = 0; j < own; j++)
            in[j] = s.count[mine + j];
        bin = find(sh, in, (u64)how->top_k);
    }
    if (bin >= 0) {
        u64 above = sh->above;

        gather(sh, from, bin);
        listed_bin = bin;
        least = border(sh, from, bin, (u64)how->top_k - above, order, [](float, int) { return 1; });
    }
    if (how->top_p < 1) {
        u64 in_bin = 0, sum = 0;
        auto mass = [&](float l, int) { return dsv2i_order(l) >= least ? dsv2i_mass(from.x(l), sh->roots) : 0; };

        if (bin >= 0) {
            walk_bin(sh, from, bin, [&](float l, int id) { in_bin += mass(l, id); });
            in_bin = total(sh, in_bin);
        }
#pragma unroll
        for (int j = 0; j < own; j++) {
            in[j] = bin < 0 || mine + j < bin ? s.mass[mine + j] : mine + j == bin ? in_bin : 0;
            sum += in[j];
        }

        u64 target = dsv2i_mass_share(how->top_p, total(sh, sum));
        bin = find(sh, in, target);
        target -= sh->above;
        if (bin != listed_bin)
            gather(sh, from, bin);
        least = border(sh, from, bin, target, order, mass);
        target -= sh->above;

        /* Of those that equal the last, as many of the lowest ids as it takes. */
        u64 of_each = 0, equal = 0;
        walk_bin(sh, from, bin, [&](float l, int id) {
            if (dsv2i_order(l) == least) {
                of_each = mass(l, id);
                equal++;
            }
        });
        equal = total(sh, equal);
        __syncthreads();
        if (of_each)
            sh->sum = of_each; /* the same from each */
        __syncthreads();
        u64 kept = (target + sh->sum - 1) / sh->sum;
        if (kept < equal)
            least_id = (int)~border(sh, from, bin, kept, [](float, int id) { return ~(unsigned)id; },
                                    [&](float l, int) { return dsv2i_order(l) == least; });
    }
    if (threadIdx.x == 0) {
        s.row->border = least;
        s.row->border_id = least_id;
    }
}

/* ---- race */

static __device__ __forceinline__ bool wins(double score, int id, double over, int over_id)
{
    return score > over || (score == over && id < over_id);
}

static __device__ __forceinline__ void warp_winner(double *score, int *id)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        double other = __shfl_xor_sync(DSV2I_ALL_LANES, *score, d);
        int other_id = __shfl_xor_sync(DSV2I_ALL_LANES, *id, d);

        if (wins(other, other_id, *score, *id)) {
            *score = other;
            *id = other_id;
        }
    }
}

static __global__ void __launch_bounds__(threads) race_kernel(sample_call call)
{
    const int row = (int)blockIdx.y, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    sample_racer *winners = (sample_racer *)dsv2i_shared(); /* of warps */
    unsigned *lead = (unsigned *)(winners + threads / 32);  /* dsv2i_order of a score that some racer has */
    int *last = (int *)(lead + 1);

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= *call.n_rows)
        return;
    const dsv2i_sampling *how = &call.how[row];
    sample_scratch s = call.of(row);
    if (s.row->done)
        return;
    const sample_drawn from(call, row, s);
    const volatile unsigned *leading = lead;
    const float room = 1e-3f; /* more than fp32 is off in x, where x matters, and in a score */
    unsigned border = s.row->border;
    int border_id = s.row->border_id, id = 0x7FFFFFFF;
    double score = -(double)infinity;
    /* x in fp32, by halves, which cannot overflow; -infinity stays that. */
    const float twice = 2 * (float)from.per_temperature, half_max = 0.5f * from.max;

    if (threadIdx.x == 0)
        *lead = dsv2i_order(DSV2I_LEAST_WINNER);
    __syncthreads();
    from.walk_groups((int)(blockIdx.x * threads + threadIdx.x), (int)gridDim.x * threads, [&](const float4 &l, int group) {
        float must = logit_of(*leading) - room, greatest = -infinity;
        unsigned r[4];

#pragma unroll
        for (int i = 0; i < 4; i++)
            greatest = part(l, i) > greatest ? part(l, i) : greatest;
        if ((0.5f * greatest - half_max) * twice + DSV2I_LUCKIEST < must)
            return;
        dsv2i_random(how->seed, how->pos, group, r);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float logit = part(l, i), luck = DSV2I_LUCK((float)__clz((int)~r[i]));
            unsigned key = dsv2i_order(logit);

            if ((0.5f * logit - half_max) * twice + luck < must || key < border || (key == border && 4 * group + i > border_id)
                || !from.open(logit))
                continue;
            double mine = dsv2i_race(from.x(logit), r[i]);
            if (wins(mine, 4 * group + i, score, id)) {
                score = mine;
                id = 4 * group + i;
                atomicMax(lead, dsv2i_order((float)mine));
            }
        }
    });
    warp_winner(&score, &id);
    if (lane == 0)
        winners[warp] = {score, id};
    __syncthreads();
    if (warp == 0) {
        score = lane < threads / 32 ? winners[lane].score : -(double)infinity;
        id = lane < threads / 32 ? winners[lane].id : 0x7FFFFFFF;
        warp_winner(&score, &id);
        if (lane == 0)
            s.racers[blockIdx.x] = {score, id};
    }
    if (!is_last(&s.row->raced, gridDim.x, last) || warp != 0)
        return;
    score = -(double)infinity;
    id = 0x7FFFFFFF;
    for (int i = lane; i < (int)gridDim.x; i += 32) {
        const volatile sample_racer *racer = &s.racers[i];
        double other = racer->score;
        int other_id = racer->id;

        if (wins(other, other_id, score, id)) {
            score = other;
            id = other_id;
        }
    }
    warp_winner(&score, &id);
    if (lane == 0)
        finish(call, row, id, s.row->log_sum);
}

/* ---- launches */

size_t dsv2i_cuda_sample_scratch(int32_t max_rows, int32_t vocab)
{
    sample_scratch s;

    return (size_t)max_rows * row_bytes(vocab, &s, nullptr);
}

static sample_call call_of(const int32_t *n_rows, int32_t *token, float *logprob, const float *logits, int32_t ld, int32_t vocab,
                           const struct dsv2i_sampling *how, const uint32_t *is_token, void *scratch)
{
    return {n_rows, how, token, logprob, logits, ld, vocab, is_token, (char *)scratch};
}

static cudaError_t look(const dsv2i_cuda_launch *to, const sample_call &call)
{
    dim3 grid((unsigned)(call.vocab + chunk - 1) / chunk, (unsigned)to->max_rows);

    if (call.ld % 4 || call.vocab < 1 || call.vocab > 1 << 24)
        return cudaErrorInvalidValue;
    return dsv2i_launch(to, look_kernel, grid, threads, 129 * sizeof(double), call);
}

cudaError_t dsv2i_cuda_argmax(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, int32_t *token, float *logprob,
                              const float *logits, int32_t ld, int32_t vocab, const struct dsv2i_sampling *how,
                              const uint32_t *is_token, void *scratch)
{
    return look(to, call_of(n_rows, token, logprob, logits, ld, vocab, how, is_token, scratch));
}

cudaError_t dsv2i_cuda_sample(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, int32_t *token, float *logprob,
                              const float *logits, int32_t ld, int32_t vocab, const struct dsv2i_sampling *how,
                              const uint32_t *is_token, void *scratch)
{
    const sample_call call = call_of(n_rows, token, logprob, logits, ld, vocab, how, is_token, scratch);
    int chunks = (vocab + chunk - 1) / chunk, blocks = 4 * to->n_sms / to->max_rows; /* of a row, where they share it as they like */
    cudaError_t e = look(to, call);

    blocks = blocks < 1 ? 1 : blocks > chunks ? chunks : blocks;
    dim3 grid((unsigned)blocks, (unsigned)to->max_rows);
    if (!e)
        e = dsv2i_launch(to, count_kernel, grid, threads, (16 + bins) * sizeof(double) + bins * sizeof(unsigned), call);
    if (!e)
        e = dsv2i_launch(to, limit_kernel, dim3((unsigned)to->max_rows), limit_threads, sizeof(limit_shared), call);
    if (!e)
        e = dsv2i_launch(to, race_kernel, grid, threads, threads / 32 * sizeof(sample_racer) + 2 * sizeof(int), call);
    return e;
}
