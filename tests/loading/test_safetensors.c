/* Files, safetensors headers and sharded sets that are legal.  What is refused: test_broken.c.
 * SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint.h"
#include "safetensors.h"

/* ---- Files */

static void test_names(void **state)
{
    static const char *const plain[] = {"config.json", "model-00001-of-000055.safetensors", "a", "a..b", "x y", "\xC3\xA9"};
    static const char *const other[] = {"", ".", "..", "/", "/etc/passwd", "a/b", "../a", "a\\b", "a\nb", "\x7F", ".hidden"};
    char name[300];

    (void)state;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        assert_true(dsv2i_files_plain_name(plain[i]));
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        assert_false(dsv2i_files_plain_name(other[i]));
    memset(name, 'x', sizeof name);
    name[255] = 0;
    assert_true(dsv2i_files_plain_name(name));
    name[255] = 'x';
    name[256] = 0;
    assert_false(dsv2i_files_plain_name(name));
}

static void test_folder(void **state)
{
    struct ck_files content = {0};
    struct dsv2i_files files = {&dsv2i_heap, NULL, NULL};
    char path[400], target[400], *text;
    const void *data;
    uint64_t bytes;
    size_t n;
    int exists;

    (void)state;
    ck_put(&content, "five", "12345", 5);
    ck_put(&content, "empty", "", 0);
    files.folder = ck_folder(&content);

    assert_int_equal(dsv2i_files_exists(&files, "five", &exists), DSV2_OK);
    assert_int_equal(exists, 1);
    assert_int_equal(dsv2i_files_exists(&files, "six", &exists), DSV2_OK);
    assert_int_equal(exists, 0);
    assert_int_equal(dsv2i_files_size(&files, "five", &bytes), DSV2_OK);
    assert_int_equal(bytes, 5);
    assert_int_equal(dsv2i_files_size(&files, "six", &bytes), DSV2_ERR_IO);
    assert_non_null(strstr(dsv2_last_error(), "six: cannot open: No such file"));
    assert_int_equal(dsv2i_files_size(&files, "../x", &bytes), DSV2_ERR_INTERNAL);

    assert_int_equal(dsv2i_files_load(&files, "five", 5, &text, &n), DSV2_OK);
    assert_string_equal(text, "12345");
    assert_int_equal(n, 5);
    dsv2i_free(&dsv2i_heap, text);
    assert_int_equal(dsv2i_files_load(&files, "five", 4, &text, &n), DSV2_ERR_LIMIT);
    assert_null(text);
    assert_int_equal(dsv2i_files_load(&files, "empty", 4, &text, &n), DSV2_OK);
    assert_int_equal(n, 0);
    dsv2i_free(&dsv2i_heap, text);

    /* a file that ends early, as one does that shrinks between looking and reading */
    assert_int_equal(dsv2i_files_read(&files, "five", 3, target, 3), DSV2_ERR_IO);
    assert_non_null(strstr(dsv2_last_error(), "five: ends at byte 5, where 1 more"));
    assert_int_equal(dsv2i_files_read(&files, "five", 3, target, 2), DSV2_OK);
    assert_memory_equal(target, "45", 2);

    assert_int_equal(dsv2i_files_map(&files, "five", &data, &bytes), DSV2_OK);
    assert_memory_equal(data, "12345", 5);
    dsv2i_files_unmap(data, bytes);
    assert_int_equal(dsv2i_files_map(&files, "empty", &data, &bytes), DSV2_ERR_IO);

    /* what is no regular file is refused at once, a FIFO without a writer included; links are followed, as HF's caches need */
    snprintf(path, sizeof path, "%s/fifo", files.folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(dsv2i_files_size(&files, "fifo", &bytes), DSV2_ERR_IO);
    assert_non_null(strstr(dsv2_last_error(), "fifo: not a regular file"));
    snprintf(path, sizeof path, "%s/dir", files.folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(dsv2i_files_exists(&files, "dir", &exists), DSV2_ERR_IO);
    snprintf(path, sizeof path, "%s/link", files.folder);
    snprintf(target, sizeof target, "%s/five", files.folder);
    assert_int_equal(symlink(target, path), 0);
    assert_int_equal(dsv2i_files_size(&files, "link", &bytes), DSV2_OK);
    assert_int_equal(bytes, 5);
    snprintf(path, sizeof path, "%s/loop", files.folder);
    assert_int_equal(symlink("loop", path), 0);
    assert_int_equal(dsv2i_files_exists(&files, "loop", &exists), DSV2_ERR_IO);

    assert_int_equal(ck_held(), 0);
    files.folder = "/no/such/folder";
    assert_int_equal(dsv2i_files_size(&files, "five", &bytes), DSV2_ERR_IO);
    assert_non_null(strstr(dsv2_last_error(), "/no/such/folder/five"));
    ck_files_free(&content);
}

/* Stands in for the C library's: a system that interrupts, reads a byte at a time, or breaks. */
static enum { WHOLE, SHORT, INTERRUPTED, BROKEN } reads;

ssize_t pread(int fd, void *buf, size_t n, off_t offset)
{
    static int calls;

    if (reads == BROKEN || (reads == INTERRUPTED && calls++ % 2 == 0)) {
        errno = reads == BROKEN ? EIO : EINTR;
        return -1;
    }
    return (ssize_t)syscall(SYS_pread64, fd, buf, reads == WHOLE ? n : 1, offset);
}

static void test_awkward_reads(void **state)
{
    struct ck_files content = {0};
    struct dsv2i_files files = {&dsv2i_heap, NULL, NULL};
    char *text;
    size_t n;

    (void)state;
    ck_put(&content, "file", "all of this", 11);
    files.folder = ck_folder(&content);
    for (reads = WHOLE; reads < BROKEN; reads++) {
        assert_int_equal(dsv2i_files_load(&files, "file", 100, &text, &n), DSV2_OK);
        assert_string_equal(text, "all of this");
        dsv2i_free(&dsv2i_heap, text);
    }
    assert_int_equal(dsv2i_files_load(&files, "file", 100, &text, &n), DSV2_ERR_IO);
    assert_non_null(strstr(dsv2_last_error(), "file: cannot read: Input/output error"));
    reads = WHOLE;
    ck_files_free(&content);
}

/* ---- Headers */

static struct dsv2i_tensor_set *open_set(struct ck_files *content)
{
    static dsv2_reader reader; /* outlives the set, as must the rest */
    static struct dsv2i_files files;
    struct dsv2i_tensor_set *set;

    reader = (dsv2_reader){sizeof reader, ck_reader_size, ck_reader_read, content};
    files = (struct dsv2i_files){&dsv2i_heap, "memory", &reader};
    if (dsv2i_tensors_open(&files, &dsv2i_heap, &set) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    return set;
}

static void test_legal_headers(void **state)
{
    static const struct {
        const char *header;
        size_t n_data, n_tensors;
    } cases[] = {
        {"{}", 0, 0},
        {"{}        \n", 0, 0},
        {"{\"__metadata__\":{}}", 0, 0},
        {"{\"__metadata__\":{\"format\":\"pt\",\"\":\"\"}}", 0, 0},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, 1},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, 1},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9007199254740992,0],\"data_offsets\":[0,0]}}", 0, 1},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[2,2],\"data_offsets\":[0,2]}}", 2, 1},
        {"{\"a\":{\"dtype\":\"F6_E3M2\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3, 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,3],\"data_offsets\":[0,3]}}", 3, 1},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,8],\"dtype\":\"F64\",\"more\":[]}}", 8, 1},
        /* in any order, empty tensors between the others */
        {"{\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[3,7]},\"z\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[3,3]},"
         "\"a\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[0,3]},\"y\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[7,7]}}", 7, 4},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ck_files content = {0};
        struct dsv2i_tensor_set *set;
        uint64_t begin, end;

        ck_put_safetensors(&content, "model.safetensors", cases[i].header, -1, cases[i].n_data);
        set = open_set(&content);
        assert_int_equal(dsv2i_tensors_count(set), cases[i].n_tensors);
        assert_int_equal(dsv2i_tensors_files(set), 1);
        dsv2i_tensors_extent(set, 0, &begin, &end);
        assert_int_equal(begin, 8 + strlen(cases[i].header));
        assert_int_equal(end, begin + cases[i].n_data);
        dsv2i_tensors_close(set);
        ck_files_free(&content);
    }
}

