/* dsv2-score: how well a model foretells a text: perplexity, and each token's log-probability.
 * SPDX-License-Identifier: MIT */
#define PROGRAM "dsv2-score"
#include "common.h"

static const char help[] =
    "Usage: dsv2-score FOLDER [options] FILE\n"
    "Score the text in FILE (- is standard input) with the model in FOLDER.\n"
    "A text that does not fit the context is scored in windows; each token sees at least --overlap tokens before it.\n"
    "\n"
    "  --context TEXT         text that stands before FILE's and is not scored\n"
    "  --overlap N            tokens of the past that a window keeps (default: half the context)\n"
    "  --tokens               a line per token: id, log-probability, rank, text\n"
    "  --json                 a JSON object per token with --tokens, and one for the whole\n"
    "  -h, --help\n"
    "\n" MODEL_OPTIONS_HELP;

struct totals {
    double logprob;
    size_t n_scored;
    int greedy; /* was every token the most likely one? */
};

static void print_quoted(const char *text, size_t n)
{
    putchar('"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void print_token(const dsv2_model *model, int32_t id, const dsv2_token_score *score, int json)
{
    char text[1024];
    size_t n;

    if (dsv2_detokenize(model, &id, 1, 0, text, sizeof text, &n) != DSV2_OK)
        n = 0;
    if (json) {
        printf("{\"token\": %d, \"text\": ", id);
        print_quoted(text, n);
        if (isnan(score->logprob))
            printf(", \"logprob\": null, \"rank\": null, \"top_token\": null, \"top_logprob\": null}\n");
        else
            printf(", \"logprob\": %.9g, \"rank\": %d, \"top_token\": %d, \"top_logprob\": %.9g}\n", score->logprob,
                   score->rank, score->top_token, score->top_logprob);
    } else {
        printf("%7d  %9.4f  %6d  ", id, score->logprob, score->rank);
        print_quoted(text, n);
        putchar('\n');
    }
}

int main(int argc, char **argv)
{
    struct options o;
    const char *context = "", *path = NULL, *v;
    int64_t overlap = -1;
    int tokens = 0, json = 0;

    options_init(&o);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
            return print_help(help);
        else if ((v = value_of(argc, argv, &i, "--context")))
            context = v;
        else if ((v = value_of(argc, argv, &i, "--overlap")))
            overlap = integer("--overlap", v, 1, INT32_MAX);
        else if (!strcmp(argv[i], "--tokens"))
            tokens = 1;
        else if (!strcmp(argv[i], "--json"))
            json = 1;
        else if (model_option(&o, argc, argv, &i))
            continue;
        else if (o.folder && !path && (argv[i][0] != '-' || !argv[i][1]))
            path = argv[i];
        else
            other_argument(&o, argv[i]);
    }
    if (!o.folder || !path)
        die("which model, which text?  dsv2-score FOLDER FILE (see --help)");

    size_t n_text, n_before, n_after, n;
    char *text = read_text(path, &n_text);
    dsv2_context *ctx;
    dsv2_model *model;
    dsv2_session *session;

    check(dsv2_context_create(&o.context, &ctx));
    check(dsv2_model_load(ctx, o.folder, &o.model, &model));
    check(dsv2_session_create(model, &o.session, &session));

    /* One row of ids: BOS and context, then the text.  Tokenized apart, so that the border is a token's border. */
    int32_t *before = tokenize(model, context, strlen(context), DSV2_TOKENIZE_BOS, &n_before);
    int32_t *after = tokenize(model, text, n_text, 0, &n_after);
    int32_t *ids = allocate(n_before + n_after, sizeof *ids);

    memcpy(ids, before, n_before * sizeof *ids);
    memcpy(ids + n_before, after, n_after * sizeof *ids);
    n = n_before + n_after;
    if (!n_after)
        die("%s: no text", path);

    size_t capacity = dsv2_session_capacity(session);
    size_t keep = overlap < 0 ? capacity / 2 : (size_t)overlap;
    dsv2_token_score *scores = allocate(capacity, sizeof *scores);
    struct totals total = {0, 0, 1};

    if (keep < 1)
        die("--ctx: a context of %zu token is too small to score", capacity);
    if (keep >= capacity)
        die("--overlap: %zu leaves no room in a context of %zu tokens", keep, capacity);
    for (size_t at = 0; at < n;) {
        size_t past = at < keep ? at : keep; /* tokens of this window that the last one scored */
        size_t count = capacity - past < n - at ? capacity - past : n - at;

        check(dsv2_session_truncate(session, 0));
        if (past)
            check(dsv2_session_prefill(session, ids + at - past, past));
        check(dsv2_session_score(session, ids + at, count, scores, sizeof *scores));
        for (size_t i = 0; i < count; i++) {
            if (at + i < n_before)
                continue;
            if (tokens)
                print_token(model, ids[at + i], &scores[i], json);
            if (isnan(scores[i].logprob))
                continue;
            total.logprob += scores[i].logprob;
            total.greedy &= scores[i].rank == 1;
            total.n_scored++;
        }
        at += count;
    }

    if (!total.n_scored)
        die("%s: nothing stands before its only token, so nothing can be scored", path);

    double mean = -total.logprob / (double)total.n_scored, bits = -total.logprob / log(2) / (double)n_text;

    if (json)
        printf("{\"tokens\": %zu, \"bytes\": %zu, \"logprob\": %.9g, \"greedy\": %s, \"perplexity\": %.9g, "
               "\"bits_per_byte\": %.9g}\n",
               total.n_scored, n_text, total.logprob, total.greedy ? "true" : "false", exp(mean), bits);
    else
        printf("%zu tokens, %zu bytes: perplexity %.4f, %.4f bits per byte, log-probability %.4f\n", total.n_scored, n_text,
               exp(mean), bits, total.logprob);
    free(scores);
    free(ids);
    free(before);
    free(after);
    free(text);
    dsv2_session_free(session);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    close_output();
    return 0;
}
