/* config.json, its quantization_config, and generation_config.json of the family, in every spelling that is around.
 *
 * SPDX-License-Identifier: MIT
 *
 * Defaults of absent keys are those of the code that the checkpoints were published with (modeling_deepseek.py).  Known deviations:
 * - topk_method absent, null or "gready" (that code's own default, which matches none of its branches) means "greedy" if there are no
 *   groups, and is an error if n_group is above 1: it cannot be told what was meant.
 * - num_key_value_heads absent means num_attention_heads: MLA has no grouped queries.
 * Bounds keep every product of sizes far below 2^63 and every number of rows within int32_t. */
#include "config.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "regex.h"

#define MAX_WIDTH (1 << 20)
#define MAX_VOCAB (1 << 24)
#define MAX_LAYERS 4096
#define MAX_HEADS 8192
#define MAX_HEAD_DIM 1024
#define MAX_EXPERTS 4096
#define MAX_SHARED 256
#define MAX_POSITIONS (1 << 30)
#define MAX_FFN_PARAMETERS 288230376151711744.0 /* 2^58 */

/* The object being read, with its names for messages. */
struct src {
    const char *file, *path;
    const cJSON *object;
};

static int is_null(const struct src *s, const char *key)
{
    return cJSON_IsNull(dsv2i_json_get(s->object, key));
}

static int is_absent(const struct src *s, const char *key)
{
    return !dsv2i_json_get(s->object, key) || is_null(s, key);
}

/* FORMAT or UNSUPPORTED with the key's value in front of what is wrong with it. */
__attribute__((format(printf, 4, 5))) static dsv2_status bad(dsv2_status status, const struct src *s, const char *key,
                                                             const char *format, ...)
{
    char value[80], what[256];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return dsv2i_fail(status, "%s: %s%s%s: %s %s", s->file, s->path, *s->path ? "." : "", key,
                      dsv2i_json_show(value, sizeof value, dsv2i_json_get(s->object, key)), what);
}

static dsv2_status read_int(const struct src *s, const char *key, int32_t lo, int32_t hi, int32_t fallback, int32_t *out)
{
    int64_t v;

    DSV2I_TRY(dsv2i_json_int_or(s->file, s->path, s->object, key, lo, hi, fallback, &v));
    *out = (int32_t)v;
    return DSV2_OK;
}

/* The same for a key that may be null. */
static dsv2_status read_int_or_null(const struct src *s, const char *key, int32_t lo, int32_t hi, int32_t fallback,
                                    int32_t null_value, int32_t *out)
{
    if (is_null(s, key)) {
        *out = null_value;
        return DSV2_OK;
    }
    return read_int(s, key, lo, hi, fallback, out);
}

static dsv2_status read_double(const struct src *s, const char *key, double fallback, double *out)
{
    return dsv2i_json_double_or(s->file, s->path, s->object, key, fallback, out);
}

/* A string key that may be null, which is like absent. */
static dsv2_status read_name(const struct src *s, const char *key, const char *fallback, const char **out)
{
    *out = fallback;
    return is_null(s, key) ? DSV2_OK : dsv2i_json_string_or(s->file, s->path, s->object, key, fallback, out);
}

/* One id, a list of them, or null. */
static dsv2_status read_eos(const struct src *s, int32_t vocab_size, int32_t *ids, int32_t *n)
{
    const char *key = "eos_token_id";
    const cJSON *v = dsv2i_json_get(s->object, key);

    *n = 0;
    if (!v || cJSON_IsNull(v))
        return DSV2_OK;
    if (!cJSON_IsArray(v)) {
        *n = 1;
        return read_int(s, key, 0, vocab_size - 1, 0, &ids[0]);
    }
    for (const cJSON *e = v->child; e; e = e->next) {
        char shown[80];

        if (*n == DSV2I_MAX_EOS)
            return bad(DSV2_ERR_UNSUPPORTED, s, key, "has more than %d ids", DSV2I_MAX_EOS);
        if (!cJSON_IsNumber(e) || e->valuedouble != floor(e->valuedouble) || e->valuedouble < 0 || e->valuedouble >= vocab_size)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s[%d]: must be an integer from 0 to %d, is %s", s->file, key, *n,
                              vocab_size - 1, dsv2i_json_show(shown, sizeof shown, e));
        ids[(*n)++] = (int32_t)e->valuedouble;
    }
    return DSV2_OK;
}

/* ---- What kind of model ---------------------------------------------------------------------------------------------- */

static dsv2_status check_kind(const struct src *s)
{
    const cJSON *archs = dsv2i_json_get(s->object, "architectures");
    const char *type, *wanted;
    char shown[80];
    int found = 0;

    DSV2I_TRY(dsv2i_json_string_or(s->file, s->path, s->object, "model_type", NULL, &type));
    if (!type)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: model_type: is absent; \"deepseek_v2\" is needed", s->file);
    if (strcmp(type, "deepseek_v2") != 0 && strcmp(type, "deepseek") != 0)
        return bad(DSV2_ERR_UNSUPPORTED, s, "model_type", "is not supported; only \"deepseek_v2\" is");
    /* The first commits of V2 and V2-Chat had the type of the generation before, but MLA's keys. */
    if (strcmp(type, "deepseek") == 0 && is_absent(s, "kv_lora_rank"))
        return bad(DSV2_ERR_UNSUPPORTED, s, "model_type", "without kv_lora_rank is the first DeepSeek generation "
                   "(DeepSeek LLM or MoE), which has no latent attention");
    wanted = strcmp(type, "deepseek") == 0 ? "DeepseekForCausalLM" : "DeepseekV2ForCausalLM";
    if (archs && !cJSON_IsNull(archs)) {
        if (!cJSON_IsArray(archs))
            return bad(DSV2_ERR_FORMAT, s, "architectures", "is not a list of names");
        for (const cJSON *a = archs->child; a; a = a->next) {
            if (!cJSON_IsString(a))
                return dsv2i_fail(DSV2_ERR_FORMAT, "%s: architectures: must be a list of names, has %s", s->file,
                                  dsv2i_json_show(shown, sizeof shown, a));
            found |= strcmp(a->valuestring, wanted) == 0;
        }
        if (!found)
            return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: architectures: %s is not supported; \"%s\" is needed", s->file,
                              archs->child ? dsv2i_json_show(shown, sizeof shown, archs->child) : "[]", wanted);
    }
    return DSV2_OK;
}

