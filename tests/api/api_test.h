/* What the API tests share: checks with the library's error text, golden fixtures, a model with a made-up tokenizer.
 * SPDX-License-Identifier: MIT */
#ifndef API_TEST_H
#define API_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dsv2.h"

/* Built with a sanitizer, which has a heap and memory of its own? */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

/* ThreadSanitizer is slow, and sees nothing where there is one thread. */
#ifdef __SANITIZE_THREAD__
#define SKIP_WITHOUT_THREADS() skip()
#else
#define SKIP_WITHOUT_THREADS() (void)0
#endif

/* Fail unless the call gives the status; text, where not NULL, must occur in the error text. */
void expect_at(dsv2_status got, dsv2_status wanted, const char *text, const char *call, const char *file, int line);
#define must(call) expect_at(call, DSV2_OK, NULL, #call, __FILE__, __LINE__)
#define expect(call, status, text) expect_at(call, status, text, #call, __FILE__, __LINE__)

dsv2_chat_message say(const char *role, const char *content);

/* Numbers from a seed, the same everywhere. */
uint32_t random_u32(uint64_t *state);
double random_unit(uint64_t *state); /* [0, 1) */

/* tests/golden/NAME; one static buffer. */
const char *golden(const char *name);

/* Context parameters with n_threads, at the instruction set that the environment's DSV2_TEST_CPU asks for. */
dsv2_context_params context_params(int32_t n_threads);
dsv2_context *open_context(int32_t n_threads);
dsv2_model *open_model(dsv2_context *ctx, const char *golden_name);
dsv2_session *open_session(dsv2_model *model, int32_t n_ctx, int32_t kv_type, int32_t attention, int32_t n_batch);
const float *logits_of(const dsv2_session *s); /* of the last token; fails the test if there are none */

/* expected.json and expected.bin of a golden checkpoint (tests/golden/README.md). */
struct cJSON;
struct fixture {
    struct cJSON *root;
    char *data;
    size_t n_data;
    int32_t *ids, *positions;
    size_t n_ids, n_positions, n_vocab;
    const double *logits; /* (n_positions, n_vocab) float64 truth */
};
void fixture_open(struct fixture *f, const char *golden_name);
void fixture_close(struct fixture *f);
int fixture_has(const struct fixture *f, const char *array);
const void *fixture_array(const struct fixture *f, const char *array, const char *dtype, size_t count);
double fixture_number(const struct fixture *f, const char *key);

/* Whole file with a NUL behind it; malloc. */
char *read_file(const char *path, size_t *n);

/* A checkpoint's files in memory, and a reader over them that takes no memory itself. */
struct files {
    int n;
    struct {
        const char *name;
        char *data;
        size_t size;
    } file[8];
    long calls, fail_at; /* the fail_at-th call of the reader fails; 0: none */
};
void files_add(struct files *f, const char *name, char *data, size_t size); /* takes data over */
void files_add_golden(struct files *f, const char *golden_name, const char *name);
void files_replace(struct files *f, const char *name, const char *from, const char *to); /* the first from in a text file */
void files_free(struct files *f);
dsv2_reader files_reader(struct files *f);

/* A byte-level tokenizer for vocabularies of 100 and more: printable ASCII (ids 0..94 are bytes 0x20..0x7E, space written as U+0120), merges
 * "t h" (95) and "th e" (96), added special tokens "<s>" (97) and "</s>" (98); ids from 99 on are padding. */
const char *tiny_tokenizer(void);
extern const char tiny_tokenizer_config[]; /* with the chat template of V2 */
/* "v2" with the tiny tokenizer: bos 97, eos 98 and 96, temperature 0.3, top_p 0.95. */
void tiny_files(struct files *f);
dsv2_status load_files(dsv2_context *ctx, struct files *f, dsv2_model **model);
dsv2_status load_tiny(dsv2_context *ctx, dsv2_model **model);

#endif
