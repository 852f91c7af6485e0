/* Which model is it?
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_FINGERPRINT_H
#define DSV2I_FINGERPRINT_H

#include "model.h"

struct dsv2i_fingerprint {
    uint64_t config, tokenizer, weights; /* tokenizer 0: there is none */
};

/* Reads 4 KiB of each tensor the first time.  Any thread. */
struct dsv2i_fingerprint dsv2i_fingerprint(dsv2_model *m);

#endif
