/* config.json, then generation_config.json behind a 0xFF byte.
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "config.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct dsv2i_config config, copy;
    struct dsv2i_generation generation;
    size_t n;
    const char *text = fuzz_piece(&data, &size, &n);
    uint64_t total, active;

    if (dsv2i_config_parse("config.json", text, n, &config) != DSV2_OK) {
        MUST(strstr(dsv2_last_error(), "config.json"));
        return 0;
    }
    MUST(config.shape.qk_rope_head_dim <= DSV2I_MAX_ROPE_DIM);
    for (int32_t i = 0; i < config.shape.qk_rope_head_dim / 2; i++)
        MUST(isfinite(config.inv_freq[i]));
    MUST(isfinite(config.shape.softmax_scale));
    dsv2i_config_parameters(&config, &total, &active);
    MUST(active <= total);
    dsv2i_config_copy(&copy, &config);
    MUST(copy.shape.inv_freq == copy.inv_freq);
    if (dsv2i_generation_parse("generation_config.json", (const char *)data, size, &config, &generation) == DSV2_OK) {
        MUST(generation.n_eos <= DSV2I_MAX_EOS);
        MUST(generation.temperature >= 0 && generation.top_p > 0 && generation.top_p <= 1);
    }
    return 0;
}
