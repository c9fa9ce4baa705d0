// What all kernels share. Sizes of the model are macros, which `src/cuda/kernels.rs` defines before this text: HIDDEN, WIDE,
// HEADS, KV_HEADS, HEAD_DIM, VOCAB, NORM_EPS and SILU.
//
// A row of a matrix belongs to a warp: lane `l` has the columns 128 k + 4 l to 128 k + 4 l + 3 of it, in registers.

typedef unsigned short bf16;

#define WARPS 4
#define INFINITY __int_as_float(0x7f800000)
#define QUERY_SIZE (HEADS * HEAD_DIM)
#define QKV (QUERY_SIZE + 2 * KV_HEADS * HEAD_DIM)
#define CHUNKS(cols) (((cols) + 127) / 128)

struct Four {
    float x[4];
};

__device__ float widen(bf16 value) {
    return __uint_as_float((unsigned)value << 16);
}

// Two numbers rounded to bfloat16, the first in the lower half.
__device__ unsigned pack(float low, float high) {
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ bf16 narrow(float value) {
    return (bf16)pack(value, 0.0f);
}

__device__ Four load(const float* from) {
    float4 v = *(const float4*)from;
    return {v.x, v.y, v.z, v.w};
}

__device__ Four load(const bf16* from) {
    uint2 v = *(const uint2*)from;
    return {__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
            __uint_as_float(v.y & 0xffff0000u)};
}

__device__ void store(float* to, const float (&x)[4]) {
    *(float4*)to = make_float4(x[0], x[1], x[2], x[3]);
}

__device__ void store(bf16* to, const float (&x)[4]) {
    *(uint2*)to = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
}

// The sum over a warp, in every lane.
__device__ float sum(float value) {
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, step);
    }
    return value;
}

// The largest over a warp, in every lane.
__device__ float largest(float value) {
    for (int step = 16; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    }
    return value;
}

// The sum over a block of threads, in every thread, added up in the same order each time.
__device__ float block_sum(float value) {
    __shared__ float sums[32];
    value = sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
        total += sums[warp];
    }
    return total;
}

// What quantisation makes of a number that was multiplied by its scale: as far rounded as `lambda` says.
__device__ float quantized(float scaled, float least, float most, float lambda) {
    float rounded = fminf(fmaxf(rintf(scaled), least), most);
    return lambda < 1.0f ? lambda * rounded + (1.0f - lambda) * scaled : rounded;
}
