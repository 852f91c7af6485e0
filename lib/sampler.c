/* Choosing a token from a row of logits.
 *
 * Nothing is sorted: top_k and top_p look for the logit at their border in four histograms of eight bits each, so that
 * their time grows with the vocabulary and with nothing else.
 *
 * The draw is an exponential race: each candidate i gets E_i = -ln(u_i) and the greatest p_i / E_i wins, which is a draw
 * from p that needs no sum over p and no order of the candidates.  u_i = (r + 0.5) / 2^32, with r word id % 4 of the
 * Philox block whose counter is (position low, position high, id / 4, 0) and whose key is the seed: so u_i, and the
 * winner, depend on nothing but seed, position, id and logits.
 *
 * What decides is computed by sampling.h, so that kernels/cuda/sample.cu decides the same.
 *
 * SPDX-License-Identifier: MIT */
#include "sampler.h"

#include <math.h>
#include <string.h>

#include "logprobs.h"
#include "params.h"

static const char NAME[] = "dsv2_sample_params";

/* ---- Parameters */

static dsv2_status check_float(const char *field, float value, int good, const char *range)
{
    if (good && isfinite(value))
        return DSV2_OK;
    return dsv2i_fail(DSV2_ERR_INVALID, "%s: %s: %g is not %s", NAME, field, (double)value, range);
}

static dsv2_status check_int(const char *field, int64_t value, int64_t low, int64_t high)
{
    if (value >= low && value <= high)
        return DSV2_OK;
    return dsv2i_fail(DSV2_ERR_INVALID, "%s: %s: %lld is not in %lld..%lld", NAME, field, (long long)value, (long long)low,
                      (long long)high);
}

static dsv2_logit_bias bias_at(const dsv2_sample_params *p, size_t i)
{
    dsv2_logit_bias b;

    memcpy(&b, (const char *)p->logit_bias + i * p->logit_bias_size, sizeof b);
    return b;
}

dsv2_status dsv2i_sample_check(const dsv2_sample_params *p, int32_t n_vocab)
{
    DSV2I_TRY(check_float("temperature", p->temperature, p->temperature >= 0, "a number >= 0"));
    DSV2I_TRY(check_float("top_p", p->top_p, p->top_p > 0 && p->top_p <= 1, "in (0, 1]"));
    DSV2I_TRY(check_float("min_p", p->min_p, p->min_p >= 0 && p->min_p <= 1, "in [0, 1]"));
    DSV2I_TRY(check_int("top_k", p->top_k, -1, INT32_MAX));
    DSV2I_TRY(check_float("repetition_penalty", p->repetition_penalty, p->repetition_penalty > 0, "a number > 0"));
    DSV2I_TRY(check_float("presence_penalty", p->presence_penalty, fabsf(p->presence_penalty) <= 2, "in [-2, 2]"));
    DSV2I_TRY(check_float("frequency_penalty", p->frequency_penalty, fabsf(p->frequency_penalty) <= 2, "in [-2, 2]"));
    DSV2I_TRY(check_int("min_tokens", p->min_tokens, 0, INT32_MAX));
    if (p->n_logit_bias && !p->logit_bias)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: logit_bias is NULL, but n_logit_bias is %zu", NAME, p->n_logit_bias);
    if (p->n_logit_bias && (p->logit_bias_size < sizeof(dsv2_logit_bias) || p->logit_bias_size > 65536))
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: logit_bias_size: %zu is not the size of an element", NAME,
                          p->logit_bias_size);
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        dsv2_logit_bias b = bias_at(p, i);

        if (b.token < 0 || b.token >= n_vocab)
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: logit_bias[%zu].token: %d is not in 0..%d (vocab_size - 1)", NAME, i,
                              b.token, n_vocab - 1);
        if (isnan(b.bias))
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: logit_bias[%zu].bias: %g is not a number", NAME, i, (double)b.bias);
    }
    if (p->n_stop_tokens && !p->stop_tokens)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: stop_tokens is NULL, but n_stop_tokens is %zu", NAME, p->n_stop_tokens);
    for (size_t i = 0; i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] < 0 || p->stop_tokens[i] >= n_vocab)
            return dsv2i_fail(DSV2_ERR_INVALID, "%s: stop_tokens[%zu]: %d is not in 0..%d (vocab_size - 1)", NAME, i,
                              p->stop_tokens[i], n_vocab - 1);
    return DSV2_OK;
}

