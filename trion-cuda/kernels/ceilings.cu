// What a card can do at most, for src/measure.rs. Every kernel is one long chain, or one long row of products.
#include "common.cuh"

// A number goes on by one: the smallest kernel that waits for the one before it.
extern "C" __global__ void touch(u32* at) {
    in_turn();
    *at += 1;
}

// Reads of one word of a line of 128 bytes, one of `lines` (a power of two) in no order. All words are 0, which only
// the read says: the address of each depends on the word before it.
extern "C" __global__ void chase(const u32* words, u32 lines, u32 seed, u32 steps, u32* out) {
    in_turn();
    u32 state = seed, word = 0;
    for (u32 i = 0; i < steps; i++) {
        state = state * 1664525u + 1013904223u;
        // Past the first-level cache, as everything that another kernel wrote.
        word = __ldcg(words + (size_t)(((state >> 8) + word) & (lines - 1)) * 32);
    }
    *out = word;
}

// Additions, each of the sum before it.
extern "C" __global__ void add_in_turn(float by, u32 steps, float* out) {
    in_turn();
    float sum = 0.0f;
#pragma unroll 16
    for (u32 i = 0; i < steps; i++) sum = add(sum, by);
    *out = sum;
}

// Eight independent rows of dp4a in each thread, 8 * steps of them.
extern "C" __global__ void __launch_bounds__(256) dot_products(int a, u32 steps, int* out) {
    in_turn();
    int sums[8] = {0, 1, 2, 3, 4, 5, 6, 7};
#pragma unroll 8
    for (u32 i = 0; i < steps; i++) {
#pragma unroll
        for (int k = 0; k < 8; k++) sums[k] = __dp4a(a, (int)threadIdx.x, sums[k]);
    }
    int sum = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) sum ^= sums[k];
    out[blockIdx.x * 256 + threadIdx.x] = sum;
}
