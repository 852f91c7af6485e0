/* Experts of many rows, y += sum_j weight_j down_j(silu(gate_j x) * up_j x): a prompt's mixture, and its dense layers.  Four launches:
 *
 *   permute   the rows of each expert, in tiles (moe_permute.cu); not for a dense layer
 *   up        h = silu(gate x) * up x, bf16, in the order of the permutation; rows of x are gathered as they are copied
 *   down      out = down h, bf16, to where the row's slot has its place; of a dense layer y += down h at once
 *   combine   y += the slots' sum in their order; not for a dense layer
 *
 * Bound: at 4,096 tokens the matrix units, 6 hidden inter FLOPs for each row and slot (V2-Lite: 425 GFLOP a layer); at a few hundred
 * bandwidth, every chosen expert once.  docs/kernels/moe.md has the figures.
 *
 * up holds eight rows of gate beside the same eight of up, so that a lane's accumulators have both for the same elements of h.  Blocks
 * stay and take one tile after another, of which only the device knows how many there are and how full; eight tiles of rows at a time
 * against all of the weight's, so that both are in the L2 cache for as long as they are needed.  The tile is chosen for the rows that an
 * expert gets on average, of a dense layer so that the card is filled; bits do not depend on it (gemm.cuh), so neither on max_rows.
 *
 * SPDX-License-Identifier: MIT */
#include "gemm_sm90.cuh"
#include "launch.cuh"

struct shape {
    int hidden, inter, top_k;
    dsv2i_cuda_scales gate_up, down;
};

/* Tile i of rows: of the permutation, or (no entries) of all rows and expert 0. */
static __device__ __forceinline__ dsv2i_cuda_tile tile_of(const dsv2i_cuda_permutation &p, int i, int rows, int n_rows)
{
    if (p.entry)
        return p.tile[i];
    return {0, i * rows, min(rows, n_rows - i * rows)};
}

/* Item i of n_tiles x across: which tile of rows, which of columns. */
static __device__ __forceinline__ void place(int i, int n_tiles, int across, int *tile, int *column)
{
    const int group = i / (8 * across), at = i % (8 * across), high = min(n_tiles - 8 * group, 8);

    *tile = 8 * group + at % high;
    *column = at / high;
}

/* What a block has of item i. */
struct work {
    dsv2i_cuda_tile rows;
    int column;
};

static __device__ __forceinline__ int tiles_of(const dsv2i_cuda_step *step, const dsv2i_cuda_permutation &p, int m)
{
    return p.entry ? *p.n_tiles : (step->n_rows + m - 1) / m;
}