/* ---- Logits before temperature */

static dsv2_status check_numbers(const float *logits, int32_t n, const char *whose)
{
    for (int32_t i = 0; i < n; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return dsv2i_fail(DSV2_ERR_NUMERIC, "%s[%d]: %g", whose, i, (double)logits[i]);
    return DSV2_OK;
}

static void penalize(const struct dsv2i_sample_row *row, const dsv2_sample_params *p, float *logits, uint32_t *counts)
{
    const uint32_t seen = 1u << 31; /* in prompt or output; the rest of the word counts output only */

    if (p->repetition_penalty == 1 && p->frequency_penalty == 0 && p->presence_penalty == 0)
        return;
    memset(counts, 0, (size_t)row->n_vocab * sizeof *counts);
    for (int32_t i = 0; i < row->pos; i++)
        counts[row->tokens[i]] = (counts[row->tokens[i]] | seen) + (i >= row->n_prompt);
    for (int32_t i = 0; i < row->n_vocab; i++) {
        if (counts[i])
            logits[i] = dsv2i_penalized(logits[i], counts[i] & ~seen, p->repetition_penalty, p->presence_penalty,
                                        p->frequency_penalty);
    }
}

dsv2_status dsv2i_sample_edit(const struct dsv2i_sample_row *row, const dsv2_sample_params *p, float *logits,
                              uint32_t *counts)
{
    DSV2I_TRY(check_numbers(row->logits, row->n_vocab, "logits"));
    memcpy(logits, row->logits, (size_t)row->n_vocab * sizeof *logits);
    if (row->pos - row->n_prompt < p->min_tokens) {
        for (int32_t i = 0; i < row->n_eos; i++)
            logits[row->eos[i]] = -INFINITY;
        for (size_t i = 0; i < p->n_stop_tokens; i++)
            logits[p->stop_tokens[i]] = -INFINITY;
    }
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        dsv2_logit_bias b = bias_at(p, i);

        logits[b.token] = dsv2i_biased(logits[b.token], b.bias);
    }
    penalize(row, p, logits, counts);
    if (p->callback && p->callback(p->callback_user, logits, (size_t)row->n_vocab))
        return dsv2i_fail(DSV2_ERR_CANCELLED, "%s: cancelled by the callback", NAME);
    DSV2I_TRY(check_numbers(logits, row->n_vocab, "logits after bias, penalties and callback"));
    for (int32_t i = 0; row->tokenizer && i < row->n_vocab; i++)
        if (!dsv2i_tokenizer_has(row->tokenizer, i))
            logits[i] = -INFINITY;
    return DSV2_OK;
}

/* ---- Temperature, min_p, top_k, top_p */

/* Lowest id of the greatest logit. */
static int32_t best(const float *logits, int32_t n)
{
    int32_t b = 0;

    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[b])
            b = i;
    return b;
}

static uint64_t mass(const struct dsv2i_candidate *c)
{
    static const double roots[16] = DSV2I_ROOTS;

    return dsv2i_mass(c->x, roots);
}

/* The key at which the candidates, counted from the greatest down, reach target: each counts 1, or its mass.
 * *above gets the sum over those with greater keys. */
