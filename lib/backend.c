/* The CPU backend is part of the library.  The CUDA backend is, where it was linked in; else it is libdsv2-cuda.so, which is looked for only
 * when someone asks for it, so that one build of the library serves machines with and without CUDA.
 * SPDX-License-Identifier: MIT */
#include "backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cuda/module.h"

#define MODULE "libdsv2-cuda.so"
#define REASON (PATH_MAX + 240)

#pragma weak dsv2i_cuda_open
#pragma weak dsv2i_cuda_build
#pragma weak dsv2i_cuda_devices

struct module {
    const char *(*build)(void);
    int (*open)(const struct dsv2i_hooks *hooks, const struct dsv2i_cuda_options *options, struct dsv2i_backend **out, const char **why);
    int (*devices)(const char **why);
};

/* Where the module is looked for: beside the file that this code is in, be it this library or a program.  Neither a program's argv[0] nor a
 * name that the loader would look for in its path counts.  0, or -1 if that file is not known. */
static int beside_this(char *path, size_t size)
{
    char self[PATH_MAX];
    struct link_map *map = NULL;
    Dl_info info;
    ssize_t n = 0;
    char *slash;

    if (dladdr1((const void *)beside_this, &info, (void **)&map, RTLD_DL_LINKMAP) && map)
        n = map->l_name[0] ? snprintf(self, sizeof self, "%s", map->l_name) : readlink("/proc/self/exe", self, sizeof self);
    if (n <= 0 || (size_t)n >= sizeof self)
        return -1;
    self[n] = 0;
    slash = strrchr(self, '/');
    return slash && snprintf(path, size, "%.*s" MODULE, (int)(slash + 1 - self), self) < (int)size ? 0 : -1;
}

/* A function of the module; ISO C has no conversion from void *. */
static void find(void *handle, const char *name, void *function)
{
    void *at = dlsym(handle, name);

    memcpy(function, &at, sizeof at);
}

/* 0, or -1 with a reason.  A module stays loaded: the CUDA runtime in it does not go away cleanly. */
static int load_module(const char *path, struct module *m, char *reason)
{
    char beside[PATH_MAX];
    void *handle;

    if (dsv2i_cuda_open) {
        *m = (struct module){dsv2i_cuda_build, dsv2i_cuda_open, dsv2i_cuda_devices};
        return 0;
    }
    if (!path) {
        if (beside_this(beside, sizeof beside)) {
            snprintf(reason, REASON, "%s: the folder of this library is not known; give cuda_module", MODULE);
            return -1;
        }
        path = beside;
    }
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) {
        const char *text = dlerror();

        snprintf(reason, REASON, "%s", text ? text : path);
        return -1;
    }
    find(handle, "dsv2i_cuda_build", &m->build);
    find(handle, "dsv2i_cuda_open", &m->open);
    find(handle, "dsv2i_cuda_devices", &m->devices);
    if (!m->build || !m->open || !m->devices) {
        snprintf(reason, REASON, "%s: is no CUDA module of libdsv2", path);
    } else if (strcmp(m->build(), DSV2I_BUILD) != 0) {
        snprintf(reason, REASON, "%s: belongs to another build of libdsv2: %s, this is %s", path, m->build(), DSV2I_BUILD);
    } else {
        dlclose(handle);
        return 0;
    }
    dlclose(handle);
    return -1;
}

static dsv2_status open_cuda(const struct dsv2i_hooks *mem, const dsv2_context_params *p, struct dsv2i_backend **out)
{
    struct dsv2i_cuda_options options = {.device = p->device, .invariant = p->invariant, .stream = p->cuda_stream};
    char reason[REASON];
    const char *why = "";
    struct module m;

    if (load_module(p->cuda_module, &m, reason))
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "dsv2_context_params: backend: CUDA: %s", reason);
    if (m.open(mem, &options, out, &why))
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "dsv2_context_params: backend: CUDA: device %d: %s", p->device, why);
    return DSV2_OK;
}

static dsv2_status open_cpu(const struct dsv2i_hooks *mem, const dsv2_context_params *p, struct dsv2i_backend **out)
{
    switch (dsv2i_cpu_open(mem, p->cpu_level, p->n_threads, out)) {
    case 0: return DSV2_OK;
    case -2:
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "dsv2_context_params: cpu_level: this machine lacks level %d", p->cpu_level);
    default: return dsv2i_fail(DSV2_ERR_NOMEM, "context: no memory or no threads (n_threads %d)", p->n_threads);
    }
}

dsv2_status dsv2i_backend_open(const struct dsv2i_hooks *mem, const dsv2_context_params *params, struct dsv2i_backend **out)
{
    return params->backend == DSV2_BACKEND_CUDA ? open_cuda(mem, params, out) : open_cpu(mem, params, out);
}

dsv2_backend_info dsv2i_backend_describe(const char *cuda_module, int32_t i)
{
    dsv2_backend_info info = {.struct_size = sizeof info, .backend = i, .available = 1, .n_devices = 1, .name = "cpu"};
    const char *why = "there is no device";
    char reason[REASON];
    struct module m;

    if (i == DSV2_BACKEND_CPU)
        return info;
    strcpy(info.name, "cuda");
    info.n_devices = 0;
    if (load_module(cuda_module, &m, reason))
        why = reason;
    else
        info.n_devices = m.devices(&why);
    info.available = info.n_devices > 0;
    if (!info.available)
        snprintf(info.reason, sizeof info.reason, "%.*s", (int)sizeof info.reason - 1, why);
    return info;
}
