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

static void widen(float *dst, const void *src, int32_t dtype, size_t n)
{
    const uint16_t *h = src;
    size_t i = 0;

    if (dtype == DSV2I_F32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    if (dtype == DSV2I_BF16)
        for (; i + LANES <= n; i += LANES)
            v_store(dst + i, v_widen(h + i, DSV2I_BF16));
    else
        for (; i + LANES <= n; i += LANES)
            v_store(dst + i, v_widen(h + i, DSV2I_F16));
    if (i < n)
        v_store_n(dst + i, v_widen_n(h + i, dtype, (int32_t)(n - i)), (int32_t)(n - i));
}

/* acc[r][j] += x[r] * w row j */
INLINE void add_products(vec acc[TILE_ROWS][TILE_COLS], const float *const *x, int32_t m, const char *w, int32_t dtype,
                         size_t row_bytes, int32_t n, int32_t k)
{
    const size_t size = dtype == DSV2I_F32 ? 4 : 2;
    int32_t i = 0;

    for (; i + LANES <= k; i += LANES) {
        vec xv[TILE_ROWS];

        UNROLL for (int32_t r = 0; r < m; r++)
            xv[r] = v_load(x[r] + i);
        UNROLL for (int32_t j = 0; j < n; j++) {
            vec wv = v_widen(w + (size_t)j * row_bytes + (size_t)i * size, dtype);

            UNROLL for (int32_t r = 0; r < m; r++)
                acc[r][j] = v_fma(xv[r], wv, acc[r][j]);
        }
    }
    if (i < k)
        UNROLL for (int32_t j = 0; j < n; j++) {
            vec wv = v_widen_n(w + (size_t)j * row_bytes + (size_t)i * size, dtype, k - i);

            UNROLL for (int32_t r = 0; r < m; r++)
                acc[r][j] = v_fma(v_load_n(x[r] + i, k - i), wv, acc[r][j]);
        }
}

INLINE void dot_tile(float *y, size_t ldy, const float *const *x, int32_t m, const char *w, int32_t dtype, size_t row_bytes,
                     int32_t n, int32_t k)
{
    vec acc[TILE_ROWS][TILE_COLS];

    UNROLL for (int32_t r = 0; r < m; r++)
        UNROLL for (int32_t j = 0; j < TILE_COLS; j++)
            acc[r][j] = v_zero();
    add_products(acc, x, m, w, dtype, row_bytes, n, k);
    UNROLL for (int32_t r = 0; r < m; r++) {
        __m128 sums = v_sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);

        if (n == TILE_COLS)
            _mm_storeu_ps(y + (size_t)r * ldy, sums);
        else
            _mm_store_ss(y + (size_t)r * ldy, sums);
    }
}

INLINE void dot_rows(float *y, size_t ldy, const float *const *x, int32_t m, const char *w, int32_t dtype, size_t row_bytes,
                     int32_t n, int32_t k)
{
    int32_t j = 0;

    for (; j + TILE_COLS <= n; j += TILE_COLS)
        dot_tile(y + j, ldy, x, m, w + (size_t)j * row_bytes, dtype, row_bytes, TILE_COLS, k);
    for (; j < n; j++)
        dot_tile(y + j, ldy, x, m, w + (size_t)j * row_bytes, dtype, row_bytes, 1, k);
}

INLINE void dot_dtype(float *y, size_t ldy, const float *const *x, int32_t m, const char *w, int32_t dtype, size_t row_bytes,
                      int32_t n, int32_t k)
{
    for (; m > 0; m -= DOT_ROWS, x += DOT_ROWS, y += DOT_ROWS * ldy)
        switch (dsv2i_min(m, DOT_ROWS)) {
        case 1:
            dot_rows(y, ldy, x, 1, w, dtype, row_bytes, n, k);
            break;
        case 2:
            dot_rows(y, ldy, x, 2, w, dtype, row_bytes, n, k);
            break;
        case 3:
            dot_rows(y, ldy, x, 3, w, dtype, row_bytes, n, k);
            break;
        default:
            dot_rows(y, ldy, x, DOT_ROWS, w, dtype, row_bytes, n, k);
        }
}