template <class T> struct up_product {
    static const int columns = T::n / 2, number = 1; /* of h; of the count of items taken */
    const dsv2i_cuda_step *step;
    uint16_t *h;
    const uint16_t *x;
    const dsv2i_cuda_expert *experts;
    dsv2i_cuda_permutation p;
    shape s;

    __host__ __device__ __forceinline__ int width() const { return s.inter; }

    __device__ __forceinline__ void set(dsv2i_tile_source<T> &from, const work &at) const
    {
        static_assert(T::b_rows % 16 == 0, "all of a thread's rows are of gate, or all of up");
        const int b_row = dsv2i_tile_b_row<T>(0), is_up = b_row / 8 % 2;
        const dsv2i_cuda_expert *e = experts + at.rows.expert;

        from.a = x;
        from.b = is_up ? e->up : e->gate;
        from.scale = is_up ? e->up_scale : e->gate_scale;
        from.cols = s.hidden;
        from.scale_cols = s.gate_up.cols;
#pragma unroll
        for (int i = 0; i < T::a_parts; i++) {
            const int row = at.rows.first + min(dsv2i_tile_a_row<T>(i), at.rows.count - 1);
            from.a_row[i] = (uint32_t)(p.entry ? p.entry[row] / s.top_k : row) * (uint32_t)s.hidden;
        }
        const int scales = T::fp8 ? (s.hidden + s.gate_up.cols - 1) / s.gate_up.cols : 0;
#pragma unroll
        for (int i = 0; i < T::b_parts; i++)
            dsv2i_tile_set_b(from, i, at.column + dsv2i_tile_b_row<T>(i) / 16 * 8 + b_row % 8, s.inter, s.gate_up.rows, scales);
    }

    __device__ __forceinline__ void store(const T &tile, const work &at) const
    {
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;

#pragma unroll
        for (int i = 0; i < T::m16; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = (warp / T::warps_n * T::m16 + i) * 16 + lane / 4 + 8 * half;
                uint16_t *const to = h + (size_t)(at.rows.first + row) * (size_t)s.inter;

                if (row >= at.rows.count)
                    continue;
#pragma unroll
                for (int j = 0; j < T::n8; j += 2) {
                    const int c = at.column + (warp % T::warps_n * T::n8 + j) * 4 + lane % 4 * 2;
                    float v[2];

#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const float gate = tile.sum[i][j][2 * half + k];
                        v[k] = gate * dsv2i_reciprocal(1.0f + dsv2i_exp2(gate * -1.4426950408889634f)) * tile.sum[i][j + 1][2 * half + k];
                    }
                    if (c >= s.inter)
                        continue;
                    if (s.inter % 2 == 0) {
                        *(uint32_t *)(to + c) = dsv2i_bf16x2(v[0], v[1]);
                    } else {
                        to[c] = dsv2i_bf16(v[0]);
                        if (c + 1 < s.inter)
                            to[c + 1] = dsv2i_bf16(v[1]);
                    }
                }
            }
    }
};

template <class T> struct down_product {
    static const int columns = T::n, number = 2;
    const dsv2i_cuda_step *step;
    float *y;
    uint16_t *out;
    const uint16_t *h;
    const dsv2i_cuda_expert *experts;
    dsv2i_cuda_permutation p;
    shape s;

    __host__ __device__ __forceinline__ int width() const { return s.hidden; }

    __device__ __forceinline__ void set(dsv2i_tile_source<T> &from, const work &at) const
    {
        from.a = h;
        from.b = experts[at.rows.expert].down;
        from.scale = experts[at.rows.expert].down_scale;
        from.cols = s.inter;
        from.scale_cols = s.down.cols;
#pragma unroll
        for (int i = 0; i < T::a_parts; i++)
            from.a_row[i] = (uint32_t)(at.rows.first + min(dsv2i_tile_a_row<T>(i), at.rows.count - 1)) * (uint32_t)s.inter;
        const int scales = T::fp8 ? (s.inter + s.down.cols - 1) / s.down.cols : 0;
#pragma unroll
        for (int i = 0; i < T::b_parts; i++)
            dsv2i_tile_set_b(from, i, at.column + dsv2i_tile_b_row<T>(i), s.hidden, s.down.rows, scales);
    }

    __device__ __forceinline__ void store(const T &tile, const work &at) const
    {
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;

#pragma unroll
        for (int i = 0; i < T::m16; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = (warp / T::warps_n * T::m16 + i) * 16 + lane / 4 + 8 * half;

                if (row >= at.rows.count)
                    continue;
                const size_t to = (size_t)(p.entry ? p.entry[at.rows.first + row] : at.rows.first + row) * (size_t)s.hidden;
#pragma unroll
                for (int j = 0; j < T::n8; j++) {
                    const int c = at.column + (warp % T::warps_n * T::n8 + j) * 8 + lane % 4 * 2;
                    const float v = tile.sum[i][j][2 * half], next = tile.sum[i][j][2 * half + 1];

                    if (c >= s.hidden)
                        continue;
                    if (s.hidden % 2 == 0 && p.entry) {
                        *(uint32_t *)(out + to + c) = dsv2i_bf16x2(v, next);
                    } else if (s.hidden % 2 == 0) {
                        float2 *const sum = (float2 *)(y + to + c), old = *sum;
                        *sum = make_float2(old.x + v, old.y + next);
                    } else {
                        for (int k = 0; k < 2 && c + k < s.hidden; k++)
                            if (p.entry)
                                out[to + (size_t)(c + k)] = dsv2i_bf16(k ? next : v);
                            else
                                y[to + (size_t)(c + k)] += k ? next : v;
                    }
                }
            }
    }
};

