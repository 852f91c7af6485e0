/* safetensors headers, one file or a sharded set.
 *
 * SPDX-License-Identifier: MIT
 *
 * A file is: N as 8 bytes little-endian; N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}; the data,
 * offsets counting from its first byte.  Tensors must fill the data section without hole, overlap or rest, so that no byte of a
 * file has two meanings or none.  Nothing is read from the data section here. */
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define MAX_HEADER 100000000 /* the reference implementation's limit */

struct tensor_file {
    const char *name;       /* owned by the set */
    uint64_t data, bytes;   /* offset of the data section; size of the whole file */
};

struct dsv2i_tensor_set {
    const struct dsv2i_files *files;
    const struct dsv2i_hooks *mem;
    const char *source;
    struct dsv2i_tensor *tensors;
    size_t n, capacity;
    struct tensor_file *file;
    int32_t n_files;
};

static const struct {
    const char *name;
    int bits;
} dtypes[] = {
    {"BOOL", 8}, {"U8", 8}, {"I8", 8}, {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},
    {"I32", 32}, {"U32", 32}, {"F32", 32}, {"C64", 64}, {"F64", 64}, {"I64", 64}, {"U64", 64},
};

/* ---- One file -------------------------------------------------------------------------------------------------------- */

/* A tensor name as it may stand in a message. */
struct shown {
    char text[160];
};

static const char *show_name(struct shown *buf, const char *name)
{
    return dsv2i_quote(buf->text, sizeof buf->text, name, strlen(name));
}

static dsv2_status bad_field(const char *file, const char *name, const char *field, const cJSON *value, const char *wanted)
{
    struct shown quoted;
    char is[80];

    return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: %s: must be %s, is %s", file, show_name(&quoted, name), field, wanted,
                      dsv2i_json_show(is, sizeof is, value));
}

static int as_count(const cJSON *v, uint64_t *out)
{
    if (!cJSON_IsNumber(v) || v->valuedouble < 0 || v->valuedouble > 9007199254740992.0 || v->valuedouble != floor(v->valuedouble))
        return 0;
    *out = (uint64_t)v->valuedouble;
    return 1;
}

static dsv2_status parse_shape(const char *file, struct dsv2i_tensor *t, const cJSON *shape, uint64_t *elements)
{
    struct shown quoted;

    *elements = 1;
    if (!cJSON_IsArray(shape))
        return bad_field(file, t->name, "shape", shape, "a list of sizes");
    for (const cJSON *d = shape->child; d; d = d->next) {
        uint64_t size;

        if (!as_count(d, &size))
            return bad_field(file, t->name, "shape", d, "a list of sizes");
        if (t->rank == DSV2I_MAX_RANK)
            return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: %s: shape: has %d dimensions; at most %d are supported", file,
                              show_name(&quoted, t->name), cJSON_GetArraySize(shape), DSV2I_MAX_RANK);
        if (__builtin_mul_overflow(*elements, size, elements))
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: shape: the product of its sizes up to %llu overflows", file,
                              show_name(&quoted, t->name), (unsigned long long)size);
        t->shape[t->rank++] = (int64_t)size;
    }
    return DSV2_OK;
}

/* begin in t->offset, counted from the data section. */
static dsv2_status parse_tensor(const char *file, const cJSON *v, uint64_t data_bytes, struct dsv2i_tensor *t)
{
    const cJSON *dtype, *offsets;
    struct shown quoted;
    uint64_t elements, bits, end;
    size_t i = 0;

    if (!cJSON_IsObject(v))
        return bad_field(file, t->name, "entry", v, "an object with dtype, shape and data_offsets");
    dtype = dsv2i_json_get(v, "dtype");
    if (!cJSON_IsString(dtype))
        return bad_field(file, t->name, "dtype", dtype, "a string");
    while (i < sizeof dtypes / sizeof *dtypes && strcmp(dtypes[i].name, dtype->valuestring) != 0)
        i++;
    if (i == sizeof dtypes / sizeof *dtypes)
        return bad_field(file, t->name, "dtype", dtype, "one of the format's types");
    strcpy(t->dtype, dtypes[i].name);
    DSV2I_TRY(parse_shape(file, t, dsv2i_json_get(v, "shape"), &elements));
    offsets = dsv2i_json_get(v, "data_offsets");
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !as_count(offsets->child, &t->offset) || !as_count(offsets->child->next, &end))
        return bad_field(file, t->name, "data_offsets", offsets, "a list of two offsets");
    if (t->offset > end || end > data_bytes)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: data_offsets: [%llu, %llu] is not within the data section of %llu bytes", file,
                          show_name(&quoted, t->name), (unsigned long long)t->offset, (unsigned long long)end,
                          (unsigned long long)data_bytes);
    t->bytes = end - t->offset;
    if (__builtin_mul_overflow(elements, (uint64_t)dtypes[i].bits, &bits))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: shape: %llu elements of %s overflow", file, show_name(&quoted, t->name),
                          (unsigned long long)elements, t->dtype);
    if (bits % 8 || bits / 8 != t->bytes)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: data_offsets: %llu bytes, but the shape needs %llu %s of %d bits", file,
                          show_name(&quoted, t->name), (unsigned long long)t->bytes, (unsigned long long)elements, t->dtype,
                          dtypes[i].bits);
    return DSV2_OK;
}

