/* dsv2-generate: continue a text, or answer one chat message, printing as it goes.
 * SPDX-License-Identifier: MIT */
#define PROGRAM "dsv2-generate"
#include "common.h"

#define MAX_STOPS 16

static const char help[] =
    "Usage: dsv2-generate FOLDER [options] [PROMPT]\n"
    "Continue PROMPT (default: standard input) with the model in FOLDER.\n"
    "\n"
    "  -p, --prompt TEXT      the prompt, also as the last argument\n"
    "  -f, --file PATH        read the prompt from a file; - is standard input\n"
    "  -n, --tokens N         generate at most N tokens (default 256)\n"
    "  --chat                 the prompt is a user's message: use the model's chat template\n"
    "  --system TEXT          with --chat: a system message before it\n"
    "  --stop TEXT            end before TEXT; may be given several times\n"
    "  --echo                 print the prompt first\n"
    "  --quiet                no report of speed on standard error\n"
    "  -h, --help\n"
    "\n" SAMPLING_HELP "\n" MODEL_OPTIONS_HELP;

int main(int argc, char **argv)
{
    struct options o;
    struct sampling sampling;
    const char *prompt = NULL, *file = NULL, *system = NULL, *stops[MAX_STOPS], *v;
    size_t n_stops = 0, n_text = 0;
    int64_t n_max = 256, n_out = 0;
    int chat = 0, echo = 0, quiet = 0;
    char *text = NULL;

    options_init(&o);
    sampling_init(&sampling);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
            return print_help(help);
        else if ((v = value_of(argc, argv, &i, "-p")) || (v = value_of(argc, argv, &i, "--prompt")))
            prompt = v;
        else if ((v = value_of(argc, argv, &i, "-f")) || (v = value_of(argc, argv, &i, "--file")))
            file = v;
        else if ((v = value_of(argc, argv, &i, "-n")) || (v = value_of(argc, argv, &i, "--tokens")))
            n_max = integer("--tokens", v, 0, INT32_MAX);
        else if ((v = value_of(argc, argv, &i, "--system")))
            system = v;
        else if ((v = value_of(argc, argv, &i, "--stop"))) {
            if (n_stops == MAX_STOPS)
                die("more than %d --stop", MAX_STOPS);
            stops[n_stops++] = v;
        } else if (!strcmp(argv[i], "--chat"))
            chat = 1;
        else if (!strcmp(argv[i], "--echo"))
            echo = 1;
        else if (!strcmp(argv[i], "--quiet"))
            quiet = 1;
        else if (model_option(&o, argc, argv, &i) || sampling_option(&sampling, argc, argv, &i))
            continue;
        else if (o.folder && !prompt && (argv[i][0] != '-' || !argv[i][1]))
            prompt = argv[i];
        else
            other_argument(&o, argv[i]);
    }
    if (!o.folder)
        die("which model?  dsv2-generate FOLDER \"Once upon a time\" (see --help)");
    if (system && !chat)
        die("--system needs --chat");
    if (prompt && file)
        die("a prompt and --file exclude each other");
    if (!prompt) {
        text = read_text(file ? file : "-", &n_text);
        prompt = text;
    } else {
        n_text = strlen(prompt);
    }

    dsv2_context *ctx;
    dsv2_model *model;
    dsv2_session *session;
    dsv2_text *stream;
    dsv2_sample_params sp;
    dsv2_text_params tp;

    check(dsv2_context_create(&o.context, &ctx));
    check(dsv2_model_load(ctx, o.folder, &o.model, &model));
    check(dsv2_session_create(model, &o.session, &session));
    sampling_apply(&sampling, model, &sp);
    dsv2_text_params_init(&tp, sizeof tp);
    tp.stop = stops;
    tp.n_stop = n_stops;
    check(dsv2_text_create(model, &tp, &stream));

    size_t n_ids;
    int32_t *ids;

    if (chat) {
        dsv2_chat_message messages[] = {
            {.role = "system", .content = system, .n_content = system ? strlen(system) : 0},
            {.role = "user", .content = prompt, .n_content = n_text},
        };
        size_t first = system ? 0 : 1; /* no system message: begin with the user's */

        check(tokenize_chat(model, messages + first, 2 - first, DSV2_CHAT_GENERATE | DSV2_CHAT_NO_MARKERS, &ids, &n_ids));
    } else {
        ids = tokenize(model, prompt, n_text, DSV2_TOKENIZE_BOS, &n_ids);
    }
    if (!n_ids)
        die("the prompt is empty");
    if (echo) {
        fwrite(prompt, 1, n_text, stdout);
        fflush(stdout);
    }

    cancel_target = session;
    catch_interrupt();

    double t0 = seconds(), t1;
    const char *why = "length", *piece;
    dsv2_status status = dsv2_session_prefill(session, ids, n_ids);
    size_t n;
    int32_t stopped = 0;
    int at_start = chat;

    t1 = seconds();
    while (status == DSV2_OK && n_out < n_max) {
        int32_t token;

        check(dsv2_sample(session, &sp, &token, NULL));
        if (dsv2_token_is_eos(model, token)) {
            why = "end of text";
            break;
        }
        n_out++;
        check(dsv2_text_push(stream, token, &piece, &n, &stopped));
        print_piece(piece, n, &at_start);
        if (stopped) {
            why = "stop string";
            break;
        }
        if (n_out < n_max)
            status = dsv2_session_decode(session, token);
    }
    if (status == DSV2_ERR_CANCELLED || (status == DSV2_ERR_CONTEXT_FULL && n_out))
        why = status == DSV2_ERR_CANCELLED ? "cancelled" : "context full";
    else
        check(status);
    check(dsv2_text_finish(stream, &piece, &n));
    print_piece(piece, n, &at_start);
    putchar('\n');
    close_output();

    if (!quiet) {
        double t2 = seconds();

        fprintf(stderr, "[prompt %zu tokens, %.1f/s; generated %" PRId64 ", %.1f/s; ended by %s; seed %" PRIu64 "]\n",
                n_ids, (double)n_ids / (t1 - t0), n_out, n_out > 1 ? (double)n_out / (t2 - t1) : 0.0, why, sp.seed);
    }
    cancel_target = NULL;
    free(ids);
    free(text);
    dsv2_text_free(stream);
    dsv2_session_free(session);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    return status == DSV2_ERR_CANCELLED ? 130 : 0;
}
