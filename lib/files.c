/* A checkpoint's files, from a folder or from a caller's reader.
 *
 * SPDX-License-Identifier: MIT
 *
 * Only regular files are read (a FIFO or device could block forever), and names are plain, so nothing outside of the folder is
 * reached except through symbolic links that stand in it: the caches of Hugging Face consist of such links. */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int dsv2i_files_plain_name(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > 255 || name[0] == '.')
        return 0;
    for (size_t i = 0; i < n; i++) {
        if (name[i] == '/' || name[i] == '\\' || (unsigned char)name[i] < 0x20 || name[i] == 0x7F)
            return 0;
    }
    return 1;
}

static dsv2_status os_error(const struct dsv2i_files *f, const char *name, const char *what, int error)
{
    char text[128];

    return dsv2i_fail(error == ENOMEM ? DSV2_ERR_NOMEM : DSV2_ERR_IO, "%s/%s: %s: %s", f->folder, name, what,
                      strerror_r(error, text, sizeof text));
}

static dsv2_status reader_error(const struct dsv2i_files *f, const char *name, const char *what, dsv2_status status)
{
    dsv2_status kept = status < 0 ? status : DSV2_ERR_IO; /* positive values are no statuses */

    return dsv2i_fail(kept, "%s/%s: the reader's %s callback returned %d (%s)", f->folder, name, what, (int)status,
                      dsv2_status_name(status));
}

/* *fd -1 with DSV2_OK: there is no such file. */
static dsv2_status open_file(const struct dsv2i_files *f, const char *name, int *fd, uint64_t *bytes)
{
    char path[PATH_MAX];
    struct stat st;

    *fd = -1;
    if (!dsv2i_files_plain_name(name))
        return dsv2i_fail(DSV2_ERR_INTERNAL, "%s: not a plain file name", name);
    if (snprintf(path, sizeof path, "%s/%s", f->folder, name) >= (int)sizeof path)
        return os_error(f, name, "cannot open", ENAMETOOLONG);
    /* O_NONBLOCK: opening a FIFO must not wait for a writer; it means nothing for regular files. */
    do {
        *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (*fd < 0 && errno == EINTR);
    if (*fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? DSV2_OK : os_error(f, name, "cannot open", errno);
    if (fstat(*fd, &st) != 0) {
        int error = errno;

        close(*fd);
        return os_error(f, name, "cannot be examined", error);
    }
    if (!S_ISREG(st.st_mode)) {
        close(*fd);
        return dsv2i_fail(DSV2_ERR_IO, "%s/%s: not a regular file", f->folder, name);
    }
    *bytes = (uint64_t)st.st_size;
    return DSV2_OK;
}

static dsv2_status need_file(const struct dsv2i_files *f, const char *name, int *fd, uint64_t *bytes)
{
    DSV2I_TRY(open_file(f, name, fd, bytes));
    return *fd < 0 ? os_error(f, name, "cannot open", ENOENT) : DSV2_OK;
}

static dsv2_status read_fd(const struct dsv2i_files *f, const char *name, int fd, uint64_t offset, void *buf, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = pread(fd, (char *)buf + done, n - done, (off_t)(offset + done));

        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return os_error(f, name, "cannot read", errno);
        if (k == 0)
            return dsv2i_fail(DSV2_ERR_IO, "%s/%s: ends at byte %llu, where %zu more were expected", f->folder, name,
                              (unsigned long long)(offset + done), n - done);
        done += (size_t)k;
    }
    return DSV2_OK;
}

dsv2_status dsv2i_files_exists(const struct dsv2i_files *f, const char *name, int *exists)
{
    uint64_t bytes;
    int fd;

    *exists = 0;
    if (f->reader) {
        dsv2_status status = f->reader->size(f->reader->user, name, &bytes);

        if (status != DSV2_OK && status != DSV2_ERR_IO)
            return reader_error(f, name, "size", status);
        *exists = status == DSV2_OK;
        return DSV2_OK;
    }
    DSV2I_TRY(open_file(f, name, &fd, &bytes));
    *exists = fd >= 0;
    if (fd >= 0)
        close(fd);
    return DSV2_OK;
}

dsv2_status dsv2i_files_size(const struct dsv2i_files *f, const char *name, uint64_t *bytes)
{
    int fd;

    if (f->reader) {
        dsv2_status status = f->reader->size(f->reader->user, name, bytes);

        return status == DSV2_OK ? DSV2_OK : reader_error(f, name, "size", status);
    }
    DSV2I_TRY(need_file(f, name, &fd, bytes));
    close(fd);
    return DSV2_OK;
}

dsv2_status dsv2i_files_read(const struct dsv2i_files *f, const char *name, uint64_t offset, void *buf, size_t n)
{
    uint64_t bytes;
    dsv2_status status;
    int fd;

    if (f->reader) {
        status = f->reader->read(f->reader->user, name, offset, buf, n);
        return status == DSV2_OK ? DSV2_OK : reader_error(f, name, "read", status);
    }
    DSV2I_TRY(need_file(f, name, &fd, &bytes));
    status = read_fd(f, name, fd, offset, buf, n);
    close(fd);
    return status;
}

dsv2_status dsv2i_files_load(const struct dsv2i_files *f, const char *name, size_t max, char **text, size_t *n)
{
    uint64_t bytes;
    dsv2_status status;
    char *buf;

    *text = NULL;
    DSV2I_TRY(dsv2i_files_size(f, name, &bytes));
    if (bytes > max)
        return dsv2i_fail(DSV2_ERR_LIMIT, "%s/%s: %llu bytes; at most %zu are read", f->folder, name,
                          (unsigned long long)bytes, max);
    buf = dsv2i_alloc(f->mem, (size_t)bytes + 1, 1);
    if (!buf)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s/%s: no memory for %llu bytes", f->folder, name, (unsigned long long)bytes);
    status = bytes ? dsv2i_files_read(f, name, 0, buf, (size_t)bytes) : DSV2_OK;
    if (status != DSV2_OK) {
        dsv2i_free(f->mem, buf);
        return status;
    }
    buf[bytes] = 0;
    *text = buf;
    *n = (size_t)bytes;
    return DSV2_OK;
}

dsv2_status dsv2i_files_map(const struct dsv2i_files *f, const char *name, const void **data, uint64_t *bytes)
{
    void *p;
    int fd, error;

    DSV2I_TRY(need_file(f, name, &fd, bytes));
    if (*bytes == 0 || *bytes > SIZE_MAX) {
        close(fd);
        return dsv2i_fail(DSV2_ERR_IO, "%s/%s: %llu bytes cannot be mapped", f->folder, name, (unsigned long long)*bytes);
    }
    p = mmap(NULL, (size_t)*bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    error = errno;
    close(fd);
    if (p == MAP_FAILED)
        return os_error(f, name, "cannot be mapped", error);
    *data = p;
    return DSV2_OK;
}

void dsv2i_files_unmap(const void *data, uint64_t bytes)
{
    munmap((void *)(uintptr_t)data, (size_t)bytes);
}
