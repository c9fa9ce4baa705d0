// The largest logits with their tokens; of equals, those of the smallest tokens. A NaN counts as the smallest finite
// number.
//
// Each block of threads finds the best of a chunk, then one block the best of those, or first several: what a chunk
// keeps is at most an eighth of it. A bound is guessed bit by bit, by counting how many keys reach it; nothing is sorted
// before the end, and nothing depends on which thread comes first.
#include "common.cuh"

#define THREADS 512
// Logits of a thread; CHUNK in src/top_k.rs is what a block has.
#define ITEMS 8
#define CHUNK (THREADS * ITEMS)
// Most that are kept of a chunk.
#define MOST 512
// Tokens are smaller.
#define TOKEN_BITS 24
#define ROUNDS (32 + TOKEN_BITS + 2)

struct Candidate {
    u32 token;
    float logit;
};

// A larger logit has a larger key, and equal ones have the same, whatever the sign of a zero. No logit has key 0.
DEVICE u32 key_of(float logit) {
    u32 bits = logit != logit ? 0xff7fffffu : __float_as_uint(logit);
    if (bits == 0x80000000u) bits = 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE Candidate candidate_at(const float* logits, int i) { return {(u32)i, logits[i]}; }
DEVICE Candidate candidate_at(const Candidate* candidates, int i) { return candidates[i]; }

// How many of the block's keys reach a bound, in every thread. Each round of counting has an integer of shared memory,
// which is 0 before.
DEVICE int reach(const u32 (&keys)[ITEMS], u32 bound, int* round) {
    int mine = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) mine += keys[i] >= bound;
    mine = fold_integer(mine);
    if ((threadIdx.x & 31) == 0 && mine > 0) atomicAdd(round, mine);
    __syncthreads();
    return *round;
}

// The largest bound that at least `keep` of the block's keys reach, or a lower one that no more reach. `reached` says
// how many do: more than `keep` only where keys are equal.
template <int BITS>
DEVICE u32 bound_of(const u32 (&keys)[ITEMS], int keep, int* rounds, int& reached) {
    u32 bound = 0;
    reached = CHUNK;
    for (int bit = BITS - 1; bit >= 0 && reached != keep; bit--) {
        int count = reach(keys, bound | 1u << bit, &rounds[bit]);
        if (count < keep) continue;
        bound |= 1u << bit;
        reached = count;
    }
    return bound;
}

// The best `keep` of each chunk of row blockIdx.y of `input`, `count` of them: at `keep * chunk` of that row of `best`,
// fewer of a chunk that has no more. If there is one chunk, they are in order. Grid: chunks, rows.
template <class Input>
DEVICE void best_of_chunk(const Input* input, int count, int input_stride, int keep, Candidate* best, int best_stride) {
    __shared__ int rounds[ROUNDS];
    __shared__ u32 kept_keys[MOST];
    __shared__ Candidate kept[MOST];
    int thread = threadIdx.x, first = blockIdx.x * CHUNK;
    if (thread < ROUNDS) rounds[thread] = 0;
    in_turn();
    input += (size_t)blockIdx.y * input_stride;
    best += (size_t)blockIdx.y * best_stride + (size_t)blockIdx.x * keep;
    keep = min(keep, count - first);

    Candidate all[ITEMS];
    u32 keys[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int n = first + i * THREADS + thread;
        bool there = n < count;
        all[i] = there ? candidate_at(input, n) : Candidate{0, 0.0f};
        keys[i] = there ? key_of(all[i].logit) : 0;
    }
    __syncthreads();

    // By the logits, then among equals by the tokens, of which the smaller ones have the larger keys. What is above the
    // first bound is kept in any case.
    int reached;
    u32 bound = bound_of<32>(keys, keep, rounds, reached), second = 0;
    if (reached != keep) {
        int above = reach(keys, bound + 1, &rounds[32 + TOKEN_BITS]);
        u32 equals[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) equals[i] = keys[i] == bound ? (1u << TOKEN_BITS) - 1 - all[i].token : 0;
        second = bound_of<TOKEN_BITS>(equals, keep - above, rounds + 32, reached);
    }
    int* used = &rounds[32 + TOKEN_BITS + 1];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        bool is_kept = keys[i] > bound || (keys[i] == bound && (1u << TOKEN_BITS) - 1 - all[i].token >= second);
        if (is_kept) {
            int place = atomicAdd(used, 1);
            kept_keys[place] = keys[i];
            kept[place] = all[i];
        }
    }
    __syncthreads();

    if (thread >= keep) return;
    int place = thread;
    if (gridDim.x == 1) {
        place = 0;
        u32 key = kept_keys[thread], token = kept[thread].token;
        for (int i = 0; i < keep; i++) {
            place += kept_keys[i] > key || (kept_keys[i] == key && kept[i].token < token);
        }
    }
    best[place] = kept[thread];
}

extern "C" __global__ void __launch_bounds__(THREADS) top_k_logits(const float* logits, int count, int logits_stride,
                                                                   int keep, Candidate* best, int best_stride) {
    best_of_chunk(logits, count, logits_stride, keep, best, best_stride);
}

extern "C" __global__ void __launch_bounds__(THREADS) top_k_candidates(const Candidate* candidates, int count,
                                                                       int candidates_stride, int keep, Candidate* best,
                                                                       int best_stride) {
    best_of_chunk(candidates, count, candidates_stride, keep, best, best_stride);
}
