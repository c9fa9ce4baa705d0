// All blocks of the model for one token, in one kernel: the blocks of threads stay, and wait for each other between phases.
// What a phase needs of the weights is on its way from memory while the one before still runs.
//
// For models whose matrices are all ternary with one scale, without norms of their own, and for contexts up to POSITIONS.
#include "common.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)
// Positions that attention has shared memory for.
#define POSITIONS 4096
// Columns of an input, at most.
#define WIDEST 8192
// Columns that a thread has under way at a time.
#define EACH 8
// The widest head.
#define HEAD 256
// Pieces of 8 rows that a block of threads sums up at a time, and tiles that a warp has under way at a time.
#define AT_ONCE 16
#define AHEAD 4

// A ternary matrix; as `DecodeMatrix` in src/model.rs.
struct Matrix {
    const uint4* weights;
    float scale;
    int divide;
    int rows;
    int tiles; // pieces of 256 columns
};

// A block of the model, in the order of trion-core's `Projection` and `LayerNorm`; as `DecodeLayer` in src/model.rs.
struct Layer {
    Matrix matrices[7];
    const float *attention_norm, *attention_sub_norm, *query_norm, *key_norm, *mlp_norm, *mlp_sub_norm;
};

// The place of a matrix in a block.
enum { QUERY, KEY, VALUE, OUTPUT_MATRIX, GATE, UP, DOWN_MATRIX };

// Sizes and places; as `Decode` in src/kernels.rs.
struct Decode {
    const Layer* layers;
    int* position; // and behind it the counter of the barrier, which is 0 at first
    float *hidden, *query, *key, *value, *intermediate;
    float* scores; // [heads, stride]
    void* cache;
    const float* rotation;
    int num_layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, context, stride;
    int sink;
    int prefetch;
    float eps, c;
};

// Shared memory of a projection.
struct ProjectShared {
    float x[WIDEST];
    int4 q[WIDEST / 16];
    float lanes[WARPS][32];
    float tail[32];
    int sums[WARPS];
    float r;
    int acc[2][AT_ONCE][8];
};

// Shared memory of attention.
struct AttendShared {
    float q[HEAD], k[HEAD];
    float largest[WARPS];
    float weights[POSITIONS];
    float sums[POSITIONS / ATTENTION_BLOCK];
    float parts[POSITIONS / ATTENTION_BLOCK][32];
};

struct Shared {
    union {
        ProjectShared project;
        AttendShared attend;
    };
    // This block of the model and the next, in turns.
    Layer layers[2];
    Decode decode;
};

// Every block of threads waits until all have come here `target / gridDim.x` times. What the others wrote before is seen by
// reads past the first cache (__ldcg).
DEVICE void wait_for_all(u32* counter, u32 target) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1u);
        while (*(volatile u32*)counter < target) {}
        __threadfence();
    }
    __syncthreads();
}

DEVICE int pieces_of(const Matrix& m) { return (m.rows + 7) / 8; }

// Where the share of a block of threads begins, of all pieces.
DEVICE int share(int pieces, int block) {
    u32 each = (u32)pieces / gridDim.x, left = (u32)pieces - each * gridDim.x;
    return (int)(each * block + min((u32)block, left));
}

// Asks for this block's share of matrices `first` to `last`.
DEVICE void prefetch(const Layer& l, int first, int last) {
#pragma unroll 1
    for (int i = first; i <= last; i++) {
        const Matrix& m = l.matrices[i];
        u32 row_bytes = m.tiles * 512, from = share(pieces_of(m), blockIdx.x), to = share(pieces_of(m), blockIdx.x + 1);
        const char* weights = (const char*)m.weights + (size_t)from * row_bytes;
#pragma unroll 1
        for (u32 at = threadIdx.x * 128; at < (to - from) * row_bytes; at += THREADS * 128) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(weights + at));
        }
    }
}

// Asks for this block's share of the keys and values of a layer.
DEVICE void prefetch_cache(const Decode& d, const char* cache, int positions, int bytes) {
    u32 used = (u32)positions * d.head_dim * bytes;
    size_t plane = (size_t)d.context * d.head_dim * bytes;
#pragma unroll 1
    for (int i = 0; i < 2 * d.kv_heads; i++) {
#pragma unroll 1
        for (u32 at = (blockIdx.x * THREADS + threadIdx.x) * 128; at < used; at += gridDim.x * THREADS * 128) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(cache + i * plane + at));
        }
    }
}