static dsv2_status check_metadata(const char *file, const cJSON *v)
{
    char is[80];

    if (!cJSON_IsObject(v))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: __metadata__: must be an object, is %s", file, dsv2i_json_show(is, sizeof is, v));
    for (const cJSON *e = v->child; e; e = e->next) {
        if (!cJSON_IsString(e))
            return bad_field(file, "__metadata__", e->string, e, "a string");
    }
    return DSV2_OK;
}

static int by_offset(const void *pa, const void *pb)
{
    const struct dsv2i_tensor *a = pa, *b = pb;

    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

/* Sorts t, then wants each tensor to begin where the one before ended, and the last to end with the data. */
static dsv2_status check_tiling(const char *file, struct dsv2i_tensor *t, size_t n, uint64_t data_bytes)
{
    struct shown one, other;
    uint64_t at = 0;

    if (n > 1)
        qsort(t, n, sizeof *t, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (t[i].offset != at)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: data_offsets: begins at %llu, but %s ends at %llu: tensors must not %s", file,
                              show_name(&one, t[i].name), (unsigned long long)t[i].offset,
                              i ? show_name(&other, t[i - 1].name) : "nothing", (unsigned long long)at,
                              t[i].offset < at ? "overlap" : "leave a hole");
        at = t[i].offset + t[i].bytes;
    }
    if (at != data_bytes)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: size: %llu bytes of data, but the last tensor ends at %llu", file,
                          (unsigned long long)data_bytes, (unsigned long long)at);
    return DSV2_OK;
}

static struct dsv2i_tensor *add_tensor(struct dsv2i_tensor_set *set)
{
    if (set->n == set->capacity) {
        size_t capacity = set->capacity ? 2 * set->capacity : 128;
        struct dsv2i_tensor *grown = dsv2i_realloc(set->mem, set->tensors, capacity, sizeof *grown);

        if (!grown)
            return NULL;
        set->tensors = grown;
        set->capacity = capacity;
    }
    memset(&set->tensors[set->n], 0, sizeof *set->tensors);
    return &set->tensors[set->n++];
}

static dsv2_status take_header(struct dsv2i_tensor_set *set, int32_t f, const cJSON *tree)
{
    struct tensor_file *file = &set->file[f];
    size_t first = set->n;
    struct dsv2i_tensor *tensors;

    for (const cJSON *e = tree->child; e; e = e->next) {
        struct dsv2i_tensor *t;
        char *name;

        if (strcmp(e->string, "__metadata__") == 0) {
            DSV2I_TRY(check_metadata(file->name, e));
            continue;
        }
        name = dsv2i_strndup(set->mem, e->string, strlen(e->string));
        t = name ? add_tensor(set) : NULL;
        if (!t) {
            dsv2i_free(set->mem, name);
            return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for the list of tensors", file->name);
        }
        t->name = name;
        t->file = f;
        DSV2I_TRY(parse_tensor(file->name, e, file->bytes - file->data, t));
    }
    tensors = set->n > first ? set->tensors + first : NULL;
    DSV2I_TRY(check_tiling(file->name, tensors, set->n - first, file->bytes - file->data));
    for (size_t i = first; i < set->n; i++)
        set->tensors[i].offset += file->data;
    return DSV2_OK;
}

