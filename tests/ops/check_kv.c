/* Records of KV pages: fp8 against PyTorch's conversions, each code against the definition in double, the same bytes and the same
 * numbers on every instruction set, and what is no number.
 *
 * SPDX-License-Identifier: MIT */
#include <float.h>
#include <math.h>

#include "cpu/kv_codec.h"
#include "fp8_cases.h"
#include "harness.h"

static char name[160];

static const struct dsv2i_inner *inner_of(const struct variant *v)
{
    return &((const struct dsv2i_cpu *)v->be)->inner;
}

/* Records of real and of odd shapes, in bytes. */
static void check_sizes(void)
{
    static const int want[][DSV2I_KV_TYPES + 2] = {
        /* rank, rope, BF16, F32, F8_E4M3, F8_E5M2, INT8, 6BIT */
        { 512, 64, 1152, 2304, 592, 592, 592, 400 },
        { 37, 6, 86, 172, 64, 64, 64, 64 },
        { 1, 2, 6, 12, 16, 16, 16, 32 },
    };

    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        for (int type = 0; type < DSV2I_KV_TYPES; type++) {
            struct dsv2i_shape s = { .kv_lora_rank = want[i][0], .qk_rope_head_dim = want[i][1] };
            size_t got = variants[0].be->op->kv_token_bytes(variants[0].be, &s, type);

            expect(got == (size_t)want[i][2 + type], "record", "type %d, rank %d: %zu bytes", type, want[i][0], got);
        }
    expect(dsv2i_kv_record(DSV2I_KV_6BIT, 512, 64).bytes <= 432, "record", "too large");
}

static void check_fp8(void)
{
    enum { RANK = 256, ROPE = 256 };
    uint8_t record[RANK + ROPE + 16];
    float got[RANK + ROPE];
    const float one[2] = { 1, 1 };

    for (int t = 0; t < 2; t++) {
        int type = DSV2I_KV_F8_E4M3 + t;

        for (size_t i = 0; i < sizeof f8_cases / sizeof *f8_cases; i++)
            for (int negative = 0; negative < 2; negative++) {
                float f = dsv2i_bits_f32(f8_cases[i].f32 | (uint32_t)negative << 31);
                uint8_t code = dsv2i_kv_f8(f, type), want = (uint8_t)(f8_cases[i].code[t] | negative << 7);

                expect(code == want, "fp8", "%s of %a: %02x for %02x", t ? "E5M2" : "E4M3", (double)f, code, want);
            }
        for (int c = 0; c < 256; c++) {
            double want = (double)dsv2i_bits_f32(f8_value[t][c]), ref = ref_kv_code((uint8_t)c, type);

            record[c] = record[RANK + c] = (uint8_t)c;
            expect(want == ref || (isnan(want) && isnan(ref)), "fp8", "the reference of %02x is wrong", c);
        }
        memcpy(record + dsv2i_kv_record(type, RANK, ROPE).scale, one, sizeof one);
        for (int v = 0; v < n_variants; v++) {
            inner_of(&variants[v])->kv_read(got, record, type, RANK, ROPE, 1);
            for (int c = 0; c < RANK + ROPE; c++) {
                float want = dsv2i_bits_f32(f8_value[t][c % 256]);

                expect(isnan(want) ? isnan(got[c]) : memcmp(&got[c], &want, 4) == 0, "fp8", "%s, code %02x: %a for %a",
                       variant_name(&variants[v]), c % 256, (double)got[c], (double)want);
            }
        }
    }
}

/* Codes of a byte: the scale, and that no other code would be nearer. */
/* Every code as a weight with a scale that rounds, or is at its limits, whole rows and their ends. */
static void check_weight_codes(void)
{
    static const float scales[] = { 1, 0.1f, 0x1p-9f, 0x1.8p-130f, 0x1p-149f, 0x1.23456p119f };
    uint8_t code[256];
    int32_t zero = 0;
    struct dsv2i_shape shape = { .hidden_size = 256, .vocab_size = 1, .num_hidden_layers = 1, .num_attention_heads = 1, .kv_lora_rank = 1,
                                 .qk_nope_head_dim = 1, .v_head_dim = 1, .intermediate_size = 1 };
    const struct dsv2i_seq seq = { .page = NULL };
    const struct dsv2i_batch batch = { .n_rows = 1, .n_seqs = 1, .token = &zero, .pos = &zero, .seq = &zero, .seqs = &seq };
    float got[256];

    for (int c = 0; c < 256; c++)
        code[c] = (uint8_t)(c * 89 + 0x7F); /* NaN first: also in rows of one element */
    for (int i = 0; i < n_variants; i++)
        for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
            for (int n = 1; n <= 256; n++) {
                struct dsv2i_weight w = { .dtype = DSV2I_F8_E4M3, .rows = 1, .cols = n, .data = code, .scale = &scales[s],
                                          .scale_rows = 1, .scale_cols = n };
                int wrong = 0;

                expect(variants[i].be->op->reserve(variants[i].be, &shape, 1) == 0, "weight codes", "no scratch");
                variants[i].be->op->begin(variants[i].be, &shape, &batch);
                variants[i].be->op->embed(variants[i].be, got, &w);
                variants[i].be->op->finish(variants[i].be);
                for (int k = 0; k < n; k++) {
                    float want = dsv2i_bits_f32(f8_value[0][code[k]]) * scales[s];

                    wrong += isnan(want) ? !isnan(got[k]) : dsv2i_f32_bits(got[k]) != dsv2i_f32_bits(want);
                }
                expect(wrong == 0, "weight codes", "%s: %d of %d are wrong, scale %g", variant_name(&variants[i]), wrong, n,
                       (double)scales[s]);
            }
}