/* A block's items one after another; the next's first copies are under way while the sums of one are stored.  A mixture's tiles are not all
 * full, so from its third on a block takes what is next of all, and asks for it while it stores. */
template <class T, template <class> class Product>
static __global__ void __launch_bounds__(T::threads) product_kernel(Product<T> product)
{
    char *const shared = (char *)dsv2i_shared();
    int *const taken = (int *)(shared + T::shared); /* (2), by turns: a thread may not have read one yet when the next is there */
    const int across = (product.width() + Product<T>::columns - 1) / Product<T>::columns;
    int item = (int)blockIdx.x, more = 0;
    dsv2i_tile_source<T> from;
    work at, next = {};
    T tile;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const int n_tiles = tiles_of(product.step, product.p, T::m), n_rows = product.step->n_rows;
    const auto begin = [&] {
        int i;

        place(item, n_tiles, across, &i, &next.column);
        next.rows = tile_of(product.p, i, T::m, n_rows);
        next.column *= Product<T>::columns;
        product.set(from, next);
        dsv2i_tile_begin_b(from, shared);
        dsv2i_tile_begin_a(from, shared);
    };

    const int n_items = n_tiles * across;
    if (item < n_items)
        begin();
    for (int n = 0; item < n_items; n++) {
        dsv2i_tile_multiply(tile, from, shared, next.rows.count);
        at = next;
        __syncthreads(); /* what the next copies go over has been read */
        item = n == 0 || !product.p.entry ? item + (int)gridDim.x : taken[n % 2];
        if (item < n_items)
            begin();
        if (product.p.entry && threadIdx.x == 0)
            more = 2 * (int)gridDim.x + atomicAdd(product.p.n_tiles + Product<T>::number, 1);
        product.store(tile, at);
        if (product.p.entry && threadIdx.x == 0)
            taken[(n + 1) % 2] = more;
    }
}

/* width: elements of a thread, 8 or 1. */
template <int width>
static __global__ void combine_kernel(const dsv2i_cuda_step *step, float *y, const uint16_t *out, const float *weight, int top_k, int hidden)
{
    const int row = (int)blockIdx.y, c = ((int)blockIdx.x * (int)blockDim.x + (int)threadIdx.x) * width;
    float sum[width];

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows || c >= hidden)
        return;
#pragma unroll
    for (int i = 0; i < width; i++)
        sum[i] = 0;
    weight += (size_t)row * (size_t)top_k;
    out += (size_t)row * (size_t)top_k * (size_t)hidden + (size_t)c;
    for (int j = 0; j < top_k; j++, out += hidden) {
        const float w = weight[j];

        if (width == 1) {
            sum[0] += w * dsv2i_f32_from_bf16(*out);
        } else {
            const uint4 v = *(const uint4 *)out;
            const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < width / 2; i++) {
                const float2 two = dsv2i_f32x2_from_bf16x2(pair[i]);
                sum[2 * i] += w * two.x;
                sum[2 * i + 1] += w * two.y;
            }
        }
    }
    y += (size_t)row * (size_t)hidden + (size_t)c;
    if (width == 1) {
        *y += sum[0];
    } else {
#pragma unroll
        for (int i = 0; i < width / 4; i++) {
            float4 v = ((float4 *)y)[i];
            v.x += sum[4 * i], v.y += sum[4 * i + 1], v.z += sum[4 * i + 2], v.w += sum[4 * i + 3];
            ((float4 *)y)[i] = v;
        }
    }
}

/* What lies in scratch, each part aligned to 256 bytes. */
struct parts {
    uint16_t *h, *out;
    dsv2i_cuda_permutation p;
    size_t bytes;
};

