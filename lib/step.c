/* A step: tokens of many sessions, as the rows of few passes through the model.
 *
 * First every member is checked and given its pages, in order.  Then passes: each takes rows of the members in order until it is full, so
 * a pass may hold decode tokens of some and pieces of prompts of others.  Last the members that went well move on.  Until then
 * nothing changes that a caller can see, so one that failed needs no undoing but giving its pages back.
 * SPDX-License-Identifier: MIT */
#include "step.h"

#include <math.h>
#include <string.h>

#include "forward.h"
#include "logprobs.h"
#include "sampler.h"

struct step {
    dsv2_model *model;
    struct dsv2i_member *members;
    size_t n;
    dsv2_status status;             /* of the failure that came last */
    int32_t max_rows;
    /* the pass */
    struct dsv2i_batch batch;
    int32_t *token, *pos, *seq;     /* (max_rows) */
    struct dsv2i_seq *seqs;         /* (max_rows), as the following */
    struct dsv2i_output *out;
    struct dsv2i_member **of_seq;
    struct dsv2i_score *scores;
    int32_t *chosen;                /* what the backend has chosen, and */
    float *logprob;
};

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static void fail(struct step *step, struct dsv2i_member *m, dsv2_status status)
{
    m->status = step->status = status;
}

/* ---- Before: is it possible, and are the pages there? */

/* Multiply-adds per head of n rows that begin at position pos (spec 3.3): absorbed pays per query-key pair and per row, expanded less per
 * pair, but rebuilds every cached key and value. */
static int expanded_is_cheaper(const struct dsv2i_shape *s, int32_t pos, int32_t n)
{
    double latent = s->kv_lora_rank, rope = s->qk_rope_head_dim, head = s->qk_nope_head_dim + s->v_head_dim;
    double rows = n, pairs = rows * (pos + (rows + 1) / 2), keys = (double)pos + rows;

    return pairs * (head + rope) + keys * latent * head < pairs * (2 * latent + rope) + rows * latent * head;
}

/* Room for the member's tokens in the history, and the tokens there. */
static dsv2_status remember(struct dsv2i_member *m)
{
    dsv2_session *s = m->s;
    size_t need = (size_t)s->pos + m->n, capacity = s->tokens_capacity ? s->tokens_capacity : 64;

    if (need > s->tokens_capacity) {
        int32_t *grown;

        while (capacity < need)
            capacity *= 2;
        if (capacity > (size_t)s->n_ctx)
            capacity = (size_t)s->n_ctx;
        grown = dsv2i_alloc(&s->model->ctx->mem, capacity, sizeof *grown);
        if (!grown)
            return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %zu tokens", capacity);
        if (s->pos)
            memcpy(grown, s->tokens, (size_t)s->pos * sizeof *grown);
        m->outgrown = s->tokens;
        s->tokens = grown;
        s->tokens_capacity = capacity;
    }
    memmove(s->tokens + s->pos, m->tokens, m->n * sizeof *m->tokens);
    return DSV2_OK;
}

static void store_score(const struct dsv2i_member *m, int32_t pos, const struct dsv2i_score *from)
{
    dsv2_token_score one = {from->logprob, from->rank, from->top_token, from->top_logprob};

    if (isnan(one.logprob))
        one = (dsv2_token_score){NAN, 0, -1, NAN};
    memcpy((char *)m->scores + (size_t)(pos - m->s->pos) * m->score_size, &one, m->score_size < sizeof one ? m->score_size : sizeof one);
}

/* The score of the first token, from the logits that the session has. */
static struct dsv2i_score first_score(const dsv2_session *s, int32_t token)
{
    int32_t n = s->model->config.shape.vocab_size, top = 0;
    double lse = s->pos ? dsv2i_log_sum_exp(s->logits, n) : NAN;

    if (isnan(lse))
        return (struct dsv2i_score){NAN, 0, -1, NAN};
    for (int32_t i = 1; i < n; i++)
        if (s->logits[i] > s->logits[top])
            top = i;
    return (struct dsv2i_score){(float)(s->logits[token] - lse), dsv2i_rank(s->logits, n, token), top,
                                (float)(s->logits[top] - lse)};
}

static dsv2_status check(const struct dsv2i_member *m)
{
    const dsv2_session *s = m->s;
    int32_t vocab = s->model->config.shape.vocab_size;

    if (m->n > (size_t)(s->n_ctx - s->pos))
        return dsv2i_fail(DSV2_ERR_CONTEXT_FULL, "session: %zu tokens do not fit: %d of n_ctx %d are used", m->n, s->pos, s->n_ctx);
    for (size_t i = 0; i < m->n; i++)
        if (m->tokens[i] < 0 || m->tokens[i] >= vocab)
            return dsv2i_fail(DSV2_ERR_INVALID, "tokens[%zu]: %d is not in 0..%d (vocab_size - 1)", i, m->tokens[i], vocab - 1);
    return DSV2_OK;
}

