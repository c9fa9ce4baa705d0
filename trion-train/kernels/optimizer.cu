// What moves the parameters. `control` has the loss, the norm of the gradient, what gradients are multiplied by, and whether
// all of it is finite: if not, nothing moves.

struct Control {
    float loss, norm, factor;
    int finite;
};

// Parts of the sum of squares of all gradients.
extern "C" __global__ void squares(const float* gradients, int count, float* sums) {
    float part = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        part += gradients[i] * gradients[i];
    }
    part = block_sum(part);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = part;
    }
}

// The norm, and the factor that makes it at most `most`. One block.
extern "C" __global__ void clip(const float* sums, int count, float most, Control* control) {
    float part = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        part += sums[i];
    }
    part = block_sum(part);
    if (threadIdx.x == 0) {
        float norm = sqrtf(part);
        control->norm = norm;
        control->factor = fminf(most / (norm + 1e-6f), 1.0f);
        control->finite = isfinite(norm) && isfinite(control->loss);
    }
}

// `AdamW` for `count` parameters; `correction` has 1 - beta^steps of both betas.
extern "C" __global__ void adamw(float* parameters, const float* gradients, float* means, float* squares,
                                 const Control* control, float rate, float decay, float beta1, float beta2, float eps,
                                 float correction1, float correction2, int count) {
    if (!control->finite) {
        return;
    }
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        float gradient = gradients[i] * control->factor;
        float mean = means[i] * beta1 + gradient * (1.0f - beta1);
        float square = squares[i] * beta2 + gradient * gradient * (1.0f - beta2);
        means[i] = mean;
        squares[i] = square;
        float root = sqrtf(square) / sqrtf(correction2) + eps;
        parameters[i] = parameters[i] * (1.0f - rate * decay) - mean / root * (rate / correction1);
    }
}

// Muon's momentum for the matrices of a stack, and parts of the sums of squares [matrices, gridDim.x] of the updates.
extern "C" __global__ void muon_momentum(const float* gradients, float* moments, const int* offsets, int count,
                                         const Control* control, float momentum, float* sums) {
    if (!control->finite) {
        return;
    }
    float part = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        int at = offsets[blockIdx.y] + i;
        float gradient = gradients[at] * control->factor;
        float moment = moments[at] * momentum + gradient;
        moments[at] = moment;
        float update = gradient + moment * momentum;
        part += update * update;
    }
    part = block_sum(part);
    if (threadIdx.x == 0) {
        sums[blockIdx.y * gridDim.x + blockIdx.x] = part;
    }
}

// The index in a stack's matrix [short, long] of element `i` of a parameter with `cols` columns: turned if it is high.
__device__ int turned(int i, int rows, int cols) {
    return rows > cols ? i % cols * rows + i / cols : i;
}

// The updates of a stack, each divided by its norm: `x` [matrices, short, long]. `heights` has each matrix' rows.
extern "C" __global__ void muon_normalize(const float* gradients, const float* moments, const int* offsets,
                                          const int* heights, int count, const Control* control, float momentum,
                                          const float* sums, int parts, bf16* x) {
    float total = 0.0f;
    for (int part = 0; part < parts; part++) {
        total += sums[blockIdx.y * parts + part];
    }
    float norm = sqrtf(total) + 1e-7f;
    int rows = heights[blockIdx.y], cols = count / rows;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        int at = offsets[blockIdx.y] + i;
        float update = gradients[at] * control->factor + moments[at] * momentum;
        x[(size_t)blockIdx.y * count + turned(i, rows, cols)] = narrow(update / norm);
    }
}

// Moves the matrices of a stack against `x`.
extern "C" __global__ void muon_move(float* parameters, const int* offsets, const int* heights, int count,
                                     const Control* control, float rate, float decay, const bf16* x) {
    if (!control->finite) {
        return;
    }
    int rows = heights[blockIdx.y], cols = count / rows;
    float factor = rate * sqrtf(fmaxf((float)rows / cols, 1.0f));
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        int at = offsets[blockIdx.y] + i;
        float update = widen(x[(size_t)blockIdx.y * count + turned(i, rows, cols)]);
        parameters[at] = parameters[at] * (1.0f - rate * decay) - update * factor;
    }
}