static dsv2_status read_dtype(const struct src *s, int32_t *dtype)
{
    const char *old, *name;

    DSV2I_TRY(read_name(s, "torch_dtype", NULL, &old));
    DSV2I_TRY(read_name(s, "dtype", old, &name));
    if (old && strcmp(old, name) != 0)
        return bad(DSV2_ERR_FORMAT, s, "dtype", "contradicts torch_dtype \"%.40s\"", old);
    *dtype = !name ? 0 : strcmp(name, "bfloat16") == 0 ? DSV2I_BF16 : strcmp(name, "float16") == 0 ? DSV2I_F16
           : strcmp(name, "float32") == 0 ? DSV2I_F32 : 0;
    return DSV2_OK;
}

/* ---- Sizes ----------------------------------------------------------------------------------------------------------- */

static dsv2_status read_sizes(const struct src *s, struct dsv2i_config *c)
{
    struct dsv2i_shape *p = &c->shape;
    int32_t kv_heads;

    DSV2I_TRY(read_int(s, "vocab_size", 1, MAX_VOCAB, 102400, &p->vocab_size));
    DSV2I_TRY(read_int(s, "hidden_size", 1, MAX_WIDTH, 4096, &p->hidden_size));
    DSV2I_TRY(read_int(s, "num_hidden_layers", 1, MAX_LAYERS, 30, &p->num_hidden_layers));
    DSV2I_TRY(read_int(s, "num_attention_heads", 1, MAX_HEADS, 32, &p->num_attention_heads));
    DSV2I_TRY(read_int_or_null(s, "num_key_value_heads", 1, MAX_HEADS, p->num_attention_heads, p->num_attention_heads,
                               &kv_heads));
    if (kv_heads != p->num_attention_heads)
        return bad(DSV2_ERR_FORMAT, s, "num_key_value_heads", "differs from num_attention_heads %d; MLA has no grouped queries",
                   p->num_attention_heads);
    DSV2I_TRY(read_int_or_null(s, "q_lora_rank", 1, MAX_WIDTH, 1536, 0, &p->q_lora_rank));
    DSV2I_TRY(read_int(s, "kv_lora_rank", 1, MAX_WIDTH, 512, &p->kv_lora_rank));
    DSV2I_TRY(read_int(s, "qk_nope_head_dim", 1, MAX_HEAD_DIM, 128, &p->qk_nope_head_dim));
    DSV2I_TRY(read_int(s, "qk_rope_head_dim", 1, DSV2I_MAX_ROPE_DIM, 64, &p->qk_rope_head_dim));
    if (p->qk_rope_head_dim % 2)
        return bad(DSV2_ERR_FORMAT, s, "qk_rope_head_dim", "is odd; rotation works on pairs");
    DSV2I_TRY(read_int(s, "v_head_dim", 1, MAX_HEAD_DIM, 128, &p->v_head_dim));
    DSV2I_TRY(read_int(s, "intermediate_size", 1, MAX_WIDTH, 11008, &p->intermediate_size));
    return read_int(s, "max_position_embeddings", 1, MAX_POSITIONS, 2048, &c->max_position_embeddings);
}

static dsv2_status read_experts(const struct src *s, struct dsv2i_config *c)
{
    struct dsv2i_shape *p = &c->shape;

    DSV2I_TRY(read_int_or_null(s, "n_routed_experts", 1, MAX_EXPERTS, 0, 0, &p->n_routed_experts));
    DSV2I_TRY(read_int_or_null(s, "n_shared_experts", 0, MAX_SHARED, 0, 0, &p->n_shared_experts));
    DSV2I_TRY(p->n_routed_experts ? read_int(s, "moe_intermediate_size", 1, MAX_WIDTH, 1407, &p->moe_intermediate_size)
                                  : read_int_or_null(s, "moe_intermediate_size", 0, MAX_WIDTH, 1407, 0, &p->moe_intermediate_size));
    DSV2I_TRY(read_int(s, "first_k_dense_replace", 0, p->num_hidden_layers, 0, &c->first_k_dense_replace));
    DSV2I_TRY(read_int(s, "moe_layer_freq", 1, MAX_LAYERS, 1, &c->moe_layer_freq));
    DSV2I_TRY(read_int_or_null(s, "num_experts_per_tok", 1, MAX_EXPERTS, 0, 0, &p->num_experts_per_tok));
    DSV2I_TRY(read_int_or_null(s, "n_group", 1, MAX_EXPERTS, 0, 0, &c->n_group));
    DSV2I_TRY(read_int_or_null(s, "topk_group", 1, MAX_EXPERTS, 0, 0, &c->topk_group));
    if ((double)p->num_hidden_layers * (p->n_routed_experts + p->n_shared_experts + 1) * 3 * p->hidden_size
        * fmax(p->moe_intermediate_size, p->intermediate_size) > MAX_FFN_PARAMETERS)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: num_hidden_layers %d, n_routed_experts %d, hidden_size %d, "
                          "moe_intermediate_size %d, intermediate_size %d: more than 2^58 parameters", s->file,
                          p->num_hidden_layers, p->n_routed_experts, p->hidden_size, p->moe_intermediate_size,
                          p->intermediate_size);
    return DSV2_OK;
}

