// Products of ternary matrices at 1.6 bits with one token, or up to 8 at a time, whose activations are quantised:
// weights are read once, from device memory, in the order they lie.
//
// The row has at most 32 pieces of 320 columns.
#include "fives.cuh"

// Units that are on their way at once, by measurement.
#define DEPTH 2

// `groups` groups of warps make a unit each at a time, for T tokens; the warps of a group, one for each of `tiles`
// pieces of 320 columns, share the columns. `count` units are there in all matrices; jobs.begin counts units. Grid:
// blocks, pieces of T tokens. Dynamic shared memory: the units on their way [warps, DEPTH, 2, 32], the sums of all
// units that the block makes [rounds, groups, T, UNIT_ROWS].
template <Launch LAUNCH, int T>
DEVICE void fives(const Jobs& jobs, int count, const int4* q, int q_stride, const Scale* scales, int scales_stride,
                  int tiles, int groups, int tokens) {
    constexpr bool DIGITS = T > 1;
    extern __shared__ uint4 shared[];
    int lane = threadIdx.x, warp = threadIdx.y, thread = warp * 32 + lane, threads = blockDim.y * 32;
    int tile = warp % tiles, group = warp / tiles, stride = gridDim.x * groups, first = blockIdx.x * groups;
    int token = blockIdx.y * T;
    uint4* ring = shared + warp * DEPTH * 64 + lane;
    int* sums = (int*)(shared + blockDim.y * DEPTH * 64);
    // The unit that is asked for next. In one matrix, as in a pair, all are equally far apart.
    int ahead = first + group, own = tile * 32 + lane;
    const uint4* from = unit_of<LAUNCH>(jobs, ahead, tiles) + own;
    const ptrdiff second = second_piece<LAUNCH>(jobs, tiles);
    auto load = [&](int k) {
        if (ahead < count) {
            copy_16(ring + k * 64, from);
            copy_16(ring + k * 64 + 32, from + second);
        }
        end_group();
        ahead += stride;
        from += stride * (LAUNCH == PAIR ? 32 : 64) * tiles;
        if (LAUNCH == SEVERAL && ahead >= jobs.begin[0]) from = unit_of<LAUNCH>(jobs, ahead, tiles) + own;
    };
#pragma unroll
    for (int k = 0; k < DEPTH; k++) load(k);
    const int all = (count + stride - 1) / stride * groups * T * UNIT_ROWS;
    for (int i = thread; i < all; i += threads) sums[i] = 0;
    __syncthreads();
    in_turn();
    int x[OWN], t = token + (DIGITS ? lane / 4 : 0);
    const int4* input = q + (size_t)t * q_stride + tile * (PIECE_COLS / 16) + lane % 4 * (OWN / 4);
    load_own(x, !DIGITS || t < tokens ? input : nullptr);
    // That of one token is loaded now, since the end waits for it.
    Scale only = {1.0f, 0};
    if (!DIGITS) {
        only = scales[(size_t)token * scales_stride];
        // The sum of digit_k x_k is that of D_k x_k less three times that of D_k x_(k+1): so every second column has
        // the activations of the digit behind, and the digits themselves are never made.
        bool behind = (lane >> 2) & 1;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            int next = i % 5 < 4 ? x[i % 5 < 4 ? i + 1 : i] : 0;
            x[i] = behind ? next : x[i];
        }
    }
    int k = 0, slot = group;
    for (int unit = first + group; unit < count; unit += stride, slot += groups) {
        wait_for_groups<DEPTH - 1>();
        // A lane reads what it has copied itself.
        uint4 w = ring[k * 64], other = ring[k * 64 + 32];
        load(k);
        int d[4] = {};
        multiply_unit<DIGITS>(d, w, other, x);
        k = k + 1 == DEPTH ? 0 : k + 1;
        int* sum = sums + slot * T * UNIT_ROWS + (lane >> 2);
        if (DIGITS) {
            sum += (lane & 3) * 2 * UNIT_ROWS;
            atomicAdd(sum, d[0]);
            atomicAdd(sum + UNIT_ROWS, d[1]);
            atomicAdd(sum + 8, d[2]);
            atomicAdd(sum + UNIT_ROWS + 8, d[3]);
        } else if ((lane & 3) == 0) {
            atomicAdd(sum, d[0] - 3 * d[1]);
            atomicAdd(sum + 8, d[2] - 3 * d[3]);
        }
    }
    __syncthreads();
    for (int i = thread; i < all; i += threads) {
        int at = i / (T * UNIT_ROWS), row = i % UNIT_ROWS;
        int unit = at / groups * stride + first + at % groups;
        t = token + i / UNIT_ROWS % T;
        if (unit >= count || t >= tokens || (LAUNCH == PAIR && row >= 8)) continue;
        Scale s = DIGITS ? scales[(size_t)t * scales_stride] : only;
        finish<LAUNCH>(jobs, unit, row, t, sums[i], LAUNCH == PAIR ? sums[i + 8] : 0, s);
    }
}

#define FIVES(name, LAUNCH, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
    name(Jobs jobs, int count, const int4* q, int q_stride, const Scale* scales, int scales_stride, int tiles,         \
         int groups, int tokens) {                                                                                     \
        fives<LAUNCH, T>(jobs, count, q, q_stride, scales, scales_stride, tiles, groups, tokens);                        \
    }

FIVES(fives_gemv, SEVERAL, 1)
FIVES(fives_gemv_one, ONE, 1)
FIVES(fives_gemv_pair, PAIR, 1)
FIVES(fives_tokens, SEVERAL, 8)
FIVES(fives_tokens_pair, PAIR, 8)
