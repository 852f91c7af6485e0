/* config.json with its quantization_config, then generation_config.json behind a 0xFF byte.
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "config.h"
#include "fuzz.h"

static void check(const struct dsv2i_config *config, const char *text, size_t n)
{
    static struct dsv2i_config copy;
    struct dsv2i_generation generation;
    uint64_t total, active;
    dsv2_status status;

    MUST(config->shape.qk_rope_head_dim <= DSV2I_MAX_ROPE_DIM);
    for (int32_t i = 0; i < config->shape.qk_rope_head_dim / 2; i++)
        MUST(isfinite(config->inv_freq[i]));
    MUST(isfinite(config->shape.softmax_scale));
    dsv2i_config_parameters(config, &total, &active);
    MUST(active <= total);
    dsv2i_config_copy(&copy, config);
    MUST(copy.shape.inv_freq == copy.inv_freq);
    do
        status = dsv2i_generation_parse("generation_config.json", text, n, config, &generation);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    if (status == DSV2_OK) {
        MUST(generation.n_eos <= 2 * DSV2I_MAX_EOS);
        MUST(generation.temperature >= 0 && generation.top_p > 0 && generation.top_p <= 1);
    } else {
        MUST(strstr(dsv2_last_error(), "generation_config.json"));
    }
}

static void check_quantization(const char *text, size_t n)
{
    struct dsv2i_quantization q;
    dsv2_status status;

    for (;;) {
        status = fuzz_check_regex(dsv2i_quantization_parse(&fuzz_mem, "config.json", text, n, &q));
        if (status != DSV2_ERR_NOMEM)
            break;
        dsv2i_quantization_free(&q);
    }
    if (status == DSV2_OK) {
        MUST(q.scales >= DSV2I_SCALES_NONE && q.scales <= DSV2I_SCALES_BLOCK);
        MUST(!q.scales == !q.scale_name && (q.scales || !q.n_ignored));
        do
            status = dsv2i_quantization_check(&q, "config.json", "model.layers.11.self_attn.kv_b_proj");
        while (fuzz_check_regex(status) == DSV2_ERR_NOMEM);
    }
    MUST(status == DSV2_OK || strstr(dsv2_last_error(), "config.json"));
    dsv2i_quantization_free(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct dsv2i_config config;
    const char *text;
    dsv2_status status;
    size_t n;

    fuzz_begin(data, &size);
    text = fuzz_piece(&data, &size, &n);
    do
        status = dsv2i_config_parse("config.json", text, n, &config);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    if (status == DSV2_OK)
        check(&config, (const char *)data, size);
    else
        MUST(strstr(dsv2_last_error(), "config.json"));
    check_quantization(text, n);
    fuzz_end();
    return 0;
}