static dsv2_status read_route(const struct src *s, struct dsv2i_config *c)
{
    const struct dsv2i_shape *p = &c->shape;
    const char *method, *scoring;
    double factor;
    int norm, grouped;

    DSV2I_TRY(read_name(s, "topk_method", "gready", &method));
    DSV2I_TRY(read_name(s, "scoring_func", "softmax", &scoring));
    DSV2I_TRY(read_double(s, "routed_scaling_factor", 1.0, &factor));
    DSV2I_TRY(dsv2i_json_bool_or(s->file, s->path, s->object, "norm_topk_prob", 0, &norm));
    if (strcmp(scoring, "softmax") != 0)
        return bad(DSV2_ERR_UNSUPPORTED, s, "scoring_func", "is not supported; only \"softmax\" is (sigmoid is DeepSeek-V3's)");
    if (!isfinite((float)factor))
        return bad(DSV2_ERR_FORMAT, s, "routed_scaling_factor", "is too large");
    grouped = strcmp(method, "group_limited_greedy") == 0;
    if (!grouped && strcmp(method, "greedy") != 0 && strcmp(method, "gready") != 0)
        return bad(DSV2_ERR_UNSUPPORTED, s, "topk_method", "is not supported; only \"greedy\" and \"group_limited_greedy\" are%s",
                   strcmp(method, "noaux_tc") == 0 ? " (noaux_tc is DeepSeek-V3's)" : "");
    c->route = (struct dsv2i_route){.n_group = 1, .topk_group = 1, .top_k = p->num_experts_per_tok, .norm_topk_prob = norm,
                                    .routed_scaling_factor = (float)factor};
    if (p->n_routed_experts == 0)
        return DSV2_OK;
    if (p->num_experts_per_tok == 0)
        return bad(DSV2_ERR_FORMAT, s, "num_experts_per_tok", "although n_routed_experts is %d", p->n_routed_experts);
    if (p->num_experts_per_tok > p->n_routed_experts)
        return bad(DSV2_ERR_FORMAT, s, "num_experts_per_tok", "is more than n_routed_experts %d", p->n_routed_experts);
    if (strcmp(method, "gready") == 0 && c->n_group > 1)
        return bad(DSV2_ERR_FORMAT, s, "topk_method", "although n_group is %d: \"group_limited_greedy\" or \"greedy\"?", c->n_group);
    if (!grouped)
        return DSV2_OK;
    if (c->n_group == 0 || c->topk_group == 0)
        return bad(DSV2_ERR_FORMAT, s, c->n_group == 0 ? "n_group" : "topk_group", "although topk_method is \"%s\"", method);
    if (p->n_routed_experts % c->n_group)
        return bad(DSV2_ERR_FORMAT, s, "n_group", "does not divide n_routed_experts %d", p->n_routed_experts);
    if (c->topk_group > c->n_group)
        return bad(DSV2_ERR_FORMAT, s, "topk_group", "is more than n_group %d", c->n_group);
    if (c->topk_group * (p->n_routed_experts / c->n_group) < p->num_experts_per_tok)
        return bad(DSV2_ERR_FORMAT, s, "topk_group", "groups of %d experts each cannot give num_experts_per_tok %d",
                   p->n_routed_experts / c->n_group, p->num_experts_per_tok);
    c->route.n_group = c->n_group;
    c->route.topk_group = c->topk_group;
    return DSV2_OK;
}

/* ---- Rotation -------------------------------------------------------------------------------------------------------- */

enum { FACTOR, ORIGINAL, BETA_FAST, BETA_SLOW, MSCALE, MSCALE_ALL_DIM, N_YARN };

static const struct {
    const char *key;
    double fallback, least;
} yarn_keys[N_YARN] = {
    {"factor", NAN, 1}, {"original_max_position_embeddings", 4096, 1}, {"beta_fast", 32, 1e-6},
    {"beta_slow", 1, 1e-6}, {"mscale", 1, 0}, {"mscale_all_dim", 0, 0},
};

struct rope {
    int yarn;
    double v[N_YARN];
};

/* An object of either spelling: rope_scaling, or rope_parameters of Transformers v5. */
static dsv2_status read_rope(const struct src *s, const char *default_type, struct rope *r)
{
    const char *type, *rope_type;
    int truncate;

    DSV2I_TRY(read_name(s, "type", NULL, &type));
    DSV2I_TRY(read_name(s, "rope_type", NULL, &rope_type));
    if (type && rope_type && strcmp(type, rope_type) != 0)
        return bad(DSV2_ERR_FORMAT, s, "rope_type", "contradicts type \"%.40s\"", type);
    type = rope_type ? rope_type : type ? type : default_type;
    if (!type)
        return bad(DSV2_ERR_FORMAT, s, "type", "although this says how positions are scaled");
    r->yarn = strcmp(type, "yarn") == 0;
    if (strcmp(type, "default") == 0)
        return DSV2_OK;
    if (!r->yarn)
        return bad(DSV2_ERR_UNSUPPORTED, s, rope_type ? "rope_type" : "type", "is not supported; only \"yarn\" is");
    for (int i = 0; i < N_YARN; i++) {
        DSV2I_TRY(read_double(s, yarn_keys[i].key, yarn_keys[i].fallback, &r->v[i]));
        if (!(r->v[i] >= yarn_keys[i].least))
            return bad(DSV2_ERR_FORMAT, s, yarn_keys[i].key, "where a number of at least %g is needed", yarn_keys[i].least);
    }
    if (r->v[BETA_FAST] < r->v[BETA_SLOW])
        return bad(DSV2_ERR_FORMAT, s, "beta_fast", "is less than beta_slow %g", r->v[BETA_SLOW]);
    /* Options of HF's general YaRN that the family's own code does not have. */
    if (!is_absent(s, "attention_factor"))
        return bad(DSV2_ERR_UNSUPPORTED, s, "attention_factor", "is not supported");
    DSV2I_TRY(dsv2i_json_bool_or(s->file, s->path, s->object, "truncate", 1, &truncate));
    if (!truncate)
        return bad(DSV2_ERR_UNSUPPORTED, s, "truncate", "is not supported");
    return DSV2_OK;
}