static void check_bytes(const uint8_t *code, float scale, const float *x, int n, int type)
{
    static const double top[] = { 0, 0, 448, 57344, 127, 127 };
    double greatest = 0;
    int wrong = 0;

    type = type == DSV2I_KV_6BIT ? DSV2I_KV_INT8 : type;
    for (int i = 0; i < n; i++)
        greatest = fmax(greatest, fabs((double)x[i]));
    expect(scale == (float)(greatest / top[type]), name, "scale %a for %a", (double)scale, greatest / top[type]);
    for (int i = 0; i < n && scale > 0; i++) {
        double want = (double)x[i] / (double)scale, error = fabs(ref_kv_code(code[i], type) - want);

        for (int c = 0; c < 256; c++)
            wrong += c != 128 && error > fabs(ref_kv_code((uint8_t)c, type) - want) * (1 + 1e-6) + 1e-6 * fabs(want);
    }
    expect(wrong == 0, name, "%d nearer codes", wrong);
}

/* Levels of the rotated latent: nearest, least squares; returns the square of the error of c relative to that of c. */
static double check_levels(const uint8_t *record, const float *c, int rank, int rope, float scale)
{
    double *x = doubles(c, (size_t)rank), *y = need((size_t)rank, sizeof *y), *back = need((size_t)(rank + rope), sizeof *back);
    double rms = 0, fit = 0, levels = 0, error = 0, square = 0;
    int n = 1, wrong = 0, blocks = (rank + 31) / 32;

    while (rank % (2 * n) == 0)
        n *= 2;
    for (int i = 0; i < rank; i += n)
        ref_hadamard(y + i, x + i, n, 1, 0);
    for (int i = 0; i < rank; i++)
        rms += y[i] * y[i] / rank;
    rms = sqrt(rms);
    for (int i = 0; i < rank; i++) {
        int in = i % 32, level = record[i / 32 * 16 + in % 16] / (in < 16 ? 1 : 16) % 16;
        int negative = record[blocks * 16 + i / 8] >> i % 8 & 1;
        double a = fabs(y[i]) / rms, slack = 1e-5 + 1e-5 * a;

        wrong += level > 0 && a < (ref_kv_level(level) + ref_kv_level(level - 1)) / 2 - slack;
        wrong += level < 15 && a > (ref_kv_level(level) + ref_kv_level(level + 1)) / 2 + slack;
        wrong += fabs(y[i]) > 1e-5 * rms && negative != (y[i] < 0);
        fit += fabs(y[i]) * ref_kv_level(level);
        levels += ref_kv_level(level) * ref_kv_level(level);
    }
    expect(wrong == 0, name, "%d levels or signs wrong", wrong);
    expect(fabs((double)scale * n * levels / fit - 1) < 1e-5, name, "scale %g for %g", (double)scale, fit / levels / n);
    ref_kv_read(back, record, DSV2I_KV_6BIT, rank, rope);
    for (int i = 0; i < rank; i++) {
        error += (back[i] - x[i]) * (back[i] - x[i]);
        square += x[i] * x[i];
    }
    free(x);
    free(y);
    free(back);
    return error / square;
}

