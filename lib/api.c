/* Every public function: check the arguments, call one internal function.
 * SPDX-License-Identifier: MIT */
#include "dsv2.h"

#include <fenv.h>
#include <string.h>

#include "backend.h"
#include "logprobs.h"
#include "params.h"
#include "sampler.h"
#include "save.h"
#include "step.h"
#include "text.h"

#define REQUIRE(argument) \
    do { \
        if (!(argument)) \
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: %s is NULL", __func__, #argument); \
    } while (0)

/* An array argument: NULL only when there is nothing in it. */
#define REQUIRE_ARRAY(argument, count) \
    do { \
        if (!(argument) && (count)) \
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: %s is NULL, but %s is %zu", __func__, #argument, #count, (size_t)(count)); \
    } while (0)

static dsv2_status check_flags(const char *function, uint32_t flags, uint32_t known)
{
    if (flags & ~known)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: flags: 0x%x has unknown bits", function, flags);
    return DSV2_OK;
}

static dsv2_status check_tokenizer(const dsv2_model *model)
{
    if (!model->tokenizer)
        return dsv2i_fail(DSV2_ERR_STATE, "%s: the folder has no tokenizer.json", model->folder);
    return DSV2_OK;
}

static dsv2_status check_id(const char *function, const dsv2_model *model, int32_t id)
{
    if (id < 0 || id >= model->config.shape.vocab_size)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: token id %d is not in 0..%d (vocab_size - 1)", function, id,
                          model->config.shape.vocab_size - 1);
    return DSV2_OK;
}

static dsv2_status check_element(const char *function, size_t size, size_t least)
{
    if (size < least || size > 65536)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: %zu is not the size of an element", function, size);
    return DSV2_OK;
}

/* What computes begins with enter and ends with leave: the host's rounding mode and what it does with denormals must not reach results. */
static void enter(fenv_t *host)
{
    fegetenv(host);
    fesetenv(FE_DFL_ENV);
}

static dsv2_status leave(const fenv_t *host, dsv2_status status)
{
    fesetenv(host);
    return status;
}

/* A progress callback runs in the midst of a step. */
static dsv2_status check_idle(const char *function, const dsv2_session *s)
{
    return s->stepping ? dsv2i_fail(DSV2_ERR_STATE, "%s: the session is in a step, of which this is a callback", function) : DSV2_OK;
}

/* ---- Version and context */

uint32_t dsv2_version(void)
{
    return DSV2_VERSION_MAJOR * 1000000u + DSV2_VERSION_MINOR * 1000u + DSV2_VERSION_PATCH;
}

void dsv2_context_params_init(dsv2_context_params *params, size_t size)
{
    static const dsv2_context_params defaults = {.cpu_level = DSV2_CPU_BEST};

    dsv2i_params_init(params, size, &defaults, sizeof defaults);
}

dsv2_status dsv2_context_create(const dsv2_context_params *params, dsv2_context **out)
{
    REQUIRE(out);
    *out = NULL;
    return dsv2i_context_create(params, out);
}

dsv2_status dsv2_backend_list(const char *cuda_module, dsv2_backend_info *infos, size_t info_size, size_t capacity, size_t *n)
{
    REQUIRE(n);
    *n = DSV2I_BACKENDS;
    REQUIRE_ARRAY(infos, capacity);
    if (capacity)
        DSV2I_TRY(check_element(__func__, info_size, sizeof(size_t)));
    for (size_t i = 0; i < capacity && i < DSV2I_BACKENDS; i++) {
        dsv2_backend_info info = dsv2i_backend_describe(cuda_module, (int32_t)i);
        char *to = (char *)infos + i * info_size;

        memcpy(to, &info_size, sizeof info_size);
        DSV2I_TRY(dsv2i_output_fill(to, &info, sizeof info, "dsv2_backend_info"));
    }
    return DSV2_OK;
}

void dsv2_context_free(dsv2_context *ctx)
{
    dsv2i_context_release(ctx);
}

/* ---- Model */

void dsv2_model_params_init(dsv2_model_params *params, size_t size)
{
    static const dsv2_model_params defaults = {.load_mode = DSV2_LOAD_MMAP};

    dsv2i_params_init(params, size, &defaults, sizeof defaults);
}

dsv2_status dsv2_model_load(dsv2_context *ctx, const char *folder, const dsv2_model_params *params, dsv2_model **out)
{
    fenv_t host;

    REQUIRE(out);
    *out = NULL;
    REQUIRE(ctx);
    REQUIRE(folder);
    DSV2I_TRY(dsv2i_context_check(ctx));
    enter(&host);
    return leave(&host, dsv2i_model_load(ctx, folder, params, out));
}

void dsv2_model_retain(dsv2_model *model)
{
    if (model)
        dsv2i_model_retain(model);
}

void dsv2_model_free(dsv2_model *model)
{
    dsv2i_model_release(model);
}

dsv2_status dsv2_model_get_info(const dsv2_model *model, dsv2_model_info *info)
{
    REQUIRE(model);
    REQUIRE(info);
    return dsv2i_output_fill(info, &model->info, sizeof model->info, "dsv2_model_info");
}

dsv2_status dsv2_model_inspect(dsv2_context *ctx, const char *folder, const dsv2_model_params *params,
                               const dsv2_session_params *session, dsv2_model_info *info, dsv2_memory *memory)
{
    dsv2_model_info full_info;
    dsv2_memory full_memory;
    fenv_t host;

    REQUIRE(ctx);
    REQUIRE(folder);
    DSV2I_TRY(dsv2i_output_check(info, "dsv2_model_info"));
    DSV2I_TRY(dsv2i_output_check(memory, "dsv2_memory"));
    enter(&host);
    DSV2I_TRY(leave(&host, dsv2i_model_inspect(ctx, folder, params, session, &full_info, &full_memory)));
    if (info)
        DSV2I_TRY(dsv2i_output_fill(info, &full_info, sizeof full_info, "dsv2_model_info"));
    if (memory)
        DSV2I_TRY(dsv2i_output_fill(memory, &full_memory, sizeof full_memory, "dsv2_memory"));
    return DSV2_OK;
}

/* ---- Tokens and text */

dsv2_status dsv2_tokenize(const dsv2_model *model, const char *text, size_t n_text, uint32_t flags, int32_t *ids,
                          size_t capacity, size_t *n)
{
    REQUIRE(model);
    REQUIRE_ARRAY(text, n_text);
    REQUIRE_ARRAY(ids, capacity);
    REQUIRE(n);
    DSV2I_TRY(check_flags(__func__, flags, DSV2_TOKENIZE_BOS | DSV2_TOKENIZE_NO_MARKERS | DSV2_TOKENIZE_REPLACE));
    DSV2I_TRY(check_tokenizer(model));
    return dsv2i_tokenizer_encode(model->tokenizer, text, n_text, flags, ids, capacity, n);
}

dsv2_status dsv2_detokenize(const dsv2_model *model, const int32_t *ids, size_t n_ids, uint32_t flags, char *text,
                            size_t capacity, size_t *n)
{
    REQUIRE(model);
    REQUIRE_ARRAY(ids, n_ids);
    REQUIRE_ARRAY(text, capacity);
    REQUIRE(n);
    DSV2I_TRY(check_flags(__func__, flags, DSV2_DETOKENIZE_SKIP_SPECIAL));
    DSV2I_TRY(check_tokenizer(model));
    for (size_t i = 0; i < n_ids; i++)
        DSV2I_TRY(check_id(__func__, model, ids[i]));
    return dsv2i_detokenize(model, ids, n_ids, flags, text, capacity, n);
}

dsv2_status dsv2_token_bytes(const dsv2_model *model, int32_t id, const char **bytes, size_t *n)
{
    int special;

    REQUIRE(model);
    REQUIRE(bytes);
    REQUIRE(n);
    DSV2I_TRY(check_tokenizer(model));
    DSV2I_TRY(check_id(__func__, model, id));
    *bytes = dsv2i_tokenizer_bytes(model->tokenizer, id, n, &special);
    return DSV2_OK;
}

dsv2_status dsv2_token_find(const dsv2_model *model, const char *text, size_t n_text, int32_t *id)
{
    char quoted[64];
    int32_t found;

    REQUIRE(model);
    REQUIRE_ARRAY(text, n_text);
    REQUIRE(id);
    DSV2I_TRY(check_tokenizer(model));
    found = dsv2i_tokenizer_find(model->tokenizer, text, n_text);
    if (found < 0)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_token_find: no token is \"%s\"",
                          dsv2i_quote(quoted, sizeof quoted, text, n_text));
    *id = found;
    return DSV2_OK;
}