static double yarn_gain(double factor, double m)
{
    return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1;
}

static double yarn_correction(double rotations, double original, double dim, double theta)
{
    return dim * log(original / (2 * M_PI * rotations)) / (2 * log(theta));
}

/* Frequencies, the factor on cos and sin, and the softmax scale (spec 3.5).  In double: they are the reference for everything. */
static dsv2_status derive_rope(const struct src *s, const struct rope *r, struct dsv2i_config *c)
{
    struct dsv2i_shape *p = &c->shape;
    int32_t dim = p->qk_rope_head_dim;
    double low = 0, high = 0, multiplier = 1;

    c->softmax_scale = 1 / sqrt((double)p->qk_nope_head_dim + dim);
    if (r->yarn) {
        double gain = yarn_gain(r->v[FACTOR], r->v[MSCALE_ALL_DIM]);

        low = fmax(floor(yarn_correction(r->v[BETA_FAST], r->v[ORIGINAL], dim, c->rope_theta)), 0);
        high = fmin(ceil(yarn_correction(r->v[BETA_SLOW], r->v[ORIGINAL], dim, c->rope_theta)), dim - 1);
        if (low == high)
            high += 0.001;
        multiplier = yarn_gain(r->v[FACTOR], r->v[MSCALE]) / gain;
        /* All of the temperature sits here: in every release mscale = mscale_all_dim, and cos and sin stay unscaled. */
        c->softmax_scale *= gain * gain;
    }
    for (int32_t i = 0; i < dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * i / dim);

        if (r->yarn) {
            double ramp = fmin(fmax((i - low) / (high - low), 0), 1);

            f = f / r->v[FACTOR] * ramp + f * (1 - ramp);
        }
        if (!isfinite(f))
            return bad(DSV2_ERR_FORMAT, s, "rope_theta", "gives no finite frequencies");
        c->inv_freq[i] = f;
    }
    p->inv_freq = c->inv_freq;
    p->softmax_scale = (float)c->softmax_scale;
    p->rope_multiplier = (float)multiplier;
    if (!isfinite(p->softmax_scale) || !isfinite(p->rope_multiplier))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: mscale %g, mscale_all_dim %g: too large", s->file, r->v[MSCALE],
                          r->v[MSCALE_ALL_DIM]);
    return DSV2_OK;
}

static dsv2_status read_rotation(const struct src *s, struct dsv2i_config *c)
{
    struct src old = {s->file, "rope_scaling", dsv2i_json_get(s->object, "rope_scaling")};
    struct src new = {s->file, "rope_parameters", dsv2i_json_get(s->object, "rope_parameters")};
    int has_old = !is_absent(s, old.path), has_new = !is_absent(s, new.path);
    struct rope a = {0}, b = {0};

    if (has_old && !cJSON_IsObject(old.object))
        return bad(DSV2_ERR_FORMAT, s, old.path, "is neither an object nor null");
    if (has_new && !cJSON_IsObject(new.object))
        return bad(DSV2_ERR_FORMAT, s, new.path, "is neither an object nor null");
    DSV2I_TRY(read_double(s, "rope_theta", 10000, &c->rope_theta));
    if (has_old)
        DSV2I_TRY(read_rope(&old, NULL, &a));
    if (has_new) {
        double theta, partial;

        DSV2I_TRY(read_rope(&new, "default", &b));
        DSV2I_TRY(read_double(&new, "rope_theta", c->rope_theta, &theta));
        if (dsv2i_json_get(s->object, "rope_theta") && theta != c->rope_theta)
            return bad(DSV2_ERR_FORMAT, s, "rope_theta", "contradicts rope_parameters.rope_theta %g", theta);
        c->rope_theta = theta;
        DSV2I_TRY(read_double(&new, "partial_rotary_factor", 1, &partial));
        if (partial != 1)
            return bad(DSV2_ERR_UNSUPPORTED, &new, "partial_rotary_factor", "is not supported");
        if (has_old && a.yarn != b.yarn)
            return bad(DSV2_ERR_FORMAT, s, "rope_scaling", "contradicts rope_parameters: only one of them is \"yarn\"");
        for (int i = 0; has_old && i < N_YARN; i++) {
            if (a.v[i] != b.v[i])
                return bad(DSV2_ERR_FORMAT, &old, yarn_keys[i].key, "contradicts rope_parameters.%s %g", yarn_keys[i].key, b.v[i]);
        }
    } else {
        b = a;
    }
    if (!(c->rope_theta > 0) || (b.yarn && c->rope_theta <= 1))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %srope_theta: must be greater than %d, is %g", s->file,
                          dsv2i_json_get(new.object, "rope_theta") ? "rope_parameters." : "", b.yarn, c->rope_theta);
    return derive_rope(s, &b, c);
}

