// The token with the largest logit; of equals the smallest. A NaN counts as the smallest finite number.
#include "common.cuh"

#define THREADS 256

struct Best {
    float logit;
    int token;
};

DEVICE Best better(Best a, Best b) {
    bool second = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return second ? b : a;
}

// The best of all threads, in thread 0.
DEVICE Best best_of_block(Best best) {
    __shared__ Best all[THREADS];
    all[threadIdx.x] = best;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half >>= 1) {
        if (threadIdx.x < half) all[threadIdx.x] = better(all[threadIdx.x], all[threadIdx.x + half]);
        __syncthreads();
    }
    return all[0];
}

// The best of each block of threads `[rows, gridDim.x]`. Grid: pieces, rows.
extern "C" __global__ void __launch_bounds__(THREADS) argmax_parts(const float* logits, int count, Best* parts) {
    in_turn();
    logits += (size_t)blockIdx.y * count;
    // What no thread sees loses against any token, infinities included.
    Best best = {__int_as_float(0xff800000), 0x7fffffff};
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
        float logit = logits[i];
        best = better(best, {logit != logit ? -3.40282347e38f : logit, i});
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// The best of at most 256 parts becomes the token of each row's next position, which becomes the current one. Grid:
// rows.
extern "C" __global__ void __launch_bounds__(THREADS) argmax_next(const Best* parts, int count, Slot* slots) {
    in_turn();
    Best best = {__int_as_float(0xff800000), 0x7fffffff};
    if ((int)threadIdx.x < count) best = parts[blockIdx.x * count + threadIdx.x];
    best = best_of_block(best);
    if (threadIdx.x == 0) {
        Slot& slot = slots[blockIdx.x];
        slot.position += 1;
        slot.tokens[slot.position] = (u32)best.token;
    }
}
