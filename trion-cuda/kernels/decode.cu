// All blocks of the model for one token, in one kernel: the blocks of threads stay, and wait for each other between phases.
// What a phase needs of the weights is on its way from memory while the one before still runs.
//
// For models whose matrices are all ternary with one scale, without norms of their own, and for short contexts.
#include "attention_head.cuh"

// A ternary matrix; as `DecodeMatrix` in src/model.rs.
struct Matrix {
    const uint4* weights;
    float scale;
    int divide;
    int rows;
    int unused;
};

// A block of the model, in the order of trion-core's `Projection` and `LayerNorm`; as `DecodeLayer` in src/model.rs.
struct Layer {
    Matrix query, key, value, output, gate, up, down;
    const float *attention_norm, *attention_sub_norm, *query_norm, *key_norm, *mlp_norm, *mlp_sub_norm;
};

// Sizes and places; as `Decode` in src/kernels.rs.
struct Decode {
    const Layer* layers;
    int* position; // and behind it the counter of the barrier, which is 0 at first
    float *hidden, *query, *key, *value, *intermediate;
    void* cache;
    const float* rotation;
    int num_layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, context;
    int sink;
    int prefetch;
    float eps, c;
};

// Columns of an input, at most.
#define WIDEST 8192
#define EACH (WIDEST / THREADS)
// Pieces of 8 rows that a block of threads sums up at a time.
#define AT_ONCE 16

struct ProjectShared {
    float squares[WIDEST];
    int4 q[WIDEST / 16];
    float lanes[WARPS][32];
    int sums[WARPS];
    float r;
    Scale scale;
    int acc[2][AT_ONCE][8];
};

// Every block of threads waits until all have come here `target / gridDim.x` times.
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

// The pieces of this block of threads, of all pieces.
DEVICE int first_piece(int pieces, int block) { return (int)((long long)pieces * block / gridDim.x); }

// Asks for the weights of this block's pieces.
DEVICE void prefetch(const Matrix& m, int first, int last, int tiles) {
    const char* from = (const char*)(m.weights + (size_t)first * tiles * 32);
    size_t bytes = (size_t)(last - first) * tiles * 512;
    for (size_t i = threadIdx.x * 128; i < bytes; i += THREADS * 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
    }
}

DEVICE int pieces_of(const Matrix& m) { return (m.rows + 7) / 8; }

// Functions of their own, called from several places: that leaves each enough registers.
//
// Every block of threads: the input through its norm, if any, and quantised, into shared memory.
__device__ __noinline__ void prepare(ProjectShared& s, const float* source, int cols, const float* norm, float eps) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float x[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int col = i * THREADS + threadIdx.x;
        x[i] = col < cols ? __ldcg(source + col) : 0.0f;
    }
    if (norm) {
        float w[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int col = i * THREADS + threadIdx.x;
            w[i] = col < cols ? __ldg(norm + col) : 0.0f;
            if (i * THREADS < cols) s.squares[col] = mul(x[i], x[i]);
        }
        __syncthreads();
        if (warp == 0) {
            float sum = 0.0f;
#pragma unroll 16
            for (int i = lane; i < (cols + 31) / 32 * 32; i += 32) sum = add(sum, s.squares[i]);
            sum = fold(sum);
            if (lane == 0) s.r = div(1.0f, root(add(div(sum, (float)cols), eps)));
        }
        __syncthreads();
        float r = s.r;
#pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = mul(mul(x[i], r), w[i]);
    }

    // The tail of the row counts first; the columns of a warp's lane are those of the contract's lane.
    int whole = cols / 32 * 32;
    float acc = 0.0f, tail = 0.0f;
    bool has_tail = false;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int col = i * THREADS + threadIdx.x;
        if (col < whole) {
            acc = larger(magnitude(x[i]), acc);
        } else if (col < cols) {
            tail = magnitude(x[i]);
            has_tail = true;
        }
    }
    s.lanes[warp][lane] = acc;
    if (has_tail) s.squares[lane] = tail;
    if (warp == 0 && lane >= cols - whole) s.squares[lane] = 0.0f;
    __syncthreads();
    // Every warp finds the same scale.
    acc = s.squares[lane];
