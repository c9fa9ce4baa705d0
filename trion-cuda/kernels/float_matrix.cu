// Products of float matrices, the head above all: every row a dot product in the contract's lanes. A warp makes 4 rows.
#include "common.cuh"

// More number formats, of weights alone.
struct Bf16 {
    static const int E = 8;
    static DEVICE float get(const uint4& w, int e) {
        u32 word = e < 2 ? w.x : e < 4 ? w.y : e < 6 ? w.z : w.w;
        return __uint_as_float(e & 1 ? word & 0xffff0000u : word << 16);
    }
};
struct I8 {
    static const int E = 16;
    static DEVICE float get(const uint4& w, int e) {
        u32 word = e < 4 ? w.x : e < 8 ? w.y : e < 12 ? w.z : w.w;
        // The byte, which is the number plus 128, under the exponent of 2^23: faster than a conversion, and as exact.
        return sub(__uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 + (e & 3))), 8388736.0f);
    }
};

// Rows of a warp, and of a block of threads.
#define ROWS 4
#define THREADS 256
#define BLOCK_ROWS (THREADS / 32 * ROWS)

// The weights of a warp's rows in a chunk of columns. A row beyond the matrix repeats the last one, and is left out in
// the end.
DEVICE void load_rows(const uint4* weights, int first, int rows, int chunks, int chunk, uint4 (&w)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        w[r] = __ldcs(weights + ((size_t)min(first + r, rows - 1) * chunks + chunk) * 32 + (threadIdx.x & 31));
    }
}

// One token. Grid: 1, pieces of 32 rows.
template <class W>
DEVICE void product(const uint4* weights, const float* row_scales, const float* x, float* out, int rows, int cols,
                    int sink) {
    in_turn();
    int lane = threadIdx.x & 31, first = blockIdx.y * BLOCK_ROWS + (threadIdx.x >> 5) * ROWS;
    if (first >= rows) return;
    const int width = 32 * W::E;
    int chunks = (cols + width - 1) / width;
    float acc[ROWS] = {};
#pragma unroll 2
    for (int i = 0; i < chunks; i++) {
        uint4 w[ROWS];
        load_rows(weights, first, rows, chunks, i, w);
#pragma unroll
        for (int e = 0; e < W::E; e++) {
            int col = i * width + e * 32 + lane;
            // Beyond the tail both sides are zero.
            float xe = col < cols ? x[col] : 0.0f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) acc[r] = add(acc[r], mul(W::get(w[r], e), xe));
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float y = fold(acc[r]);
        int row = first + r;
        if (row < rows && lane == 0) put(sink, out + row, row_scales ? mul(y, row_scales[row]) : y);
    }
}

// T tokens, a multiple of 4; `x` is `[tokens, x_stride]`, of which a chunk of columns at a time lies in shared memory.
// Grid: pieces of T tokens, which find the weights in a cache, pieces of 32 rows.
template <class W, int T>
DEVICE void products(const uint4* weights, const float* row_scales, const float* x, int x_stride, float* out, int rows,
                     int cols, int sink, int tokens) {
    const int width = 32 * W::E;
    __shared__ float4 shared_x[width][T / 4];
    int lane = threadIdx.x & 31, first = blockIdx.y * BLOCK_ROWS + (threadIdx.x >> 5) * ROWS, token = blockIdx.x * T;
    int chunks = (cols + width - 1) / width;
    uint4 next[ROWS];
    load_rows(weights, first, rows, chunks, 0, next);
    in_turn();
    float acc[T * ROWS] = {};
    for (int i = 0; i < chunks; i++) {
        __syncthreads();
        for (int k = threadIdx.x; k < width * (T / 4); k += THREADS) {
            int col = i * width + k % width, t = token + k / width * 4;
            float four[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                four[j] = col < cols && t + j < tokens ? x[(size_t)(t + j) * x_stride + col] : 0.0f;
            }
            shared_x[k % width][k / width] = {four[0], four[1], four[2], four[3]};
        }
        __syncthreads();
        uint4 w[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[r] = next[r];
        if (i + 1 < chunks) load_rows(weights, first, rows, chunks, i + 1, next);
#pragma unroll
        for (int e = 0; e < W::E; e++) {
            float numbers[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) numbers[r] = W::get(w[r], e);
#pragma unroll
            for (int t = 0; t < T; t += 4) {
                float4 four = shared_x[e * 32 + lane][t / 4];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    acc[t * ROWS + r] = add(acc[t * ROWS + r], mul(numbers[r], four.x));
                    acc[(t + 1) * ROWS + r] = add(acc[(t + 1) * ROWS + r], mul(numbers[r], four.y));
                    acc[(t + 2) * ROWS + r] = add(acc[(t + 2) * ROWS + r], mul(numbers[r], four.z));
                    acc[(t + 3) * ROWS + r] = add(acc[(t + 3) * ROWS + r], mul(numbers[r], four.w));
                }
            }
        }
    }
    // Number t * ROWS + r goes to a lane, or to some, of which the first finishes it.
    const int lanes = 32 / (T * ROWS);
    float y = fold_many<T * ROWS>(acc, lane);
    int row = first + lane / lanes % ROWS, t = token + lane / lanes / ROWS;
    if (lane % lanes != 0 || row >= rows || t >= tokens) return;
    put(sink, out + (size_t)t * rows + row, row_scales ? mul(y, row_scales[row]) : y);
}

#define PRODUCT(name, W)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    name(const uint4* weights, const float* row_scales, const float* x, int x_stride, float* out, int rows, int cols,  \
         int sink, int tokens) {                                                                                       \
        product<W>(weights, row_scales, x, out, rows, cols, sink);                                                     \
    }
#define PRODUCTS(name, W, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    name(const uint4* weights, const float* row_scales, const float* x, int x_stride, float* out, int rows, int cols,  \
         int sink, int tokens) {                                                                                       \
        products<W, T>(weights, row_scales, x, x_stride, out, rows, cols, sink, tokens);                               \
    }

PRODUCT(float_product_f32, F32)
PRODUCTS(float_product_f32_4, F32, 4)
PRODUCTS(float_product_f32_8, F32, 8)
PRODUCT(float_product_f16, F16)
PRODUCTS(float_product_f16_4, F16, 4)
PRODUCTS(float_product_f16_8, F16, 8)
PRODUCT(float_product_bf16, Bf16)
PRODUCTS(float_product_bf16_4, Bf16, 4)
PRODUCTS(float_product_bf16_8, Bf16, 8)
PRODUCT(float_product_i8, I8)
PRODUCTS(float_product_i8_4, I8, 4)
PRODUCTS(float_product_i8_8, I8, 8)