static uint32_t border(const struct dsv2i_candidate *c, int32_t n, uint64_t target, int by_mass, uint64_t *above)
{
    uint32_t prefix = 0, known = 0;

    *above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint64_t bucket[256] = {0};
        uint32_t b = 255;

        for (int32_t i = 0; i < n; i++)
            if ((c[i].key & known) == prefix)
                bucket[c[i].key >> shift & 255] += by_mass ? mass(&c[i]) : 1;
        for (; b > 0 && *above + bucket[b] < target; b--)
            *above += bucket[b];
        prefix |= b << shift;
        known |= 255u << shift;
    }
    return prefix;
}

/* The k greatest, and all that equal the last of them. */
static int32_t keep_top_k(struct dsv2i_candidate *c, int32_t n, int32_t k)
{
    uint64_t above;
    int32_t kept = 0;
    uint32_t key;

    if (k < 1 || k >= n)
        return n;
    key = border(c, n, (uint64_t)k, 0, &above);
    for (int32_t i = 0; i < n; i++)
        if (c[i].key >= key)
            c[kept++] = c[i];
    return kept;
}

/* The fewest of the greatest whose mass is at least the share p of all; among equals those of lower id. */
static int32_t keep_top_p(struct dsv2i_candidate *c, int32_t n, float p)
{
    uint64_t sum = 0, target, above;
    int32_t kept = 0;
    uint32_t key;

    if (p >= 1)
        return n;
    for (int32_t i = 0; i < n; i++)
        sum += mass(&c[i]);
    target = dsv2i_mass_share(p, sum);
    key = border(c, n, target, 1, &above);
    for (int32_t i = 0; i < n; i++) {
        if (c[i].key < key || (c[i].key == key && above >= target))
            continue;
        if (c[i].key == key)
            above += mass(&c[i]);
        c[kept++] = c[i];
    }
    return kept;
}

int32_t dsv2i_sample_keep(const float *logits, int32_t n_vocab, const dsv2_sample_params *p, struct dsv2i_candidate *out)
{
    double per_temperature = dsv2i_per_temperature(p->temperature), lowest = dsv2i_lowest(p->min_p);
    float max = logits[best(logits, n_vocab)];
    int32_t n = 0;

    for (int32_t i = 0; i < n_vocab; i++) {
        double x = dsv2i_x(logits[i], max, per_temperature);

        if (logits[i] > -INFINITY && x >= lowest)
            out[n++] = (struct dsv2i_candidate){.id = i, .key = dsv2i_order(logits[i]), .x = x};
    }
    n = keep_top_k(out, n, p->top_k);
    return keep_top_p(out, n, p->top_p);
}

/* ---- Draw */

static int leading_ones(uint32_t x)
{
    int n = 0;

    for (; x >> 31; x <<= 1)
        n++;
    return n;
}

int32_t dsv2i_sample_draw(const struct dsv2i_candidate *candidates, int32_t n, uint64_t seed, uint64_t pos)
{
    uint32_t r[4];
    int32_t winner = candidates[0].id, block = -1;
    double score = -INFINITY;

    for (int32_t i = 0; i < n; i++) {
        const struct dsv2i_candidate *c = &candidates[i];
        uint32_t word;
        double mine;

        if (c->x + DSV2I_LUCKIEST < score)
            continue;
        if (c->id / 4 != block) {
            block = c->id / 4;
            dsv2i_random(seed, pos, block, r);
        }
        word = r[c->id % 4];
        if (c->x + DSV2I_LUCK(leading_ones(word)) < score)
            continue;
        mine = dsv2i_race(c->x, word);
        if (mine > score) {
            score = mine;
            winner = c->id;
        }
    }
    return winner;
}

/* ---- All together */

size_t dsv2i_sample_scratch(int32_t n_vocab)
{
    return (size_t)n_vocab * (sizeof(struct dsv2i_candidate) + sizeof(float));
}

