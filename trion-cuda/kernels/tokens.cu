// Products of ternary matrices with up to 8 tokens at a time, by tensor cores (compute capability 8.0 and newer), where
// a warp multiplies 16 rows by 32 columns by 8 tokens at once: so many tokens cost hardly more than one. Sums are of
// integers, and so the same in any order.
//
// The row has at most 32 pieces of 256 columns.
#include "jobs.cuh"

#define TOKENS 8
// Rows of a unit of work: two pieces of 8 rows, of a matrix, or with PAIR one of gate and one of up.
#define ROWS 16

// d += a * b: lane 4 g + c has rows g and g + 8 of a and token g of b, columns 4 c to 4 c + 3 and those 16 further on,
// and of d rows g and g + 8, tokens 2 c and 2 c + 1.
DEVICE void multiply(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, int b0, int b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// `groups` groups of warps, each of which makes a unit at a time; its warps, one for each of `tiles` pieces of 256
// columns, share the columns. DEPTH units of a group are on their way at once. `count` units are there in all matrices;
// jobs.begin counts units. Grid: blocks, pieces of 8 tokens. Dynamic shared memory: the sums of groups * DEPTH units.
template <int DEPTH, bool PAIR>
DEVICE void tokens_product(const Jobs& jobs, int count, const int4* q, int q_stride, const Scale* scales,
                           int scales_stride, int tiles, int groups, int tokens) {
    extern __shared__ int sums[]; // [groups, DEPTH, TOKENS, ROWS]
    int lane = threadIdx.x, warp = threadIdx.y, thread = warp * 32 + lane, threads = blockDim.y * 32;
    int tile = warp % tiles, group = warp / tiles, token = blockIdx.y * TOKENS;
    int stride = gridDim.x * groups, first = blockIdx.x * groups;

    uint4 w[DEPTH], other[DEPTH];
    auto load = [&](int k, int unit) {
        if (unit >= count) return;
        if (PAIR) {
            size_t at = ((size_t)unit * tiles + tile) * 32 + lane;
            w[k] = __ldcs(jobs.job[0].weights + at);
            other[k] = __ldcs(jobs.job[1].weights + at);
        } else {
            const Job job = job_of(jobs, unit);
            const uint4* from = job.weights + ((size_t)unit * 2 * tiles + tile) * 32 + lane;
            w[k] = __ldcs(from);
            other[k] = (unit * 2 + 1) * 8 < job.rows ? __ldcs(from + tiles * 32) : uint4{};
        }
    };
#pragma unroll
    for (int k = 0; k < DEPTH; k++) load(k, first + group + k * stride);
    const int all = groups * DEPTH * TOKENS * ROWS;
    for (int i = thread; i < all; i += threads) sums[i] = 0;
    in_turn();

    int4 x[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bool is_there = token + lane / 4 < tokens;
        const int4* from = q + (size_t)(token + lane / 4) * q_stride + tile * 16 + j * 4 + lane % 4;
        x[j] = is_there ? *from : int4{};
    }
    __syncthreads();
    const u32 mask = 0x03030303u;
    for (; first < count; first += DEPTH * stride) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            int unit = first + group + k * stride;
            if (unit < count) {
                const u32 a[4] = {w[k].x, w[k].y, w[k].z, w[k].w};
                const u32 b[4] = {other[k].x, other[k].y, other[k].z, other[k].w};
                int d[4] = {};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    multiply(d, a[j] & mask, b[j] & mask, a[j] >> 2 & mask, b[j] >> 2 & mask, x[j].x, x[j].y);
                    multiply(d, a[j] >> 4 & mask, b[j] >> 4 & mask, a[j] >> 6 & mask, b[j] >> 6 & mask, x[j].z, x[j].w);
                }
                load(k, unit + DEPTH * stride);
                int* sum = sums + ((group * DEPTH + k) * TOKENS + lane % 4 * 2) * ROWS + lane / 4;
                atomicAdd(sum, d[0]);
                atomicAdd(sum + ROWS, d[1]);
                atomicAdd(sum + 8, d[2]);
                atomicAdd(sum + ROWS + 8, d[3]);
            }
        }
        __syncthreads();
        for (int i = thread; i < all; i += threads) {
            int slot = i / (TOKENS * ROWS), t = token + i / ROWS % TOKENS, row = i % ROWS;
            int unit = first + slot / DEPTH + slot % DEPTH * stride;
            if (unit >= count || t >= tokens || (PAIR && row >= 8)) continue;
            Scale s = scales[(size_t)t * scales_stride];
            const Job job = PAIR ? jobs.job[0] : job_of(jobs, unit);
            row += unit * (PAIR ? 8 : ROWS);
            if (row >= job.rows) continue;
            float y = rescale(job, sums[i] - s.sum, s.scale);
            float* out = job.out + (size_t)t * job.rows + row;
            if (PAIR) {
                *out = activate(job.sink, y, rescale(jobs.job[1], sums[i + 8] - s.sum, s.scale));
            } else {
                put(job.sink, out, y);
            }
        }
        if (first + DEPTH * stride < count) {
            __syncthreads();
            for (int i = thread; i < all; i += threads) sums[i] = 0;
            __syncthreads();
        }
    }
}

#define TOKENS_PRODUCT(name, DEPTH, PAIR)                                                                              \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
    name(Jobs jobs, int count, const int4* q, int q_stride, const Scale* scales, int scales_stride, int tiles,         \
         int groups, int tokens) {                                                                                     \
        tokens_product<DEPTH, PAIR>(jobs, count, q, q_stride, scales, scales_stride, tiles, groups, tokens);           \
    }

TOKENS_PRODUCT(ternary_tokens, 2, false)
TOKENS_PRODUCT(ternary_tokens_pair, 2, true)
