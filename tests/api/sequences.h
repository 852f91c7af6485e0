/* What the tests of steps and of pools share: a model in three contexts, sequences of tokens of which some begin alike, and tables of what
 * lone sessions compute for them token by token.
 * SPDX-License-Identifier: MIT */
#ifndef SEQUENCES_H
#define SEQUENCES_H

#include "api_test.h"
#include "session.h"

#define VOCAB 160
#define PAGE DSV2I_PAGE_TOKENS

enum { LENGTH = 300, N_SEQ = 6, N_MODELS = 3, N_TYPES = 3 };

extern dsv2_model *model[N_MODELS]; /* the same, in contexts of 1, 2, 3 threads */
extern const int32_t kv_types[N_TYPES];
extern int32_t seq[N_SEQ][LENGTH];
extern struct reference {
    float logits[N_TYPES][2][N_SEQ][LENGTH][VOCAB]; /* by KV type, form */
    dsv2_token_score score[N_TYPES][2][N_SEQ][LENGTH];
} *ref;

int set_up_sequences(void **state);
int tear_down_sequences(void **state);

static inline uint32_t below(uint64_t *rng, uint32_t n)
{
    return random_u32(rng) % n;
}

/* Tokens that two sequences begin with. */
int common(int a, int b);
int type_of(const dsv2_session *s); /* index into kv_types */
/* Fails unless s holds the first n tokens of sequence q, and has the lone session's logits bit for bit. */
void is_at(const dsv2_session *s, int q, int n);

size_t page_bytes(int32_t kv_type);
/* pages 0: unbounded; cache in pages, too */
dsv2_pool *open_pool(dsv2_model *m, int32_t kv_type, uint64_t pages, uint64_t cache);
dsv2_session *open_in(dsv2_pool *pool, int32_t attention, uint64_t space, int32_t n_batch);
dsv2_session *plain_in(dsv2_pool *pool);
dsv2_session *prompt_in(dsv2_pool *pool, int q, size_t n); /* after n tokens of sequence q */
/* The next n tokens of sequence q, which s is in. */
dsv2_step_member member_of(dsv2_session *s, int q, size_t n);

dsv2_pool_info info_of(dsv2_pool *p);
void check_pool(dsv2_pool *p, uint64_t used, uint64_t cached, uint64_t idle);
/* What is not as lib/pool.c says it is, with these sessions (NULLs among them) as all that the pool has; NULL: nothing. */
const char *broken(dsv2_pool *p, dsv2_session *const *s, int n);

#endif
