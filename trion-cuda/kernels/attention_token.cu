// Attention of one token of each row, in the contract's order: the true maximum first, then blocks of 64 positions in
// order. Two kernels: the first rotates, writes the new position to the cache and makes the scores, divided over the
// positions; the second makes the outputs, divided over the columns. Query heads that share keys are taken together.
#include "common.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
// Query heads of a block of threads.
#define HEADS 4
// Positions that a block scores at once: four a warp.
#define CHUNK (4 * WARPS)
// Columns of a block, and positions whose weights it has at once.
#define COLUMNS 8
#define POSITIONS 1024
#define BLOCKS (POSITIONS / ATTENTION_BLOCK)
// Bytes of a line of the cache.
#define LINE 128

// The query heads of a block: `count` from `first` on, all of one key and value head.
struct Heads {
    int kv, first, count;
    DEVICE Heads(int heads, int kv_heads, int index) {
        int group = heads / kv_heads, parts = (group + HEADS - 1) / HEADS;
        kv = index / parts;
        first = kv * group + index % parts * HEADS;
        count = min(HEADS, (kv + 1) * group - first);
    }
};

// A warp puts a head through its norm, if any, and rotates it: from `from` to `to`.
DEVICE void rotate(const float* from, float* to, const float* norm, float eps, const float* rotation, int head_dim) {
    int half = head_dim / 2;
    float r = norm ? head_norm(from, eps, head_dim) : 1.0f;
    for (int i = threadIdx.x & 31; i < half; i += 32) {
        float2 pair = rotate_pair(from, i, norm, r, rotation, half);
        to[i] = pair.x;
        to[i + half] = pair.y;
    }
}

// Brings what lies in device memory nearer: `count` lines, `stride` bytes apart.
DEVICE void fetch(const void* from, int count, int stride) {
    for (int i = threadIdx.x; i < count; i += THREADS) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"((const char*)from + (size_t)i * stride));
    }
}

// Scores `[rows, heads, stride]`, and the largest of each block of threads `[rows, heads, gridDim.y]`. Grid: parts of
// heads, pieces of the positions, rows. Dynamic shared memory: 5 vectors of head_dim floats.
template <class F>
DEVICE void make_scores(const Slot* slots, int layer, const float* query, const float* key, const float* value,
                        const float* q_norm, const float* k_norm, float eps, int heads, int kv_heads, int head_dim,
                        float c, float* scores, int stride, float* largest) {
    extern __shared__ float vectors[];
    __shared__ float best_of_warp[WARPS][HEADS];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = blockIdx.z;
    const Heads own(heads, kv_heads, blockIdx.x);
    const Slot slot = slots[row];
    int p = slot.position, step = gridDim.y * CHUNK;
    typename F::Bits* keys = cache_of<F>(slot, layer, own.kv, kv_heads, head_dim);
    typename F::Bits* values = keys + (size_t)slot.context * head_dim;
    for (int first = blockIdx.y * CHUNK; first < p; first += step) {
        int bytes = min(CHUNK, p - first) * head_dim * sizeof(typename F::Bits);
        fetch(keys + (size_t)first * head_dim, (bytes + LINE - 1) / LINE, LINE);
    }
    in_turn();
    if (blockIdx.y * CHUNK > p) return;

    float* new_key = vectors + HEADS * head_dim;
    const float* rotation = slot.rotation + (size_t)p * head_dim;
    bool has_new = p / CHUNK % gridDim.y == blockIdx.y, writes = has_new && own.first % (heads / kv_heads) == 0;
    if (warp < own.count) {
        const float* from = query + ((size_t)row * heads + own.first + warp) * head_dim;
        rotate(from, vectors + warp * head_dim, q_norm, eps, rotation, head_dim);
    } else if (warp == HEADS && has_new) {
        rotate(key + ((size_t)row * kv_heads + own.kv) * head_dim, new_key, k_norm, eps, rotation, head_dim);
        __syncwarp();
        for (int d = lane; d < head_dim; d += 32) {
            typename F::Bits kept;
            F::store(&kept, new_key[d]);
            new_key[d] = F::load(&kept);
            if (writes) keys[(size_t)p * head_dim + d] = kept;
        }
    } else if (warp == HEADS + 1 && writes) {
        const float* from = value + ((size_t)row * kv_heads + own.kv) * head_dim;
        for (int d = lane; d < head_dim; d += 32) F::store(values + (size_t)p * head_dim + d, from[d]);
    }
    __syncthreads();

    // Of the four lanes' numbers below, all are of one head.
    float best = __int_as_float(0xff800000);
    int mine = lane / 8;
    for (int first = blockIdx.y * CHUNK + warp * 4; first <= p; first += step) {
        float x[HEADS * 4] = {};
#pragma unroll 4
        for (int d = lane; d < head_dim; d += 32) {
            float k[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // A position that does not exist counts as the new one, and is left out below.
                k[i] = first + i < p ? F::load(keys + (first + i) * head_dim + d) : new_key[d];
            }
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float q = vectors[h * head_dim + d];
#pragma unroll
                for (int i = 0; i < 4; i++) x[h * 4 + i] = add(x[h * 4 + i], mul(q, k[i]));
            }
        }
        float score = mul(fold_many<HEADS * 4>(x, lane), c);
        int j = first + lane / 2 % 4;
        if (j <= p && mine < own.count) {
            best = larger(score, best);
            if (lane % 2 == 0) scores[((size_t)row * heads + own.first + mine) * stride + j] = score;
        }
    }
