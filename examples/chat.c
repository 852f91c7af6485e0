/* dsv2-chat: a conversation.  Its history lives in the session's cache: each turn appends only what is new.
 * SPDX-License-Identifier: MIT */
#define PROGRAM "dsv2-chat"
#include "common.h"

static const char help[] =
    "Usage: dsv2-chat FOLDER [options]\n"
    "Talk to the chat model in FOLDER.  Each line of standard input is a message; a pipe works too.\n"
    "  /system TEXT  start again with a system message, or with none      /reset  start again      /quit  leave (also Ctrl-D)\n"
    "  //TEXT        a message that begins with a slash                   Ctrl-C stops a reply.\n"
    "\n"
    "  --system TEXT          system message of the first conversation\n"
    "  -n, --tokens N         at most N tokens in a reply (default 512)\n"
    "  -h, --help\n"
    "\n" SAMPLING_HELP "\n" MODEL_OPTIONS_HELP;

/* Append the turn and the assistant's prompt to the conversation.  An earlier reply is ended first: last_eos, or -1 when there is
 * none.  The template puts a BOS in front of every rendering; only the first may keep it. */
static dsv2_status append_turn(dsv2_model *model, dsv2_session *session, const char *system, const char *user, size_t n_user,
                               int32_t bos, int32_t last_eos)
{
    dsv2_chat_message messages[] = {
        {.role = "system", .content = system, .n_content = system ? strlen(system) : 0},
        {.role = "user", .content = user, .n_content = n_user},
    };
    size_t first = system ? 0 : 1, n;
    int32_t *ids, *new_ids;
    dsv2_status status = tokenize_chat(model, messages + first, 2 - first, DSV2_CHAT_GENERATE | DSV2_CHAT_NO_MARKERS, &ids, &n);

    new_ids = ids;
    if (status == DSV2_OK && dsv2_session_position(session) && n && ids[0] == bos) {
        if (last_eos >= 0) {
            ids[0] = last_eos; /* takes the place of the BOS */
        } else {
            new_ids++;
            n--;
        }
    }
    if (status == DSV2_OK)
        status = dsv2_session_prefill(session, new_ids, n);
    free(ids);
    return status;
}

/* Generate and print a reply. */
static dsv2_status reply(dsv2_model *model, dsv2_session *session, dsv2_text *stream, const dsv2_sample_params *sp,
                         int64_t n_max)
{
    dsv2_status status = DSV2_OK;
    const char *piece;
    size_t n;
    int at_start = 1;

    for (int64_t i = 0; i < n_max && status == DSV2_OK; i++) {
        int32_t token;

        check(dsv2_sample(session, sp, &token, NULL));
        if (dsv2_token_is_eos(model, token))
            break; /* append_turn writes the end marker, whatever ended the reply */
        check(dsv2_text_push(stream, token, &piece, &n, NULL));
        print_piece(piece, n, &at_start);
        status = dsv2_session_decode(session, token);
    }
    check(dsv2_text_finish(stream, &piece, &n));
    print_piece(piece, n, &at_start);
    putchar('\n');
    fflush(stdout);
    return status;
}

int main(int argc, char **argv)
{
    struct options o;
    struct sampling sampling;
    const char *v;
    char *system = NULL, *line = NULL;
    size_t room = 0;
    int64_t n_max = 512;
    int interactive = isatty(STDIN_FILENO);

    options_init(&o);
    sampling_init(&sampling);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
            return print_help(help);
        else if ((v = value_of(argc, argv, &i, "--system"))) {
            free(system);
            system = strdup(v);
        } else if ((v = value_of(argc, argv, &i, "-n")) || (v = value_of(argc, argv, &i, "--tokens")))
            n_max = integer("--tokens", v, 1, INT32_MAX);
        else if (!model_option(&o, argc, argv, &i) && !sampling_option(&sampling, argc, argv, &i))
            other_argument(&o, argv[i]);
    }
    if (!o.folder)
        die("which model?  dsv2-chat FOLDER (see --help)");

    dsv2_context *ctx;
    dsv2_model *model;
    dsv2_session *session;
    dsv2_text *stream;
    dsv2_sample_params sp;
    dsv2_model_info info = {.struct_size = sizeof info};

    check(dsv2_context_create(&o.context, &ctx));
    check(dsv2_model_load(ctx, o.folder, &o.model, &model));
    check(dsv2_model_get_info(model, &info));
    if (info.chat_template == DSV2_CHAT_NONE)
        die("%s has no chat template: it is a base model; try dsv2-generate", o.folder);
    check(dsv2_session_create(model, &o.session, &session));
    check(dsv2_text_create(model, NULL, &stream));
    sampling_apply(&sampling, model, &sp);
    catch_interrupt();
    if (interactive)
        printf("Context of %zu tokens.  /system TEXT, /reset, /quit.\n", dsv2_session_capacity(session));

    for (;;) {
        dsv2_status status;
        size_t start = dsv2_session_position(session);
        char *message;
        ssize_t n;

        if (interactive) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        if ((n = getline(&line, &room, stdin)) < 0)
            break;
        if (n && line[n - 1] == '\n')
            line[--n] = 0;
        if (!n)
            continue;
        if (!strcmp(line, "/quit"))
            break;
        if (!strcmp(line, "/reset") || !strcmp(line, "/system") || !strncmp(line, "/system ", 8)) {
            check(dsv2_session_truncate(session, 0));
            if (line[1] == 's') {
                free(system);
                system = line[7] ? strdup(line + 8) : NULL;
            }
            continue;
        }
        if (line[0] == '/' && line[1] != '/') {
            fprintf(stderr, "%s is no command: /system TEXT, /reset, /quit; // begins a message with a slash\n", line);
            continue;
        }
        message = line + (line[0] == '/');
        n -= message - line;
        cancel_target = session;
        interrupted = 0;
        do /* a Ctrl-C that came too late for the last reply still cancels one call: that one does not count */
            status = append_turn(model, session, start ? NULL : system, message, (size_t)n, info.bos_token_id,
                                 start ? info.eos_token_id : -1);
        while (status == DSV2_ERR_CANCELLED && !interrupted);
        if (status == DSV2_OK)
            status = reply(model, session, stream, &sp, n_max);
        cancel_target = NULL;
        if (status == DSV2_ERR_CONTEXT_FULL) /* nothing was lost: say so and let the user decide */
            fprintf(stderr, "[the context of %zu tokens is full: /reset to start again]\n", dsv2_session_capacity(session));
        else if (status == DSV2_ERR_UTF8)
            fprintf(stderr, "[%s]\n", dsv2_last_error());
        else if (status != DSV2_ERR_CANCELLED)
            check(status);
    }
    if (interactive)
        putchar('\n');
    free(line);
    free(system);
    dsv2_text_free(stream);
    dsv2_session_free(session);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    close_output();
    return 0;
}