static int32_t form_of(const struct dsv2i_member *m)
{
    const dsv2_session *s = m->s;
    int expanded = s->attention == DSV2_ATTENTION_EXPANDED;

    if (s->attention == DSV2_ATTENTION_AUTO)
        expanded = m->from < s->pos ? dsv2i_kv_expanded(&s->kv, m->from)
                                    : expanded_is_cheaper(&s->model->config.shape, s->pos, (int32_t)m->n);
    return expanded ? DSV2I_EXPANDED : DSV2I_ABSORBED;
}

/* May the beginning of the tokens come from the prefix cache? */
static int looks_up(const struct dsv2i_member *m)
{
    return m->s->kv.pool->n_buckets && !m->decoded && !m->scores;
}

/* Tokens of prompt when the step is done. */
static int32_t prompt_after(const struct dsv2i_member *m)
{
    return m->decoded ? m->s->n_prompt : m->end;
}

static dsv2_status prepare(struct dsv2i_member *m)
{
    dsv2_session *s = m->s;

    DSV2I_TRY(check(m));
    if (atomic_exchange(&s->cancelled, 0))
        return dsv2i_fail(DSV2_ERR_CANCELLED, "session: cancelled");
    DSV2I_TRY(remember(m));
    m->end = s->pos + (int32_t)m->n;
    if (m->scores && s->pos && !s->has_logits) {
        m->from = s->pos - 1; /* what foretold the first token is gone, and is computed again: as it was, in the form that it was */
        m->kept = dsv2i_kv_keep(&s->kv, m->from);
    } else if (m->scores) {
        struct dsv2i_score first = first_score(s, m->tokens[0]);

        store_score(m, s->pos, &first);
    }
    m->form = form_of(m);
    if (looks_up(m))
        DSV2I_TRY(dsv2i_kv_reuse(&s->kv, s->cache_namespace, m->form == DSV2I_EXPANDED, s->tokens, &m->from, m->end));
    m->at = m->from;
    m->on_backend = m->sampled && s->model->ctx->backend->op->sample && s->model->config.shape.vocab_size % 4 == 0 && !m->sample.callback;
    if (m->on_backend)
        DSV2I_TRY(dsv2i_sampling_make(s, m->end, prompt_after(m), &m->sample, &m->sampling, &m->lists));
    return dsv2i_kv_reserve(&s->kv, m->from, m->end);
}

/* Give back what prepare took. */
static void abandon(struct dsv2i_member *m)
{
    if (m->kept)
        dsv2i_kv_put_back(&m->s->kv, m->from, m->kept);
    m->kept = NULL;
    dsv2i_kv_truncate(&m->s->kv, m->s->pos);
}

/* ---- A pass */

static int wants_rows(const struct dsv2i_member *m)
{
    return m->status == DSV2_OK && m->at < m->end;
}

/* Fill the pass; returns its rows. */
static int32_t gather(struct step *step)
{
    struct dsv2i_batch *b = &step->batch;

    *b = (struct dsv2i_batch){.token = step->token, .pos = step->pos, .seq = step->seq, .seqs = step->seqs};
    for (size_t k = 0; k < step->n && b->n_rows < step->max_rows; k++) {
        struct dsv2i_member *m = &step->members[k];
        dsv2_session *s = m->s;
        int32_t rows, last;

        if (!wants_rows(m))
            continue;
        rows = min_i32(step->max_rows - b->n_rows, m->end - m->at);
        last = m->at + rows == m->end;
        step->of_seq[b->n_seqs] = m;
        step->seqs[b->n_seqs] = (struct dsv2i_seq){.page = s->kv.data, .form = m->form, .kv_type = s->kv.pool->kv_type};
        step->out[b->n_seqs] = (struct dsv2i_output){
            .row = b->n_rows,
            .n_rows = rows,
            .logits = last && (!m->no_logits || (m->sampled && !m->on_backend)) ? s->logits : NULL,
            .sampling = last && m->on_backend ? &m->sampling : NULL,
            .target = s->tokens + m->at + 1,
            .scores = step->scores + b->n_rows,
            .n_scores = m->scores ? rows - last : 0,
        };
        for (int32_t i = 0; i < rows; i++, b->n_rows++) {
            step->token[b->n_rows] = s->tokens[m->at + i];
            step->pos[b->n_rows] = m->at + i;
            step->seq[b->n_rows] = b->n_seqs;
        }
        b->n_seqs++;
    }
    return b->n_rows;
}

/* Take note of cancelled members: of those in the pass nothing is wanted any more, the others of it do not notice. */
static int32_t poll(void *user)
{
    struct step *step = user;
    int32_t live = 0;

    for (int32_t i = 0; i < step->batch.n_seqs; i++) {
        struct dsv2i_member *m = step->of_seq[i];

        if (m->status == DSV2_OK && atomic_load_explicit(&m->s->cancelled, memory_order_relaxed)) {
            atomic_store(&m->s->cancelled, 0);
            fail(step, m, dsv2i_fail(DSV2_ERR_CANCELLED, "session: cancelled"));
            step->out[i].logits = NULL;
            step->out[i].sampling = NULL;
            step->out[i].n_scores = 0;
        }
        live += m->status == DSV2_OK;
    }
    return live == 0;
}