static dsv2_status read_header(struct dsv2i_tensor_set *set, int32_t f)
{
    struct tensor_file *file = &set->file[f];
    unsigned char le[8];
    uint64_t n = 0;
    cJSON *tree = NULL;
    dsv2_status status;
    char *text;

    DSV2I_TRY(dsv2i_files_size(set->files, file->name, &file->bytes));
    if (file->bytes < sizeof le)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: size: %llu bytes; a header needs 8 at least", file->name,
                          (unsigned long long)file->bytes);
    DSV2I_TRY(dsv2i_files_read(set->files, file->name, 0, le, sizeof le));
    for (int i = 7; i >= 0; i--)
        n = n << 8 | le[i];
    if (n > MAX_HEADER)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: header length: %llu is more than %d", file->name, (unsigned long long)n, MAX_HEADER);
    if (n > file->bytes - sizeof le)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: header length: %llu is more than the file of %llu bytes holds", file->name,
                          (unsigned long long)n, (unsigned long long)file->bytes);
    if (n < 2)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: header length: %llu is too small for a JSON object", file->name,
                          (unsigned long long)n);
    file->data = sizeof le + n;
    text = dsv2i_alloc(set->mem, (size_t)n, 1);
    if (!text)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for a header of %llu bytes", file->name, (unsigned long long)n);
    status = dsv2i_files_read(set->files, file->name, sizeof le, text, (size_t)n);
    if (status == DSV2_OK && text[0] != '{')
        status = dsv2i_fail(DSV2_ERR_FORMAT, "%s: header: begins with byte 0x%02X, not with '{'", file->name,
                            (unsigned)(unsigned char)text[0]);
    if (status == DSV2_OK)
        status = dsv2i_json_parse(file->name, text, (size_t)n, &tree);
    dsv2i_free(set->mem, text);
    if (status == DSV2_OK)
        status = take_header(set, f, tree);
    cJSON_Delete(tree);
    return status;
}

/* ---- A sharded set --------------------------------------------------------------------------------------------------- */

struct entry {
    const char *name, *file; /* owned by the index's tree */
};

static int by_name(const void *pa, const void *pb)
{
    const struct dsv2i_tensor *a = pa, *b = pb;

    return strcmp(a->name, b->name);
}

static int by_entry_name(const void *pa, const void *pb)
{
    const struct entry *a = pa, *b = pb;

    return strcmp(a->name, b->name);
}

static int by_entry_file(const void *pa, const void *pb)
{
    const struct entry *a = pa, *b = pb;

    return strcmp(a->file, b->file);
}

static dsv2_status no_memory(const struct dsv2i_tensor_set *set)
{
    return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for the list of files", set->source);
}

static dsv2_status add_file(struct dsv2i_tensor_set *set, const char *name)
{
    char *copy = dsv2i_strndup(set->mem, name, strlen(name));

    if (!copy)
        return no_memory(set);
    set->file[set->n_files++].name = copy;
    return DSV2_OK;
}

static dsv2_status sort_tensors(struct dsv2i_tensor_set *set)
{
    struct shown quoted;

    if (set->n > 1)
        qsort(set->tensors, set->n, sizeof *set->tensors, by_name);
    for (size_t i = 1; i < set->n; i++) {
        const struct dsv2i_tensor *a = &set->tensors[i - 1], *b = &set->tensors[i];

        if (strcmp(a->name, b->name) == 0)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is in %s and in %s", set->source, show_name(&quoted, a->name),
                              set->file[a->file].name, set->file[b->file].name);
    }
    return DSV2_OK;
}

/* Index and shards, both sorted by name, must say the same. */
static dsv2_status compare_with_index(const struct dsv2i_tensor_set *set, const struct entry *entries, size_t n)
{
    struct shown quoted;

    for (size_t i = 0, j = 0; i < set->n || j < n;) {
        const struct dsv2i_tensor *t = i < set->n ? &set->tensors[i] : NULL;
        const struct entry *e = j < n ? &entries[j] : NULL;
        int order = !t ? 1 : !e ? -1 : strcmp(t->name, e->name);

        if (order < 0)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: weight_map: %s is in %s, but not in the index", set->source,
                              show_name(&quoted, t->name), set->file[t->file].name);
        if (order > 0)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: weight_map: %s is missing from %s", set->source,
                              show_name(&quoted, e->name), e->file);
        if (strcmp(e->file, set->file[t->file].name) != 0)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: weight_map: %s is said to be in %s, but is in %s", set->source,
                              show_name(&quoted, e->name), e->file, set->file[t->file].name);
        i++;
        j++;
    }
    return DSV2_OK;
}

static dsv2_status open_shards(struct dsv2i_tensor_set *set, struct entry *entries, size_t n)
{
    qsort(entries, n, sizeof *entries, by_entry_file);
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(entries[i].file, entries[i - 1].file) != 0) {
            DSV2I_TRY(add_file(set, entries[i].file));
            DSV2I_TRY(read_header(set, set->n_files - 1));
        }
    }
    DSV2I_TRY(sort_tensors(set));
    qsort(entries, n, sizeof *entries, by_entry_name);
    return compare_with_index(set, entries, n);
}