static void test_one_file(void **state)
{
    struct ck_files content;
    struct dsv2i_tensor_set *set;
    struct dsv2i_tensor *t;
    struct ck c;

    (void)state;
    ck_init(&c, 'A');
    ck_build(&c, &content);
    set = open_set(&content);
    assert_int_equal(dsv2i_tensors_count(set), 89);
    assert_string_equal(dsv2i_tensors_source(set), "model.safetensors");
    for (int i = 0; i < c.n_tensors; i++) {
        const struct ck_tensor *wanted = &c.tensor[i];

        t = dsv2i_tensors_find(set, wanted->name);
        assert_non_null(t);
        assert_string_equal(t->dtype, wanted->dtype);
        assert_int_equal(t->rank, wanted->rank);
        assert_memory_equal(t->shape, wanted->shape, (size_t)t->rank * sizeof *t->shape);
        assert_int_equal(t->bytes, wanted->bytes);
        assert_memory_equal(content.file[1].data + t->offset, wanted->data, wanted->bytes);
    }
    assert_null(dsv2i_tensors_find(set, "model.norm"));
    for (size_t i = 1; i < dsv2i_tensors_count(set); i++)
        assert_true(strcmp(dsv2i_tensors_at(set, i - 1)->name, dsv2i_tensors_at(set, i)->name) < 0);
    dsv2i_tensors_close(set);
    ck_files_free(&content);
    ck_free(&c);
}

