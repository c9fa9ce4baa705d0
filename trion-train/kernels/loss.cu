// Cross entropy.

// The loss of each row of `logits` [rows, VOCAB]; and, where `gradient` is not null, that of `scale` times it. A block has a
// row.
extern "C" __global__ void cross_entropy(const float* logits, const int* targets, float scale, float* losses,
                                         bf16* gradient) {
    __shared__ float most_of_warps[32];
    const float* row = logits + (size_t)blockIdx.x * VOCAB;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < VOCAB; i += blockDim.x) {
        most = fmaxf(most, row[i]);
    }
    most = largest(most);
    if (threadIdx.x % 32 == 0) {
        most_of_warps[threadIdx.x / 32] = most;
    }
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
        most = fmaxf(most, most_of_warps[warp]);
    }
    float total = 0.0f;
    for (int i = threadIdx.x; i < VOCAB; i += blockDim.x) {
        total += __expf(row[i] - most);
    }
    total = block_sum(total);
    int target = targets[blockIdx.x];
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = logf(total) + most - row[target];
    }
    if (gradient) {
        for (int i = threadIdx.x; i < VOCAB; i += blockDim.x) {
            float probability = __expf(row[i] - most) / total;
            gradient[(size_t)blockIdx.x * VOCAB + i] = narrow((probability - (i == target ? 1.0f : 0.0f)) * scale);
        }
    }
}

// Adds `scale` times the sum of `values` to `total`. One block.
extern "C" __global__ void add_up(const float* values, int count, float scale, float* total) {
    float part = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        part += values[i];
    }
    part = block_sum(part);
    if (threadIdx.x == 0) {
        *total += part * scale;
    }
}