/* ---- The whole ------------------------------------------------------------------------------------------------------- */

static dsv2_status read_rest(const struct src *s, struct dsv2i_config *c)
{
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    int32_t vocab = c->shape.vocab_size;
    const char *act;
    int flag;

    DSV2I_TRY(dsv2i_json_string_or(s->file, s->path, s->object, "hidden_act", "silu", &act));
    if (strcmp(act, "silu") != 0)
        return bad(DSV2_ERR_UNSUPPORTED, s, "hidden_act", "is not supported; only \"silu\" is");
    DSV2I_TRY(read_double(s, "rms_norm_eps", 1e-6, &c->rms_norm_eps));
    if (!((float)c->rms_norm_eps > 0) || c->rms_norm_eps > 1)
        return bad(DSV2_ERR_FORMAT, s, "rms_norm_eps", "is not in 0 < eps <= 1");
    for (int i = 0; i < 2; i++) {
        DSV2I_TRY(dsv2i_json_bool_or(s->file, s->path, s->object, biases[i], 0, &flag));
        if (flag)
            return bad(DSV2_ERR_UNSUPPORTED, s, biases[i], "is not supported; no model of the family has biases");
    }
    DSV2I_TRY(dsv2i_json_bool_or(s->file, s->path, s->object, "tie_word_embeddings", 0, &flag));
    c->tie_word_embeddings = flag;
    DSV2I_TRY(read_int_or_null(s, "bos_token_id", 0, vocab - 1, 100000, -1, &c->bos_token_id));
    if (c->bos_token_id >= vocab)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: bos_token_id: absent, which means %d, but vocab_size is %d", s->file,
                          c->bos_token_id, vocab);
    if (dsv2i_json_get(s->object, "eos_token_id"))
        return read_eos(s, vocab, c->eos_token_id, &c->n_eos);
    c->eos_token_id[0] = 100001;
    c->n_eos = 1;
    if (c->eos_token_id[0] >= vocab)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: eos_token_id: absent, which means %d, but vocab_size is %d", s->file,
                          c->eos_token_id[0], vocab);
    return DSV2_OK;
}

static dsv2_status parse_object(const char *file, const char *text, size_t n, cJSON **tree)
{
    char shown[80];

    DSV2I_TRY(dsv2i_json_parse(file, text, n, tree));
    if (cJSON_IsObject(*tree))
        return DSV2_OK;
    dsv2i_fail(DSV2_ERR_FORMAT, "%s: must be a JSON object, is %s", file, dsv2i_json_show(shown, sizeof shown, *tree));
    cJSON_Delete(*tree);
    return DSV2_ERR_FORMAT;
}

static dsv2_status read_config(const struct src *s, struct dsv2i_config *c)
{
    DSV2I_TRY(check_kind(s));
    DSV2I_TRY(read_dtype(s, &c->dtype));
    DSV2I_TRY(read_sizes(s, c));
    DSV2I_TRY(read_experts(s, c));
    DSV2I_TRY(read_route(s, c));
    DSV2I_TRY(read_rotation(s, c));
    return read_rest(s, c);
}

dsv2_status dsv2i_config_parse(const char *file, const char *text, size_t n, struct dsv2i_config *out)
{
    struct src s = {.file = file, .path = ""};
    cJSON *tree;
    dsv2_status status;

    memset(out, 0, sizeof *out);
    DSV2I_TRY(parse_object(file, text, n, &tree));
    s.object = tree;
    status = read_config(&s, out);
    cJSON_Delete(tree);
    return status;
}

void dsv2i_config_copy(struct dsv2i_config *dst, const struct dsv2i_config *src)
{
    *dst = *src;
    dst->shape.inv_freq = dst->inv_freq;
}

int dsv2i_config_is_moe(const struct dsv2i_config *c, int32_t layer)
{
    return c->shape.n_routed_experts > 0 && layer >= c->first_k_dense_replace && layer % c->moe_layer_freq == 0;
}

void dsv2i_config_parameters(const struct dsv2i_config *c, uint64_t *total, uint64_t *active)
{
    const struct dsv2i_shape *p = &c->shape;
    uint64_t h = (uint64_t)p->hidden_size, heads = (uint64_t)p->num_attention_heads, kv = (uint64_t)p->kv_lora_rank;
    uint64_t rope = (uint64_t)p->qk_rope_head_dim, v = (uint64_t)p->v_head_dim, q = (uint64_t)p->q_lora_rank;
    uint64_t nope = (uint64_t)p->qk_nope_head_dim, routed = (uint64_t)p->n_routed_experts;
    uint64_t q_rows = heads * (nope + rope), embed = (uint64_t)p->vocab_size * h;
    uint64_t expert = 3 * h * (uint64_t)p->moe_intermediate_size;
    uint64_t attention = (q ? h * q + q + q * q_rows : h * q_rows) + h * (kv + rope) + kv + kv * heads * (nope + v) + heads * v * h;

    *total = embed + h + (c->tie_word_embeddings ? 0 : embed);
    *active = embed + h; /* the head, tied or not; looking up the input embedding uses one row */
    for (int32_t l = 0; l < p->num_hidden_layers; l++) {
        uint64_t common = attention + 2 * h, used = 0, unused = 0;

        if (dsv2i_config_is_moe(c, l)) {
            used = routed * h + expert * (uint64_t)(p->n_shared_experts + p->num_experts_per_tok);
            unused = expert * (uint64_t)(p->n_routed_experts - p->num_experts_per_tok);
        } else {
            used = 3 * h * (uint64_t)p->intermediate_size;
        }
        *total += common + used + unused;
        *active += common + used;
    }
}

