// Before a projection: RMSNorm, and quantisation of activations.
#include "common.cuh"

#define THREADS 512
#define WARPS (THREADS / 32)

// x = (x * r) * weight, r = 1 / sqrt(mean(x^2) + eps). One warp makes the sum, in the contract's order; all threads
// the rest.
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

// What `prepare` does for a row of at most R * 512 columns with one span: each thread keeps R of them in registers.
template <int R>
DEVICE void prepare_row(const float* source, int skip, int cols, const float* norm, float eps, const float* own_norm,
                        float own_eps, i8* quantized, int q_stride, int q_cols, Scale* scales, int scales_stride) {
    in_turn();
    __shared__ float squares[R * THREADS];
    __shared__ float lanes[WARPS][32];
    __shared__ float shared_r;
    __shared__ int sums[WARPS];
    int t = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    source += (size_t)(skip + t) * cols;
    float x[R], w[R];
#pragma unroll
    for (int i = 0; i < R; i++) {
        int col = i * THREADS + threadIdx.x;
        x[i] = col < cols ? source[col] : 0.0f;
        w[i] = norm && col < cols ? norm[col] : 0.0f;
    }
    for (int n = 0; n < 2; n++) {
        if (n == 1 ? own_norm != nullptr : norm != nullptr) {
            if (n == 1) {
#pragma unroll
                for (int i = 0; i < R; i++) {
                    int col = i * THREADS + threadIdx.x;
                    w[i] = col < cols ? own_norm[col] : 0.0f;
                }
            }
#pragma unroll
            for (int i = 0; i < R; i++) squares[i * THREADS + threadIdx.x] = mul(x[i], x[i]);
            __syncthreads();
            if (warp == 0) {
                // Beyond the row there are zeros, which change nothing.
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < R * WARPS; i++) sum = add(sum, squares[i * 32 + lane]);
                sum = fold(sum);
                if (lane == 0) shared_r = div(1.0f, root(add(div(sum, (float)cols), n == 1 ? own_eps : eps)));
            }
            __syncthreads();
            float r = shared_r;
#pragma unroll
            for (int i = 0; i < R; i++) x[i] = mul(mul(x[i], r), w[i]);
        }
    }

    // The tail of the row counts first; the columns of a warp's lane are those of the contract's lane.
    int whole = cols / 32 * 32;
    float acc = 0.0f, tail = 0.0f;
    bool has_tail = false;
#pragma unroll
    for (int i = 0; i < R; i++) {
        int col = i * THREADS + threadIdx.x;
        if (col < whole) {
            acc = larger(magnitude(x[i]), acc);
        } else if (col < cols) {
            tail = magnitude(x[i]);
            has_tail = true;
        }
    }
    lanes[warp][lane] = acc;
    __syncthreads();
    if (has_tail) squares[lane] = tail;
    if (warp == 0 && lane >= cols - whole) squares[lane] = 0.0f;
    __syncthreads();
    if (warp == 0) {
        acc = squares[lane];
#pragma unroll
        for (int i = 0; i < WARPS; i++) acc = larger(lanes[i][lane], acc);
        acc = div(127.0f, larger(fold_largest(acc), SMALLEST_SCALE));
        if (lane == 0) shared_r = acc;
    }
    __syncthreads();
    float s = shared_r;
    int sum = 0;
    i8* q = quantized + (size_t)t * q_stride;
#pragma unroll
    for (int i = 0; i < R; i++) {
        int col = i * THREADS + threadIdx.x;
        int value = col < cols ? quantize(x[i], s) : 0;
        if (col < q_cols) q[col] = (i8)value;
        sum += value;
    }
    sum = fold_integer(sum);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 1; i < WARPS; i++) sum += sums[i];
        scales[(size_t)t * scales_stride] = {s, sum};
    }
}

#define PREPARE_ROW(R)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    prepare_row_##R(const float* source, int skip, int cols, const float* norm, float eps, const float* own_norm,      \
                    float own_eps, i8* quantized, int q_stride, int q_cols, Scale* scales, int scales_stride) {        \
        prepare_row<R>(source, skip, cols, norm, eps, own_norm, own_eps, quantized, q_stride, q_cols, scales,          \
                       scales_stride);                                                                                 \
    }

PREPARE_ROW(2)
PREPARE_ROW(5)
PREPARE_ROW(8)
PREPARE_ROW(14)
PREPARE_ROW(20)

// For each token (a block of threads): row `skip + token` of `source` through up to two norms, to `input`, and
// quantised over spans of `span` columns (none if 0) to `quantized`, with zeros up to `q_cols`. `in_shared` says that
// a row fits in shared memory; otherwise the row of `input` serves.
extern "C" __global__ void __launch_bounds__(THREADS)
prepare(const float* source, int skip, int cols, const float* norm, float eps, const float* own_norm, float own_eps,
        float* input, int input_stride, i8* quantized, int q_stride, int q_cols, Scale* scales, int scales_stride,
        int span,
        int in_shared) {
    in_turn();
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