static parts lay_out(void *scratch, int32_t max_rows, int32_t top_k, const dsv2i_cuda_experts *of)
{
    const size_t entries = (size_t)max_rows * (size_t)top_k, tiles = entries / 16 + min((size_t)of->n, entries);
    char *at = (char *)scratch;
    parts to;
    const auto take = [&at](size_t bytes) {
        char *const taken = at;
        at += (bytes + 255) / 256 * 256;
        return taken;
    };

    to.h = (uint16_t *)take(entries * (size_t)of->inter * 2);
    to.out = (uint16_t *)take(entries * (size_t)of->hidden * 2);
    to.p.entry = (int32_t *)take(entries * 4);
    to.p.tile = (dsv2i_cuda_tile *)take(tiles * sizeof(dsv2i_cuda_tile));
    to.p.n_tiles = (int32_t *)take(12);
    to.bytes = (size_t)(at - (char *)scratch);
    return to;
}

size_t dsv2i_cuda_experts_many_scratch(int32_t max_rows, int32_t top_k, const struct dsv2i_cuda_experts *of)
{
    return lay_out(nullptr, max_rows, top_k, of).bytes;
}

/* As many blocks as there is work for at most, or as find room (a block takes 1,024 bytes more than it asks for). */
template <class T, template <class> class Product>
static cudaError_t launch_product(const dsv2i_cuda_launch *to, const Product<T> &product, int tiles)
{
    const int across = (product.width() + Product<T>::columns - 1) / Product<T>::columns;
    const int shared = T::shared + 2 * (int)sizeof(int), stay = to->n_sms * max(dsv2i_most_shared(to->sm) / (shared + 1024), 1);

    return dsv2i_launch(to, product_kernel<T, Product>, dim3((unsigned)min(stay, tiles * across)), T::threads, (size_t)shared, product);
}

/* What a call is for. */
struct call {
    const dsv2i_cuda_launch *to;
    const dsv2i_cuda_step *step;
    float *y;
    const uint16_t *x;
    const dsv2i_cuda_experts *of;
    parts in;
    dsv2i_cuda_permutation p; /* of no entries for a dense layer */
    shape s;

    int tiles(int m) const
    {
        const int entries = to->max_rows * s.top_k;
        return entries / m + min(p.entry ? of->n : 1, entries);
    }
    template <class T> cudaError_t up() const { return launch_product(to, up_product<T>{step, in.h, x, of->expert, p, s}, tiles(T::m)); }
    template <class T> cudaError_t down() const { return launch_product(to, down_product<T>{step, y, in.out, in.h, of->expert, p, s}, tiles(T::m)); }
    template <class T, bool is_up> cudaError_t product() const
    {
        if constexpr (is_up)
            return up<T>();
        else
            return down<T>();
    }
};

template <class T> static cudaError_t mixture(const call &c, const int32_t *idx, const float *weight)
{
    const int width = c.s.hidden % 8 ? 1 : 8, threads = 128;
    const dim3 grid((unsigned)((c.s.hidden + width * threads - 1) / (width * threads)), (unsigned)c.to->max_rows);
    cudaError_t e = dsv2i_cuda_moe_permute(c.to, c.step, &c.p, idx, c.s.top_k, c.of->n, T::m);

    if (!e)
        e = c.up<T>();
    if (!e)
        e = c.down<T>();
    return e ? e
             : dsv2i_launch(c.to, width == 8 ? combine_kernel<8> : combine_kernel<1>, grid, threads, 0, c.step, c.y, c.in.out, weight,
                            c.s.top_k, c.s.hidden);
}

template <bool fp8> struct tiles {
    typedef dsv2i_tile<16, 64, 1, 4, 3, fp8, false> odd; /* widths of no model that is real */
    typedef dsv2i_tile<16, 32, 1, 2, 8, fp8> least;
    typedef dsv2i_tile<16, 64, 1, 4, 5, fp8> few;
    typedef dsv2i_tile<32, 64, 1, 4, 5, fp8> some;
    typedef dsv2i_tile<64, 64, 2, 2, 4, fp8> square;
    typedef dsv2i_tile<64, 128, 2, 2, 3, fp8> many;
    typedef dsv2i_tile<128, 128, 2, 2, 3, fp8> most;
    typedef dsv2i_warpgroup_tile<128, fp8 ? 128 : 256, fp8 ? 5 : 4, fp8> warpgroups;
};