/* Shard names come from the index: the family's have five digits and then six, others none at all. */
static void test_shards(void **state)
{
    struct ck_files content;
    struct dsv2i_tensor_set *set;
    struct ck c;

    (void)state;
    ck_init(&c, 'A');
    c.n_shards = 3;
    for (int i = 0; i < c.n_tensors; i++)
        c.tensor[i].shard = 1 + i % 3;
    ck_build(&c, &content);
    for (int i = 0; i < c.n_tensors; i++) {
        if (i % 3 == 2)
            ck_replace(&content, "model.safetensors.index.json", "model-00003-of-000003.safetensors", "the rest");
    }
    strcpy(ck_file(&content, "model-00003-of-000003.safetensors")->name, "the rest");
    ck_put(&content, "model-00004-of-000003.safetensors", "not in the index, so not opened", 31);
    set = open_set(&content);
    assert_int_equal(dsv2i_tensors_count(set), 89);
    assert_int_equal(dsv2i_tensors_files(set), 3);
    assert_string_equal(dsv2i_tensors_source(set), "model.safetensors.index.json");
    for (int i = 0; i < c.n_tensors; i++) {
        const struct ck_tensor *wanted = &c.tensor[i];
        struct dsv2i_tensor *t = dsv2i_tensors_find(set, wanted->name);
        struct ck_file *file = ck_file(&content, dsv2i_tensors_file(set, t->file));

        assert_memory_equal(file->data + t->offset, wanted->data, wanted->bytes);
    }
    dsv2i_tensors_close(set);

    /* a single file beside an index wins, as in HF, and the index is not read */
    ck_put_safetensors(&content, "model.safetensors", "{}", -1, 0);
    ck_put(&content, "model.safetensors.index.json", "x", 1);
    set = open_set(&content);
    assert_int_equal(dsv2i_tensors_count(set), 0);
    assert_null(dsv2i_tensors_find(set, "x"));
    dsv2i_tensors_close(set);
    ck_files_free(&content);
    ck_free(&c);
}

static int teardown(void **state)
{
    (void)state;
    ck_forget();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names), cmocka_unit_test(test_folder), cmocka_unit_test(test_awkward_reads),
        cmocka_unit_test(test_legal_headers), cmocka_unit_test(test_one_file), cmocka_unit_test(test_shards),
    };

    return cmocka_run_group_tests(tests, NULL, teardown);
}