int32_t dsv2_token_is_eos(const dsv2_model *model, int32_t id)
{
    if (model)
        for (int32_t i = 0; i < model->generation.n_eos; i++)
            if (model->generation.eos_token_id[i] == id)
                return 1;
    return 0;
}

void dsv2_text_params_init(dsv2_text_params *params, size_t size)
{
    static const dsv2_text_params defaults = {.skip_special = 1};

    dsv2i_params_init(params, size, &defaults, sizeof defaults);
}

dsv2_status dsv2_text_create(dsv2_model *model, const dsv2_text_params *params, dsv2_text **out)
{
    REQUIRE(out);
    *out = NULL;
    REQUIRE(model);
    DSV2I_TRY(check_tokenizer(model));
    return dsv2i_text_create(model, params, out);
}

dsv2_status dsv2_text_push(dsv2_text *text, int32_t token, const char **piece, size_t *n, int32_t *stopped)
{
    REQUIRE(text);
    REQUIRE(piece);
    REQUIRE(n);
    return dsv2i_text_push(text, token, piece, n, stopped);
}

dsv2_status dsv2_text_finish(dsv2_text *text, const char **piece, size_t *n)
{
    REQUIRE(text);
    REQUIRE(piece);
    REQUIRE(n);
    return dsv2i_text_finish(text, piece, n);
}

