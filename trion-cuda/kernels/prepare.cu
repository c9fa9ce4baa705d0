// Before a projection: RMSNorm, and quantisation of activations.
#include "common.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)

// x = (x * r) * weight, r = 1 / sqrt(mean(x^2) + eps). One warp makes the sum, in the contract's order; all threads the rest.
DEVICE void rms_norm(float* x, int cols, const float* weight, float eps, float* shared_r) {
    if (threadIdx.x < 32) {
        float squares = 0.0f;
#pragma unroll 8
        for (int i = threadIdx.x; i < cols; i += 32) squares = add(squares, mul(x[i], x[i]));
        squares = fold(squares);
        if (threadIdx.x == 0) *shared_r = div(1.0f, root(add(div(squares, (float)cols), eps)));
    }
    __syncthreads();
    float r = *shared_r;
    for (int i = threadIdx.x; i < cols; i += THREADS) x[i] = mul(mul(x[i], r), weight[i]);
    __syncthreads();
}

DEVICE int quantize(float x, float s) {
    float v = add(smaller(larger(mul(x, s), -128.0f), 127.0f), ROUND);
    return __float_as_int(v) - ROUND_BITS;
}

// For each token (a block of threads): row `skip + token` of `source` through up to two norms, to `input`, and quantised
// over spans of `span` columns (none if 0) to `quantized`, with zeros up to `q_cols`. `in_shared` says that a row fits in
// shared memory; otherwise the row of `input` serves.
extern "C" __global__ void __launch_bounds__(THREADS)
prepare(const float* source, int skip, int cols, const float* norm, float eps, const float* own_norm, float own_eps,
        float* input, int input_stride, i8* quantized, int q_stride, int q_cols, Scale* scales, int scales_stride, int span,
        int in_shared) {
    extern __shared__ float row[];
    __shared__ float shared_r;
    __shared__ float lanes[WARPS][32];
    __shared__ int sums[WARPS];
    int t = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float* out = input + (size_t)t * input_stride;
    float* x = in_shared ? row : out;
    source += (size_t)(skip + t) * cols;
    for (int i = threadIdx.x; i < cols; i += THREADS) x[i] = source[i];
    __syncthreads();
    if (norm) rms_norm(x, cols, norm, eps, &shared_r);
    if (own_norm) rms_norm(x, cols, own_norm, own_eps, &shared_r);
    if (span == 0) {
        if (in_shared) {
            for (int i = threadIdx.x; i < cols; i += THREADS) out[i] = x[i];
        }
        return;
    }
    i8* q = quantized + (size_t)t * q_stride;
    scales += (size_t)t * scales_stride;
    for (int i = cols + threadIdx.x; i < q_cols; i += THREADS) q[i] = 0;

    if (span < cols) {
        // A warp for each group.
        for (int j = warp; j * span < cols; j += WARPS) {
            int from = j * span, n = min(span, cols - from), whole = n / 32 * 32;
            float acc = lane < n - whole ? magnitude(x[from + whole + lane]) : 0.0f;
            for (int i = lane; i < whole; i += 32) acc = larger(magnitude(x[from + i]), acc);
            float s = div(127.0f, larger(fold_largest(acc), SMALLEST_SCALE));
            int sum = 0;
            for (int i = lane; i < n; i += 32) {
                int value = quantize(x[from + i], s);
                q[from + i] = (i8)value;
                sum += value;
            }
            sum = fold_integer(sum);
            if (lane == 0) scales[j] = {s, sum};
        }
        return;
    }

    int whole = cols / 32 * 32;
    float acc = 0.0f;
    for (int i = threadIdx.x; i < whole; i += THREADS) acc = larger(magnitude(x[i]), acc);
    lanes[warp][lane] = acc;
    __syncthreads();
    if (warp == 0) {
        acc = lane < cols - whole ? magnitude(x[whole + lane]) : 0.0f;
        for (int w = 0; w < WARPS; w++) acc = larger(lanes[w][lane], acc);
        acc = div(127.0f, larger(fold_largest(acc), SMALLEST_SCALE));
        if (lane == 0) shared_r = acc;
    }
    __syncthreads();
    float s = shared_r;
    int sum = 0;
    for (int i = 4 * threadIdx.x; i < cols; i += 4 * THREADS) {
        if (i + 4 <= cols) {
            int a = quantize(x[i], s), b = quantize(x[i + 1], s), c = quantize(x[i + 2], s), d = quantize(x[i + 3], s);
            *(char4*)(q + i) = make_char4((i8)a, (i8)b, (i8)c, (i8)d);
            sum += a + b + c + d;
        } else {
            for (int k = i; k < cols; k++) {
                int value = quantize(x[k], s);
                q[k] = (i8)value;
                sum += value;
            }
        }
    }
    sum = fold_integer(sum);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < WARPS; w++) sum += sums[w];
        scales[0] = {s, sum};
    }
}