DEVICE float rescaled(const Matrix& m, int acc, float s) {
    return m.divide ? div((float)acc, mul(m.scale, s)) : mul(div((float)acc, s), m.scale);
}

// The projections of a block of the model.
enum Projections { ATTENTION, OUTPUT, GATE_AND_UP, DOWN };

// f(column, from[column]) for this thread's columns of a row: the loads of EACH are under way at once. Behind the end of the row
// the last number comes again.
template <class Load, class Function>
DEVICE void for_columns(int cols, int padded, Load load, Function f) {
#pragma unroll 1
    for (int from = threadIdx.x; from < padded; from += EACH * THREADS) {
        float loaded[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) loaded[i] = load(min(from + i * THREADS, cols - 1));
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (from + i * THREADS < padded) f(from + i * THREADS, loaded[i]);
        }
    }
}

// Every block of threads: the input through its norm, if any, and quantised.
DEVICE void prepare(ProjectShared& s, const float* source, int cols, const float* norm, float eps) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, padded = (cols + 255) / 256 * 256;
    for_columns(
        cols, padded, [&](int i) { return __ldcg(source + i); },
        [&](int i, float x) { s.x[i] = i < cols ? x : 0.0f; });
    float r = 1.0f;
    if (norm) {
        __syncthreads();
        if (warp == 0) {
            // The next eight are on their way while eight are added. Behind the row there are zeros, which change nothing.
            float sum = 0.0f, ahead[8];
#pragma unroll
            for (int i = 0; i < 8; i++) ahead[i] = s.x[i * 32 + lane];
#pragma unroll 1
            for (int next = 256; next <= padded; next += 256) {
                float now[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    now[i] = mul(ahead[i], ahead[i]);
                    ahead[i] = s.x[(next < padded ? next : 0) + i * 32 + lane];
                }
#pragma unroll
                for (int i = 0; i < 8; i++) sum = add(sum, now[i]);
            }
            sum = fold(sum);
            if (lane == 0) s.r = div(1.0f, root(add(div(sum, (float)cols), eps)));
        }
        __syncthreads();
        r = s.r;
    }
    // The tail of the row counts first; the columns of a warp's lane are those of the contract's lane.
    int whole = cols / 32 * 32;
    float acc = 0.0f;
    if (warp == 0) s.tail[lane] = 0.0f;
    __syncthreads();
    for_columns(
        cols, cols, [&](int i) { return norm ? __ldg(norm + i) : 1.0f; },
        [&](int i, float weight) {
            float x = s.x[i];
            if (norm) s.x[i] = x = mul(mul(x, r), weight);
            if (i < whole) {
                acc = larger(magnitude(x), acc);
            } else {
                s.tail[lane] = magnitude(x);
            }
        });
    s.lanes[warp][lane] = acc;
    __syncthreads();
    // Every warp finds the same scale.
    acc = s.tail[lane];
#pragma unroll
    for (int i = 0; i < WARPS; i++) acc = larger(s.lanes[i][lane], acc);
    float scale = div(127.0f, larger(fold_largest(acc), SMALLEST_SCALE));
    int sum = 0;
    for_columns(
        cols, padded, [&](int i) { return s.x[i]; },
        [&](int i, float x) {
            float v = add(smaller(larger(mul(x, scale), -128.0f), 127.0f), ROUND);
            int value = i < cols ? __float_as_int(v) - ROUND_BITS : 0;
            ((i8*)s.q)[i] = (i8)value;
            sum += value;
        });
    sum = fold_integer(sum);
    if (lane == 0) {
        s.sums[warp] = sum;
        s.r = scale;
    }
    __syncthreads();
}