static void dot(float *y, size_t ldy, const float *const *x, int32_t m, const void *w, int32_t dtype, size_t ldw, int32_t n,
                int32_t k)
{
    if (dtype == DSV2I_F32)
        dot_dtype(y, ldy, x, m, w, DSV2I_F32, ldw * 4, n, k);
    else if (dtype == DSV2I_BF16)
        dot_dtype(y, ldy, x, m, w, DSV2I_BF16, ldw * 2, n, k);
    else
        dot_dtype(y, ldy, x, m, w, DSV2I_F16, ldw * 2, n, k);
}

/* n_vec vectors of columns of m rows; n_last columns in the last of them */
INLINE void axpy_tile(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const char *c, int32_t dtype,
                      size_t row_bytes, int32_t m, int32_t n, int32_t n_vec, int32_t n_last)
{
    vec acc[TILE_ROWS][4];

    UNROLL for (int32_t r = 0; r < m; r++)
        UNROLL for (int32_t v = 0; v < n_vec; v++)
            acc[r][v] = scale ? v_mul(v_set1(scale[r]), v_load_n(y + (size_t)r * ldy + v * LANES, n_last)) : v_zero();
    for (int32_t s = 0; s < n; s++, c += row_bytes)
        UNROLL for (int32_t v = 0; v < n_vec; v++) {
            vec cv = v_widen_n(c + (size_t)(v * LANES) * (dtype == DSV2I_F32 ? 4 : 2), dtype, n_last);

            UNROLL for (int32_t r = 0; r < m; r++)
                acc[r][v] = v_fma(v_set1(p[(size_t)r * ldp + (size_t)s]), cv, acc[r][v]);
        }
    UNROLL for (int32_t r = 0; r < m; r++)
        UNROLL for (int32_t v = 0; v < n_vec; v++)
            v_store_n(y + (size_t)r * ldy + v * LANES, acc[r][v], n_last);
}

INLINE void axpy_rows(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const char *c, int32_t dtype,
                      size_t row_bytes, int32_t m, int32_t n, int32_t cols)
{
    const int32_t step = AXPY_VECS(m) * LANES;
    const size_t size = dtype == DSV2I_F32 ? 4 : 2;
    int32_t i = 0;

    for (; i + step <= cols; i += step)
        axpy_tile(y + i, ldy, scale, p, ldp, c + (size_t)i * size, dtype, row_bytes, m, n, AXPY_VECS(m), LANES);
    for (; i < cols; i += LANES)
        axpy_tile(y + i, ldy, scale, p, ldp, c + (size_t)i * size, dtype, row_bytes, m, n, 1,
                  cols - i < LANES ? cols - i : LANES);
}

INLINE void axpy_dtype(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const char *c, int32_t dtype,
                       size_t row_bytes, int32_t m, int32_t n, int32_t cols)
{
    switch (m) {
    case 1:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, row_bytes, 1, n, cols);
        break;
    case 2:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, row_bytes, 2, n, cols);
        break;
    case 3:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, row_bytes, 3, n, cols);
        break;
    default:
        axpy_rows(y, ldy, scale, p, ldp, c, dtype, row_bytes, 4, n, cols);
    }
}

static void axpy(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const void *c, int32_t dtype,
                 size_t ldc, int32_t m, int32_t n, int32_t cols)
{
    for (int32_t r = 0; r < m; r += TILE_ROWS) {
        float *to = y + (size_t)r * ldy;
        const float *by = p + (size_t)r * ldp, *old = scale ? scale + r : NULL;
        int32_t rows = dsv2i_min(TILE_ROWS, m - r);

        if (dtype == DSV2I_F32)
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_F32, ldc * 4, rows, n, cols);
        else if (dtype == DSV2I_BF16)
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_BF16, ldc * 2, rows, n, cols);
        else
            axpy_dtype(to, ldy, old, by, ldp, c, DSV2I_F16, ldc * 2, rows, n, cols);
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
