/* The inner loops over vectors of LANES floats.  inner_avx2.c and inner_avx512.c define the vector and its operations
 * (vec, v_*) and include this file, which then is their only content: the loops exist once.
 *
 * Sizes of register tiles are constants after inlining: DOT_ROWS rows x TILE_COLS weight rows, and AXPY_VECS(m)
 * vectors of m rows.  Ends of rows are loaded with zeros behind them, so they take part like any other vector.
 *
 * SPDX-License-Identifier: MIT */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define TILE_COLS 4

/* Cephes' expf: 2^n times a polynomial in the remainder; about 1 ulp, denormal and infinite where it should be.  A
 * NaN passes: min and max return their second operand then. */
INLINE vec v_exp(vec x)
{
    vec n, r, p;

    x = v_max(v_set1(-104.0f), v_min(v_set1(89.0f), x));
    n = v_round(v_mul(x, v_set1(1.44269504f)));
    r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, v_mul(r, r), v_add(r, v_set1(1.0f)));
    return v_times_2n(p, n);
}

INLINE float v_sum(vec v)
{
    return _mm_cvtss_f32(v_sum4(v, v, v, v));
}

/* LANES elements of a row, fewer at its end.  v_widen leaves out a factor of 256 of F8_E4M3, which is in scale here; 2^8 times a scale
 * is exact. */
INLINE vec elements(const void *p, int32_t dtype, vec scale, int32_t n)
{
    vec v = v_widen_n(p, dtype, n);

    return dtype == DSV2I_F8_E4M3 ? v_mul(v, scale) : v;
}

INLINE vec scale_of(const float *scale, int32_t i)
{
    return v_set1(256 * scale[i]);
}

INLINE void widen_rows(float *dst, const struct dsv2i_weight *w, int32_t dtype, int32_t j0, int32_t n)
{
    for (int32_t j = j0; j < j0 + n; j++, dst += w->cols) {
        const char *row = dsv2i_weight_row(w, j);
        const float *scale = dtype == DSV2I_F8_E4M3 ? dsv2i_weight_scales(w, j) : NULL;
        int32_t step = scale ? w->scale_cols : w->cols;

        for (int32_t k = 0, run = 0; k < w->cols; k += step, run++) {
            vec by = scale ? scale_of(scale, run) : v_zero();
            int32_t end = dsv2i_min(w->cols, k + step), i = k;

            for (; i + LANES <= end; i += LANES)
                v_store(dst + i, elements(row + (size_t)i * dsv2i_dtype_size(dtype), dtype, by, LANES));
            if (i < end)
                v_store_n(dst + i, elements(row + (size_t)i * dsv2i_dtype_size(dtype), dtype, by, end - i), end - i);
        }
    }
}

static void widen(float *dst, const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    if (w->dtype == DSV2I_F32)
        widen_rows(dst, w, DSV2I_F32, j0, n);
    else if (w->dtype == DSV2I_BF16)
        widen_rows(dst, w, DSV2I_BF16, j0, n);
    else if (w->dtype == DSV2I_F16)
        widen_rows(dst, w, DSV2I_F16, j0, n);
    else
        widen_rows(dst, w, DSV2I_F8_E4M3, j0, n);
}

/* acc[r][j] += x[r] * w row j, elements i to k-1; scale[j] is theirs */
INLINE void add_products(vec acc[TILE_ROWS][TILE_COLS], const float *const *x, int32_t m, const char *w, int32_t dtype,
                         const vec *scale, size_t row_bytes, int32_t n, int32_t i, int32_t k)
{
    for (; dtype == DSV2I_F8_E4M3 && i + 2 * LANES <= k; i += 2 * LANES)
        UNROLL for (int32_t j = 0; j < n; j++) {
            vec wv[2];

            v_widen_pair(wv, w + (size_t)j * row_bytes + (size_t)i);
            UNROLL for (int32_t r = 0; r < m; r++) {
                acc[r][j] = v_fma(v_load(x[r] + i), v_mul(wv[0], scale[j]), acc[r][j]);
                acc[r][j] = v_fma(v_load(x[r] + i + LANES), v_mul(wv[1], scale[j]), acc[r][j]);
            }
        }
    for (; i + LANES <= k; i += LANES) {
        vec xv[TILE_ROWS];

        UNROLL for (int32_t r = 0; r < m; r++)
            xv[r] = v_load(x[r] + i);
        UNROLL for (int32_t j = 0; j < n; j++) {
            vec wv = elements(w + (size_t)j * row_bytes + (size_t)i * dsv2i_dtype_size(dtype), dtype, scale[j], LANES);

            UNROLL for (int32_t r = 0; r < m; r++)
                acc[r][j] = v_fma(xv[r], wv, acc[r][j]);
        }
    }
    if (i < k)
        UNROLL for (int32_t j = 0; j < n; j++) {
            vec wv = elements(w + (size_t)j * row_bytes + (size_t)i * dsv2i_dtype_size(dtype), dtype, scale[j], k - i);

            UNROLL for (int32_t r = 0; r < m; r++)
                acc[r][j] = v_fma(v_load_n(x[r] + i, k - i), wv, acc[r][j]);
        }
}