void dsv2_text_free(dsv2_text *text)
{
    dsv2i_text_free(text);
}

/* ---- Chat */

static dsv2_status check_calls(const char *function, const dsv2_chat_message *m, size_t of)
{
    DSV2I_TRY(check_element(function, m->tool_call_size, sizeof *m->tool_calls));
    for (size_t i = 0; i < m->n_tool_calls; i++) {
        const dsv2_tool_call *call = dsv2i_chat_call_at(m, i);

        if (!call->type || !call->name || !call->arguments)
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: messages[%zu].tool_calls[%zu].%s is NULL", function, of, i,
                              !call->type ? "type" : !call->name ? "name" : "arguments");
    }
    return DSV2_OK;
}

static dsv2_status check_messages(const char *function, const dsv2_chat_message *messages, size_t message_size,
                                  size_t n_messages)
{
    DSV2I_TRY(check_element(function, message_size, DSV2I_CHAT_MESSAGE_AT_LEAST));
    for (size_t i = 0; i < n_messages; i++) {
        dsv2_chat_message m = dsv2i_chat_message_at(messages, message_size, i);
        const char *null = !m.role ? "role" : !m.content && m.n_content ? "content" : !m.tool_calls && m.n_tool_calls ? "tool_calls" : NULL;

        if (null)
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: messages[%zu].%s is NULL", function, i, null);
        if (m.n_tool_calls)
            DSV2I_TRY(check_calls(function, &m, i));
    }
    return DSV2_OK;
}

dsv2_status dsv2_chat_apply(const dsv2_model *model, const dsv2_chat_message *messages, size_t message_size,
                            size_t n_messages, uint32_t flags, char *text, size_t capacity, size_t *n)
{
    REQUIRE(model);
    REQUIRE_ARRAY(messages, n_messages);
    REQUIRE_ARRAY(text, capacity);
    REQUIRE(n);
    DSV2I_TRY(check_flags(__func__, flags, DSV2_CHAT_GENERATE));
    DSV2I_TRY(check_messages(__func__, messages, message_size, n_messages));
    return dsv2i_chat_apply(model->chat, messages, message_size, n_messages, flags, text, capacity, n);
}