// Projections. What does not depend on the phase before is loaded, then all wait; then every block of threads prepares the
// input, and makes its share of the rows. Query, key and value lie behind each other; rows of gate and up belong together.
DEVICE void project(Shared& shared, const Layer& l, int which, u32 target) {
    bool pair = which == GATE_AND_UP;
    ProjectShared& s = shared.project;
    const Decode& d = shared.decode;
    const Matrix& a = l.matrices[which == ATTENTION ? QUERY : which == OUTPUT ? OUTPUT_MATRIX : pair ? GATE : DOWN_MATRIX];
    const Matrix& b = l.matrices[pair ? UP : KEY];
    const Matrix& c = l.matrices[VALUE];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, tiles = a.tiles;
    int end_a = pieces_of(a), end_b = end_a + (which == ATTENTION ? pieces_of(b) : 0);
    int pieces = end_b + (which == ATTENTION ? pieces_of(c) : 0);
    int begin = share(pieces, blockIdx.x), end = share(pieces, blockIdx.x + 1);
    // i / tiles by a product: exact for i below AT_ONCE * 32.
    u32 reciprocal = (65536 + tiles - 1) / tiles;
    int sum = 0;
    float scale = 0.0f;

    // At least once, since all have to wait.
    int first = begin;
    do {
        int count = min(AT_ONCE, end - first), half = count * tiles, work = half * (pair ? 2 : 1);
        // Tiles of pieces that follow each other lie behind each other, up to the end of a matrix.
        int to_b = pair ? half : (end_a - first) * tiles, to_c = pair ? work : (end_b - first) * tiles;
        const uint4* in_a = a.weights + (long long)first * tiles * 32 + lane;
        const uint4* in_b = b.weights + (long long)(pair ? first : first - end_a) * tiles * 32 + lane;
        const uint4* in_c = c.weights + (long long)(first - end_b) * tiles * 32 + lane;
        int from = warp;
        do {
            uint4 w[AHEAD];
#pragma unroll
            for (int n = 0; n < AHEAD; n++) {
                int i = from + n * WARPS;
                if (i < work) w[n] = __ldg(i < to_b ? in_a + i * 32 : i < to_c ? in_b + (pair ? i - half : i) * 32 : in_c + i * 32);
            }
            if (first == begin && from == warp) {
                const float* norm = which == ATTENTION ? l.attention_norm
                                    : which == OUTPUT  ? l.attention_sub_norm
                                    : pair             ? l.mlp_norm
                                                       : l.mlp_sub_norm;
                const float* source = which == OUTPUT ? d.query : which == DOWN ? d.intermediate : d.hidden;
                int cols = which == OUTPUT ? d.heads * d.head_dim : which == DOWN ? d.intermediate_size : d.hidden_size;
                for (int i = threadIdx.x * 32; norm && i < cols; i += THREADS * 32) {
                    asm volatile("prefetch.global.L2 [%0];" ::"l"(norm + i));
                }
                wait_for_all((u32*)d.position + 1, target);
                prepare(s, source, cols, norm, d.eps);
                sum = fold_integer(lane < WARPS ? s.sums[lane] : 0);
                scale = s.r;
            }
            if (from == warp) {
                if (threadIdx.x < 2 * AT_ONCE * 8) ((int*)s.acc)[threadIdx.x] = 0;
                __syncthreads();
            }
#pragma unroll
            for (int n = 0; n < AHEAD; n++) {
                int i = from + n * WARPS;
                if (i < work) {
                    bool second = pair && i >= half;
                    int within = second ? i - half : i, row = (int)((u32)within * reciprocal >> 16);
                    const int4* q = s.q + (within - row * tiles) * 16 + (lane & 3);
                    int part = dot16(w[n].x, q[0], 0);
                    part = dot16(w[n].y, q[4], part);
                    part = dot16(w[n].z, q[8], part);
                    part = dot16(w[n].w, q[12], part);
                    part += __shfl_xor_sync(ALL_LANES, part, 1);
                    part += __shfl_xor_sync(ALL_LANES, part, 2);
                    if ((lane & 3) == 0) atomicAdd(&s.acc[second][row][lane >> 2], part);
                }
            }
            from += AHEAD * WARPS;
        } while (from < work);
        __syncthreads();
        if ((int)threadIdx.x < count * 8) {
            int piece = first + threadIdx.x / 8;
            const Matrix& m = piece < end_a ? a : piece < end_b ? b : c;
            float* out_a = which == ATTENTION ? d.query : pair ? d.intermediate : d.hidden;
            float* out = piece < end_a ? out_a : piece < end_b ? d.key : d.value;
            int row = (piece - (piece < end_a ? 0 : piece < end_b ? end_a : end_b)) * 8 + threadIdx.x % 8;
            if (row < m.rows) {
                float y = rescaled(m, s.acc[0][threadIdx.x / 8][threadIdx.x % 8] - sum, scale);
                if (pair) {
                    float up = rescaled(b, s.acc[1][threadIdx.x / 8][threadIdx.x % 8] - sum, scale);
                    y = activate(d.sink, y, up);
                } else if (which != ATTENTION) {
                    y = add(__ldcg(out + row), y);
                }
                out[row] = y;
            }
        }
        __syncthreads();
        first += AT_ONCE;
    } while (first < end);
}