#pragma unroll
    for (int half = 4; half > 0; half >>= 1) best = larger(best, __shfl_xor_sync(ALL_LANES, best, half));
    if (lane % 8 == 0) best_of_warp[warp][mine] = best;
    __syncthreads();
    if ((int)threadIdx.x < own.count) {
        best = best_of_warp[0][threadIdx.x];
        for (int w = 1; w < WARPS; w++) best = larger(best_of_warp[w][threadIdx.x], best);
        largest[((size_t)row * heads + own.first + threadIdx.x) * gridDim.y + blockIdx.y] = best;
    }
}

// Outputs, in place of the queries `[rows, heads, head_dim]`. `pieces` is the grid's size in positions when the scores
// were made. Grid: parts of heads, parts of the pieces of 8 columns, rows. Dynamic shared memory: 4 * 8 floats for each
// piece of columns of a block.
//
// 1024 positions at a time.
template <class F>
DEVICE void make_outputs(const Slot* slots, int layer, const float* scores, int stride, const float* largest,
                         int pieces, int heads, int kv_heads, int head_dim, float* out) {
    extern __shared__ float outputs[];
    __shared__ float4 weights[POSITIONS];
    __shared__ float2 parts[2][BLOCKS][COLUMNS];
    __shared__ float sums[BLOCKS][HEADS];
    __shared__ float most[HEADS];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row = blockIdx.z;
    const Heads own(heads, kv_heads, blockIdx.x);
    const Slot slot = slots[row];
    int positions = slot.position + 1;
    int all = (head_dim + COLUMNS - 1) / COLUMNS, each = (all + gridDim.y - 1) / gridDim.y * COLUMNS;
    int begin = blockIdx.y * each, end = min(begin + each, head_dim);
    const typename F::Bits* values = cache_of<F>(slot, layer, own.kv, kv_heads, head_dim);
    values += (size_t)slot.context * head_dim;
    fetch(values + begin, positions - 1, head_dim * sizeof(typename F::Bits));
    scores += ((size_t)row * heads + own.first) * stride;
    largest += ((size_t)row * heads + own.first) * pieces;
    out += ((size_t)row * heads + own.first) * head_dim;
    in_turn();

    // The last four warps, which have the least to do, find the largest score of a head each.
    int owner = WARPS - 1 - warp;
    if (owner < own.count) {
        float m = __int_as_float(0xff800000);
        for (int i = lane; i < pieces && i * CHUNK < positions; i += 32) m = larger(largest[owner * pieces + i], m);
        m = fold_largest(m);
        if (lane == 0) most[owner] = m;
    }
    // Threads 8 h + d add up column d of head h; threads 128 p + 8 b + d make column d of block b for two heads.
    int head = threadIdx.x / COLUMNS, d = threadIdx.x % COLUMNS, block = head % BLOCKS, pair = head / BLOCKS;
    float total = 0.0f;
    for (int from = 0; from < positions; from += POSITIONS) {
        int here = min(POSITIONS, positions - from), blocks = (here + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK;
        int first = block * ATTENTION_BLOCK, count = min(ATTENTION_BLOCK, here - first);
        // What comes from memory is on its way at once, also where there is less of it.
        typename F::Bits loaded[ATTENTION_BLOCK];
        auto load = [&](int column) {
            if (block >= blocks || column + d >= head_dim) return;
            const typename F::Bits* v = values + (size_t)(from + first) * head_dim + column + d;
#pragma unroll
            for (int n = 0; n < ATTENTION_BLOCK; n++) loaded[n] = v[min(n, count - 1) * head_dim];
        };
        load(begin);
        float raw[POSITIONS / THREADS][HEADS];
#pragma unroll
        for (int i = 0; i < POSITIONS / THREADS; i++) {
            int j = i * THREADS + threadIdx.x;
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                raw[i][h] = j < here && h < own.count ? scores[h * stride + from + j] : 0.0f;
            }
        }
#pragma unroll
        for (int i = 0; i < POSITIONS / THREADS; i++) {
            weights[i * THREADS + threadIdx.x] = {raw[i][0], raw[i][1], raw[i][2], raw[i][3]};
        }
        __syncthreads();
        // A warp for each block of positions.
#pragma unroll 1
        for (int b = warp; b < blocks; b += WARPS) {
            float x[HEADS] = {};
#pragma unroll
            for (int i = 0; i < ATTENTION_BLOCK; i += 32) {
                int j = b * ATTENTION_BLOCK + i + lane;
                float4 w = weights[j];
                bool counts = j < here;
                w.x = counts ? exponential(sub(w.x, most[0])) : 0.0f;
                w.y = counts && own.count > 1 ? exponential(sub(w.y, most[1])) : 0.0f;
                w.z = counts && own.count > 2 ? exponential(sub(w.z, most[2])) : 0.0f;
                w.w = counts && own.count > 3 ? exponential(sub(w.w, most[3])) : 0.0f;
                weights[j] = w;
                x[0] = add(x[0], w.x);
                x[1] = add(x[1], w.y);
                x[2] = add(x[2], w.z);
                x[3] = add(x[3], w.w);
            }
            float block_sum = fold_many<HEADS>(x, lane);
            if (lane % 8 == 0) sums[b][lane / 8] = block_sum;
        }
        __syncthreads();
        if (head < HEADS) {
#pragma unroll 4
            for (int b = 0; b < blocks; b++) total = add(total, sums[b][head]);
        }
        float* output = outputs + threadIdx.x;
        for (int column = begin; column < end; column += COLUMNS, output += HEADS * COLUMNS) {
            if (column != begin) load(column);
            if (block < blocks && column + d < head_dim) {
                float2 x = {0.0f, 0.0f};
#pragma unroll
                for (int n = 0; n < ATTENTION_BLOCK; n++) {
                    // A sum that began with +0 is never -0, so that +0 can be added.
                    float2 w = ((const float2*)(weights + first + n))[pair];
                    float y = n < count ? F::load(loaded + n) : 0.0f;
                    x.x = add(x.x, mul(w.x, y));
                    x.y = add(x.y, mul(w.y, y));
                }
                parts[pair][block][d] = x;
            }
            __syncthreads();
            if (head < HEADS) {
                float sum = from == 0 ? 0.0f : *output;
#pragma unroll 4
                for (int b = 0; b < blocks; b++) sum = add(sum, ((const float*)&parts[head / 2][b][d])[head % 2]);
                *output = sum;
                if (from + POSITIONS >= positions && head < own.count && column + d < head_dim) {
                    out[head * head_dim + column + d] = div(sum, total);
                }
            }
            __syncthreads();
        }
    }
}

#define ATTENTION(F, suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_scores_##suffix(                                   \
        const Slot* slots, int layer, const float* query, const float* key, const float* value, const float* q_norm,   \
        const float* k_norm, float eps, int heads, int kv_heads, int head_dim, float c, float* scores, int stride,     \
        float* largest) {                                                                                              \
        make_scores<F>(slots, layer, query, key, value, q_norm, k_norm, eps, heads, kv_heads, head_dim, c, scores,     \
                       stride, largest);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_outputs_##suffix(                           \
        const Slot* slots, int layer, const float* scores, int stride, const float* largest, int pieces, int heads,    \
        int kv_heads, int head_dim, float* out) {                                                                      \
        make_outputs<F>(slots, layer, scores, stride, largest, pieces, heads, kv_heads, head_dim, out);                \
    }

ATTENTION(F32, f32)
ATTENTION(F16, f16)