dsv2_status dsv2_chat_tokenize(const dsv2_model *model, const dsv2_chat_message *messages, size_t message_size,
                               size_t n_messages, uint32_t flags, int32_t *ids, size_t capacity, size_t *n)
{
    REQUIRE(model);
    REQUIRE_ARRAY(messages, n_messages);
    REQUIRE_ARRAY(ids, capacity);
    REQUIRE(n);
    DSV2I_TRY(check_flags(__func__, flags, DSV2_CHAT_GENERATE | DSV2_CHAT_NO_MARKERS));
    DSV2I_TRY(check_messages(__func__, messages, message_size, n_messages));
    DSV2I_TRY(check_tokenizer(model));
    return dsv2i_chat_tokenize(model->chat, model->tokenizer, messages, message_size, n_messages, flags, ids, capacity, n);
}

/* ---- Session */

void dsv2_pool_params_init(dsv2_pool_params *params, size_t size)
{
    static const dsv2_pool_params defaults = {.kv_type = DSV2_KV_BF16};

    dsv2i_params_init(params, size, &defaults, sizeof defaults);
}

dsv2_status dsv2_pool_create(dsv2_model *model, const dsv2_pool_params *params, dsv2_pool **out)
{
    REQUIRE(out);
    *out = NULL;
    REQUIRE(model);
    DSV2I_TRY(dsv2i_context_check(model->ctx));
    return dsv2i_pool_create(model, params, DSV2_KV_BF16, out);
}

void dsv2_pool_free(dsv2_pool *pool)
{
    dsv2i_pool_release(pool);
}

dsv2_status dsv2_pool_get_info(dsv2_pool *pool, dsv2_pool_info *info)
{
    dsv2_pool_info full;

    REQUIRE(pool);
    REQUIRE(info);
    DSV2I_TRY(dsv2i_context_check(pool->model->ctx));
    dsv2i_pool_info(pool, &full);
    return dsv2i_output_fill(info, &full, sizeof full, "dsv2_pool_info");
}

void dsv2_session_params_init(dsv2_session_params *params, size_t size)
{
    static const dsv2_session_params defaults = {.kv_type = DSV2_KV_BF16, .attention = DSV2_ATTENTION_ABSORBED, .n_batch = 256};

    dsv2i_params_init(params, size, &defaults, sizeof defaults);
}

dsv2_status dsv2_session_create(dsv2_model *model, const dsv2_session_params *params, dsv2_session **out)
{
    REQUIRE(out);
    *out = NULL;
    REQUIRE(model);
    DSV2I_TRY(dsv2i_context_check(model->ctx));
    return dsv2i_session_create(model, params, out);
}

void dsv2_session_free(dsv2_session *s)
{
    dsv2i_session_free(s);
}

dsv2_status dsv2_session_memory(const dsv2_session *s, dsv2_memory *memory)
{
    dsv2_memory full;

    REQUIRE(s);
    REQUIRE(memory);
    DSV2I_TRY(dsv2i_session_memory(s, &full));
    return dsv2i_output_fill(memory, &full, sizeof full, "dsv2_memory");
}

/* ---- Steps */

/* What every session of a step must be; first is one of them. */
static dsv2_status check_session(const char *function, size_t i, const dsv2_session *s, const dsv2_session *first)
{
    if (s->stepping)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: members[%zu]: session: it is in the step twice, or in another", function, i);
    if (s->model != first->model)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: members[%zu]: session: its model is not that of members[0]", function, i);
    return DSV2_OK;
}

#define STEP_MEMBER_AT_LEAST offsetof(dsv2_step_member, sample) /* as it was at first */

static dsv2_status take_member(const char *function, const char *from, size_t size, size_t i, const dsv2_session *first,
                               struct dsv2i_member *m)
{
    dsv2_step_member local = {0}, *given = &local;
    uint32_t unknown;

    memcpy(given, from, size < sizeof local ? size : sizeof local);
    unknown = given->flags & ~(DSV2_STEP_DECODED | DSV2_STEP_NO_LOGITS);
    if (!given->session || !given->tokens)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: members[%zu]: %s is NULL", function, i, given->session ? "tokens" : "session");
    if (!given->n_tokens)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: members[%zu]: n_tokens: 0 tokens", function, i);
    if (unknown)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: members[%zu]: flags: 0x%x is none of DSV2_STEP_*", function, i, unknown);
    if (given->scores)
        DSV2I_TRY(check_element(function, given->score_size, sizeof(float)));
    DSV2I_TRY(check_session(function, i, given->session, first ? first : given->session));
    *m = (struct dsv2i_member){
        .s = given->session,
        .tokens = given->tokens,
        .n = given->n_tokens,
        .decoded = (given->flags & DSV2_STEP_DECODED) != 0,
        .no_logits = (given->flags & DSV2_STEP_NO_LOGITS) != 0,
        .scores = given->scores,
        .score_size = given->score_size,
        .sampled = given->sample != NULL,
    };
    if (m->sampled)
        DSV2I_TRY(dsv2i_sample_take(m->s->model, given->sample, &m->sample));
    m->s->stepping = 1;
    return DSV2_OK;
}