/* Write tokens and read them, in every variant; the checks of one. */
static void check_records(int rank, int rope, float size)
{
    enum { N = 3 };
    size_t width = (size_t)(rank + rope);
    float *kv = normals(N * width, size), *used = need(width, sizeof *used), *got = need(N * width, sizeof *got);
    float *first_got = need(N * width, sizeof *got);
    double *want = need(width, sizeof *want);

    for (int type = DSV2I_KV_F8_E4M3; type < DSV2I_KV_TYPES; type++) {
        struct dsv2i_kv_record r = dsv2i_kv_record(type, rank, rope);
        uint8_t *records = need(N + 1, r.bytes), *first = need(N, r.bytes);

        for (int v = 0; v < n_variants; v++) {
            const struct dsv2i_inner *inner = inner_of(&variants[v]);

            if (!variants[v].first)
                continue;
            snprintf(name, sizeof name, "record of type %d, %d + %d, size %g, %s", type, rank, rope, (double)size,
                     variant_name(&variants[v]));
            memset(records, 0xFF, (N + 1) * r.bytes);
            for (int i = 0; i < N; i++) {
                memcpy(used, kv + (size_t)i * width, width * sizeof *used);
                dsv2i_kv_write(inner, records + (size_t)i * r.bytes, used, type, rank, rope);
            }
            inner->kv_read(got, records, type, rank, rope, N);
            for (size_t i = N * r.bytes; i < (N + 1) * r.bytes; i++)
                expect(records[i] == 0xFF, name, "byte %zu written", i);
            if (v > 0) {
                expect(memcmp(records, first, N * r.bytes) == 0, name, "other bytes");
                same_bits(name, got, first_got, N * width);
                continue;
            }
            memcpy(first, records, N * r.bytes);
            memcpy(first_got, got, N * width * sizeof *got);
            for (int i = 0; i < N; i++) {
                const uint8_t *at = records + (size_t)i * r.bytes;
                const float *c = kv + (size_t)i * width;
                float scale[2];

                memcpy(scale, at + r.scale, sizeof scale);
                check_bytes(at + r.key, scale[1], c + rank, rope, type);
                if (type != DSV2I_KV_6BIT)
                    check_bytes(at, scale[0], c, rank, type);
                else
                    expect(check_levels(at, c, rank, rope, scale[0]) < (rank >= 96 ? 0.005 : 0.1), name, "far off");
                for (size_t k = r.key + (size_t)rope; k < r.bytes; k++)
                    expect(at[k] == 0 || (k >= r.scale && k < r.scale + 8), name, "padding byte %zu is not 0", k);
                if (type == DSV2I_KV_6BIT) /* what was read is still rotated */
                    inner->rotate_back(got + (size_t)i * width, rank);
                ref_kv_read(want, at, type, rank, rope);
                close_to(name, got + (size_t)i * width, want, (size_t)rank, 2e-6);
                close_to(name, got + (size_t)i * width + rank, want + rank, (size_t)rope, 1e-7);
            }
        }
        free(records);
        free(first);
    }
    free(kv);
    free(used);
    free(got);
    free(first_got);
    free(want);
}

/* Latents that a rotation, or its lack, might spoil: single elements, constants, rows of the Hadamard matrix, a few giants; and the
 * average over normal ones, where the quantizer's 0.0025 is known. */
static void check_directions(void)
{
    enum { RANK = 512, ROPE = 2, N = 400 };
    uint8_t record[512];
    float c[RANK + ROPE], scale;
    double error, mean = 0;

    for (int i = 0; i < N; i++) {
        int kind = i < 40 ? i % 4 : 4;

        for (int k = 0; k < RANK; k++)
            switch (kind) {
            case 0:
                c[k] = k == i * 12;
                break;
            case 1:
                c[k] = 0.3f;
                break;
            case 2:
                c[k] = __builtin_parity((unsigned)(k & i * 13)) ? -1 : 1;
                break;
            case 3:
                c[k] = normal() * (k % 128 == i ? 50.0f : 1.0f);
                break;
            default:
                c[k] = normal();
            }
        c[RANK] = c[RANK + 1] = 0;
        snprintf(name, sizeof name, "6-bit record of kind %d", kind);
        {
            float used[RANK + ROPE];

            memcpy(used, c, sizeof c);
            dsv2i_kv_write(inner_of(&variants[0]), record, used, DSV2I_KV_6BIT, RANK, ROPE);
        }
        memcpy(&scale, record + dsv2i_kv_record(DSV2I_KV_6BIT, RANK, ROPE).scale, sizeof scale);
        error = check_levels(record, c, RANK, ROPE, scale);
        expect(error < 0.01, name, "square of the error %.4f", error);
        if (kind == 4)
            mean += error / (N - 40);
    }
    expect(mean > 0.0023 && mean < 0.0027, "6-bit record", "mean square of the error %.5f", mean);
}