/* ---- quantization_config --------------------------------------------------------------------------------------------- */

#define QUANTIZATION "quantization_config"
#define TIME_FOR_IGNORED 5000000000u /* a few are over in an instant; a file must not make loading take hours */

/* A module's name, or a regular expression that its beginning must match. */
struct dsv2i_ignored {
    char *text; /* as in the file */
    struct dsv2i_regex *regex;
};

uint64_t dsv2i_config_quantizable(const struct dsv2i_config *c)
{
    const struct dsv2i_shape *p = &c->shape;
    uint64_t h = (uint64_t)p->hidden_size, ends = (c->tie_word_embeddings ? 1u : 2u) * (uint64_t)p->vocab_size * h + h, total, active;

    dsv2i_config_parameters(c, &total, &active);
    total -= ends;
    for (int32_t l = 0; l < p->num_hidden_layers; l++)
        total -= 2 * h + (uint64_t)p->kv_lora_rank + (uint64_t)p->q_lora_rank
                 + (dsv2i_config_is_moe(c, l) ? (uint64_t)p->n_routed_experts * h : 0);
    return total;
}

static dsv2_status add_ignored(struct dsv2i_quantization *q, const struct src *s, const cJSON *entry)
{
    struct dsv2i_ignored *to = &q->ignored[q->n_ignored];
    char path[80], shown[80];

    snprintf(path, sizeof path, QUANTIZATION ".%s[%d]", q->ignored_key, q->n_ignored);
    if (!cJSON_IsString(entry))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: must be a module's name, is %s", s->file, path,
                          dsv2i_json_show(shown, sizeof shown, entry));
    to->text = dsv2i_strndup(q->mem, entry->valuestring, strlen(entry->valuestring));
    if (!to->text)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory for a name", s->file, path);
    q->n_ignored++;
    if (strncmp(to->text, "re:", 3) != 0)
        return DSV2_OK;
    return dsv2i_regex_compile(q->mem, s->file, path, to->text + 3, strlen(to->text + 3), DSV2I_REGEX_BEGIN, &to->regex);
}

static dsv2_status read_ignored(struct dsv2i_quantization *q, const struct src *s, const char *key)
{
    const cJSON *list = dsv2i_json_get(s->object, key);

    if (is_absent(s, key))
        return DSV2_OK;
    if (!cJSON_IsArray(list))
        return bad(DSV2_ERR_FORMAT, s, key, "is not a list of names");
    if (q->ignored)
        return bad(DSV2_ERR_FORMAT, s, key, "although there is also %s", q->ignored_key);
    q->ignored_key = key;
    q->ignored = dsv2i_calloc(q->mem, (size_t)cJSON_GetArraySize(list), sizeof *q->ignored);
    if (!q->ignored)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: " QUANTIZATION ".%s: no memory for a list", s->file, key);
    for (const cJSON *e = list->child; e; e = e->next)
        DSV2I_TRY(add_ignored(q, s, e));
    return DSV2_OK;
}

/* A key that must be there, or may be absent, and have this value. */
static dsv2_status expect_name(const struct src *s, const char *key, const char *wanted, int optional)
{
    const char *name;

    DSV2I_TRY(read_name(s, key, optional ? wanted : NULL, &name));
    return name && strcmp(name, wanted) == 0 ? DSV2_OK : bad(DSV2_ERR_UNSUPPORTED, s, key, "is not supported; only \"%s\" is", wanted);
}

/* AutoFP8's scale per tensor, or with weight_block_size DeepSeek-V3's per block. */
static dsv2_status read_fp8(struct dsv2i_quantization *q, const struct src *s)
{
    const cJSON *block = dsv2i_json_get(s->object, "weight_block_size");
    const char *scheme;

    DSV2I_TRY(expect_name(s, "fmt", "e4m3", 1));
    DSV2I_TRY(read_name(s, "activation_scheme", "dynamic", &scheme));
    if (strcmp(scheme, "static") != 0 && strcmp(scheme, "dynamic") != 0)
        return bad(DSV2_ERR_UNSUPPORTED, s, "activation_scheme", "is not supported; only \"static\" and \"dynamic\" are");
    q->scales = DSV2I_SCALES_TENSOR;
    q->scale_name = "weight_scale";
    if (!is_absent(s, "weight_block_size")) {
        char rows[80], cols[80];
        const cJSON *first = cJSON_IsArray(block) ? block->child : NULL, *second = first ? first->next : NULL;

        if (!second || second->next || !cJSON_IsNumber(first) || !cJSON_IsNumber(second))
            return bad(DSV2_ERR_FORMAT, s, "weight_block_size", "is not a list of two sizes");
        if (first->valuedouble != DSV2I_SCALE_BLOCK || second->valuedouble != DSV2I_SCALE_BLOCK)
            return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: " QUANTIZATION ".weight_block_size: [%s, %s] is not supported; only [%d, %d] is",
                              s->file, dsv2i_json_show(rows, sizeof rows, first), dsv2i_json_show(cols, sizeof cols, second),
                              DSV2I_SCALE_BLOCK, DSV2I_SCALE_BLOCK);
        q->scales = DSV2I_SCALES_BLOCK;
        q->scale_name = "weight_scale_inv";
    }
    DSV2I_TRY(read_ignored(q, s, "ignored_layers"));
    return read_ignored(q, s, "modules_to_not_convert");
}

