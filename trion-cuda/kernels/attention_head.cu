// Attention of one token while the context is short: norms, rotation, the write to the cache and attention of a head
// in one block of threads, so that a token has fewer kernels to wait for.
#include "common.cuh"

#define THREADS 1024
#define WARPS (THREADS / 32)
// Positions that the scores in shared memory are for, and the widest head.
#define POSITIONS 1024
#define BLOCKS (POSITIONS / ATTENTION_BLOCK)

// The sums of four numbers over the lanes, folded in halves; lane l gets that of number l / 8.
DEVICE float fold_four(const float (&x)[4], int lane) {
    float two[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float mine = lane & 16 ? x[i + 2] : x[i], theirs = lane & 16 ? x[i] : x[i + 2];
        two[i] = add(mine, __shfl_xor_sync(ALL_LANES, theirs, 16));
    }
    float mine = lane & 8 ? two[1] : two[0], theirs = lane & 8 ? two[0] : two[1];
    float one = add(mine, __shfl_xor_sync(ALL_LANES, theirs, 8));
    one = add(one, __shfl_xor_sync(ALL_LANES, one, 4));
    one = add(one, __shfl_xor_sync(ALL_LANES, one, 2));
    return add(one, __shfl_xor_sync(ALL_LANES, one, 1));
}

// A warp puts a head through its norm, if any, and rotates it: from `from` to `to`.
DEVICE void rotate(const float* from, float* to, const float* norm, float eps, const float* rotation, int head_dim) {
    int lane = threadIdx.x & 31, half = head_dim / 2;
    float r = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (int i = lane; i < head_dim; i += 32) squares = add(squares, mul(from[i], from[i]));
        r = div(1.0f, root(add(div(fold(squares), (float)head_dim), eps)));
    }
    for (int i = lane; i < half; i += 32) {
        float a = from[i], b = from[i + half], cosine = rotation[i], sine = rotation[i + half];
        if (norm) {
            a = mul(mul(a, r), norm[i]);
            b = mul(mul(b, r), norm[i + half]);
        }
        to[i] = sub(mul(a, cosine), mul(b, sine));
        to[i + half] = add(mul(b, cosine), mul(a, sine));
    }
}

// A number as the cache keeps it.
template <class F>
DEVICE float kept(float value) {
    typename F::Bits bits;
    F::store(&bits, value);
    return F::load(&bits);
}

// Grid: heads. The cache of a layer is [heads, 2, context, head_dim], keys before values. Dynamic shared memory holds
// 3 + BLOCKS vectors of head_dim floats.
template <class F>
DEVICE void attend(const int* position, float* query, const float* key, const float* value, typename F::Bits* cache,
                   const float* rotation, const float* q_norm, const float* k_norm, float eps, int group, int head_dim,
                   int context, float c) {
    extern __shared__ float vectors[];
    __shared__ float scores[POSITIONS];
    __shared__ float largest[WARPS];
    __shared__ float sums[BLOCKS];
    float *q = vectors, *k = q + head_dim, *v = k + head_dim, *parts = v + head_dim;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x, kv_head = head / group;
    int p = *position, blocks = (p + ATTENTION_BLOCK) / ATTENTION_BLOCK;
    query += (size_t)head * head_dim;
    rotation += (size_t)p * head_dim;
    typename F::Bits* keys = cache + (size_t)kv_head * 2 * context * head_dim;
    typename F::Bits* values = keys + (size_t)context * head_dim;

    // One head of each group writes the new position to the cache; all take it from shared memory.
    bool writes = head % group == 0;
    if (warp == 0) {
        rotate(query, q, q_norm, eps, rotation, head_dim);
    } else if (warp == 1) {
        rotate(key + (size_t)kv_head * head_dim, k, k_norm, eps, rotation, head_dim);
        __syncwarp();
        for (int d = lane; d < head_dim; d += 32) {
            if (writes) F::store(keys + (size_t)p * head_dim + d, k[d]);
            k[d] = kept<F>(k[d]);
        }
    } else if (warp == 2) {
        for (int d = lane; d < head_dim; d += 32) {
            float x = value[(size_t)kv_head * head_dim + d];
            if (writes) F::store(values + (size_t)p * head_dim + d, x);
            v[d] = kept<F>(x);
        }
    }
    __syncthreads();

    // Four positions of a warp at a time. Those from p on are left out here.
    float best = __int_as_float(0xff800000);
    for (int first = warp * 4; first < p; first += WARPS * 4) {
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
        for (int d = lane; d < head_dim; d += 32) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = add(x[i], mul(q[d], F::load(keys + (size_t)min(first + i, p - 1) * head_dim + d)));
            }
        }
        float score = mul(fold_four(x, lane), c);
        int j = first + (lane >> 3);
        if (j < p) {
            best = larger(score, best);
            if ((lane & 7) == 0) scores[j] = score;
        }
    }
    if (warp == WARPS - 1) {
        float x = 0.0f;
        for (int d = lane; d < head_dim; d += 32) x = add(x, mul(q[d], k[d]));
        float score = mul(fold(x), c);
        best = larger(score, best);
        if (lane == 0) scores[p] = score;
    }
    best = fold_largest(best);
    if (lane == 0) largest[warp] = best;
    __syncthreads();
    float m = fold_largest(largest[lane]);

    // A warp for each block of positions.
    if (warp < blocks) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < ATTENTION_BLOCK; i += 32) {
            int j = warp * ATTENTION_BLOCK + i + lane;
            float w = j <= p ? exponential(sub(scores[j], m)) : 0.0f;
            scores[j] = w;
            sum = add(sum, w);
        }
        sum = fold(sum);
        if (lane == 0) sums[warp] = sum;
    }
    __syncthreads();

    // A thread for each column of each block of positions.
    for (int i = threadIdx.x; i < blocks * head_dim; i += THREADS) {
        int first = i / head_dim * ATTENTION_BLOCK, d = i % head_dim;
        // Positions before p.
        int count = min(ATTENTION_BLOCK, p - first);
        const typename F::Bits* from = values + (size_t)first * head_dim + d;
        float b = weigh<F>(scores + first, from, count, head_dim);
        if (p - first < ATTENTION_BLOCK) b = add(b, mul(scores[p], v[d]));
        parts[i] = b;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < head_dim; d += THREADS) {
        float total = 0.0f, out = 0.0f;
        for (int b = 0; b < blocks; b++) {
            total = add(total, sums[b]);
            out = add(out, parts[b * head_dim + d]);
        }
        query[d] = div(out, total);
    }
}

#define ATTEND(name, F)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                        \
        const int* position, float* query, const float* key, const float* value, F::Bits* cache,                       \
        const float* rotation,                                                                                         \
        const float* q_norm, const float* k_norm, float eps, int group, int head_dim, int context, float c) {          \
        attend<F>(position, query, key, value, cache, rotation, q_norm, k_norm, eps, group, head_dim, context, c);     \
    }

ATTEND(attention_head_f32, F32)
ATTEND(attention_head_f16, F16)
