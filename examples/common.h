/* What the example programs share: options, errors, Ctrl-C, reading text.  Nothing in here is part of the library.
 * SPDX-License-Identifier: MIT */
#ifndef EXAMPLES_COMMON_H
#define EXAMPLES_COMMON_H

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dsv2.h"

/* ---- Errors ---------------------------------------------------------------------------------------------------------- */

/* Each program defines PROGRAM, its name in messages. */
__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list args;

    fflush(NULL); /* stdout may be closed already */
    fprintf(stderr, "%s: ", PROGRAM);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* Before a program ends well: its output must have arrived. */
static inline void close_output(void)
{
    int failed = ferror(stdout);

    errno = 0;
    if (fclose(stdout) || failed)
        die("standard output: %s", errno ? strerror(errno) : "cannot be written");
}

static inline int print_help(const char *text)
{
    fputs(text, stdout);
    close_output();
    return 0;
}

/* The library's text says what is wrong and where; the status name is for scripts. */
static inline void check(dsv2_status status)
{
    if (status != DSV2_OK)
        die("%s (%s)", dsv2_last_error(), dsv2_status_name(status));
}

static inline void *allocate(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    if (!p)
        die("out of memory");
    return p;
}

static inline double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Options --------------------------------------------------------------------------------------------------------- */

/* The value of option name if argv[*i] is it, as "--name VALUE" or "--name=VALUE"; else NULL. */
static inline const char *value_of(int argc, char **argv, int *i, const char *name)
{
    size_t n = strlen(name);

    if (strncmp(argv[*i], name, n))
        return NULL;
    if (argv[*i][n] == '=')
        return argv[*i] + n + 1;
    if (argv[*i][n])
        return NULL;
    if (*i + 1 >= argc)
        die("%s needs a value", name);
    return argv[++*i];
}

static inline double number(const char *name, const char *text)
{
    char *end;
    double x = strtod(text, &end);

    if (end == text || *end || !isfinite(x))
        die("%s: '%s' is not a number", name, text);
    return x;
}

static inline int64_t integer(const char *name, const char *text, int64_t lo, int64_t hi)
{
    char *end;
    long long x;

    errno = 0;
    x = strtoll(text, &end, 10);
    if (end == text || *end || errno || x < lo || x > hi)
        die("%s: '%s' is not a whole number in %" PRId64 "..%" PRId64, name, text, lo, hi);
    return x;
}

/* Index of text in a list that ends with NULL. */
static inline int32_t choice(const char *name, const char *text, const char *const *list)
{
    char all[256] = "";

    for (int32_t i = 0; list[i]; i++) {
        if (!strcmp(text, list[i]))
            return i;
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", list[i]);
    }
    die("%s: '%s' is none of %s", name, text, all);
}

/* By number: DSV2_KV_*. */
static const char *const kv_names[] = {"bf16", "f32", "f8_e4m3", "f8_e5m2", "int8", "6bit", NULL};

/* Options that every program has. */
struct options {
    const char *folder; /* the first argument that is no option */
    dsv2_context_params context;
    dsv2_model_params model;
    dsv2_session_params session;
};

#define MODEL_OPTIONS_HELP \
    "Model and machine:\n" \
    "  --ctx N                context length in tokens (default: what the model allows and memory holds, at least 64)\n" \
    "  --kv bf16|f32|f8_e4m3|f8_e5m2|int8|6bit   how the cache is stored (default bf16)\n" \
    "  --attention absorbed|expanded|auto   (default absorbed)\n" \
    "  --batch N              prompt tokens computed at a time (default 256)\n" \
    "  --threads N            worker threads (default: one per core)\n" \
    "  --cpu best|reference|avx2|avx512     instruction set (default best)\n" \
    "  --read                 read the weights into memory instead of mapping them\n" \
    "  --backend cpu|cuda     where to compute (default cpu)\n" \
    "  --device N             cuda: which device (default 0)\n" \
    "  --cuda-module FILE     cuda: libdsv2-cuda.so (default: the one beside the library)\n"

static inline void print_warning(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level == DSV2_LOG_WARNING)
        fprintf(stderr, "%s: warning: %s\n", PROGRAM, text);
}