/* A group of compressed-tensors.  How activations are meant to be quantized does not matter: they are not. */
static dsv2_status read_group(struct dsv2i_quantization *q, const char *file, const cJSON *group)
{
    char path[120], name[60], weights_path[140];
    struct src s = {file, path, group}, w = {file, weights_path, dsv2i_json_get(group, "weights")};
    const char *strategy;
    int symmetric, dynamic;
    int32_t bits, scales;

    snprintf(path, sizeof path, QUANTIZATION ".config_groups.%s", dsv2i_quote(name, sizeof name, group->string, strlen(group->string)));
    snprintf(weights_path, sizeof weights_path, "%s.weights", path);
    if (!cJSON_IsObject(group))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is not an object", file, path);
    if (!cJSON_IsArray(dsv2i_json_get(group, "targets")))
        return bad(DSV2_ERR_FORMAT, &s, "targets", "is not a list of names");
    DSV2I_TRY(expect_name(&s, "format", "float-quantized", 1));
    if (!cJSON_IsObject(w.object))
        return bad(DSV2_ERR_FORMAT, &s, "weights", "is not an object");
    DSV2I_TRY(read_int(&w, "num_bits", 1, 64, 8, &bits));
    if (bits != 8)
        return bad(DSV2_ERR_UNSUPPORTED, &w, "num_bits", "is not supported; only 8 is");
    DSV2I_TRY(expect_name(&w, "type", "float", 0));
    DSV2I_TRY(dsv2i_json_bool_or(file, weights_path, w.object, "symmetric", 1, &symmetric));
    if (!symmetric)
        return bad(DSV2_ERR_UNSUPPORTED, &w, "symmetric", "is not supported; only true is");
    DSV2I_TRY(dsv2i_json_bool_or(file, weights_path, w.object, "dynamic", 0, &dynamic));
    if (dynamic)
        return bad(DSV2_ERR_UNSUPPORTED, &w, "dynamic", "is not supported for weights; only false is");
    DSV2I_TRY(read_name(&w, "strategy", "tensor", &strategy));
    scales = strcmp(strategy, "tensor") == 0 ? DSV2I_SCALES_TENSOR : strcmp(strategy, "channel") == 0 ? DSV2I_SCALES_ROW : DSV2I_SCALES_NONE;
    if (!scales)
        return bad(DSV2_ERR_UNSUPPORTED, &w, "strategy", "is not supported; only \"tensor\" and \"channel\" are");
    if (q->scales && q->scales != scales)
        return bad(DSV2_ERR_UNSUPPORTED, &w, "strategy", "differs from that of the group before; all must be alike");
    q->scales = scales;
    return DSV2_OK;
}

static dsv2_status read_compressed(struct dsv2i_quantization *q, const struct src *s)
{
    static const char *const others[] = {"sparsity_config", "transform_config"}; /* would make other weights of the stored ones, unless */
    static const char *const nothing[] = {"dense", NULL};                          /* their format is this */
    const cJSON *groups = dsv2i_json_get(s->object, "config_groups");
    const char *status;

    DSV2I_TRY(expect_name(s, "format", "float-quantized", 0));
    DSV2I_TRY(read_name(s, "quantization_status", NULL, &status));
    if (status && strcmp(status, "frozen") != 0) /* what the first releases of compressed-tensors left there */
        DSV2I_TRY(expect_name(s, "quantization_status", "compressed", 1));
    for (int i = 0; i < 2; i++) {
        const cJSON *other = dsv2i_json_get(s->object, others[i]);
        const char *format = cJSON_GetStringValue(dsv2i_json_get(other, "format"));
        int is_nothing = cJSON_IsObject(other) && (!other->child || (format && nothing[i] && !strcmp(format, nothing[i])));

        if (!is_absent(s, others[i]) && !is_nothing)
            return bad(DSV2_ERR_UNSUPPORTED, s, others[i], "is not supported");
    }
    if (!cJSON_IsObject(groups) || !groups->child)
        return bad(DSV2_ERR_FORMAT, s, "config_groups", "is not an object with groups");
    q->scale_name = "weight_scale";
    for (const cJSON *g = groups->child; g; g = g->next)
        DSV2I_TRY(read_group(q, s->file, g));
    return read_ignored(q, s, "ignore");
}

static dsv2_status read_quantization(struct dsv2i_quantization *q, const struct src *config)
{
    const struct src s = {config->file, QUANTIZATION, dsv2i_json_get(config->object, QUANTIZATION)};
    const char *method;

    if (is_absent(config, QUANTIZATION))
        return DSV2_OK;
    if (!cJSON_IsObject(s.object))
        return bad(DSV2_ERR_FORMAT, config, QUANTIZATION, "is not an object");
    DSV2I_TRY(read_name(&s, "quant_method", NULL, &method));
    if (method && strcmp(method, "fp8") == 0)
        return read_fp8(q, &s);
    if (method && strcmp(method, "compressed-tensors") == 0)
        return read_compressed(q, &s);
    return bad(DSV2_ERR_UNSUPPORTED, &s, "quant_method", "is not supported; only \"fp8\" and \"compressed-tensors\" are");
}

dsv2_status dsv2i_quantization_parse(const struct dsv2i_hooks *mem, const char *file, const char *text, size_t n,
                                     struct dsv2i_quantization *out)
{
    struct src s = {.file = file, .path = ""};
    cJSON *tree;
    dsv2_status status;