static void give_member(char *to, size_t size, const struct dsv2i_member *m)
{
    dsv2_step_member *member = (void *)to;

    member->status = m->status;
    if (!m->sampled || m->status != DSV2_OK || size < sizeof *member)
        return;
    member->token = m->token;
    member->logprob = m->logprob;
}

dsv2_status dsv2_step(dsv2_step_member *members, size_t member_size, size_t n)
{
    struct dsv2i_member one, *m = &one;
    fenv_t host;
    dsv2_model *model;
    dsv2_status status = DSV2_OK;
    size_t taken = 0;

    REQUIRE(members);
    if (!n)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: n: 0 members", __func__);
    DSV2I_TRY(check_element(__func__, member_size, STEP_MEMBER_AT_LEAST));
    if (!members->session)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: members[0]: session is NULL", __func__);
    model = members->session->model;
    DSV2I_TRY(dsv2i_context_check(model->ctx));
    if (n > 1 && !(m = dsv2i_alloc(&model->ctx->mem, n, sizeof *m))) {
        for (size_t i = 0; i < n; i++)
            ((dsv2_step_member *)(void *)((char *)members + i * member_size))->status = DSV2_ERR_NOMEM;
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for %zu members", __func__, n);
    }
    for (; taken < n && status == DSV2_OK; taken += status == DSV2_OK)
        status = take_member(__func__, (char *)members + taken * member_size, member_size, taken, taken ? m[0].s : NULL, &m[taken]);
    if (status == DSV2_OK) {
        enter(&host);
        status = leave(&host, dsv2i_step(model, m, n));
        for (size_t i = 0; i < n; i++)
            give_member((char *)members + i * member_size, member_size, &m[i]);
    }
    for (size_t i = 0; i < taken; i++)
        m[i].s->stepping = 0;
    if (m != &one)
        dsv2i_free(&model->ctx->mem, m);
    return status;
}

/* A step of one session. */
static dsv2_status advance(const char *function, dsv2_session *s, struct dsv2i_member *m)
{
    fenv_t host;

    if (!s || !m->tokens)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: %s is NULL", function, s ? "tokens" : "s");
    if (!m->n)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: n: 0 tokens", function);
    DSV2I_TRY(dsv2i_context_check(s->model->ctx));
    DSV2I_TRY(check_idle(function, s));
    enter(&host);
    return leave(&host, dsv2i_step(s->model, m, 1));
}

dsv2_status dsv2_session_prefill(dsv2_session *s, const int32_t *tokens, size_t n)
{
    return advance(__func__, s, &(struct dsv2i_member){.s = s, .tokens = tokens, .n = n});
}

dsv2_status dsv2_session_decode(dsv2_session *s, int32_t token)
{
    return advance(__func__, s, &(struct dsv2i_member){.s = s, .tokens = &token, .n = 1, .decoded = 1});
}

dsv2_status dsv2_session_score(dsv2_session *s, const int32_t *tokens, size_t n, dsv2_token_score *scores, size_t score_size)
{
    REQUIRE(scores);
    DSV2I_TRY(check_element(__func__, score_size, sizeof(float)));
    return advance(__func__, s, &(struct dsv2i_member){.s = s, .tokens = tokens, .n = n, .scores = scores, .score_size = score_size});
}

static dsv2_status check_logits(const char *function, const dsv2_session *s)
{
    DSV2I_TRY(check_idle(function, s));
    if (!s->has_logits)
        return dsv2i_fail(DSV2_ERR_STATE, "%s: no logits: %s", function,
                          s->pos ? "the session was truncated" : "nothing was evaluated yet");
    return DSV2_OK;
}