/* The token after the last one. */
static dsv2_status choose(const struct step *step, struct dsv2i_member *m, const struct dsv2i_output *out)
{
    if (!m->on_backend)
        return dsv2i_sample_at(m->s, m->end, prompt_after(m), &m->sample, &m->token, &m->logprob);
    m->token = step->chosen[out->drawn];
    m->logprob = step->logprob[out->drawn];
    if (m->token < 0)
        return dsv2i_fail(DSV2_ERR_NUMERIC, "logits: NaN or infinity among them, or none is left to choose from");
    return DSV2_OK;
}

static void pass(struct step *step)
{
    dsv2_status status = dsv2i_forward(step->model, &step->batch, step->out, step->chosen, step->logprob, poll, step);

    for (int32_t i = 0; i < step->batch.n_seqs; i++) {
        struct dsv2i_member *m = step->of_seq[i];
        const struct dsv2i_output *out = &step->out[i];
        dsv2_session *s = m->s;

        if (m->status == DSV2_OK && status != DSV2_OK) {
            s->has_logits = 0; /* the backend failed: they may be written in part */
            fail(step, m, status);
        }
        if (m->status != DSV2_OK)
            continue;
        for (int32_t k = 0; k < out->n_scores; k++)
            store_score(m, m->at + k + 1, &out->scores[k]);
        m->at += out->n_rows;
        if (m->sampled && m->at == m->end) {
            dsv2_status choice = choose(step, m, out);

            if (choice != DSV2_OK) {
                s->has_logits = 0; /* they are those of the step, which did not happen */
                fail(step, m, choice);
            }
        }
        if (s->progress && m->at < m->end && s->progress(s->progress_user, (uint64_t)(m->at - s->pos), m->n))
            fail(step, m, dsv2i_fail(DSV2_ERR_CANCELLED, "session: cancelled by the progress callback at token %d of %zu",
                                     m->at - s->pos, m->n));
    }
}

/* ---- The step */

static void commit(struct dsv2i_member *m)
{
    dsv2_session *s = m->s;

    s->stepping = 0;
    dsv2i_free(&s->model->ctx->mem, m->lists);
    dsv2i_free(&s->model->ctx->mem, m->outgrown);
    if (m->status != DSV2_OK) {
        abandon(m);
        return;
    }
    if (m->kept)
        dsv2i_kv_let_go(&s->kv, m->kept);
    if (looks_up(m))
        dsv2i_pool_count(s->kv.pool, m->n, (size_t)(m->from - s->pos));
    dsv2i_kv_filled(&s->kv, m->from, m->end, m->form == DSV2I_EXPANDED);
    s->pos = m->end;
    if (!m->decoded)
        s->n_prompt = s->pos;
    s->has_logits = !m->no_logits;
    dsv2i_kv_publish(&s->kv, s->cache_namespace, s->tokens, s->pos);
}

/* Room for the lists of a pass, in one block. */
static void *make_lists(struct step *step)
{
    size_t rows = (size_t)step->max_rows;
    char *block = dsv2i_alloc(&step->model->ctx->mem, rows,
                              sizeof *step->of_seq + sizeof *step->out + sizeof *step->seqs + sizeof *step->scores
                                                               + sizeof *step->logprob + 4 * sizeof(int32_t));

    if (!block)
        return NULL;
    step->of_seq = (void *)block;
    step->out = (void *)(step->of_seq + rows);
    step->seqs = (void *)(step->out + rows);
    step->scores = (void *)(step->seqs + rows);
    step->token = (void *)(step->scores + rows);
    step->pos = step->token + rows;
    step->seq = step->pos + rows;
    step->chosen = step->seq + rows;
    step->logprob = (void *)(step->chosen + rows);
    return block;
}

dsv2_status dsv2i_step(dsv2_model *model, struct dsv2i_member *members, size_t n)
{
    struct step step = {.model = model, .members = members, .n = n};
    void *lists;

    for (size_t i = 0; i < n; i++)
        if (members[i].s->n_batch > step.max_rows) /* scratch is there for the largest */
            step.max_rows = members[i].s->n_batch;
    lists = make_lists(&step);
    for (size_t i = 0; i < n; i++) {
        struct dsv2i_member *m = &members[i];

        m->from = m->at = m->end = m->s->pos;
        m->lists = NULL;
        m->kept = NULL;
        m->outgrown = NULL;
        m->s->stepping = 1;
        m->status = lists ? prepare(m) : dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %d rows", step.max_rows);
        if (m->status != DSV2_OK) {
            step.status = m->status;
            abandon(m); /* at once: the next may need the pages */
        }
    }
    while (lists && gather(&step))
        pass(&step);
    for (size_t i = 0; i < n; i++)
        commit(&members[i]);
    dsv2i_free(&model->ctx->mem, lists);
    return step.status;
}
