// Products of ternary matrices with few tokens: weights are read once, from device memory, in the order they lie.
#include "jobs.cuh"

// Warps that share the columns of a row, at most, and pieces of a warp that are on their way at once.
#define WARPS 10
#define DEPTH 3

template <int T>
DEVICE void accumulate(const uint4& w, const int4* q, int q_stride, int (&acc)[T]) {
#pragma unroll
    for (int t = 0; t < T; t++) {
        const int4* qt = q + (size_t)t * q_stride;
        acc[t] = dot16(w.x, qt[0], acc[t]);
        acc[t] = dot16(w.y, qt[4], acc[t]);
        acc[t] = dot16(w.z, qt[8], acc[t]);
        acc[t] = dot16(w.w, qt[12], acc[t]);
    }
}

// A block of threads makes 8 rows for T tokens; its warps share the columns. With PAIR it makes the same rows of two
// matrices, gate and up, and stores act(gate) * up. Grid: pieces of T tokens, which find the weights in a cache, pieces
// of 8 rows.
template <int T, bool PAIR>
DEVICE void gemv(const Jobs& jobs, const int4* q, int q_stride, const Scale* scales, int scales_stride, int tiles,
                 int tokens) {
    __shared__ int parts[PAIR ? 2 : 1][T][8][WARPS];
    int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    int tile = blockIdx.y, first = blockIdx.x * T;
    // Matrices lie one after the other in the grid.
    bool second = !PAIR && tile >= jobs.begin[0], third = !PAIR && tile >= jobs.begin[1];
    const Job job = third ? jobs.job[2] : second ? jobs.job[1] : jobs.job[0];
    if (!PAIR) tile -= third ? jobs.begin[1] : second ? jobs.begin[0] : 0;
    int thread = warp * 32 + lane;
    const uint4* weights = job.weights + (size_t)tile * tiles * 32 + lane;
    const uint4* others = PAIR ? jobs.job[1].weights + (size_t)tile * tiles * 32 + lane : weights;
    uint4 w[DEPTH], o[PAIR ? DEPTH : 1];
    auto load = [&](int k, int i) {
        if (i >= tiles) return;
        w[k] = __ldcs(weights + i * 32);
        if (PAIR) o[k] = __ldcs(others + i * 32);
    };
#pragma unroll
    for (int k = 0; k < DEPTH; k++) load(k, warp + k * warps);
    in_turn();
    // Loaded now, since the end waits for it.
    Scale s = {1.0f, 0};
    if (thread < 8 * T && first + thread / 8 < tokens) s = scales[(size_t)(first + thread / 8) * scales_stride];
    q += (size_t)first * q_stride + (lane & 3);
    int acc[T] = {}, other[T] = {};
    for (int i = warp; i < tiles;) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++, i += warps) {
            if (i >= tiles) break;
            if (PAIR) accumulate<T>(o[k], q + i * 16, q_stride, other);
            accumulate<T>(w[k], q + i * 16, q_stride, acc);
            load(k, i + DEPTH * warps);
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        acc[t] += __shfl_xor_sync(ALL_LANES, acc[t], 1);
        acc[t] += __shfl_xor_sync(ALL_LANES, acc[t], 2);
        if ((lane & 3) == 0) parts[0][t][lane >> 2][warp] = acc[t];
        if (PAIR) {
            other[t] += __shfl_xor_sync(ALL_LANES, other[t], 1);
            other[t] += __shfl_xor_sync(ALL_LANES, other[t], 2);
            if ((lane & 3) == 0) parts[PAIR ? 1 : 0][t][lane >> 2][warp] = other[t];
        }
    }
    __syncthreads();
    if (thread >= 8 * T) return;
    int t = thread / 8, row = tile * 8 + thread % 8;
    if (row >= job.rows || first + t >= tokens) return;
    int sum = 0, sum_up = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        if (w < warps) {
            sum += parts[0][t][thread % 8][w];
            if (PAIR) sum_up += parts[PAIR ? 1 : 0][t][thread % 8][w];
        }
    }
    float y = rescale(job, sum - s.sum, s.scale);
    float* out = job.out + (size_t)(first + t) * job.rows + row;
    if (PAIR) {
        *out = activate(job.sink, y, rescale(jobs.job[1], sum_up - s.sum, s.scale));
    } else {
        put(job.sink, out, y);
    }
}

#define GEMV(name, T, PAIR)                                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) name(Jobs jobs, const int4* q, int q_stride,              \
    const Scale* scales,                                                                                               \
                                                           int scales_stride, int tiles, int tokens) {                 \
        gemv<T, PAIR>(jobs, q, q_stride, scales, scales_stride, tiles, tokens);                                        \
    }

GEMV(ternary_gemv, 1, false)
GEMV(ternary_gemv_4, 4, false)
GEMV(ternary_gemv_pair, 1, true)
GEMV(ternary_gemv_pair_4, 4, true)

// A matrix with a multiplier for each row and group of columns. A block of threads makes 8 rows for one token: first
// the term of every group, then their sum in order. Grid: pieces of 8 rows, tokens.
#define GROUPS_AT_ONCE 128
extern "C" __global__ void __launch_bounds__(128)
ternary_groups(const u32* weights, const u16* multipliers, float* out, int rows, int sink, const int4* q, int q_stride,
               const Scale* scales, int scales_stride, int tiles, int cols, int group) {
    in_turn();
    __shared__ float terms[8][GROUPS_AT_ONCE];
    int t = blockIdx.y, groups = (cols + group - 1) / group, blocks = (cols + 15) / 16;
    q += (size_t)t * q_stride;
    scales += (size_t)t * scales_stride;
    float y = 0.0f;
    for (int from = 0; from < groups; from += GROUPS_AT_ONCE) {
        int count = min(GROUPS_AT_ONCE, groups - from);
        for (int i = threadIdx.x; i < 8 * count; i += 128) {
            int row = blockIdx.x * 8 + i % 8, j = from + i / 8;
            if (row >= rows) continue;
            int acc = 0;
            for (int b = j * group / 16; b < min((j + 1) * group / 16, blocks); b++) {
                acc = dot16(weights[trit_word(row, b, tiles)], q[b], acc);
            }
            Scale s = scales[j];
            float m = half_to_float(multipliers[((size_t)(row / 32) * groups + j) * 32 + row % 32]);
            terms[i % 8][i / 8] = mul(div((float)(acc - s.sum), s.scale), m);
        }
        __syncthreads();
        if (threadIdx.x < 8) {
            for (int j = 0; j < count; j++) y = add(y, terms[threadIdx.x][j]);
        }
        __syncthreads();
    }
    int row = blockIdx.x * 8 + threadIdx.x;
    if (threadIdx.x < 8 && row < rows) put(sink, out + (size_t)t * rows + row, y);
}
