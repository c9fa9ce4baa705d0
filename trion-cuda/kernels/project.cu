// A projection of one token whole: norms, quantisation, and the products with all matrices that share the input. What
// a token waits for is the way through many small kernels, so that these are one, and the weights are on their way
// while the input is prepared.
//
// The row has a multiple of 32 columns, at most 32 pieces of 256, and one span.
#include "jobs.cuh"

// Groups of warps in a block, at most.
#define GROUPS 16
// Four columns of a thread, twice, cover 32 pieces.
#define QUADS 2

struct Norm {
    const float* weight;
    float eps;
};

DEVICE float largest_of(float4 x, float largest) {
    largest = larger(magnitude(x.x), largest);
    largest = larger(magnitude(x.y), largest);
    largest = larger(magnitude(x.z), largest);
    return larger(magnitude(x.w), largest);
}

// The four numbers as bytes, and their sum added to `sum`.
DEVICE u32 quantize_four(float4 x, float s, int& sum) {
    int a = quantize(x.x, s), b = quantize(x.y, s), c = quantize(x.z, s), d = quantize(x.w, s);
    sum += a + b + c + d;
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (u32)d << 24;
}

// The squares of every 32nd number up to `cols`, summed in order. The next numbers are on their way meanwhile.
DEVICE float sum_of_squares(const float* x, int cols) {
    const int many = 8, step = 32 * many;
    float sum = 0.0f, now[many], next[many];
    int i = 0;
    if (cols >= step) {
#pragma unroll
        for (int n = 0; n < many; n++) now[n] = x[32 * n];
        for (i = step; i + step <= cols; i += step) {
#pragma unroll
            for (int n = 0; n < many; n++) next[n] = x[i + 32 * n];
#pragma unroll
            for (int n = 0; n < many; n++) sum = add(sum, mul(now[n], now[n]));
#pragma unroll
            for (int n = 0; n < many; n++) now[n] = next[n];
        }
#pragma unroll
        for (int n = 0; n < many; n++) sum = add(sum, mul(now[n], now[n]));
    }
    for (; i < cols; i += 32) sum = add(sum, mul(x[i], x[i]));
    return sum;
}

// The input's columns in shared memory, quantised, zeros behind them; gives scale and sum. All threads of the block.
DEVICE Scale prepare_row(const float* source, int cols, Norm norm, Norm own, float* row, u32* quantized, int quads) {
    __shared__ float shared_r;
    __shared__ u32 largest[32];
    __shared__ int shared_sum;
    int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y, thread = warp * 32 + lane;
    float4 x[QUADS], w[QUADS];
    const float4 zeros = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int quad = i * warps * 32 + thread;
        w[i] = norm.weight && quad * 4 < cols ? __ldg((const float4*)norm.weight + quad) : zeros;
    }
    in_turn();
    if (thread == 0) shared_sum = 0;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int quad = i * warps * 32 + thread;
        x[i] = quad * 4 < cols ? ((const float4*)source)[quad] : zeros;
    }
    for (int n = 0; n < 2; n++) {
        if (!(n ? own.weight : norm.weight)) continue;
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            int quad = i * warps * 32 + thread;
            if (quad * 4 < cols) {
                ((float4*)row)[quad] = x[i];
                if (n) w[i] = ((const float4*)own.weight)[quad];
            }
        }
        __syncthreads();
        if (warp == 0) {
            float squares = fold(sum_of_squares(row + lane, cols));
            float eps = n ? own.eps : norm.eps;
            if (lane == 0) shared_r = div(1.0f, root(add(div(squares, (float)cols), eps)));
        }
        __syncthreads();
        float r = shared_r;
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            x[i].x = mul(mul(x[i].x, r), w[i].x);
            x[i].y = mul(mul(x[i].y, r), w[i].y);
            x[i].z = mul(mul(x[i].z, r), w[i].z);
            x[i].w = mul(mul(x[i].w, r), w[i].w);
        }
    }
    // A NaN never counts, as in whole rows of 32 columns of the contract, so that any order gives the same; magnitudes
    // are ordered as their bits are.
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < QUADS; i++) most = largest_of(x[i], most);
    u32 bits = fold_largest_integer(__float_as_uint(most));
    if (lane == 0) largest[warp] = bits;
    __syncthreads();
    most = __uint_as_float(fold_largest_integer(lane < warps ? largest[lane] : 0));
    float s = div(127.0f, larger(most, SMALLEST_SCALE));
    int sum = 0;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int quad = i * warps * 32 + thread;
        if (quad < quads) quantized[quad] = quantize_four(x[i], s, sum);
    }
    sum = fold_integer(sum);
    if (lane == 0) atomicAdd(&shared_sum, sum);
    __syncthreads();
    return {s, shared_sum};
}