#pragma unroll 8
    for (int i = 0; i < WARPS; i++) acc = larger(s.lanes[i][lane], acc);
    float scale = div(127.0f, larger(fold_largest(acc), SMALLEST_SCALE));
    int sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int col = i * THREADS + threadIdx.x;
        if (i * THREADS < cols) {
            int value = 0;
            if (col < cols) {
                float v = add(smaller(larger(mul(x[i], scale), -128.0f), 127.0f), ROUND);
                value = __float_as_int(v) - ROUND_BITS;
            }
            ((i8*)s.q)[col] = (i8)value;
            sum += value;
        }
    }
    sum = fold_integer(sum);
    if (lane == 0) s.sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = fold_integer(s.sums[lane]);
        if (lane == 0) s.scale = {scale, sum};
    }
    __syncthreads();
}

DEVICE float rescaled(const Matrix& m, int acc, float s) {
    return m.divide ? div((float)acc, mul(m.scale, s)) : mul(div((float)acc, s), m.scale);
}

// The rows of this block's pieces of the matrices a, b and c, which lie behind each other, to their places. With PAIR, rows of
// a and b belong together: act(a) * b.
template <bool PAIR>
__device__ __noinline__ void project(ProjectShared& s, int tiles, int sink, const Matrix& a, float* out_a, const Matrix& b, float* out_b,
                    const Matrix& c, float* out_c, int matrices) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int end_a = pieces_of(a), end_b = end_a + (!PAIR && matrices > 1 ? pieces_of(b) : 0);
    int pieces = end_b + (!PAIR && matrices > 2 ? pieces_of(c) : 0);
    int last = first_piece(pieces, blockIdx.x + 1);
    for (int first = first_piece(pieces, blockIdx.x); first < last; first += AT_ONCE) {
        int count = min(AT_ONCE, last - first), work = count * tiles * (PAIR ? 2 : 1);
        for (int i = threadIdx.x; i < 2 * AT_ONCE * 8; i += THREADS) ((int*)s.acc)[i] = 0;
        __syncthreads();
        for (int from = warp; from < work; from += 4 * WARPS) {
            uint4 w[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int i = from + n * WARPS;
                if (i < work) {
                    bool second = PAIR && i >= count * tiles;
                    int within = second ? i - count * tiles : i;
                    int piece = first + within / tiles;
                    const uint4* weights;
                    if (PAIR) {
                        weights = second ? b.weights : a.weights;
                    } else if (piece < end_a) {
                        weights = a.weights;
                    } else if (piece < end_b) {
                        weights = b.weights;
                        piece -= end_a;
                    } else {
                        weights = c.weights;
                        piece -= end_b;
                    }
                    w[n] = __ldg(weights + ((size_t)piece * tiles + within % tiles) * 32 + lane);
                }
            }
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int i = from + n * WARPS;
                if (i < work) {
                    bool second = PAIR && i >= count * tiles;
                    int within = second ? i - count * tiles : i;
                    const int4* q = s.q + within % tiles * 16 + (lane & 3);
                    int acc = dot16(w[n].x, q[0], 0);
                    acc = dot16(w[n].y, q[4], acc);
                    acc = dot16(w[n].z, q[8], acc);
                    acc = dot16(w[n].w, q[12], acc);
                    acc += __shfl_xor_sync(ALL_LANES, acc, 1);
                    acc += __shfl_xor_sync(ALL_LANES, acc, 2);
                    if ((lane & 3) == 0) atomicAdd(&s.acc[second][within / tiles][lane >> 2], acc);
                }
            }
        }
        __syncthreads();
        if (threadIdx.x < count * 8) {
            int piece = first + threadIdx.x / 8, r = threadIdx.x % 8;
            int sum = s.acc[0][threadIdx.x / 8][r] - s.scale.sum;
            if (PAIR) {
                int row = piece * 8 + r;
                if (row < a.rows) {
                    float up = rescaled(b, s.acc[1][threadIdx.x / 8][r] - s.scale.sum, s.scale.scale);
                    out_a[row] = activate(sink, rescaled(a, sum, s.scale.scale), up);
                }
            } else {
                const Matrix& m = piece < end_a ? a : piece < end_b ? b : c;
                float* out = piece < end_a ? out_a : piece < end_b ? out_b : out_c;
                int row = (piece < end_a ? piece : piece < end_b ? piece - end_a : piece - end_b) * 8 + r;
                if (row < m.rows) {
                    float y = rescaled(m, sum, s.scale.scale);
                    out[row] = sink == SINK_ADD ? add(__ldcg(out + row), y) : y;
                }
            }
        }
        __syncthreads();
    }
}

