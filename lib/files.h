/* Where a checkpoint's files come from: a folder, or a caller's reader.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_FILES_H
#define DSV2I_FILES_H

#include "mem.h"
#include "status.h"

struct dsv2i_files {
    const struct dsv2i_hooks *mem;
    const char *folder;             /* for opening, and for messages */
    const dsv2_reader *reader;      /* NULL: the folder */
};

/* Can name be a file inside a folder?  Not empty, at most 255 bytes, no '/', no '\', no leading dot, no control character. */
int dsv2i_files_plain_name(const char *name);

/* *exists = 1 or 0; anything but "there is no such file" that keeps it from being seen is an error. */
dsv2_status dsv2i_files_exists(const struct dsv2i_files *f, const char *name, int *exists);
dsv2_status dsv2i_files_size(const struct dsv2i_files *f, const char *name, uint64_t *bytes);
/* Exactly n bytes from offset. */
dsv2_status dsv2i_files_read(const struct dsv2i_files *f, const char *name, uint64_t offset, void *buf, size_t n);
/* The whole of a small file with a NUL behind it; over max bytes: DSV2_ERR_LIMIT.  Freed with dsv2i_free. */
dsv2_status dsv2i_files_load(const struct dsv2i_files *f, const char *name, size_t max, char **text, size_t *n);
/* Map a file read-only (folders only). */
dsv2_status dsv2i_files_map(const struct dsv2i_files *f, const char *name, const void **data, uint64_t *bytes);
void dsv2i_files_unmap(const void *data, uint64_t bytes);

#endif
