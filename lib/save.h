/* Sessions to files and back.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_SAVE_H
#define DSV2I_SAVE_H

#include "session.h"

dsv2_status dsv2i_session_save(const dsv2_session *s, const char *path);
dsv2_status dsv2i_session_restore(dsv2_session *s, const char *path);
dsv2_status dsv2i_session_export(const dsv2_session *s, void *buf, size_t capacity, size_t *n);
dsv2_status dsv2i_session_import(dsv2_session *s, const void *buf, size_t n);

#endif
