/* A set of weight files through a reader: a byte says how many shards; then the pieces, parted by 0xFF 0xFE: the index (or the single file) and
 * the shards.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "safetensors.h"

struct file {
    char name[48];
    const uint8_t *data;
    size_t size;
};

struct folder {
    struct file files[5];
    int n;
};

static const struct file *find(const struct folder *f, const char *name)
{
    for (int i = 0; i < f->n; i++)
        if (!strcmp(f->files[i].name, name))
            return &f->files[i];
    return NULL;
}

/* For an odd N what comes back is no status of the library. */
static dsv2_status reader_fails(void)
{
    if (!fuzz_fails(FUZZ_READER))
        return DSV2_OK;
    return fuzz_state.odd ? 5 : DSV2_ERR_CANCELLED;
}

static dsv2_status reader_size(void *user, const char *name, uint64_t *bytes)
{
    const struct file *f = find(user, name);

    DSV2I_TRY(reader_fails());
    if (f)
        *bytes = f->size;
    return f ? DSV2_OK : DSV2_ERR_IO;
}

static dsv2_status reader_read(void *user, const char *name, uint64_t offset, void *buf, size_t n)
{
    const struct file *f = find(user, name);

    MUST(f && offset <= f->size && n <= f->size - offset);
    DSV2I_TRY(reader_fails());
    memcpy(buf, f->data + offset, n);
    return DSV2_OK;
}

static void take_files(struct folder *folder, const uint8_t *data, size_t size)
{
    int shards = data[0] % 5;

    data++;
    size--;
    for (int i = 0; i <= shards && folder->n < 5; i++) {
        struct file *f = &folder->files[folder->n++];
        const uint8_t *end = memmem(data, size, "\xFF\xFE", 2);

        if (shards == 0)
            strcpy(f->name, "model.safetensors");
        else if (i == 0)
            strcpy(f->name, "model.safetensors.index.json");
        else
            snprintf(f->name, sizeof f->name, "model-%05d-of-%06d.safetensors", i, shards);
        f->data = data;
        f->size = end ? (size_t)(end - data) : size;
        data += end ? f->size + 2 : size;
        size -= end ? f->size + 2 : size;
    }
}

static void check_set(struct dsv2i_tensor_set *set, const struct folder *folder)
{
    uint64_t begin, end, data = 0;

    for (size_t i = 0; i < dsv2i_tensors_count(set); i++) {
        struct dsv2i_tensor *t = dsv2i_tensors_at(set, i);
        const struct file *f = find(folder, dsv2i_tensors_file(set, t->file));

        MUST(f && t->offset <= f->size && t->bytes <= f->size - t->offset);
        MUST(t->rank >= 0 && t->rank <= DSV2I_MAX_RANK);
        MUST(dsv2i_tensors_find(set, t->name) == t);
        dsv2i_tensors_extent(set, t->file, &begin, &end);
        MUST(begin <= t->offset && t->offset + t->bytes <= end && end == f->size);
        data += t->bytes;
    }
    for (int32_t i = 0; i < dsv2i_tensors_files(set); i++) { /* tensors fill the data sections */
        dsv2i_tensors_extent(set, i, &begin, &end);
        data -= end - begin;
    }
    MUST(data == 0);
    MUST(dsv2i_tensors_files(set) <= folder->n);
    MUST(find(folder, dsv2i_tensors_source(set)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct folder folder = {.n = 0};
    dsv2_reader reader = {sizeof reader, reader_size, reader_read, &folder};
    struct dsv2i_files files = {&fuzz_mem, "fuzz", &reader};
    struct dsv2i_tensor_set *set;
    dsv2_status status;

    fuzz_begin(data, &size);
    if (size)
        take_files(&folder, data, size);
    do
        status = dsv2i_tensors_open(&files, &fuzz_mem, &set);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST((status == DSV2_OK) == (set != NULL));
    if (set)
        check_set(set, &folder);
    dsv2i_tensors_close(set);
    fuzz_end();
    return 0;
}