static inline void options_init(struct options *o)
{
    o->folder = NULL;
    dsv2_context_params_init(&o->context, sizeof o->context);
    dsv2_model_params_init(&o->model, sizeof o->model);
    dsv2_session_params_init(&o->session, sizeof o->session);
    o->context.log = print_warning;
}

/* 1 if argv[*i] is an option of this group, taken in. */
static inline int model_option(struct options *o, int argc, char **argv, int *i)
{
    static const char *const attention[] = {"absorbed", "expanded", "auto", NULL};
    static const char *const cpu[] = {"best", "reference", "avx2", "avx512", NULL};
    static const char *const backend[] = {"cpu", "cuda", NULL};
    const char *v;

    if ((v = value_of(argc, argv, i, "--ctx")))
        o->session.n_ctx = (int32_t)integer("--ctx", v, 1, INT32_MAX);
    else if ((v = value_of(argc, argv, i, "--kv")))
        o->session.kv_type = choice("--kv", v, kv_names);
    else if ((v = value_of(argc, argv, i, "--attention")))
        o->session.attention = choice("--attention", v, attention);
    else if ((v = value_of(argc, argv, i, "--batch")))
        o->session.n_batch = (int32_t)integer("--batch", v, 1, INT32_MAX);
    else if ((v = value_of(argc, argv, i, "--threads")))
        o->context.n_threads = (int32_t)integer("--threads", v, 0, INT32_MAX);
    else if ((v = value_of(argc, argv, i, "--cpu")))
        o->context.cpu_level = choice("--cpu", v, cpu) - 1; /* DSV2_CPU_BEST is -1 */
    else if ((v = value_of(argc, argv, i, "--backend")))
        o->context.backend = choice("--backend", v, backend); /* DSV2_BACKEND_* */
    else if ((v = value_of(argc, argv, i, "--device")))
        o->context.device = (int32_t)integer("--device", v, 0, INT32_MAX);
    else if ((v = value_of(argc, argv, i, "--cuda-module")))
        o->context.cuda_module = v;
    else if (!strcmp(argv[*i], "--read"))
        o->model.load_mode = DSV2_LOAD_READ;
    else
        return 0;
    return 1;
}

/* What is left over: the folder, or a mistake. */
static inline void other_argument(struct options *o, const char *arg)
{
    if (arg[0] == '-' && arg[1])
        die("unknown option %s (see --help)", arg);
    if (o->folder)
        die("unexpected argument '%s' (see --help)", arg);
    o->folder = arg;
}

/* ---- Sampling -------------------------------------------------------------------------------------------------------- */

/* Options override the model's generation_config, which is known only after loading: keep them until then. */
struct sampling {
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty; /* NaN: not given */
    int64_t top_k, min_tokens; /* -2: not given */
    uint64_t seed;
};

#define SAMPLING_HELP \
    "Sampling (defaults come from the model's generation_config.json):\n" \
    "  --temperature T        0 = always the most likely token\n" \
    "  --top-k N  --top-p P  --min-p P\n" \
    "  --repetition-penalty R  --presence-penalty X  --frequency-penalty X\n" \
    "  --min-tokens N         do not end before N tokens\n" \
    "  --seed N               the same seed gives the same text (default: from the clock)\n"

static inline void sampling_init(struct sampling *s)
{
    *s = (struct sampling){NAN, NAN, NAN, NAN, NAN, NAN, -2, -2, (uint64_t)time(NULL)};
}

static inline int sampling_option(struct sampling *s, int argc, char **argv, int *i)
{
    const struct {
        const char *name;
        double *to;
    } numbers[] = {{"--temperature", &s->temperature},
                   {"--top-p", &s->top_p},
                   {"--min-p", &s->min_p},
                   {"--repetition-penalty", &s->repetition_penalty},
                   {"--presence-penalty", &s->presence_penalty},
                   {"--frequency-penalty", &s->frequency_penalty}};
    const char *v;

    for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
        if ((v = value_of(argc, argv, i, numbers[k].name))) {
            *numbers[k].to = number(numbers[k].name, v);
            return 1;
        }
    if ((v = value_of(argc, argv, i, "--top-k")))
        s->top_k = integer("--top-k", v, -1, INT32_MAX);
    else if ((v = value_of(argc, argv, i, "--min-tokens")))
        s->min_tokens = integer("--min-tokens", v, 0, INT32_MAX);
    else if ((v = value_of(argc, argv, i, "--seed")))
        s->seed = (uint64_t)integer("--seed", v, 0, INT64_MAX);
    else
        return 0;
    return 1;
}

