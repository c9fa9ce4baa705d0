// Causal attention in the contract's order: the true maximum first, then blocks of 64 positions in order.
//
// One token is divided over heads and blocks (scores, weights, combine). The tokens of a prompt are many enough to be
// divided over heads and tokens (attention_prompt). The cache of a layer is [heads, 2, context, head_dim], keys
// before values.
#include "common.cuh"

DEVICE int blocks_of(int positions) { return (positions + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK; }

// Scores of one token `[heads, stride]`, and the largest of each block `[heads, stride / 64]`. A warp takes four
// positions of the 64. Grid: heads, blocks.
template <class F>
DEVICE void scores(const int* position, const float* query, const typename F::Bits* cache, float* scores,
                   float* largest,
                   int stride, int group, int head_dim, int context, float c) {
    __shared__ float warps[16];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x;
    int positions = *position + 1;
    const typename F::Bits* keys = cache + (size_t)(head / group) * 2 * context * head_dim;
    query += (size_t)head * head_dim;
    for (int block = blockIdx.y; block < blocks_of(positions); block += gridDim.y) {
        int first = block * ATTENTION_BLOCK + warp * 4;
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int d = lane; d < head_dim; d += 32) {
            float q = query[d];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                // A position that does not exist repeats the last one, and is left out below.
                size_t j = min(first + k, positions - 1);
                sums[k] = add(sums[k], mul(q, F::load(keys + j * head_dim + d)));
            }
        }
        float best = __int_as_float(0xff800000);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float score = mul(fold(sums[k]), c);
            if (first + k < positions) {
                best = larger(score, best);
                if (lane == 0) scores[(size_t)head * stride + first + k] = score;
            }
        }
        if (lane == 0) warps[warp] = best;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < 16; w++) best = larger(warps[w], best);
            largest[(size_t)head * (stride / ATTENTION_BLOCK) + block] = best;
        }
        __syncthreads();
    }
}

// Weights of each block, their sum `[heads, stride / 64]`, and the weighted sum of values `[heads, stride / 64,
// head_dim]`. A thread for each column. Grid: heads, blocks.
template <class F>
DEVICE void weights(const int* position, const typename F::Bits* cache, const float* scores, const float* largest,
                    float* sums,
                    float* parts, int stride, int group, int head_dim, int context) {
    __shared__ float shared_weights[ATTENTION_BLOCK];
    int lane = threadIdx.x & 31, head = blockIdx.x, all = stride / ATTENTION_BLOCK;
    int positions = *position + 1, blocks = blocks_of(positions);
    if ((int)blockIdx.y >= blocks) return;
    const typename F::Bits* values = cache + ((size_t)(head / group) * 2 + 1) * context * head_dim;
    float m = __int_as_float(0xff800000);
    for (int i = lane; i < blocks; i += 32) m = larger(largest[(size_t)head * all + i], m);
    m = fold_largest(m);
    for (int block = blockIdx.y; block < blocks; block += gridDim.y) {
        int first = block * ATTENTION_BLOCK, count = min(ATTENTION_BLOCK, positions - first);
        if (threadIdx.x < ATTENTION_BLOCK) {
            int j = threadIdx.x;
            shared_weights[j] = j < count ? exponential(sub(scores[(size_t)head * stride + first + j], m)) : 0.0f;
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            float sum = fold(add(add(0.0f, shared_weights[lane]), shared_weights[lane + 32]));
            if (lane == 0) sums[(size_t)head * all + block] = sum;
        }
        for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
            const typename F::Bits* from = values + (size_t)first * head_dim + d;
            parts[((size_t)head * all + block) * head_dim + d] = weigh<F>(shared_weights, from, count, head_dim);
        }
        __syncthreads();
    }
}

// out = (sum of the blocks' sums) / (sum of the blocks' weights), blocks in order. Grid: heads.
extern "C" __global__ void __launch_bounds__(128)
attention_combine(const int* position, const float* sums, const float* parts, float* out, int stride, int head_dim) {
    int head = blockIdx.x, all = stride / ATTENTION_BLOCK, blocks = blocks_of(*position + 1);
    float total = 0.0f;
#pragma unroll 4
    for (int b = 0; b < blocks; b++) total = add(total, sums[(size_t)head * all + b]);
    for (int d = threadIdx.x; d < head_dim; d += 128) {
        float sum = 0.0f;
#pragma unroll 4
        for (int b = 0; b < blocks; b++) sum = add(sum, parts[((size_t)head * all + b) * head_dim + d]);
        out[(size_t)head * head_dim + d] = div(sum, total);
    }
}

// Queries of one key and value head that a block of threads takes together: query u is head u % group of token u /
// group.
#define QUERIES 8

