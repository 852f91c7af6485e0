/* The CUDA backend as a module: found at a path, of the same build, or a reason why not.
 *   check_module MODULE OTHER-BUILD CHECKPOINT
 * SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "dsv2.h"

static int failed, count;

static void expect(int ok, const char *what)
{
    printf("%s %d - %s\n", ok ? "ok" : "not ok", ++count, what);
    if (!ok)
        printf("# %s\n", dsv2_last_error());
    failed += !ok;
}

/* A context with the module at path: its status. */
static dsv2_status open_at(const char *path, dsv2_context **ctx)
{
    dsv2_context_params p;

    dsv2_context_params_init(&p, sizeof p);
    p.backend = DSV2_BACKEND_CUDA;
    p.cuda_module = path;
    return dsv2_context_create(&p, ctx);
}

/* Is there the reason, with text in it? */
static int refused(const char *path, const char *text)
{
    dsv2_backend_info info[2];
    dsv2_context *ctx;
    size_t n;

    if (dsv2_backend_list(path, info, sizeof *info, 2, &n) != DSV2_OK || info[1].available || !strstr(info[1].reason, text))
        return 0;
    return open_at(path, &ctx) == DSV2_ERR_UNSUPPORTED && !ctx && strstr(dsv2_last_error(), text);
}

int main(int argc, char **argv)
{
    static const int32_t ids[] = {3, 1, 4, 1, 5};
    dsv2_backend_info info[2];
    dsv2_context *ctx = NULL;
    dsv2_model *model = NULL;
    dsv2_session *s = NULL;
    const float *logits = NULL;
    size_t n = 0;

    if (argc != 4)
        return 2;
    expect(refused(NULL, "libdsv2-cuda.so"), "none beside the library");
    expect(refused("/nowhere/module.so", "/nowhere/module.so"), "none at the path");
    expect(refused(argv[2], "another build"), "one of another build");
    expect(refused(argv[3], argv[3]), "a file that is no module");
    expect(dsv2_backend_list(argv[1], info, sizeof *info, 2, &n) == DSV2_OK && n == 2, "list");
    expect(info[0].available && strcmp(info[0].name, "cpu") == 0, "the CPU");
    expect(info[1].available && strcmp(info[1].name, "cuda") == 0 && info[1].n_devices == 1 && !info[1].reason[0], "the module");
    expect(open_at(argv[1], &ctx) == DSV2_OK, "context");
    expect(dsv2_model_load(ctx, argv[3], NULL, &model) == DSV2_OK, "model");
    expect(dsv2_session_create(model, NULL, &s) == DSV2_OK, "session");
    expect(dsv2_session_prefill(s, ids, 5) == DSV2_OK, "prefill");
    expect(dsv2_session_logits(s, &logits, &n) == DSV2_OK && logits[0] == logits[0], "logits");
    dsv2_session_free(s);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    printf("1..%d\n", count);
    return failed != 0;
}
