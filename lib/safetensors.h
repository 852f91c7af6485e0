/* The safetensors files of a folder: headers validated, tensors found by name.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_SAFETENSORS_H
#define DSV2I_SAFETENSORS_H

#include "files.h"
#include "json.h"

#define DSV2I_MAX_RANK 8

struct dsv2i_tensor {
    const char *name;       /* owned by the set */
    char dtype[12];         /* as in the file: "BF16", "F32", ... */
    int32_t rank;
    int64_t shape[DSV2I_MAX_RANK];
    int32_t file;           /* index into the set's files */
    uint64_t offset, bytes; /* offset from the file's beginning */
    int32_t used;           /* set by the model when it takes the tensor */
};

struct dsv2i_tensor_set; /* all tensors of a checkpoint, from model.safetensors or from the index and its shards */

/* Does the folder have weight files at all? */
dsv2_status dsv2i_tensors_exist(const struct dsv2i_files *files, int *exist);
/* Read and validate all headers (field-survey rules: length, JSON, offsets, sizes, holes, trailing data, index vs shards).
 * With both model.safetensors and an index the single file is taken and the index not read, as HF does.
 * files is borrowed and must outlive the set.  Errors name file, tensor and value. */
dsv2_status dsv2i_tensors_open(const struct dsv2i_files *files, const struct dsv2i_hooks *mem,
                               struct dsv2i_tensor_set **out);
void dsv2i_tensors_close(struct dsv2i_tensor_set *set); /* NULL is allowed */
struct dsv2i_tensor *dsv2i_tensors_find(struct dsv2i_tensor_set *set, const char *name); /* NULL: none */
size_t dsv2i_tensors_count(const struct dsv2i_tensor_set *set);
struct dsv2i_tensor *dsv2i_tensors_at(struct dsv2i_tensor_set *set, size_t i); /* ascending by name */
int32_t dsv2i_tensors_files(const struct dsv2i_tensor_set *set);
const char *dsv2i_tensors_file(const struct dsv2i_tensor_set *set, int32_t file);
/* Where a file's data section begins, which its tensors fill without holes, and where the file ends. */
void dsv2i_tensors_extent(const struct dsv2i_tensor_set *set, int32_t file, uint64_t *begin, uint64_t *end);
/* The file that lists all tensors: model.safetensors or the index; for messages about missing ones. */
const char *dsv2i_tensors_source(const struct dsv2i_tensor_set *set);

#endif