/* One run of columns after the other, each with scales of its own. */
INLINE void add_scaled(vec acc[TILE_ROWS][TILE_COLS], const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t dtype,
                       int32_t row, int32_t n)
{
    const float *scale[TILE_COLS];

    UNROLL for (int32_t j = 0; j < n; j++)
        scale[j] = dsv2i_weight_scales(w, row + j);
    for (int32_t k = 0, run = 0; k < w->cols; k += w->scale_cols, run++) {
        vec by[TILE_COLS];

        UNROLL for (int32_t j = 0; j < n; j++)
            by[j] = scale_of(scale[j], run);
        add_products(acc, x, m, dsv2i_weight_row(w, row), dtype, by, (size_t)w->cols, n, k, dsv2i_min(w->cols, k + w->scale_cols));
    }
}

INLINE void dot_tile(float *y, size_t ldy, const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t dtype, int32_t row,
                     int32_t n)
{
    vec acc[TILE_ROWS][TILE_COLS], none[TILE_COLS] = { 0 };

    UNROLL for (int32_t r = 0; r < m; r++)
        UNROLL for (int32_t j = 0; j < TILE_COLS; j++)
            acc[r][j] = v_zero();
    if (dtype == DSV2I_F8_E4M3)
        add_scaled(acc, x, m, w, dtype, row, n);
    else
        add_products(acc, x, m, dsv2i_weight_row(w, row), dtype, none, (size_t)w->cols * dsv2i_dtype_size(dtype), n, 0, w->cols);
    UNROLL for (int32_t r = 0; r < m; r++) {
        __m128 sums = v_sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);

        if (n == TILE_COLS)
            _mm_storeu_ps(y + (size_t)r * ldy, sums);
        else
            _mm_store_ss(y + (size_t)r * ldy, sums);
    }
}

INLINE void dot_rows(float *y, size_t ldy, const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t dtype, int32_t j0,
                     int32_t n)
{
    int32_t j = 0;

    for (; j + TILE_COLS <= n; j += TILE_COLS)
        dot_tile(y + j, ldy, x, m, w, dtype, j0 + j, TILE_COLS);
    for (; j < n; j++)
        dot_tile(y + j, ldy, x, m, w, dtype, j0 + j, 1);
}

INLINE void dot_dtype(float *y, size_t ldy, const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t dtype, int32_t j0,
                      int32_t n)
{
    for (; m > 0; m -= DOT_ROWS, x += DOT_ROWS, y += DOT_ROWS * ldy)
        switch (dsv2i_min(m, DOT_ROWS)) {
        case 1:
            dot_rows(y, ldy, x, 1, w, dtype, j0, n);
            break;
        case 2:
            dot_rows(y, ldy, x, 2, w, dtype, j0, n);
            break;
        case 3:
            dot_rows(y, ldy, x, 3, w, dtype, j0, n);
            break;
        default:
            dot_rows(y, ldy, x, DOT_ROWS, w, dtype, j0, n);
        }
}