dsv2_status dsv2i_sample_choose(const struct dsv2i_sample_row *row, const dsv2_sample_params *p, void *scratch,
                                int32_t *token)
{
    struct dsv2i_candidate *candidates = scratch; /* not yet in use while counts are */
    float *logits = (float *)(void *)(candidates + row->n_vocab);
    int32_t top;

    DSV2I_TRY(dsv2i_sample_edit(row, p, logits, scratch));
    top = best(logits, row->n_vocab);
    if (logits[top] == -INFINITY)
        return dsv2i_fail(DSV2_ERR_NUMERIC, "logits: -inf for each of %d tokens: none is left to choose from", row->n_vocab);
    *token = top;
    if (p->temperature >= DSV2I_GREEDY_BELOW) {
        int32_t n = dsv2i_sample_keep(logits, row->n_vocab, p, candidates);

        *token = dsv2i_sample_draw(candidates, n, p->seed, (uint64_t)row->pos);
    }
    return DSV2_OK;
}

void dsv2i_sample_params_init(dsv2_sample_params *params, size_t size, const dsv2_model *model)
{
    dsv2_sample_params defaults = {
        .temperature = 1,
        .top_p = 1,
        .repetition_penalty = 1,
        .logit_bias_size = sizeof(dsv2_logit_bias),
    };

    if (model) {
        const struct dsv2i_generation *g = &model->generation;

        defaults.temperature = g->do_sample ? (float)g->temperature : 0;
        defaults.top_p = (float)g->top_p;
        defaults.min_p = (float)g->min_p;
        defaults.top_k = g->top_k;
        defaults.repetition_penalty = (float)g->repetition_penalty;
        defaults.min_tokens = g->min_tokens;
    }
    dsv2i_params_init(params, size, &defaults, sizeof defaults);
}

dsv2_status dsv2i_sample_take(const dsv2_model *model, const dsv2_sample_params *given, dsv2_sample_params *params)
{
    dsv2i_sample_params_init(params, sizeof *params, model);
    DSV2I_TRY(dsv2i_params_take(params, sizeof *params, given, NAME));
    return dsv2i_sample_check(params, model->config.shape.vocab_size);
}

static struct dsv2i_sample_row row_of(const dsv2_session *s, int32_t pos, int32_t n_prompt)
{
    return (struct dsv2i_sample_row){
        .logits = s->logits,
        .n_vocab = s->model->config.shape.vocab_size,
        .tokens = s->tokens,
        .n_prompt = n_prompt,
        .pos = pos,
        .eos = s->model->generation.eos_token_id,
        .n_eos = s->model->generation.n_eos,
        .tokenizer = s->model->tokenizer,
    };
}

dsv2_status dsv2i_sample_at(const dsv2_session *s, int32_t pos, int32_t n_prompt, const dsv2_sample_params *p, int32_t *token,
                            float *logprob)
{
    const struct dsv2i_sample_row row = row_of(s, pos, n_prompt);
    const struct dsv2i_hooks *mem = &s->model->ctx->mem;
    void *scratch = dsv2i_alloc(mem, 1, dsv2i_sample_scratch(row.n_vocab));
    dsv2_status status;
    int32_t chosen;

    if (!scratch)
        return dsv2i_fail(DSV2_ERR_NOMEM, "sample: no memory for %d candidates", row.n_vocab);
    status = dsv2i_sample_choose(&row, p, scratch, &chosen);
    dsv2i_free(mem, scratch);
    DSV2I_TRY(status);
    *token = chosen;
    if (logprob)
        *logprob = (float)(s->logits[chosen] - dsv2i_log_sum_exp(s->logits, row.n_vocab));
    return DSV2_OK;
}

dsv2_status dsv2i_sample(const dsv2_session *s, const dsv2_sample_params *params, int32_t *token, float *logprob)
{
    dsv2_sample_params p;

    DSV2I_TRY(dsv2i_sample_take(s->model, params, &p));
    return dsv2i_sample_at(s, s->pos, s->n_prompt, &p, token, logprob);
}

