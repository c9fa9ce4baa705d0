// Weights as products take them, made from the parameters before each step.

// Parts of the sum of magnitudes of each matrix: `sums` [matrices, gridDim.x].
extern "C" __global__ void magnitudes(const float* parameters, const int* offsets, const int* counts, float* sums) {
    const float* matrix = parameters + offsets[blockIdx.y];
    float part = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < counts[blockIdx.y]; i += gridDim.x * blockDim.x) {
        part += fabsf(matrix[i]);
    }
    part = block_sum(part);
    if (threadIdx.x == 0) {
        sums[blockIdx.y * gridDim.x + blockIdx.x] = part;
    }
}

// For each matrix: the mean magnitude, by which products are multiplied; `forward`, trits; and `backward`, the mean times
// them. With lambda 0 both are the parameters, and the mean is 1.
extern "C" __global__ void quantize_weights(const float* parameters, const int* offsets, const int* counts,
                                            const float* sums, float lambda, float* means, bf16* forward,
                                            bf16* backward) {
    int offset = offsets[blockIdx.y], count = counts[blockIdx.y];
    float total = 0.0f;
    for (int part = 0; part < gridDim.x; part++) {
        total += sums[blockIdx.y * gridDim.x + part];
    }
    float mean = lambda > 0.0f ? fmaxf(total / count, 1e-5f) : 1.0f;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        means[blockIdx.y] = mean;
    }
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        float weight = parameters[offset + i];
        float value = lambda > 0.0f ? quantized(weight * (1.0f / mean), -1.0f, 1.0f, lambda) : weight;
        forward[offset + i] = narrow(value);
        backward[offset + i] = narrow(value * mean);
    }
}

// The embedding as the head multiplies with it.
extern "C" __global__ void narrow_all(const float* from, bf16* to, int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        to[i] = narrow(from[i]);
    }
}
