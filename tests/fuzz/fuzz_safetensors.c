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

static dsv2_status reader_size(void *user, const char *name, uint64_t *bytes)
{
    const struct file *f = find(user, name);

    if (f)
        *bytes = f->size;
    return f ? DSV2_OK : DSV2_ERR_IO;
}

static dsv2_status reader_read(void *user, const char *name, uint64_t offset, void *buf, size_t n)
{
    const struct file *f = find(user, name);

    MUST(f && offset <= f->size && n <= f->size - offset);
    memcpy(buf, f->data + offset, n);
    return DSV2_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct folder folder = {.n = 0};
    dsv2_reader reader = {sizeof reader, reader_size, reader_read, &folder};
    struct dsv2i_files files = {&dsv2i_heap, "fuzz", &reader};
    struct dsv2i_tensor_set *set = NULL;
    int shards;

    if (!size)
        return 0;
    shards = data[0] % 5;
    data++;
    size--;
    for (int i = 0; i <= shards; i++) {
        struct file *f = &folder.files[folder.n];
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
        folder.n++;
        if (folder.n == 5)
            break;
    }
    if (dsv2i_tensors_open(&files, &dsv2i_heap, &set) == DSV2_OK) {
        for (size_t i = 0; i < dsv2i_tensors_count(set); i++) {
            struct dsv2i_tensor *t = dsv2i_tensors_at(set, i);
            const struct file *f = find(&folder, dsv2i_tensors_file(set, t->file));

            MUST(f && t->offset <= f->size && t->bytes <= f->size - t->offset);
            MUST(t->rank >= 0 && t->rank <= DSV2I_MAX_RANK);
            MUST(dsv2i_tensors_find(set, t->name) == t);
        }
        dsv2i_tensors_close(set);
    } else {
        MUST(!set);
        MUST(dsv2_last_error()[0]);
    }
    return 0;
}