// A warp puts a head through its norm, if any, and rotates it: from `from` to `to`.
DEVICE void rotate(const float* from, float* to, const float* norm, float eps, const float* rotation, int head_dim) {
    int lane = threadIdx.x & 31, half = head_dim / 2;
    float r = 1.0f;
    if (norm) {
        float squares = 0.0f;
#pragma unroll 1
        for (int i = lane; i < head_dim; i += 32) squares = add(squares, mul(__ldcg(from + i), __ldcg(from + i)));
        r = div(1.0f, root(add(div(fold(squares), (float)head_dim), eps)));
    }
#pragma unroll 1
    for (int i = lane; i < half; i += 32) {
        float a = __ldcg(from + i), b = __ldcg(from + i + half), cosine = rotation[i], sine = rotation[i + half];
        if (norm) {
            a = mul(mul(a, r), norm[i]);
            b = mul(mul(b, r), norm[i + half]);
        }
        to[i] = sub(mul(a, cosine), mul(b, sine));
        to[i + half] = add(mul(b, cosine), mul(a, sine));
    }
}

// Scores of the heads, 64 positions of one at a time; and the write of the new position to the cache.
template <class F>
DEVICE void score(AttendShared& s, const Decode& d, const Layer& l, typename F::Bits* cache, int p) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, hd = d.head_dim, group = d.heads / d.kv_heads;
    int blocks = p / ATTENTION_BLOCK + 1;
    const float* rotation = d.rotation + (size_t)p * hd;
    for (int item = blockIdx.x; item < d.heads * blocks; item += gridDim.x) {
        int block = (u32)item / d.heads, head = item - block * d.heads, kv_head = (u32)head / group;
        typename F::Bits* keys = cache + (size_t)kv_head * 2 * d.context * hd;

        int first = block * ATTENTION_BLOCK + warp * 4;
        bool last = block == blocks - 1;
        // The first 128 columns of the keys: their loads do not wait for the query.
        float loaded[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int j = first + k, column = lane + 32 * i;
                loaded[i][k] = j < p && column < hd ? F::load(keys + (size_t)j * hd + column) : 0.0f;
            }
        }
        if (warp == 0) rotate(d.query + (size_t)head * hd, s.q, l.query_norm, d.eps, rotation, hd);
        if (warp == 1 && last) {
            rotate(d.key + (size_t)kv_head * hd, s.k, l.key_norm, d.eps, rotation, hd);
            __syncwarp();
            bool writes = kv_head * group == head;
#pragma unroll 1
            for (int i = lane; i < hd; i += 32) {
                // As the cache keeps it.
                typename F::Bits bits;
                F::store(&bits, s.k[i]);
                s.k[i] = F::load(&bits);
                if (writes) {
                    keys[(size_t)p * hd + i] = bits;
                    F::store(keys + (size_t)(d.context + p) * hd + i, __ldcg(d.value + (size_t)kv_head * hd + i));
                }
            }
        }
        __syncthreads();
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
        for (int column = lane; column < hd; column += 32) {
            float q = s.q[column];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int j = first + k;
                float key = 0.0f;
                if (j == p) {
                    key = s.k[column];
                } else if (column < 128) {
                    int i = column / 32;
                    key = i == 0 ? loaded[0][k] : i == 1 ? loaded[1][k] : i == 2 ? loaded[2][k] : loaded[3][k];
                } else if (j < p) {
                    key = F::load(keys + (size_t)j * hd + column);
                }
                sums[k] = add(sums[k], mul(q, key));
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float score = mul(fold(sums[k]), d.c);
            if (lane == 0 && first + k <= p) d.scores[(size_t)head * d.stride + first + k] = score;
        }
        __syncthreads();
    }
}

