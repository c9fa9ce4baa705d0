// Causal attention of a prompt's tokens in the contract's order: the true maximum first, then blocks of 64 positions in
// order.
#include "common.cuh"

// Queries of one key and value head that a block of threads takes together: query u is head u % group of token u /
// group.
#define QUERIES 8

// Attention of a batch, in place of its queries `[tokens, heads, head_dim]`. `scratch` has 8 * stride floats for each
// block of threads; a block takes one piece of work after the other.
template <class F>
DEVICE void prompt(const Slot* slots, int layer, float* query, float* scratch, int stride, int tokens, int heads,
                   int kv_heads, int head_dim, float c) {
    extern __shared__ float queries[]; // [QUERIES, head_dim]
    __shared__ float block_weights[ATTENTION_BLOCK][QUERIES];
    __shared__ float largest[4][QUERIES];
    __shared__ float totals[QUERIES];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    in_turn();
    const Slot slot = slots[0];
    int group = heads / kv_heads, first_position = slot.position;
    int pieces = (tokens * group + QUERIES - 1) / QUERIES;
    scratch += (size_t)blockIdx.x * QUERIES * stride;
    for (int work = blockIdx.x; work < pieces * kv_heads; work += gridDim.x) {
        // Long pieces first, so that the last to end are short.
        int kv_head = work % kv_heads, piece = pieces - 1 - work / kv_heads;
        int count = min(QUERIES, tokens * group - piece * QUERIES);
        const typename F::Bits* keys = cache_of<F>(slot, layer, kv_head, kv_heads, head_dim);
        const typename F::Bits* values = keys + (size_t)slot.context * head_dim;
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
            float score = mul(fold_many<QUERIES>(sums, lane), c);
            if (j < mine_sees) {
                best = larger(score, best);
                if ((lane & 3) == 0) scratch[(size_t)mine * stride + j] = score;
            }
        }
        if ((lane & 3) == 0) largest[warp][mine] = best;
        __syncthreads();

        // A warp for each query: weights in place of scores, and their total.
        int blocks = (positions + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK;
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
    extern "C" __global__ void __launch_bounds__(128) attention_prompt_##suffix(                                       \
        const Slot* slots, int layer, float* query, float* scratch, int stride, int tokens, int heads, int kv_heads,   \
        int head_dim, float c) {                                                                                       \
        prompt<F>(slots, layer, query, scratch, stride, tokens, heads, kv_heads, head_dim, c);                         \
    }

ATTENTION(F32, f32)
ATTENTION(F16, f16)