static void check_rotation(int rank)
{
    float *x = normals((size_t)rank, 1), *y = need((size_t)rank, sizeof *y), *first = need((size_t)rank * 2, sizeof *first);
    double *xd = doubles(x, (size_t)rank), *want = need((size_t)rank, sizeof *want);
    int n = 1;

    while (rank % (2 * n) == 0)
        n *= 2;
    for (int v = 0; v < n_variants; v++)
        for (int back = 0; back < 2; back++) {
            float *same = first + back * rank;

            snprintf(name, sizeof name, "rotation of %d%s, %s", rank, back ? " back" : "", variant_name(&variants[v]));
            memcpy(y, x, (size_t)rank * sizeof *y);
            (back ? inner_of(&variants[v])->rotate_back : inner_of(&variants[v])->rotate)(y, rank);
            if (v == 0) {
                for (int i = 0; i < rank; i += n)
                    ref_hadamard(want + i, xd + i, n, !back, back);
                close_to(name, y, want, (size_t)rank, 1e-6);
                memcpy(same, y, (size_t)rank * sizeof *y);
            }
            same_bits(name, y, same, (size_t)rank);
        }
    free(x);
    free(y);
    free(first);
    free(xd);
    free(want);
}

/* Parts of zeros, denormals, huge numbers; and a part with something that is no number reads as NaN, the other part as it should. */
static void check_extremes(void)
{
    enum { RANK = 48, ROPE = 6, WIDTH = RANK + ROPE };
    /* 178 least denormals: the scale of INT8 is one, rounded down from 1.4 */
    static const float extreme[] = { 0, FLT_TRUE_MIN, 178 * FLT_TRUE_MIN, 3e-39f, 1e-37f, FLT_MAX / 64, INFINITY, -INFINITY, NAN };
    /* by what a denormal scale's rounding may move an element, in least denormals: half of top */
    static const double coarse[] = { 0, 0, 225, 28673, 64, 64 };
    uint8_t record[256];
    float kv[WIDTH], got[WIDTH];
    double want[WIDTH];

    for (int type = DSV2I_KV_F8_E4M3; type < DSV2I_KV_TYPES; type++)
        for (size_t e = 0; e < sizeof extreme / sizeof *extreme; e++)
            for (int part = 0; part < 2; part++)
                for (int v = 0; v < n_variants; v++) {
                    const struct dsv2i_inner *inner = inner_of(&variants[v]);
                    struct dsv2i_kv_record r = dsv2i_kv_record(type, RANK, ROPE);
                    int from = part ? RANK : 0, to = part ? WIDTH : RANK, n_nan = 0, wrong = 0, n_codes = 0;

                    snprintf(name, sizeof name, "%g in part %d of type %d, %s", (double)extreme[e], part, type,
                             variant_name(&variants[v]));
                    for (int i = 0; i < WIDTH; i++)
                        kv[i] = i < from || i >= to ? 1.0f : isfinite(extreme[e]) ? extreme[e] : (float)(i % 5);
                    kv[from + 3] = extreme[e];
                    dsv2i_kv_write(inner, record, kv, type, RANK, ROPE);
                    inner->kv_read(got, record, type, RANK, ROPE, 1);
                    if (type == DSV2I_KV_6BIT)
                        inner->rotate_back(got, RANK);
                    ref_kv_read(want, record, type, RANK, ROPE);
                    for (int i = 0; i < WIDTH; i++) {
                        double good = i < from || i >= to ? 1 : (double)extreme[e];

                        n_nan += isnan(got[i]) && isnan(want[i]);
                        wrong += isfinite(good) && !(fabs((double)got[i] - good) <= 0.2 * fabs(good) + coarse[type] * 0x1p-149);
                    }
                    expect(wrong == 0, name, "%d elements wrong", wrong);
                    expect(n_nan == (isfinite(extreme[e]) ? 0 : to - from), name, "%d elements are NaN", n_nan);
                    for (size_t k = part ? r.key : 0; k < (part ? r.key + ROPE : r.key); k++)
                        n_codes += record[k] != 0;
                    expect(isfinite(extreme[e]) || n_codes == 0, name, "%d codes of a part that is NaN", n_codes);
                }
}

void check_kv(void)
{
    static const int shape[][2] = { { 512, 64 }, { 37, 6 }, { 5, 4 }, { 1, 2 }, { 96, 10 }, { 130, 18 } };
    static const float size[] = { 1, 1e-3f, 1e20f, 1e-30f };
    int before = n_failed;

    check_sizes();
    check_fp8();
    check_weight_codes();
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        check_rotation(shape[i][0]);
        for (size_t k = 0; k < sizeof size / sizeof *size; k++)
            check_records(shape[i][0], shape[i][1], size[k]);
    }
    check_rotation(4096);
    check_directions();
    check_extremes();
    printf("records of KV pages: %s\n", n_failed == before ? "ok" : "FAILED");
}
