/* Small checkpoints made in memory, to be broken in every way and loaded from a folder or through a reader.
 * SPDX-License-Identifier: MIT */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "dsv2.h"

struct ck_tensor {
    char name[128], dtype[16];
    int rank, shard; /* shard: 1.. in a sharded set */
    int64_t shape[10];
    unsigned char *data;
    size_t bytes;
};

/* A checkpoint before it becomes files. */
struct ck {
    struct ck_key {
        char key[64], value[512];
    } key[64]; /* config.json, in order; "rope_scaling.factor" is a member of an object */
    int n_keys;
    struct ck_tensor tensor[300];
    int n_tensors, n_shards; /* 0 shards: model.safetensors */
    int header_rest;         /* of the header's length divided by 8: 0 aligns the data section */
};

struct ck_file {
    char name[300];
    unsigned char *data;
    size_t size;
};

struct ck_files {
    struct ck_file file[16];
    int n;
};

/* Model A of the spec's golden vectors (89 tensors: query low-rank projection, groups, one dense layer), and B without q_lora. */
void ck_init(struct ck *c, char model);
void ck_free(struct ck *c);
void ck_set(struct ck *c, const char *key, const char *value); /* JSON text; NULL removes the key */
struct ck_tensor *ck_find(struct ck *c, const char *name);
void ck_remove(struct ck *c, const char *name);
struct ck_tensor *ck_add(struct ck *c, const char *name, const char *dtype, int rank, const int64_t *shape);
void ck_retype(struct ck_tensor *t, const char *dtype, int rank, const int64_t *shape); /* new random data */

/* Make every linear layer but the head and the router fp8, as one of the three formats has it. */
enum ck_format { CK_TENSOR /* AutoFP8, static */, CK_ROW /* compressed-tensors, scales in BF16 */, CK_BLOCK, CK_FORMATS };
extern const char *const ck_quantization[CK_FORMATS]; /* its quantization_config */
void ck_quantize(struct ck *c, enum ck_format format);
void ck_set_floats(struct ck_tensor *t, float value); /* of type F32 or BF16; all elements */

/* The files that c stands for. */
void ck_build(const struct ck *c, struct ck_files *out);
void ck_files_free(struct ck_files *f);
struct ck_file *ck_file(struct ck_files *f, const char *name); /* NULL: none */
void ck_put(struct ck_files *f, const char *name, const void *data, size_t n);
void ck_delete(struct ck_files *f, const char *name);
/* A safetensors file of this header and n_data bytes; length < 0: the header's own. */
void ck_put_safetensors(struct ck_files *f, const char *name, const char *header, int64_t length, size_t n_data);
/* Replace the first occurrence of old in a file. */
void ck_replace(struct ck_files *f, const char *name, const char *old, const char *new);

/* Loading through each way; the folder is a fresh one below the temporary directory and removed by ck_forget. */
enum ck_way { CK_MMAP, CK_READ, CK_READER, CK_WAYS };
const char *ck_folder(const struct ck_files *f); /* writes the files; the same folder is reused */
void ck_forget(void);
int ck_held(void); /* descriptors and mappings of this process that stand for files of the folder */
dsv2_status ck_load(dsv2_context *ctx, struct ck_files *f, enum ck_way way, dsv2_model **out);
dsv2_status ck_reader_size(void *files, const char *name, uint64_t *bytes);
dsv2_status ck_reader_read(void *files, const char *name, uint64_t offset, void *buf, size_t n);

/* Memory hooks that count what is alive, and can fail: fail_at 0 = never, n = the n-th allocation from now. */
struct ck_heap {
    long alive, calls, fail_at;
};
void *ck_alloc(void *heap, size_t size, size_t alignment);
void ck_release(void *heap, void *ptr, size_t size);
dsv2_context *ck_context(struct ck_heap *heap);

#endif
