/* Chat templates of the family, recognised in tokenizer_config.json or chat_template.jinja and rendered in C.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CHAT_H
#define DSV2I_CHAT_H

#include <stddef.h>

#include "tokenizer.h"

struct dsv2i_chat;

/* text NULL: no tokenizer_config.json.  Reads chat_template, bos_token, eos_token.  file is not copied. */
dsv2_status dsv2i_chat_parse(const struct dsv2i_hooks *mem, const char *file, const char *text, size_t n,
                             struct dsv2i_chat **out);
/* The template in a file of its own, as Transformers 5 writes it: it takes the place of the one in tokenizer_config.json. */
dsv2_status dsv2i_chat_override(struct dsv2i_chat *c, const char *file, const char *text, size_t n);
void dsv2i_chat_free(struct dsv2i_chat *c);
int32_t dsv2i_chat_kind(const struct dsv2i_chat *c); /* DSV2_CHAT_* */
/* A caller's message; fields that an older caller lacks are zero.  message_size is at least DSV2I_CHAT_MESSAGE_AT_LEAST. */
#define DSV2I_CHAT_MESSAGE_AT_LEAST offsetof(dsv2_chat_message, tool_calls) /* as it was at first */
dsv2_chat_message dsv2i_chat_message_at(const dsv2_chat_message *messages, size_t message_size, size_t i);
const dsv2_tool_call *dsv2i_chat_call_at(const dsv2_chat_message *m, size_t i);
dsv2_status dsv2i_chat_apply(const struct dsv2i_chat *c, const dsv2_chat_message *messages, size_t message_size,
                             size_t n_messages, uint32_t flags, char *text, size_t capacity, size_t *n);
dsv2_status dsv2i_chat_tokenize(const struct dsv2i_chat *c, const struct dsv2i_tokenizer *t,
                                const dsv2_chat_message *messages, size_t message_size, size_t n_messages, uint32_t flags,
                                int32_t *ids, size_t capacity, size_t *n);

#endif
