// Products of float matrices, the head above all: every row a dot product in the contract's lanes.
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

#define ROWS 4

// A warp makes 4 rows for T tokens. `x` is `[tokens, x_stride]`. Grid: pieces of T tokens, which find the weights in a
// cache, pieces of 32 rows.
template <class W, int T>
DEVICE void product(const uint4* weights, const float* row_scales, const float* x, int x_stride, float* out,
                    int rows, int cols,
                    int sink, int tokens) {
    in_turn();
    int lane = threadIdx.x & 31, first = (blockIdx.y * 8 + (threadIdx.x >> 5)) * ROWS, token = blockIdx.x * T;
    if (first >= rows) return;
    const int width = 32 * W::E;
    int chunks = (cols + width - 1) / width;
    float acc[ROWS][T] = {};
    const uint4* from[ROWS];
#pragma unroll
    // A row beyond the matrix repeats the last one, and is left out below.
    for (int r = 0; r < ROWS; r++) from[r] = weights + (size_t)min(first + r, rows - 1) * chunks * 32 + lane;
#pragma unroll(T == 1 ? 2 : 1)
    for (int i = 0; i < chunks; i++) {
        uint4 w[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[r] = __ldg(from[r] + i * 32);
#pragma unroll
        for (int e = 0; e < W::E; e++) {
            int col = i * width + e * 32 + lane;
#pragma unroll
            for (int t = 0; t < T; t++) {
                // Beyond the tail both sides are zero.
                float xt = col < cols && token + t < tokens ? x[(size_t)(token + t) * x_stride + col] : 0.0f;
#pragma unroll
                for (int r = 0; r < ROWS; r++) acc[r][t] = add(acc[r][t], mul(W::get(w[r], e), xt));
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int t = 0; t < T; t++) {
            float y = fold(acc[r][t]);
            if (lane == 0 && first + r < rows && token + t < tokens) {
                if (row_scales) y = mul(y, row_scales[first + r]);
                put(sink, out + (size_t)(token + t) * rows + first + r, y);
            }
        }
    }
}

#define PRODUCT(name, W, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
    name(const uint4* weights, const float* row_scales, const float* x, int x_stride, float* out, int rows, int cols,  \
         int sink, int tokens) {                                                                                       \
        product<W, T>(weights, row_scales, x, x_stride, out, rows, cols, sink, tokens);                                \
    }

PRODUCT(float_product_f32, F32, 1)
PRODUCT(float_product_f32_4, F32, 4)
PRODUCT(float_product_f32_8, F32, 8)
PRODUCT(float_product_f16, F16, 1)
PRODUCT(float_product_f16_4, F16, 4)
PRODUCT(float_product_f16_8, F16, 8)
PRODUCT(float_product_bf16, Bf16, 1)
PRODUCT(float_product_bf16_4, Bf16, 4)
PRODUCT(float_product_bf16_8, Bf16, 8)
PRODUCT(float_product_i8, I8, 1)
PRODUCT(float_product_i8_4, I8, 4)
PRODUCT(float_product_i8_8, I8, 8)