// acc + sum of (trit + 1) * q over 64 columns. Trits stay where they are in their byte, so that some sums are 4, 16 or
// 64 times too large, until the end.
DEVICE int dot64(const uint4& w, const int4 (&q)[4]) {
    int sum[4] = {};
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        sum[0] = dp4a_unsigned(words[j] & 0x03030303u, q[j].x, sum[0]);
        sum[1] = dp4a_unsigned(words[j] & 0x0c0c0c0cu, q[j].y, sum[1]);
        sum[2] = dp4a_unsigned(words[j] & 0x30303030u, q[j].z, sum[2]);
        sum[3] = dp4a_unsigned(words[j] & 0xc0c0c0c0u, q[j].w, sum[3]);
    }
    return sum[0] + (sum[1] >> 2) + (sum[2] >> 4) + (sum[3] >> 6);
}

// `groups` groups of warps, each of which makes 8 rows at a time; its warps, one for each of `tiles` pieces of 256
// columns, share the columns. DEPTH pieces of 8 rows of a group are on their way at once. `count` pieces are there in
// all matrices. With PAIR the first two matrices are gate and up, of which act(gate) * up is stored.
template <int DEPTH, bool PAIR>
DEVICE void project(const Jobs& jobs, int count, const float* source, int cols, Norm norm, Norm own, int tiles,
                    int groups) {
    extern __shared__ float row[];
    __shared__ int sums[GROUPS * DEPTH * 8 * (PAIR ? 2 : 1)];
    int lane = threadIdx.x, warp = threadIdx.y, thread = warp * 32 + lane, threads = blockDim.y * 32;
    int tile = warp % tiles, group = warp / tiles;
    int stride = gridDim.x * groups, first = blockIdx.x * groups;
    u32* quantized = (u32*)(row + cols);

    uint4 w[DEPTH], other[PAIR ? DEPTH : 1];
    auto load = [&](int k, int piece) {
        if (piece >= count) return;
        if (PAIR) other[k] = __ldcs(jobs.job[1].weights + ((size_t)piece * tiles + tile) * 32 + lane);
        const uint4* weights = PAIR ? jobs.job[0].weights : job_of(jobs, piece).weights;
        w[k] = __ldcs(weights + ((size_t)piece * tiles + tile) * 32 + lane);
    };
#pragma unroll
    for (int k = 0; k < DEPTH; k++) load(k, first + group + k * stride);
    const int most = groups * DEPTH * 8, all = PAIR ? 2 * most : most;
    for (int i = thread; i < all; i += threads) sums[i] = 0;

    Scale scale = prepare_row(source, cols, norm, own, row, quantized, tiles * 64);
    int4 q[4];
#pragma unroll
    for (int j = 0; j < 4; j++) q[j] = ((const int4*)quantized)[tile * 16 + j * 4 + (lane & 3)];

    for (; first < count; first += DEPTH * stride) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            int piece = first + group + k * stride;
            if (piece < count) {
                int acc = dot64(w[k], q), up = PAIR ? dot64(other[k], q) : 0;
                load(k, piece + DEPTH * stride);
                acc += __shfl_xor_sync(ALL_LANES, acc, 1);
                acc += __shfl_xor_sync(ALL_LANES, acc, 2);
                int at = (group * DEPTH + k) * 8 + (lane >> 2);
                if (PAIR) {
                    up += __shfl_xor_sync(ALL_LANES, up, 1);
                    up += __shfl_xor_sync(ALL_LANES, up, 2);
                }
                if ((lane & 3) == 0) {
                    atomicAdd(sums + at, acc);
                    if (PAIR) atomicAdd(sums + most + at, up);
                }
            }
        }
        // A thread for each output. What it is added to is on its way while the others finish.
        int piece = first + thread / (DEPTH * 8) + thread / 8 % DEPTH * stride;
        bool makes = thread < most && piece < count;
        Job job;
        float* out;
        float old = 0.0f;
        if (makes) {
            job = PAIR ? jobs.job[0] : job_of(jobs, piece);
            int at = piece * 8 + thread % 8;
            makes = at < job.rows;
            out = job.out + at;
            if (makes && job.sink == SINK_ADD) old = *out;
        }
        __syncthreads();
        if (makes) {
            float y = rescale(job, sums[thread] - scale.sum, scale.scale);
            if (PAIR) y = activate(job.sink, y, rescale(jobs.job[1], sums[most + thread] - scale.sum, scale.scale));
            *out = job.sink == SINK_ADD ? add(old, y) : y;
        }
        if (first + DEPTH * stride < count) {
            if (thread < most) sums[thread] = sums[all - most + thread] = 0;
            __syncthreads();
        }
    }
}

#define PROJECT(name, THREADS, DEPTH, PAIR)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    name(Jobs jobs, int count, const float* source, int cols, const float* norm, float eps, const float* own_norm,     \
         float own_eps, int tiles, int groups) {                                                                       \
        project<DEPTH, PAIR>(jobs, count, source, cols, {norm, eps}, {own_norm, own_eps}, tiles, groups);              \
    }

PROJECT(project_rows, 640, 4, false)
PROJECT(project_pair, 640, 4, true)
PROJECT(project_rows_wide, 1024, 3, false)
PROJECT(project_pair_wide, 1024, 2, true)
