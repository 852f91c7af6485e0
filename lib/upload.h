/* Weights into the backend's memory.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_UPLOAD_H
#define DSV2I_UPLOAD_H

#include "model.h"

/* Bytes of backend memory that the model's weights need; 0 if they are used where they lie. */
size_t dsv2i_upload_bytes(const dsv2_model *m);

/* Put all weights there: every handle of the model becomes the backend's.  report, called with bytes that are done, ends it with another
 * status than OK; as with other errors the model is then good for nothing but its release.  Errors: NOMEM, DEVICE, UNSUPPORTED. */
typedef dsv2_status (*dsv2i_report_fn)(void *user, uint64_t bytes);
dsv2_status dsv2i_upload(dsv2_model *m, dsv2i_report_fn report, void *user);

#endif
