/* The smallest use of an installed libdsv2 from C: continue a sentence.
 * SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include <dsv2.h>

int main(int argc, char **argv)
{
    static const char prompt[] = "Story: One day";
    dsv2_context *ctx = NULL;
    dsv2_model *model = NULL;
    dsv2_session *session = NULL;
    dsv2_sample_params sp;
    int32_t ids[64], token;
    char text[256];
    size_t n;
    int i, ok;

    dsv2_sample_params_init(&sp, sizeof sp, NULL);
    sp.temperature = 0;
    ok = argc == 2 && dsv2_context_create(NULL, &ctx) == DSV2_OK && dsv2_model_load(ctx, argv[1], NULL, &model) == DSV2_OK &&
         dsv2_session_create(model, NULL, &session) == DSV2_OK &&
         dsv2_tokenize(model, prompt, strlen(prompt), DSV2_TOKENIZE_BOS, ids, 64, &n) == DSV2_OK &&
         dsv2_session_prefill(session, ids, n) == DSV2_OK;
    for (i = 0; ok && i < 16; i++) {
        ok = dsv2_sample(session, &sp, &token, NULL) == DSV2_OK;
        if (!ok || dsv2_token_is_eos(model, token))
            break;
        ok = dsv2_detokenize(model, &token, 1, 0, text, sizeof text, &n) == DSV2_OK &&
             dsv2_session_decode(session, token) == DSV2_OK;
        fwrite(text, 1, ok ? n : 0, stdout);
    }
    putchar('\n');
    if (!ok)
        fprintf(stderr, "%s\n", argc == 2 ? dsv2_last_error() : "usage: c-shared FOLDER");
    dsv2_session_free(session);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    return !ok;
}