/* ---- For a backend that samples */

/* Each token so far once, with how often it was output; returns how many.  counts: n_vocab words. */
static int32_t list_seen(const struct dsv2i_sample_row *row, uint32_t *counts, struct dsv2i_seen *out)
{
    const uint32_t seen = 1u << 31; /* as in penalize */
    int32_t n = 0;

    memset(counts, 0, (size_t)row->n_vocab * sizeof *counts);
    for (int32_t i = 0; i < row->pos; i++) {
        if (!counts[row->tokens[i]])
            out[n++].token = row->tokens[i];
        counts[row->tokens[i]] = (counts[row->tokens[i]] | seen) + (i >= row->n_prompt);
    }
    for (int32_t i = 0; i < n; i++)
        out[i].count = counts[out[i].token] & ~seen;
    return n;
}

/* By ascending token, those of one token in their order. */
static void sort_bias(struct dsv2i_bias *b, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        struct dsv2i_bias one = b[i];
        int32_t at = i;

        for (; at > 0 && b[at - 1].token > one.token; at--)
            b[at] = b[at - 1];
        b[at] = one;
    }
}

dsv2_status dsv2i_sampling_make(const dsv2_session *s, int32_t pos, int32_t n_prompt, const dsv2_sample_params *p,
                                struct dsv2i_sampling *out, void **lists)
{
    const struct dsv2i_sample_row row = row_of(s, pos, n_prompt);
    int penalized = !(p->repetition_penalty == 1 && p->frequency_penalty == 0 && p->presence_penalty == 0);
    int ending = pos - n_prompt < p->min_tokens;
    size_t n_banned = ending ? (size_t)row.n_eos + p->n_stop_tokens : 0, n_seen = penalized ? (size_t)pos : 0;
    size_t n_counts = penalized ? (size_t)row.n_vocab : 0;
    size_t bytes = n_seen * sizeof(struct dsv2i_seen) + p->n_logit_bias * sizeof(struct dsv2i_bias)
                   + (n_banned + n_counts) * sizeof(int32_t);
    struct dsv2i_seen *seen = NULL;
    struct dsv2i_bias *bias;
    int32_t *banned;

    *out = (struct dsv2i_sampling){
        .seed = p->seed,
        .pos = (uint64_t)pos,
        .per_temperature = dsv2i_per_temperature(p->temperature),
        .lowest = dsv2i_lowest(p->min_p),
        .greedy = p->temperature < DSV2I_GREEDY_BELOW,
        .top_k = p->top_k,
        .top_p = p->top_p,
        .repetition_penalty = p->repetition_penalty,
        .presence_penalty = p->presence_penalty,
        .frequency_penalty = p->frequency_penalty,
        .n_banned = (int32_t)n_banned,
        .n_bias = (int32_t)p->n_logit_bias,
    };
    *lists = NULL;
    if (!bytes)
        return DSV2_OK;
    *lists = seen = dsv2i_alloc(&s->model->ctx->mem, 1, bytes);
    if (!seen)
        return dsv2i_fail(DSV2_ERR_NOMEM, "sample: no memory for %zu bytes", bytes);
    bias = (struct dsv2i_bias *)(void *)(seen + n_seen);
    banned = (int32_t *)(void *)(bias + p->n_logit_bias);
    if (penalized)
        out->n_seen = list_seen(&row, (uint32_t *)banned + n_banned, seen);
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        dsv2_logit_bias b = bias_at(p, i);

        bias[i] = (struct dsv2i_bias){b.token, b.bias};
    }
    sort_bias(bias, out->n_bias);
    for (size_t i = 0; i < n_banned; i++)
        banned[i] = i < (size_t)row.n_eos ? row.eos[i] : p->stop_tokens[i - (size_t)row.n_eos];
    out->seen = seen;
    out->bias = bias;
    out->banned = banned;
    return DSV2_OK;
}