// What attention makes of 32 columns of a head at a time: a warp for each block of positions, a lane for each column.
template <class F>
DEVICE void weigh(AttendShared& s, const Decode& d, const typename F::Bits* cache, int p) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, hd = d.head_dim, group = d.heads / d.kv_heads;
    int blocks = p / ATTENTION_BLOCK + 1, slices = (hd + 31) / 32;
    for (int item = blockIdx.x; item < d.heads * slices; item += gridDim.x) {
        int head = (u32)item / slices, column = (item - head * slices) * 32 + lane;
        const float* scores = d.scores + (size_t)head * d.stride;
        float best = __int_as_float(0xff800000);
        for (int j = threadIdx.x; j <= p; j += THREADS) {
            float score = __ldcg(scores + j);
            s.weights[j] = score;
            best = larger(score, best);
        }
        best = fold_largest(best);
        if (lane == 0) s.largest[warp] = best;
        __syncthreads();
        float m = fold_largest(lane < WARPS ? s.largest[lane] : __int_as_float(0xff800000));

        const typename F::Bits* values = cache + (size_t)((u32)head / group * 2 + 1) * d.context * hd;
        for (int block = warp; block < blocks; block += WARPS) {
            int first = block * ATTENTION_BLOCK, count = min(ATTENTION_BLOCK, p + 1 - first);
            float sum = 0.0f;
#pragma unroll
            for (int j = lane; j < ATTENTION_BLOCK; j += 32) {
                float w = j < count ? exponential(sub(s.weights[first + j], m)) : 0.0f;
                s.weights[first + j] = w;
                sum = add(sum, w);
            }
            sum = fold(sum);
            if (lane == 0) s.sums[block] = sum;
            __syncwarp();
            float b = 0.0f;
            const typename F::Bits* from = values + (size_t)first * hd + min(column, hd - 1);
            // The loads of 32 positions are under way at once, also in a short block.
            for (int j = 0; j < count; j += 32) {
                float loaded[32];
#pragma unroll
                for (int n = 0; n < 32; n++) loaded[n] = F::load(from + (size_t)min(j + n, count - 1) * hd);
#pragma unroll
                for (int n = 0; n < 32; n++) {
                    if (j + n < count) b = add(b, mul(s.weights[first + j + n], loaded[n]));
                }
            }
            s.parts[block][lane] = b;
        }
        __syncthreads();
        if (warp == 0) {
            float total = 0.0f, out = 0.0f;
            for (int block = 0; block < blocks; block++) {
                total = add(total, s.sums[block]);
                out = add(out, s.parts[block][lane]);
            }
            if (column < hd) d.query[(size_t)head * hd + column] = div(out, total);
        }
        __syncthreads();
    }
}

// The description of a block of the model, into shared memory.
DEVICE void fetch(Layer& to, const Layer* from) {
    if (threadIdx.x < sizeof(Layer) / sizeof(int)) ((int*)&to)[threadIdx.x] = ((const int*)from)[threadIdx.x];
}

template <class F>
DEVICE void decode(const Decode& argument) {
    extern __shared__ int4 memory[];
    Shared& s = *(Shared*)memory;
    // There functions can refer to it.
    const Decode& d = s.decode;
    if (threadIdx.x == 0) s.decode = argument;
    __syncthreads();
    u32 target = 0;
    int p = *d.position;
    fetch(s.layers[0], d.layers);
    __syncthreads();
    for (int n = 0; n < d.num_layers; n++) {
        const Layer& l = s.layers[n & 1];
        bool more = n + 1 < d.num_layers;
        size_t layer_size = (size_t)d.kv_heads * d.head_dim * 2 * d.context;
        typename F::Bits* cache = (typename F::Bits*)d.cache + n * layer_size;

        // One place to call each from, so that they are part of this kernel and need no registers of their own.
#pragma unroll 1
        for (int which = ATTENTION; which <= DOWN; which++) {
            project(s, l, which, target += gridDim.x);
            if (which == ATTENTION && more) fetch(s.layers[(n + 1) & 1], d.layers + n + 1);
            if (d.prefetch && (which != GATE_AND_UP || more)) {
                // What the phase after the next reads; gate and up, which are large, wait until attention has its keys.
                if (which == ATTENTION) prefetch(l, OUTPUT_MATRIX, OUTPUT_MATRIX);
                if (which == OUTPUT) prefetch(l, DOWN_MATRIX, DOWN_MATRIX);
                if (which == GATE_AND_UP) {
                    prefetch(s.layers[(n + 1) & 1], QUERY, VALUE);
                    prefetch_cache(d, (const char*)(cache + layer_size), p, sizeof(typename F::Bits));
                }
            }
            if (which == ATTENTION) {
                wait_for_all((u32*)d.position + 1, target += gridDim.x);
                score<F>(s.attend, d, l, cache, p);
                if (d.prefetch) prefetch(l, GATE, UP);
                wait_for_all((u32*)d.position + 1, target += gridDim.x);
                weigh<F>(s.attend, d, cache, p);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_f32(const Decode d) { decode<F32>(d); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_f16(const Decode d) { decode<F16>(d); }
