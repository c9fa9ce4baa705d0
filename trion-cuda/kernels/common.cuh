// What every kernel shares: the float operations of docs/numerics.md, each rounded once and never fused, and the
// order of sums. A warp's 32 lanes are the contract's lanes.
//
// Nothing is included: NVRTC then needs no headers.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long ptrdiff;

#define DEVICE __device__ __forceinline__
#define ALL_LANES 0xffffffffu

// 1.5 * 2^23: added to a float it leaves the rounded integer in the low bits.
#define ROUND 12582912.0f
#define ROUND_BITS 0x4B400000
#define SMALLEST_SCALE 1e-5f
// Positions that attention sums before it adds them to the total.
#define ATTENTION_BLOCK 64

// A kernel of a card that can (compute capability 9.0) begins while the one before it ends: what does not depend on
// that comes first, and then every kernel waits. Only then may the next one begin, so that what comes first there may
// depend on the kernel before the last.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// For a kernel with nothing to do before.
DEVICE void in_turn() {
    wait_for_previous();
    let_next_begin();
}

// What turns quantised activations back into floats (ActivationScale of trion-core).
struct Scale {
    float scale;
    int sum;
};

// A session: where its cache [layers, heads, 2, context, head_dim] (keys before values, as trion-core's), the cosines
// and sines of every position [context, 2, head_dim / 2] and all its tokens lie, and the position that is computed: of
// a prompt the first.
struct Slot {
    void* cache;
    const float* rotation;
    u32* tokens;
    int context;
    int position;
};

DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float div(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float root(float a) { return __fsqrt_rn(a); }
// A NaN in either argument gives b, and so does a tie: not fmaxf and fminf.
DEVICE float larger(float a, float b) { return a > b ? a : b; }
DEVICE float smaller(float a, float b) { return a < b ? a : b; }
DEVICE float magnitude(float a) { return __uint_as_float(__float_as_uint(a) & 0x7fffffffu); }

DEVICE float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE u16 float_to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE float bf16_to_float(u16 bits) { return __uint_as_float((u32)bits << 16); }

// The sum of a warp's lanes, folded in halves, in every lane: both partners of an exchange add the same two numbers.
DEVICE float fold(float lane) {
#pragma unroll
    for (int half = 16; half > 0; half >>= 1) lane = add(lane, __shfl_xor_sync(ALL_LANES, lane, half));
    return lane;
}

// The sums of N numbers over the lanes, folded in halves; lane l gets that of number l / (32 / N). Each exchange halves
// the numbers that a lane still has to do with.
template <int N, int HALF = 16>
DEVICE float fold_many(float* x, int lane) {
    if constexpr (HALF == 0) {
        return x[0];
    } else if constexpr (N == 1) {
        x[0] = add(x[0], __shfl_xor_sync(ALL_LANES, x[0], HALF));
        return fold_many<1, HALF / 2>(x, lane);
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float mine = lane & HALF ? x[i + N / 2] : x[i], theirs = lane & HALF ? x[i] : x[i + N / 2];
            x[i] = add(mine, __shfl_xor_sync(ALL_LANES, theirs, HALF));
        }
        return fold_many<N / 2, HALF / 2>(x, lane);
    }
}

// The largest of a warp's lanes, folded in halves, in every lane. Where a NaN is about, only lanes below `half` may
// count.
DEVICE float fold_largest(float lane) {
#pragma unroll
    for (int half = 16; half > 0; half >>= 1) lane = larger(lane, __shfl_down_sync(ALL_LANES, lane, half));
    return __shfl_sync(ALL_LANES, lane, 0);
}

// The sum, or the largest, of a warp's integers, in every lane.
DEVICE int fold_integer(int lane) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(ALL_LANES, lane);
#else
#pragma unroll
    for (int half = 16; half > 0; half >>= 1) lane += __shfl_xor_sync(ALL_LANES, lane, half);
    return lane;
#endif
}

DEVICE u32 fold_largest_integer(u32 lane) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, lane);
#else
#pragma unroll
    for (int half = 16; half > 0; half >>= 1) lane = max(lane, __shfl_xor_sync(ALL_LANES, lane, half));
    return lane;
#endif
}

// The integer next to x * s, from -128 to 127.
DEVICE int quantize(float x, float s) {
    float v = add(smaller(larger(mul(x, s), -128.0f), 127.0f), ROUND);
    return __float_as_int(v) - ROUND_BITS;
}

DEVICE float exponential(float x) {
    x = smaller(larger(x, -87.0f), 88.0f);
    float z = add(mul(x, __uint_as_float(0x3FB8AA3B)), ROUND);
    float n = sub(z, ROUND);
    float r = sub(sub(x, mul(n, __uint_as_float(0x3F318000))), mul(n, __uint_as_float(0xB95E8083)));
    float q = __uint_as_float(0x3AB688BE);
    q = add(mul(q, r), __uint_as_float(0x3C0905F1));
    q = add(mul(q, r), __uint_as_float(0x3D2AAA8B));
    q = add(mul(q, r), __uint_as_float(0x3E2AAA6E));
    q = add(mul(q, r), 0.5f);
    float e = add(add(mul(q, mul(r, r)), r), 1.0f);
    return mul(e, __uint_as_float((__float_as_uint(z) + 127u) << 23));
}