static inline void sampling_apply(const struct sampling *s, const dsv2_model *model, dsv2_sample_params *p)
{
    dsv2_sample_params_init(p, sizeof *p, model);
    if (!isnan(s->temperature))
        p->temperature = (float)s->temperature;
    if (!isnan(s->top_p))
        p->top_p = (float)s->top_p;
    if (!isnan(s->min_p))
        p->min_p = (float)s->min_p;
    if (!isnan(s->repetition_penalty))
        p->repetition_penalty = (float)s->repetition_penalty;
    if (!isnan(s->presence_penalty))
        p->presence_penalty = (float)s->presence_penalty;
    if (!isnan(s->frequency_penalty))
        p->frequency_penalty = (float)s->frequency_penalty;
    if (s->top_k != -2)
        p->top_k = (int32_t)s->top_k;
    if (s->min_tokens != -2)
        p->min_tokens = (int32_t)s->min_tokens;
    p->seed = s->seed;
}

/* ---- Text and tokens ------------------------------------------------------------------------------------------------- */

/* The whole of a file ("-": standard input); *n bytes, to be freed. */
static inline char *read_text(const char *path, size_t *n)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    size_t room = 1 << 16;
    char *text = allocate(room, 1);

    if (!f)
        die("%s: %s", path, strerror(errno));
    for (*n = 0; (*n += fread(text + *n, 1, room - *n, f)) == room;) {
        room *= 2;
        text = realloc(text, room);
        if (!text)
            die("out of memory");
    }
    if (ferror(f))
        die("%s: %s", path, strerror(errno));
    if (f != stdin)
        fclose(f);
    return text;
}

/* The ids of a text; *n of them, to be freed. */
static inline int32_t *tokenize(const dsv2_model *model, const char *text, size_t n_text, uint32_t flags, size_t *n)
{
    dsv2_status status = dsv2_tokenize(model, text, n_text, flags, NULL, 0, n); /* asks for the count */
    int32_t *ids;

    if (status != DSV2_ERR_BUFFER)
        check(status);
    ids = allocate(*n, sizeof *ids);
    check(dsv2_tokenize(model, text, n_text, flags, ids, *n, n));
    return ids;
}

/* The same for messages of a chat; with a status, as what a user types may be no text. */
static inline dsv2_status tokenize_chat(const dsv2_model *model, const dsv2_chat_message *messages, size_t n_messages, uint32_t flags,
                                        int32_t **ids, size_t *n)
{
    dsv2_status status = dsv2_chat_tokenize(model, messages, sizeof *messages, n_messages, flags, NULL, 0, n);

    *ids = NULL;
    if (status != DSV2_ERR_BUFFER)
        return status;
    *ids = allocate(*n, sizeof **ids);
    return dsv2_chat_tokenize(model, messages, sizeof *messages, n_messages, flags, *ids, *n, n);
}

/* Print the next piece of what is generated.  at_start: it is of a reply, of which nothing has come yet; "Assistant:" is followed by
 * " Hello", and that space is no part of the reply. */
static inline void print_piece(const char *piece, size_t n, int *at_start)
{
    size_t skip = *at_start && n && piece[0] == ' ';

    *at_start &= !n;
    fwrite(piece + skip, 1, n - skip, stdout);
    fflush(stdout);
}

/* ---- Ctrl-C ---------------------------------------------------------------------------------------------------------- */

static dsv2_session *volatile cancel_target; /* the session that is computing; NULL: Ctrl-C ends the program */
static volatile sig_atomic_t interrupted;    /* Ctrl-C was pressed while one was */

static inline void on_interrupt(int sig)
{
    dsv2_session *s = cancel_target;

    if (!s)
        _exit(128 + sig);
    interrupted = 1;
    dsv2_session_cancel(s); /* the computing call returns DSV2_ERR_CANCELLED */
}

static inline void catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    sigaction(SIGINT, &action, NULL);
}

#endif
