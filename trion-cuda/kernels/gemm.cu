// Products of ternary matrices with many tokens.
#include "common.cuh"

// Tiles of 64 rows by 64 tokens; each of 128 threads makes 8 rows by 4 tokens.
#define ROWS 64
#define TOKENS 64
#define THREADS 128

// Grid: pieces of 64 tokens, pieces of 64 rows. 64 columns at a time lie in shared memory, as bytes, in two buffers
// that take turns.
extern "C" __global__ void __launch_bounds__(THREADS)
ternary_gemm(const uint4* weights, float* out, float scale, int divide, int rows, int sink, const int4* q, int q_stride,
             const Scale* scales, int scales_stride, int tiles, int tokens) {
    in_turn();
    __shared__ int4 w_shared[2][4][ROWS];
    __shared__ int4 q_shared[2][4][TOKENS];
    int first_token = blockIdx.x * TOKENS, first_row = blockIdx.y * ROWS;
    int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    int acc[8][4] = {};

    // What this thread brings: two words of four of the weights, for 256 columns, and two pieces of 16 activations at
    // a time. Pieces of 8 rows beyond the matrix are never read, and rows beyond it hold the trit 0 or are left out
    // below.
    uint4 w[2];
    int4 activations[2];
    int pieces = (rows + 7) / 8;
    auto bring_weights = [&](int tile) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int piece = first_row / 8 + (threadIdx.x / 32) + 4 * i;
            w[i] = piece < pieces ? __ldg(weights + ((size_t)piece * tiles + tile) * 32 + threadIdx.x % 32) : uint4{};
        }
    };
    auto bring_activations = [&](int step) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            // Four neighbours read 64 bytes of a token.
            int token = first_token + threadIdx.x / 4 + 32 * i;
            activations[i] = token < tokens ? __ldg(q + (size_t)token * q_stride + step * 4 + threadIdx.x % 4) : int4{};
        }
    };
    bring_weights(0);
    bring_activations(0);
    int steps = tiles * 4;
    for (int step = 0; step < steps; step++) {
        int buffer = step & 1, j = step & 3;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 word = j == 0 ? w[i].x : j == 1 ? w[i].y : j == 2 ? w[i].z : w[i].w;
            int row = (threadIdx.x / 32 + 4 * i) * 8 + threadIdx.x % 32 / 4;
            w_shared[buffer][threadIdx.x % 4][row] =
                make_int4((int)(word & 0x03030303u), (int)((word >> 2) & 0x03030303u), (int)((word >> 4) & 0x03030303u),
                          (int)((word >> 6) & 0x03030303u));
            q_shared[buffer][threadIdx.x % 4][threadIdx.x / 4 + 32 * i] = activations[i];
        }
        __syncthreads();
        if (step + 1 < steps) {
            bring_activations(step + 1);
            if (j == 3) bring_weights((step + 1) / 4);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int4 b[4];
#pragma unroll
            for (int t = 0; t < 4; t++) b[t] = q_shared[buffer][k][ty + 16 * t];
#pragma unroll
            for (int r = 0; r < 8; r++) {
                int4 a = w_shared[buffer][k][tx + 8 * r];
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    acc[r][t] = __dp4a(a.x, b[t].x, acc[r][t]);
                    acc[r][t] = __dp4a(a.y, b[t].y, acc[r][t]);
                    acc[r][t] = __dp4a(a.z, b[t].z, acc[r][t]);
                    acc[r][t] = __dp4a(a.w, b[t].w, acc[r][t]);
                }
            }
        }
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
        int token = first_token + ty + 16 * t;
        if (token >= tokens) continue;
        Scale s = scales[(size_t)token * scales_stride];
#pragma unroll
        for (int r = 0; r < 8; r++) {
            int row = first_row + tx + 8 * r;
            if (row >= rows) continue;
            float sum = (float)(acc[r][t] - s.sum);
            float y = divide ? div(sum, mul(scale, s.scale)) : mul(div(sum, s.scale), scale);
            put(sink, out + (size_t)token * rows + row, y);
        }
    }
}