// Number formats: how numbers lie in memory, and how the E of 16 bytes become floats.
struct F32 {
    typedef float Bits;
    static const int E = 4;
    static DEVICE float load(const float* from) { return *from; }
    static DEVICE void store(float* to, float value) { *to = value; }
    static DEVICE float get(const uint4& w, int e) {
        return __uint_as_float(e == 0 ? w.x : e == 1 ? w.y : e == 2 ? w.z : w.w);
    }
};
struct F16 {
    typedef u16 Bits;
    static const int E = 8;
    static DEVICE float load(const u16* from) { return half_to_float(*from); }
    static DEVICE void store(u16* to, float value) { *to = float_to_half(value); }
    static DEVICE float get(const uint4& w, int e) {
        u32 word = e < 2 ? w.x : e < 4 ? w.y : e < 6 ? w.z : w.w;
        return half_to_float((u16)(e & 1 ? word >> 16 : word & 0xffffu));
    }
};

// The keys of a layer's head; its values come `context * head_dim` numbers behind them.
template <class F>
DEVICE typename F::Bits* cache_of(const Slot& slot, int layer, int kv_head, int kv_heads, int head_dim) {
    return (typename F::Bits*)slot.cache + ((size_t)layer * kv_heads + kv_head) * 2 * slot.context * head_dim;
}

// 1 / sqrt(mean(x^2) + eps) of a head, by a warp.
DEVICE float head_norm(const float* x, float eps, int head_dim) {
    float squares = 0.0f;
    for (int i = threadIdx.x & 31; i < head_dim; i += 32) squares = add(squares, mul(x[i], x[i]));
    return div(1.0f, root(add(div(fold(squares), (float)head_dim), eps)));
}

// Columns i and i + half of a head through its norm, if any, and rotated.
DEVICE float2 rotate_pair(const float* x, int i, const float* norm, float r, const float* rotation, int half) {
    float a = x[i], b = x[i + half], cosine = rotation[i], sine = rotation[i + half];
    if (norm) {
        a = mul(mul(a, r), norm[i]);
        b = mul(mul(b, r), norm[i + half]);
    }
    return {sub(mul(a, cosine), mul(b, sine)), add(mul(b, cosine), mul(a, sine))};
}

// What happens to an output of a projection.
#define SINK_STORE 0
#define SINK_ADD 1
#define SINK_RELU2 2
#define SINK_SILU 3

// act(gate) * up.
DEVICE float activate(int sink, float gate, float up) {
    if (sink == SINK_RELU2) {
        float positive = larger(gate, 0.0f);
        return mul(mul(positive, positive), up);
    }
    return mul(div(gate, add(1.0f, exponential(sub(0.0f, gate)))), up);
}

DEVICE void put(int sink, float* out, float y) {
    if (sink == SINK_STORE) {
        *out = y;
    } else if (sink == SINK_ADD) {
        *out = add(*out, y);
    } else {
        *out = activate(sink, *out, y);
    }
}

// Ternary weights on the device: 8 rows by 256 columns are 512 bytes, 16 for each lane of a warp. Lane 4 r + c holds
// row r; word j of its four holds columns 64 j + 16 c to 64 j + 16 c + 15, in trion-core's order: byte e has columns
// e, 4 + e, 8 + e and 12 + e, low bits first. `tiles` is the number of such pieces in a row.
DEVICE size_t trit_word(int row, int block, int tiles) {
    size_t piece = (size_t)(row >> 3) * tiles + (block >> 4);
    return (piece * 32 + (row & 7) * 4 + (block & 3)) * 4 + ((block >> 2) & 3);
}

// acc + sum of (trit + 1) * q over 16 columns.
DEVICE int dot16(u32 word, int4 q, int acc) {
    acc = __dp4a((int)(word & 0x03030303u), q.x, acc);
    acc = __dp4a((int)((word >> 2) & 0x03030303u), q.y, acc);
    acc = __dp4a((int)((word >> 4) & 0x03030303u), q.z, acc);
    acc = __dp4a((int)((word >> 6) & 0x03030303u), q.w, acc);
    return acc;
}

// acc + sum of four products of unsigned and signed bytes.
DEVICE int dp4a_unsigned(u32 weights, int q, int acc) {
    int sum;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(weights), "r"(q), "r"(acc));
    return sum;
}

// Float matrices on the device: a row is cut into chunks of 512 bytes, in which each lane's elements are contiguous.
// With E elements of 16 bytes to a lane, element e of lane l is column 32 e + l of the chunk. Int8 is stored with the
// top bit flipped.
template <int E>
DEVICE size_t float_index(int row, int col, int chunks) {
    int within = col % (32 * E);
    return ((size_t)row * chunks + col / (32 * E)) * (32 * E) + (within % 32) * E + within / 32;
}

#define KIND_F32 0
#define KIND_F16 1
#define KIND_BF16 2
#define KIND_I8 3
#define KIND_MULTIPLY 4
#define KIND_DIVIDE 5
#define KIND_GROUPS 6