    *out = (struct dsv2i_quantization){.mem = mem, .time_left = TIME_FOR_IGNORED};
    DSV2I_TRY(parse_object(file, text, n, &tree));
    s.object = tree;
    status = read_quantization(out, &s);
    cJSON_Delete(tree);
    return status;
}

void dsv2i_quantization_free(struct dsv2i_quantization *q)
{
    for (int32_t i = 0; i < q->n_ignored; i++) {
        dsv2i_regex_free(q->ignored[i].regex);
        dsv2i_free(q->mem, q->ignored[i].text);
    }
    dsv2i_free(q->mem, q->ignored);
}

/* As Python's re.match: from the first character on. */
static dsv2_status names(struct dsv2i_quantization *q, const struct dsv2i_ignored *entry, const char *module, int *yes)
{
    size_t n = strlen(module), begin = 1, end;
    uint64_t start, spent;
    struct dsv2i_matcher m;
    dsv2_status status;

    if (!entry->regex) {
        *yes = strcmp(entry->text, module) == 0;
        return DSV2_OK;
    }
    start = dsv2i_regex_now();
    DSV2I_TRY(dsv2i_matcher_begin(&m, entry->regex, start + q->time_left));
    status = dsv2i_matcher_next(&m, module, n, 0, &begin, &end);
    dsv2i_matcher_end(&m);
    spent = dsv2i_regex_now() - start;
    q->time_left -= spent < q->time_left ? spent : q->time_left;
    *yes = begin == 0;
    return status;
}

dsv2_status dsv2i_quantization_check(struct dsv2i_quantization *q, const char *file, const char *module)
{
    for (int32_t i = 0; i < q->n_ignored; i++) {
        const struct dsv2i_ignored *entry = &q->ignored[i];
        char shown[80];
        dsv2_status status;
        int yes;

        status = names(q, entry, module, &yes);
        if (status == DSV2_OK && !yes)
            continue;
        dsv2i_quote(shown, sizeof shown, entry->text, strlen(entry->text));
        if (status == DSV2_ERR_LIMIT)
            return dsv2i_fail(status, "%s: " QUANTIZATION ".%s: \"%s\" takes too long on %s", file, q->ignored_key, shown, module);
        return status == DSV2_OK ? dsv2i_fail(DSV2_ERR_FORMAT, "%s: " QUANTIZATION ".%s: \"%s\" names %s, whose weight is F8_E4M3", file,
                                              q->ignored_key, shown, module)
                                 : status;
    }
    return DSV2_OK;
}

/* ---- generation_config.json ------------------------------------------------------------------------------------------ */

void dsv2i_generation_default(const struct dsv2i_config *config, struct dsv2i_generation *out)
{
    *out = (struct dsv2i_generation){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_eos = config->n_eos};
    memcpy(out->eos_token_id, config->eos_token_id, sizeof config->eos_token_id);
}

static int has_id(const int32_t *ids, int32_t n, int32_t id)
{
    while (n > 0 && ids[n - 1] != id)
        n--;
    return n > 0;
}

/* A number, or its default where the key is absent or null: these files are full of nulls. */
static dsv2_status read_option(const struct src *s, const char *key, double lo, double hi, int lo_is_legal, double *out)
{
    if (is_absent(s, key))
        return DSV2_OK;
    DSV2I_TRY(read_double(s, key, *out, out));
    if (*out < lo || *out > hi || (*out == lo && !lo_is_legal))
        return bad(DSV2_ERR_FORMAT, s, key, "is not in %g %s %s <= %g", lo, lo_is_legal ? "<=" : "<", key, hi);
    return DSV2_OK;
}

static dsv2_status read_generation(const struct src *s, const struct dsv2i_config *config, struct dsv2i_generation *g)
{
    int sample;

    if (!is_null(s, "do_sample")) {
        DSV2I_TRY(dsv2i_json_bool_or(s->file, s->path, s->object, "do_sample", 0, &sample));
        g->do_sample = sample;
    }
    DSV2I_TRY(read_option(s, "temperature", 0, 1e6, 1, &g->temperature));
    DSV2I_TRY(read_option(s, "top_p", 0, 1, 0, &g->top_p));
    DSV2I_TRY(read_option(s, "min_p", 0, 1, 1, &g->min_p));
    DSV2I_TRY(read_option(s, "repetition_penalty", 0, 1e6, 0, &g->repetition_penalty));
    /* HF's generate applies top_k = 50 where the file has none; nobody who reads the file would guess that, and vLLM does not. */
    DSV2I_TRY(read_int_or_null(s, "top_k", -1, MAX_VOCAB, 0, 0, &g->top_k));
    if (g->top_k < 0)
        g->top_k = 0;
    DSV2I_TRY(read_int_or_null(s, "min_new_tokens", 0, MAX_POSITIONS, 0, 0, &g->min_tokens));
    DSV2I_TRY(read_eos(s, config->shape.vocab_size, g->eos_token_id, &g->n_eos));
    for (int32_t i = 0; i < config->n_eos; i++) {
        if (!has_id(g->eos_token_id, g->n_eos, config->eos_token_id[i]))
            g->eos_token_id[g->n_eos++] = config->eos_token_id[i];
    }
    return DSV2_OK;
}

dsv2_status dsv2i_generation_parse(const char *file, const char *text, size_t n, const struct dsv2i_config *config,
                                   struct dsv2i_generation *out)
{
    struct src s = {.file = file, .path = ""};
    cJSON *tree;
    dsv2_status status;

    dsv2i_generation_default(config, out);
    DSV2I_TRY(parse_object(file, text, n, &tree));
    s.object = tree;
    status = read_generation(&s, config, out);
    cJSON_Delete(tree);
    return status;
}
