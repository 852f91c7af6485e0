/* dsv2-inspect: what a checkpoint is and how much memory it will take, before loading it.
 * SPDX-License-Identifier: MIT */
#define PROGRAM "dsv2-inspect"
#include "common.h"

static const char help[] =
    "Usage: dsv2-inspect FOLDER [options]\n"
    "Print the facts of the checkpoint in FOLDER and the memory it takes; weights are not read.\n"
    "A folder with nothing but config.json is enough.\n"
    "\n"
    "  --json                 one JSON object instead of text\n"
    "  -h, --help\n"
    "\n" MODEL_OPTIONS_HELP;

static void print_bytes(const char *name, uint64_t bytes, const char *note)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)bytes;
    int u = 0;

    for (; x >= 1024 && u < 4; u++)
        x /= 1024;
    printf("  %-28s %10.*f %s%s%s\n", name, u ? 2 : 0, x, units[u], *note ? "  " : "", note);
}

static void print_count(const char *name, uint64_t n)
{
    double millions = 1e-6 * (double)n;

    printf("  %-28s %" PRIu64 " (%.2f%c)\n", name, n, millions < 1000 ? millions : millions / 1000, millions < 1000 ? 'M' : 'B');
}

/* Cache of a token, in all layers, stored as each KV type. */
struct kv_sizes {
    uint64_t bytes[sizeof kv_names / sizeof *kv_names - 1];
};

static void print_text(const dsv2_model_info *f, const dsv2_memory *m, const struct kv_sizes *kv)
{
    static const char *const chat[] = {"none", "V2", "V2.5", "unknown"};
    char note[80];

    printf("Model\n");
    print_count("parameters", f->parameters);
    print_count("active per token", f->active_parameters);
    printf("  weights                      %s\n", f->weight_dtype);
    printf("  layers, width, vocabulary    %d, %d, %d\n", f->num_hidden_layers, f->hidden_size, f->vocab_size);
    printf("  attention                    %d heads of %d + %d, values %d, latent %d, query rank %d\n", f->num_attention_heads,
           f->qk_nope_head_dim, f->qk_rope_head_dim, f->v_head_dim, f->kv_lora_rank, f->q_lora_rank);
    if (f->n_routed_experts)
        printf("  experts                      %d of %d (%d of %d groups), %d shared, factor %g, from layer %d\n",
               f->num_experts_per_tok, f->n_routed_experts, f->topk_group, f->n_group, f->n_shared_experts,
               f->routed_scaling_factor, f->first_k_dense_replace);
    printf("  positions                    %d, softmax scale %.10f\n", f->max_position_embeddings, f->softmax_scale);
    printf("  tokenizer                    %s", f->has_tokenizer ? "yes" : "none\n");
    if (f->has_tokenizer)
        printf(", %d tokens, BOS %d, EOS %d\n", f->n_tokens, f->bos_token_id, f->eos_token_id);
    printf("  chat template                %s\n", chat[f->chat_template & 3]);

    snprintf(note, sizeof note, "(%" PRIu64 " per token, %d tokens)", m->kv_per_token, m->n_ctx);
    printf("Memory\n");
    print_bytes("weights", m->weights, "");
    print_bytes("cache, when it is full", m->kv, note);
    print_bytes("scratch", m->scratch, "");
    print_bytes("tokenizer and tables", m->other, "");
    print_bytes("total", m->total, "");
    printf("Cache per token\n");
    for (int i = 0; kv_names[i]; i++)
        printf("  %-28s %10" PRIu64 " B  %5.2f bits per element\n", kv_names[i], kv->bytes[i],
               8.0 * (double)kv->bytes[i] / (double)f->kv_elements_per_token);
}

static void print_json(const dsv2_model_info *f, const dsv2_memory *m, const struct kv_sizes *kv)
{
#define INT(name) printf("  \"" #name "\": %d,\n", f->name)
    printf("{\n");
    INT(vocab_size);
    INT(hidden_size);
    INT(num_hidden_layers);
    INT(num_attention_heads);
    INT(q_lora_rank);
    INT(kv_lora_rank);
    INT(qk_nope_head_dim);
    INT(qk_rope_head_dim);
    INT(v_head_dim);
    INT(intermediate_size);
    INT(moe_intermediate_size);
    INT(n_routed_experts);
    INT(n_shared_experts);
    INT(num_experts_per_tok);
    INT(n_group);
    INT(topk_group);
    INT(first_k_dense_replace);
    INT(moe_layer_freq);
    INT(max_position_embeddings);
    INT(bos_token_id);
    INT(eos_token_id);
    INT(n_tokens);
    INT(has_tokenizer);
    INT(chat_template);
#undef INT
    printf("  \"routed_scaling_factor\": %.17g,\n  \"rope_theta\": %.17g,\n  \"softmax_scale\": %.17g,\n",
           f->routed_scaling_factor, f->rope_theta, f->softmax_scale);
    printf("  \"parameters\": %" PRIu64 ",\n  \"active_parameters\": %" PRIu64 ",\n  \"weight_bytes\": %" PRIu64 ",\n",
           f->parameters, f->active_parameters, f->weight_bytes);
    printf("  \"kv_elements_per_token\": %" PRIu64 ",\n  \"weight_dtype\": \"%.8s\",\n", f->kv_elements_per_token,
           f->weight_dtype);
    printf("  \"memory\": {\"n_ctx\": %d, \"weights\": %" PRIu64 ", \"kv\": %" PRIu64 ", \"kv_per_token\": %" PRIu64
           ", \"scratch\": %" PRIu64 ", \"other\": %" PRIu64 ", \"total\": %" PRIu64 "},\n",
           m->n_ctx, m->weights, m->kv, m->kv_per_token, m->scratch, m->other, m->total);
    printf("  \"kv_bytes_per_token\": {");
    for (int i = 0; kv_names[i]; i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", kv_names[i], kv->bytes[i]);
    printf("}\n}\n");
}

int main(int argc, char **argv)
{
    struct options o;
    int json = 0;

    options_init(&o);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
            return print_help(help);
        else if (!strcmp(argv[i], "--json"))
            json = 1;
        else if (!model_option(&o, argc, argv, &i))
            other_argument(&o, argv[i]);
    }
    if (!o.folder)
        die("which model?  dsv2-inspect FOLDER (see --help)");

    dsv2_context *ctx;
    dsv2_model_info info = {.struct_size = sizeof info};
    dsv2_memory memory = {.struct_size = sizeof memory};
    struct kv_sizes kv;

    check(dsv2_context_create(&o.context, &ctx));
    for (int i = 0; kv_names[i]; i++) {
        dsv2_session_params session;

        dsv2_session_params_init(&session, sizeof session);
        session.kv_type = i;
        check(dsv2_model_inspect(ctx, o.folder, &o.model, &session, NULL, &memory));
        kv.bytes[i] = memory.kv_per_token;
    }
    check(dsv2_model_inspect(ctx, o.folder, &o.model, &o.session, &info, &memory));
    (json ? print_json : print_text)(&info, &memory, &kv);
    dsv2_context_free(ctx);
    close_output();
    return 0;
}