// Asks for what `project` will read.
template <bool PAIR>
DEVICE void prefetch_all(int tiles, const Matrix& a, const Matrix& b, const Matrix& c, int matrices) {
    if (PAIR) {
        int first = first_piece(pieces_of(a), blockIdx.x), last = first_piece(pieces_of(a), blockIdx.x + 1);
        prefetch(a, first, last, tiles);
        prefetch(b, first, last, tiles);
        return;
    }
    int end_a = pieces_of(a), end_b = end_a + (matrices > 1 ? pieces_of(b) : 0);
    int pieces = end_b + (matrices > 2 ? pieces_of(c) : 0);
    int first = first_piece(pieces, blockIdx.x), last = first_piece(pieces, blockIdx.x + 1);
    if (first < end_a) prefetch(a, first, min(last, end_a), tiles);
    if (matrices > 1 && last > end_a && first < end_b) prefetch(b, max(first, end_a) - end_a, min(last, end_b) - end_a, tiles);
    if (matrices > 2 && last > end_b) prefetch(c, max(first, end_b) - end_b, last - end_b, tiles);
}

// `shared` serves projections and attention in turns.
template <class F>
DEVICE void decode(const Decode& d) {
    extern __shared__ int4 shared[];
    ProjectShared& project_shared = *(ProjectShared*)shared;
    AttentionShared& attention_shared = *(AttentionShared*)shared;
    float* vectors = (float*)(&attention_shared + 1);
    u32* counter = (u32*)d.position + 1;
    u32 target = 0;
    int p = *d.position, query_size = d.heads * d.head_dim;
    int hidden_tiles = (d.hidden_size + 255) / 256, query_tiles = (query_size + 255) / 256;
    int wide_tiles = (d.intermediate_size + 255) / 256;
    size_t cache_layer = (size_t)d.kv_heads * d.head_dim * 2 * d.context;
    for (int n = 0; n < d.num_layers; n++) {
        const Layer& l = d.layers[n];
        typename F::Bits* cache = (typename F::Bits*)d.cache + n * cache_layer;

        if (d.prefetch) prefetch_all<false>(query_tiles, l.output, l.output, l.output, 1);
        prepare(project_shared, d.hidden, d.hidden_size, l.attention_norm, d.eps);
        project<false>(project_shared, hidden_tiles, SINK_STORE, l.query, d.query, l.key, d.key, l.value, d.value, 3);
        wait_for_all(counter, target += gridDim.x);

        if (d.prefetch) prefetch_all<true>(hidden_tiles, l.gate, l.up, l.up, 2);
        for (int head = blockIdx.x; head < d.heads; head += gridDim.x) {
            attend<F>(attention_shared, vectors, head, p, d.query, d.key, d.value, cache, d.rotation, l.query_norm,
                      l.key_norm, d.eps, d.heads / d.kv_heads, d.head_dim, d.context, d.c);
            __syncthreads();
        }
        wait_for_all(counter, target += gridDim.x);

        prepare(project_shared, d.query, query_size, l.attention_sub_norm, d.eps);
        project<false>(project_shared, query_tiles, SINK_ADD, l.output, d.hidden, l.output, d.hidden, l.output, d.hidden, 1);
        wait_for_all(counter, target += gridDim.x);

        if (d.prefetch) prefetch_all<false>(wide_tiles, l.down, l.down, l.down, 1);
        prepare(project_shared, d.hidden, d.hidden_size, l.mlp_norm, d.eps);
        project<true>(project_shared, hidden_tiles, d.sink, l.gate, d.intermediate, l.up, d.intermediate, l.up,
                      d.intermediate, 2);
        wait_for_all(counter, target += gridDim.x);

        if (d.prefetch && n + 1 < d.num_layers) {
            const Layer& next = d.layers[n + 1];
            prefetch_all<false>(hidden_tiles, next.query, next.key, next.value, 3);
        }
        prepare(project_shared, d.intermediate, d.intermediate_size, l.mlp_sub_norm, d.eps);
        project<false>(project_shared, wide_tiles, SINK_ADD, l.down, d.hidden, l.down, d.hidden, l.down, d.hidden, 1);
        wait_for_all(counter, target += gridDim.x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_f32(Decode d) { decode<F32>(d); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_f16(Decode d) { decode<F16>(d); }
