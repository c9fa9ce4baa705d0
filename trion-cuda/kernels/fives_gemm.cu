// Products of ternary matrices at 1.6 bits with many tokens: weights are decoded once for 64 of them.
#include "fives.cuh"

#define TOKENS 64
#define WARPS 8
#define THREADS (WARPS * 32)
// Pieces of 16 bytes of a token's activations, for 320 columns.
#define PARTS (PIECE_COLS / 16)

// Each of 8 warps makes a unit, for 64 tokens; they share the activations, which lie in shared memory 320 columns at a
// time, in two buffers that take turns. Grid: pieces of 64 tokens, pieces of 8 units; jobs.begin counts units.
template <Launch LAUNCH>
DEVICE void gemm(const Jobs& jobs, int count, const int4* q, int q_stride, const Scale* scales, int scales_stride,
                 int tiles, int tokens) {
    __shared__ int4 shared_x[2][TOKENS][PARTS];
    int lane = threadIdx.x, warp = threadIdx.y, thread = warp * 32 + lane;
    int unit = blockIdx.y * WARPS + warp, first_token = blockIdx.x * TOKENS;
    // A warp without a unit brings activations alone.
    bool makes = unit < count;
    uint4 next = {}, next_other = {};
    auto load = [&](int tile) {
        if (!makes || tile >= tiles) return;
        const uint4* from = unit_of<LAUNCH>(jobs, unit, tiles) + tile * 32 + lane;
        next = __ldg(from);
        next_other = __ldg(from + second_piece<LAUNCH>(jobs, tiles));
    };
    load(0);
    in_turn();
    auto bring = [&](int tile) {
        if (tile < tiles) {
#pragma unroll
            for (int i = 0; i < TOKENS * PARTS / THREADS; i++) {
                int at = i * THREADS + thread, t = first_token + at / PARTS;
                const int4* from = t < tokens ? q + (size_t)t * q_stride + tile * PARTS + at % PARTS : q;
                copy_16(&shared_x[tile & 1][at / PARTS][at % PARTS], from, t < tokens);
            }
        }
        end_group();
    };
    bring(0);
    int d[TOKENS / 8][4] = {};
    for (int tile = 0; tile < tiles; tile++) {
        bring(tile + 1);
        wait_for_groups<1>();
        __syncthreads();
        if (makes) {
            const u32 a[4] = {next.x, next.y, next.z, next.w};
            const u32 b[4] = {next_other.x, next_other.y, next_other.z, next_other.w};
            load(tile + 1);
            u32 digits[2][4][5];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                decode<true>(a[2 * j], digits[j][0]);
                decode<true>(b[2 * j], digits[j][1]);
                decode<true>(a[2 * j + 1], digits[j][2]);
                decode<true>(b[2 * j + 1], digits[j][3]);
            }
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++) {
                if (first_token + n * 8 < tokens) {
                    int x[OWN];
                    load_own(x, &shared_x[tile & 1][n * 8 + lane / 4][lane % 4 * (OWN / 4)]);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
#pragma unroll
                        for (int k = 0; k < 5; k++) {
                            multiply(d[n], digits[j][0][k], digits[j][1][k], digits[j][2][k], digits[j][3][k],
                                     x[10 * j + k], x[10 * j + 5 + k]);
                        }
                    }
                }
            }
        }
        // Before the next activations come to where these are.
        __syncthreads();
    }
    if (!makes) return;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int t = first_token + n * 8 + lane % 4 * 2 + i;
            if (t >= tokens) continue;
            Scale s = scales[(size_t)t * scales_stride];
            finish<LAUNCH>(jobs, unit, lane / 4, t, d[n][i], d[n][i + 2], s);
            if (LAUNCH != PAIR) finish<LAUNCH>(jobs, unit, lane / 4 + 8, t, d[n][i + 2], 0, s);
        }
    }
}

#define GEMM(name, LAUNCH)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                           \
    name(Jobs jobs, int count, const int4* q, int q_stride, const Scale* scales, int scales_stride, int tiles,         \
         int tokens) {                                                                                                 \
        gemm<LAUNCH>(jobs, count, q, q_stride, scales, scales_stride, tiles, tokens);                                    \
    }

GEMM(fives_gemm, SEVERAL)
GEMM(fives_gemm_pair, PAIR)