// Attention of a batch, in place of its queries `[tokens, heads, head_dim]`. `scratch` has 8 * stride floats for each
// block of threads; a block takes one piece of work after the other.
template <class F>
DEVICE void prompt(const int* position, float* query, const typename F::Bits* cache, float* scratch, int stride,
                   int tokens,
                   int heads, int kv_heads, int head_dim, int context, float c) {
    extern __shared__ float queries[]; // [QUERIES, head_dim]
    __shared__ float block_weights[ATTENTION_BLOCK][QUERIES];
    __shared__ float largest[4][QUERIES];
    __shared__ float totals[QUERIES];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int group = heads / kv_heads, first_position = *position;
    int pieces = (tokens * group + QUERIES - 1) / QUERIES;
    scratch += (size_t)blockIdx.x * QUERIES * stride;
    for (int work = blockIdx.x; work < pieces * kv_heads; work += gridDim.x) {
        // Long pieces first, so that the last to end are short.
        int kv_head = work % kv_heads, piece = pieces - 1 - work / kv_heads;
        int count = min(QUERIES, tokens * group - piece * QUERIES);
        const typename F::Bits* keys = cache + (size_t)kv_head * 2 * context * head_dim;
        const typename F::Bits* values = keys + (size_t)context * head_dim;
        // Where query u lies, and how many positions it sees.
        auto place = [&](int u) {
            int index = piece * QUERIES + u;
            return ((size_t)(index / group) * heads + kv_head * group + index % group) * head_dim;
        };
        auto sees = [&](int u) { return u < count ? first_position + (piece * QUERIES + u) / group + 1 : 0; };
        int positions = sees(count - 1), everyone_sees = sees(0);

        for (int i = threadIdx.x; i < QUERIES * head_dim; i += 128) {
            int u = i / head_dim;
            queries[i] = u < count ? query[place(u) + i % head_dim] : 0.0f;
        }
        __syncthreads();

        int mine = lane >> 2, mine_sees = sees(mine);
        float best = __int_as_float(0xff800000);
        for (int j = warp; j < positions; j += 4) {
            float sums[QUERIES] = {};
            for (int d = lane; d < head_dim; d += 32) {
                float k = F::load(keys + (size_t)j * head_dim + d);
#pragma unroll
                for (int u = 0; u < QUERIES; u++) sums[u] = add(sums[u], mul(queries[u * head_dim + d], k));
            }
            float score = mul(fold_eight(sums, lane), c);
            if (j < mine_sees) {
                best = larger(score, best);
                if ((lane & 3) == 0) scratch[(size_t)mine * stride + j] = score;
            }
        }
        if ((lane & 3) == 0) largest[warp][mine] = best;
        __syncthreads();

        // A warp for each query: weights in place of scores, and their total.
        int blocks = blocks_of(positions);
        for (int u = warp; u < QUERIES; u += 4) {
            float m = largest[0][u];
            for (int w = 1; w < 4; w++) m = larger(largest[w][u], m);
            float total = 0.0f;
            int own = sees(u);
            for (int b = 0; b < blocks; b++) {
                float* row = scratch + (size_t)u * stride + b * ATTENTION_BLOCK;
                float sum = 0.0f;
#pragma unroll
                for (int j = lane; j < ATTENTION_BLOCK; j += 32) {
                    float w = b * ATTENTION_BLOCK + j < own ? exponential(sub(row[j], m)) : 0.0f;
                    row[j] = w;
                    sum = add(sum, w);
                }
                if (b * ATTENTION_BLOCK < own) total = add(total, fold(sum));
            }
            if (lane == 0) totals[u] = total;
        }
        __syncthreads();

        for (int column = 0; column < head_dim; column += 128) {
            int d = column + threadIdx.x;
            float out[QUERIES] = {};
            for (int b = 0; b < blocks; b++) {
                int first = b * ATTENTION_BLOCK;
#pragma unroll
                for (int i = threadIdx.x; i < QUERIES * ATTENTION_BLOCK; i += 128) {
                    block_weights[i % ATTENTION_BLOCK][i / ATTENTION_BLOCK] =
                        scratch[(size_t)(i / ATTENTION_BLOCK) * stride + first + i % ATTENTION_BLOCK];
                }
                __syncthreads();
                if (d < head_dim) {
                    const typename F::Bits* from = values + (size_t)first * head_dim + d;
                    float sums[QUERIES] = {};
                    int end = min(ATTENTION_BLOCK, positions - first);
                    int common = max(0, min(end, everyone_sees - first));
#pragma unroll 4
                    for (int j = 0; j < common; j++) {
                        float v = F::load(from + (size_t)j * head_dim);
#pragma unroll
                        for (int u = 0; u < QUERIES; u++) sums[u] = add(sums[u], mul(block_weights[j][u], v));
                    }
                    // Positions that only the later tokens see: a product with weight 0 need not be 0.
                    for (int j = common; j < end; j++) {
                        float v = F::load(from + (size_t)j * head_dim);
#pragma unroll
                        for (int u = 0; u < QUERIES; u++) {
                            if (first + j < sees(u)) sums[u] = add(sums[u], mul(block_weights[j][u], v));
                        }
                    }
#pragma unroll
                    for (int u = 0; u < QUERIES; u++) {
                        if (first < sees(u)) out[u] = add(out[u], sums[u]);
                    }
                }
                __syncthreads();
            }
            if (d < head_dim) {
#pragma unroll
                for (int u = 0; u < QUERIES; u++) {
                    if (u < count) query[place(u) + d] = div(out[u], totals[u]);
                }
            }
        }
        __syncthreads();
    }
}

#define ATTENTION(F, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(512) attention_scores_##suffix(                                       \
        const int* position, const float* query, const F::Bits* cache, float* all_scores, float* largest, int stride,  \
        int group, int head_dim, int context, float c) {                                                               \
        scores<F>(position, query, cache, all_scores, largest, stride, group, head_dim, context, c);                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) attention_weights_##suffix(                                      \
        const int* position, const F::Bits* cache, const float* all_scores, const float* largest, float* sums,         \
        float* parts,                                                                                                  \
        int stride, int group, int head_dim, int context) {                                                            \
        weights<F>(position, cache, all_scores, largest, sums, parts, stride, group, head_dim, context);               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) attention_prompt_##suffix(                                       \
        const int* position, float* query, const F::Bits* cache, float* scratch, int stride, int tokens, int heads,    \
        int kv_heads, int head_dim, int context, float c) {                                                            \
        prompt<F>(position, query, cache, scratch, stride, tokens, heads, kv_heads, head_dim, context, c);             \
    }

ATTENTION(F32, f32)
ATTENTION(F16, f16)