dsv2_status dsv2_session_logits(const dsv2_session *s, const float **logits, size_t *n)
{
    REQUIRE(s);
    REQUIRE(logits);
    REQUIRE(n);
    DSV2I_TRY(check_logits(__func__, s));
    *logits = s->logits;
    *n = (size_t)s->model->config.shape.vocab_size;
    return DSV2_OK;
}

dsv2_status dsv2_session_logprobs(const dsv2_session *s, int32_t n_top, int32_t also, dsv2_logprob *out, size_t out_size,
                                  size_t capacity, size_t *n)
{
    fenv_t host;

    REQUIRE(s);
    REQUIRE_ARRAY(out, capacity);
    REQUIRE(n);
    DSV2I_TRY(check_element(__func__, out_size, sizeof(int32_t)));
    DSV2I_TRY(check_logits(__func__, s));
    enter(&host);
    return leave(&host, dsv2i_top_logprobs(&s->model->ctx->mem, s->logits, s->model->config.shape.vocab_size, n_top, also, out, out_size,
                                           capacity, n));
}

size_t dsv2_session_position(const dsv2_session *s)
{
    return s ? (size_t)s->pos : 0;
}

size_t dsv2_session_capacity(const dsv2_session *s)
{
    return s ? (size_t)s->n_ctx : 0;
}

const int32_t *dsv2_session_tokens(const dsv2_session *s)
{
    return s ? s->tokens : NULL;
}

dsv2_status dsv2_session_truncate(dsv2_session *s, size_t n)
{
    REQUIRE(s);
    DSV2I_TRY(check_idle(__func__, s));
    return dsv2i_session_truncate(s, n);
}

dsv2_status dsv2_session_fork(const dsv2_session *s, dsv2_session **out)
{
    REQUIRE(out);
    *out = NULL;
    REQUIRE(s);
    DSV2I_TRY(dsv2i_context_check(s->model->ctx));
    DSV2I_TRY(check_idle(__func__, s));
    return dsv2i_session_fork(s, out);
}

dsv2_status dsv2_session_save(const dsv2_session *s, const char *path)
{
    REQUIRE(s);
    REQUIRE(path);
    DSV2I_TRY(dsv2i_context_check(s->model->ctx));
    DSV2I_TRY(check_idle(__func__, s));
    return dsv2i_session_save(s, path);
}

dsv2_status dsv2_session_restore(dsv2_session *s, const char *path)
{
    REQUIRE(s);
    REQUIRE(path);
    DSV2I_TRY(dsv2i_context_check(s->model->ctx));
    DSV2I_TRY(check_idle(__func__, s));
    return dsv2i_session_restore(s, path);
}

dsv2_status dsv2_session_export(const dsv2_session *s, void *buf, size_t capacity, size_t *n)
{
    REQUIRE(s);
    REQUIRE_ARRAY(buf, capacity);
    REQUIRE(n);
    DSV2I_TRY(dsv2i_context_check(s->model->ctx));
    DSV2I_TRY(check_idle(__func__, s));
    return dsv2i_session_export(s, buf, capacity, n);
}

dsv2_status dsv2_session_import(dsv2_session *s, const void *buf, size_t n)
{
    REQUIRE(s);
    REQUIRE_ARRAY(buf, n);
    DSV2I_TRY(dsv2i_context_check(s->model->ctx));
    DSV2I_TRY(check_idle(__func__, s));
    return dsv2i_session_import(s, buf, n);
}

void dsv2_session_cancel(dsv2_session *s)
{
    if (s)
        atomic_store(&s->cancelled, 1);
}

/* ---- Sampling */

void dsv2_sample_params_init(dsv2_sample_params *params, size_t size, const dsv2_model *model)
{
    dsv2i_sample_params_init(params, size, model);
}

dsv2_status dsv2_sample(const dsv2_session *s, const dsv2_sample_params *params, int32_t *token, float *logprob)
{
    fenv_t host;

    REQUIRE(s);
    REQUIRE(token);
    DSV2I_TRY(check_logits(__func__, s));
    enter(&host);
    return leave(&host, dsv2i_sample(s, params, token, logprob));
}