static void dot(float *y, size_t ldy, const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    if (w->dtype == DSV2I_F32)
        dot_dtype(y, ldy, x, m, w, DSV2I_F32, j0, n);
    else if (w->dtype == DSV2I_BF16)
        dot_dtype(y, ldy, x, m, w, DSV2I_BF16, j0, n);
    else if (w->dtype == DSV2I_F16)
        dot_dtype(y, ldy, x, m, w, DSV2I_F16, j0, n);
    else
        dot_dtype(y, ldy, x, m, w, DSV2I_F8_E4M3, j0, n);
}

/* n_vec vectors of columns from i on, of m rows; n_last columns in the last of them */
INLINE void axpy_tile(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const struct dsv2i_weight *c, int32_t dtype,
                      int32_t s0, int32_t i, int32_t m, int32_t n, int32_t n_vec, int32_t n_last)
{
    const char *row = (const char *)dsv2i_weight_row(c, s0) + (size_t)i * dsv2i_dtype_size(dtype);
    vec acc[TILE_ROWS][4];
    int32_t run[4] = { 0 };

    UNROLL for (int32_t v = 0; dtype == DSV2I_F8_E4M3 && v < n_vec; v++)
        run[v] = (i + v * LANES) / c->scale_cols;
    UNROLL for (int32_t r = 0; r < m; r++)
        UNROLL for (int32_t v = 0; v < n_vec; v++)
            acc[r][v] = scale ? v_mul(v_set1(scale[r]), v_load_n(y + (size_t)r * ldy + i + v * LANES, n_last)) : v_zero();
    for (int32_t s = 0; s < n; s++, row += (size_t)c->cols * dsv2i_dtype_size(dtype)) {
        const float *scales = dtype == DSV2I_F8_E4M3 ? dsv2i_weight_scales(c, s0 + s) : NULL;

        UNROLL for (int32_t v = 0; v < n_vec; v++) {
            vec by = scales ? scale_of(scales, run[v]) : v_zero();
            vec cv = elements(row + (size_t)(v * LANES) * dsv2i_dtype_size(dtype), dtype, by, n_last);

            UNROLL for (int32_t r = 0; r < m; r++)
                acc[r][v] = v_fma(v_set1(p[(size_t)r * ldp + (size_t)s]), cv, acc[r][v]);
        }
    }
    UNROLL for (int32_t r = 0; r < m; r++)
        UNROLL for (int32_t v = 0; v < n_vec; v++)
            v_store_n(y + (size_t)r * ldy + i + v * LANES, acc[r][v], n_last);
}

INLINE void axpy_rows(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const struct dsv2i_weight *c, int32_t dtype,
                      int32_t s0, int32_t m, int32_t n, int32_t cols)
{
    const int32_t step = AXPY_VECS(m) * LANES;
    int32_t i = 0;

    for (; i + step <= cols; i += step)
        axpy_tile(y, ldy, scale, p, ldp, c, dtype, s0, i, m, n, AXPY_VECS(m), LANES);
    for (; i < cols; i += LANES)
        axpy_tile(y, ldy, scale, p, ldp, c, dtype, s0, i, m, n, 1, cols - i < LANES ? cols - i : LANES);
}

INLINE void axpy_dtype(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const struct dsv2i_weight *c, int32_t dtype,
                       int32_t s0, int32_t m, int32_t n, int32_t cols)
{
    switch (m) {
    case 1:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, s0, 1, n, cols);
        break;
    case 2:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, s0, 2, n, cols);
        break;
    case 3:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, s0, 3, n, cols);
        break;
    default:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, s0, 4, n, cols);
    }
}

static void axpy(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const struct dsv2i_weight *c, int32_t s0,
                 int32_t m, int32_t n, int32_t cols)
{
    for (int32_t r = 0; r < m; r += TILE_ROWS) {
        float *to = y + (size_t)r * ldy;
        const float *by = p + (size_t)r * ldp, *old = scale ? scale + r : NULL;
        int32_t rows = dsv2i_min(TILE_ROWS, m - r);

        if (c->dtype == DSV2I_F32)
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_F32, s0, rows, n, cols);
        else if (c->dtype == DSV2I_BF16)
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_BF16, s0, rows, n, cols);
        else if (c->dtype == DSV2I_F16)
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_F16, s0, rows, n, cols);
        else
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_F8_E4M3, s0, rows, n, cols);
    }
}