template <bool fp8> static cudaError_t choose(const call &c, const int32_t *idx, const float *weight)
{
    typedef tiles<fp8> with;
    const int each = (c.to->max_rows * c.s.top_k + c.of->n - 1) / c.of->n; /* rows of an expert, on average */
    const bool units = c.to->sm == 90 && !c.to->invariant;

    if (each <= 16)
        return mixture<typename with::few>(c, idx, weight);
    if (each <= 32)
        return mixture<typename with::some>(c, idx, weight);
    if (each <= (units ? 48 : 96) || with::most::shared + 8 > dsv2i_most_shared(c.to->sm))
        return mixture<typename with::many>(c, idx, weight);
    if (units)
        return mixture<typename with::warpgroups>(c, idx, weight);
    return mixture<typename with::most>(c, idx, weight);
}

/* A product of a dense layer, which has few tiles, and not as many as the other: of the largest that still fill most of the card. */
template <bool fp8, bool is_up> static cudaError_t dense(const call &c)
{
    typedef tiles<fp8> with;
    const int rows = c.to->max_rows, width = is_up ? 2 * c.s.inter : c.s.hidden; /* up has rows of gate and of up */
    const bool units = c.to->sm == 90 && !c.to->invariant;
    const auto filled = [=](int m, int n) { return (rows + m - 1) / m * ((width + n - 1) / n) >= c.to->n_sms * 3 / 4; };

    if constexpr (!is_up) /* whose tiles have no less than 16 rows of W at a time */
        if (!filled(32, 64) && !(rows <= 16 && filled(16, 64)))
            return c.down<typename with::least>();
    if (rows <= 16)
        return c.product<typename with::few, is_up>();
    if (rows <= 32 || !filled(64, 64))
        return c.product<typename with::some, is_up>();
    if (rows <= 64 || !filled(64, 128))
        return c.product<typename with::square, is_up>();
    if (!filled(128, with::warpgroups::n) || with::most::shared + 8 > dsv2i_most_shared(c.to->sm))
        return c.product<typename with::many, is_up>();
    return units ? c.product<typename with::warpgroups, is_up>() : c.product<typename with::most, is_up>();
}

template <bool fp8> static cudaError_t launch(const call &c, const int32_t *idx, const float *weight)
{
    const int unit = fp8 ? 16 : 8;
    const bool odd = c.s.hidden % unit || c.s.inter % unit;
    cudaError_t e;

    if (idx)
        return odd ? mixture<typename tiles<fp8>::odd>(c, idx, weight) : choose<fp8>(c, idx, weight);
    e = odd ? c.up<typename tiles<fp8>::odd>() : dense<fp8, true>(c);
    return e ? e : odd ? c.down<typename tiles<fp8>::odd>() : dense<fp8, false>(c);
}

cudaError_t dsv2i_cuda_experts_many(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const uint16_t *x,
                                    const struct dsv2i_cuda_experts *of, const int32_t *idx, const float *weight, int32_t top_k,
                                    void *scratch)
{
    const parts in = lay_out(scratch, to->max_rows, top_k, of);
    const call c = {to, step, y, x, of, in, idx ? in.p : dsv2i_cuda_permutation{}, {of->hidden, of->inter, top_k, of->gate_up, of->down}};

    if (to->sm < 80 || (!idx && top_k != 1))
        return cudaErrorInvalidValue;
    switch (of->dtype) {
    case DSV2I_BF16: return launch<false>(c, idx, weight);
    case DSV2I_F8_E4M3: return launch<true>(c, idx, weight);
    default: return cudaErrorInvalidValue;
    }
}