static dsv2_status take_index(struct dsv2i_tensor_set *set, const cJSON *tree)
{
    const cJSON *map = dsv2i_json_get(tree, "weight_map");
    struct entry *entries;
    struct shown quoted;
    dsv2_status status;
    size_t n = 0;
    char is[80];

    if (!cJSON_IsObject(map) || !map->child)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: weight_map: must be an object that names tensors, is %s", set->source,
                          dsv2i_json_show(is, sizeof is, map));
    for (const cJSON *e = map->child; e; e = e->next, n++) {
        if (!cJSON_IsString(e) || !dsv2i_files_plain_name(e->valuestring))
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: weight_map: %s: must be the name of a file in the same folder, is %s",
                              set->source, show_name(&quoted, e->string), dsv2i_json_show(is, sizeof is, e));
    }
    entries = dsv2i_alloc(set->mem, n, sizeof *entries);
    set->file = dsv2i_calloc(set->mem, n, sizeof *set->file); /* every tensor might have a file of its own */
    if (!entries || !set->file) {
        dsv2i_free(set->mem, entries);
        return no_memory(set);
    }
    n = 0;
    for (const cJSON *e = map->child; e; e = e->next)
        entries[n++] = (struct entry){e->string, e->valuestring};
    status = open_shards(set, entries, n);
    dsv2i_free(set->mem, entries);
    return status;
}

static dsv2_status open_index(struct dsv2i_tensor_set *set)
{
    cJSON *tree = NULL;
    dsv2_status status;
    char *text;
    size_t n;

    set->source = INDEX;
    DSV2I_TRY(dsv2i_files_load(set->files, INDEX, MAX_HEADER, &text, &n));
    status = dsv2i_json_parse(INDEX, text, n, &tree);
    dsv2i_free(set->mem, text);
    if (status == DSV2_OK)
        status = take_index(set, tree);
    cJSON_Delete(tree);
    return status;
}

static dsv2_status open_single(struct dsv2i_tensor_set *set)
{
    set->source = SINGLE;
    set->file = dsv2i_calloc(set->mem, 1, sizeof *set->file);
    if (!set->file)
        return no_memory(set);
    DSV2I_TRY(add_file(set, SINGLE));
    DSV2I_TRY(read_header(set, 0));
    return sort_tensors(set);
}

/* ---- The set --------------------------------------------------------------------------------------------------------- */

dsv2_status dsv2i_tensors_exist(const struct dsv2i_files *files, int *exist)
{
    DSV2I_TRY(dsv2i_files_exists(files, SINGLE, exist));
    return *exist ? DSV2_OK : dsv2i_files_exists(files, INDEX, exist);
}

dsv2_status dsv2i_tensors_open(const struct dsv2i_files *files, const struct dsv2i_hooks *mem, struct dsv2i_tensor_set **out)
{
    struct dsv2i_tensor_set *set;
    dsv2_status status;
    int single, any;

    *out = NULL;
    DSV2I_TRY(dsv2i_files_exists(files, SINGLE, &single));
    DSV2I_TRY(dsv2i_tensors_exist(files, &any));
    if (!any)
        return dsv2i_fail(DSV2_ERR_IO, "%s: has neither %s nor %s", files->folder, SINGLE, INDEX);
    set = dsv2i_calloc(mem, 1, sizeof *set);
    if (!set)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for the list of tensors", files->folder);
    set->files = files;
    set->mem = mem;
    status = single ? open_single(set) : open_index(set);
    if (status != DSV2_OK) {
        dsv2i_tensors_close(set);
        return status;
    }
    *out = set;
    return DSV2_OK;
}

void dsv2i_tensors_close(struct dsv2i_tensor_set *set)
{
    if (!set)
        return;
    for (size_t i = 0; i < set->n; i++)
        dsv2i_free(set->mem, (char *)(uintptr_t)set->tensors[i].name);
    for (int32_t i = 0; i < set->n_files; i++)
        dsv2i_free(set->mem, (char *)(uintptr_t)set->file[i].name);
    dsv2i_free(set->mem, set->tensors);
    dsv2i_free(set->mem, set->file);
    dsv2i_free(set->mem, set);
}

struct dsv2i_tensor *dsv2i_tensors_find(struct dsv2i_tensor_set *set, const char *name)
{
    struct dsv2i_tensor key = {.name = name};

    return set->n ? bsearch(&key, set->tensors, set->n, sizeof key, by_name) : NULL;
}

size_t dsv2i_tensors_count(const struct dsv2i_tensor_set *set)
{
    return set->n;
}

struct dsv2i_tensor *dsv2i_tensors_at(struct dsv2i_tensor_set *set, size_t i)
{
    return &set->tensors[i];
}

int32_t dsv2i_tensors_files(const struct dsv2i_tensor_set *set)
{
    return set->n_files;
}

const char *dsv2i_tensors_file(const struct dsv2i_tensor_set *set, int32_t file)
{
    return set->file[file].name;
}

void dsv2i_tensors_extent(const struct dsv2i_tensor_set *set, int32_t file, uint64_t *begin, uint64_t *end)
{
    *begin = set->file[file].data;
    *end = set->file[file].bytes;
}

const char *dsv2i_tensors_source(const struct dsv2i_tensor_set *set)
{
    return set->source;
}