static void softmax(float *s, int32_t n, float scale, float *max, float *sum, float *corr)
{
    float top = *max, lane[LANES];
    vec v, greatest = v_set1(top), total = v_zero();

    for (int32_t i = 0; i < n; i += LANES) {
        int32_t left = n - i;

        v = v_mul(v_load_n(s + i, left), v_set1(scale));
        v_store_n(s + i, v, left);
        greatest = v_max(v_first_n(v, left, greatest), greatest);
    }
    v_store(lane, greatest);
    for (int32_t l = 0; l < LANES; l++)
        top = lane[l] > top ? lane[l] : top;
    for (int32_t i = 0; i < n; i += LANES) {
        int32_t left = n - i;

        v = v_exp(v_sub(v_load_n(s + i, left), v_set1(top)));
        v_store_n(s + i, v, left);
        total = v_add(total, v_first_n(v, left, v_zero()));
    }
    v_store(lane, v_exp(v_sub(v_set1(*max), v_set1(top))));
    *corr = lane[0];
    *sum = *sum * *corr + v_sum(total);
    *max = top;
}

static void silu_mul(float *h, const float *g, const float *u, int32_t n)
{
    for (int32_t i = 0; i < n; i += LANES) {
        vec gate = v_load_n(g + i, n - i), up = v_load_n(u + i, n - i);

        v_store_n(h + i, v_mul(v_div(gate, v_add(v_set1(1.0f), v_exp(v_sub(v_zero(), gate)))), up), n - i);
    }
}

static void rms_norm(float *y, const float *x, const float *w, int32_t n, float eps)
{
    vec sum0 = v_zero(), sum1 = v_zero(), r;
    int32_t i = 0;

    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vec a = v_load(x + i), b = v_load(x + i + LANES);

        sum0 = v_fma(a, a, sum0);
        sum1 = v_fma(b, b, sum1);
    }
    for (; i < n; i += LANES) {
        vec a = v_load_n(x + i, n - i);

        sum0 = v_fma(a, a, sum0);
    }
    r = v_set1(1.0f / sqrtf(v_sum(v_add(sum0, sum1)) / (float)n + eps));
    for (i = 0; i < n; i += LANES)
        v_store_n(y + i, v_mul(v_mul(v_load_n(x + i, n - i), r), v_load_n(w + i, n - i)), n - i);
}

INLINE void read_codes(float *dst, const uint8_t *code, float scale, int32_t kv_type, int32_t n)
{
    uint8_t last[LANES] = { 0 };
    int32_t i = 0;

    for (; i + LANES <= n; i += LANES)
        v_store(dst + i, v_mul(v_set1(scale), v_codes(code + i, kv_type)));
    if (i == n)
        return;
    memcpy(last, code + i, (size_t)(n - i));
    v_store_n(dst + i, v_mul(v_set1(scale), v_codes(last, kv_type)), n - i);
}

static void read_bytes(float *dst, const uint8_t *code, float scale, int32_t kv_type, int32_t n)
{
    if (kv_type == DSV2I_KV_F8_E4M3)
        read_codes(dst, code, scale, DSV2I_KV_F8_E4M3, n);
    else if (kv_type == DSV2I_KV_F8_E5M2)
        read_codes(dst, code, scale, DSV2I_KV_F8_E5M2, n);
    else
        read_codes(dst, code, scale, DSV2I_KV_INT8, n);
}

static void read_levels(float *dst, const uint8_t *level, const uint8_t *sign, float scale, int32_t n)
{
    float last[DSV2I_KV_BLOCK];
    uint32_t signs;

    for (; n > 0; n -= DSV2I_KV_BLOCK, dst += DSV2I_KV_BLOCK, level += DSV2I_KV_BLOCK / 2, sign += 4) {
        memcpy(&signs, sign, sizeof signs);
        read_block(n < DSV2I_KV_BLOCK ? last : dst, level, signs, scale);
        if (n < DSV2I_KV_BLOCK)
            memcpy(dst, last, (size_t)n * sizeof *last);
    }
}

#define INNER_TABLE \
    { \
        .widen = widen, .dot = dot, .axpy = axpy, .softmax = softmax, .silu_mul = silu_mul, .rms_norm = rms_norm, \
        .kv_read = kv_read, .rotate = rotate, .rotate_back = rotate_back \
    }
