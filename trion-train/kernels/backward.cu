// What lies between products, backward. Rounding passes gradients on, and scales are constants. A gradient that goes into
// products, `dy`, is multiplied by the unit of its token first: then its product with quantised activations is the gradient
// of the weights, and its product with weights has to be divided by the unit.

// Adds what the warps of a block know about the gradient of a norm's weights, as row `blockIdx.x` of `partials`.
template <int COLS>
__device__ void add_partials(const float (&dw)[CHUNKS(COLS)][4], float* partials) {
    __shared__ float sums[COLS];
    int lane = threadIdx.x % 32;
    for (int warp = 0; warp < WARPS; warp++) {
        if (threadIdx.x / 32 == warp) {
            for (int k = 0; k < CHUNKS(COLS); k++) {
                int col = 128 * k + 4 * lane;
                for (int i = 0; i < 4 && col < COLS; i++) {
                    sums[col + i] = (warp > 0 ? sums[col + i] : 0.0f) + dw[k][i];
                }
            }
        }
        __syncthreads();
    }
    for (int col = threadIdx.x; col < COLS; col += blockDim.x) {
        partials[(size_t)blockIdx.x * COLS + col] = sums[col];
    }
}

// The gradient `dw` [cols] of a norm's weights from `partials` [count, cols]: set, or added to. 32 x 32 threads.
extern "C" __global__ void add_up_partials(const float* partials, float* dw, int count, int cols, int add) {
    __shared__ float sums[32][33];
    int x = threadIdx.x % 32, y = threadIdx.x / 32, col = blockIdx.x * 32 + x;
    float part = 0.0f;
    for (int row = y; row < count && col < cols; row += 32) {
        part += partials[(size_t)row * cols + col];
    }
    sums[y][x] = part;
    __syncthreads();
    if (y == 0 && col < cols) {
        float total = add ? dw[col] : 0.0f;
        for (int i = 0; i < 32; i++) {
            total += sums[i][x];
        }
        dw[col] = total;
    }
}

// Backward of `residual_norm`: `dx` is the gradient of its quantised result. Adds to `dh`, or sets it if `fresh`; `dy` is
// the gradient of the product that was added to the residual, whose unit is `y_unit`.
extern "C" __global__ void residual_norm_backward(const bf16* dx, const float* unit, const float* h, const float* root,
                                                  const float* weight, float* dh, int fresh, const float* y_unit,
                                                  bf16* dy, float* partials, int rows) {
    int lane = threadIdx.x % 32;
    float dw[CHUNKS(HIDDEN)][4] = {};
    for (int row = blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += gridDim.x * WARPS) {
        float g[CHUNKS(HIDDEN)][4] = {}, x[CHUNKS(HIDDEN)][4] = {};
        float scale = 1.0f / unit[row], r = root[row], along = 0.0f;
        for (int k = 0; k < CHUNKS(HIDDEN); k++) {
            int col = 128 * k + 4 * lane;
            if (col < HIDDEN) {
                size_t at = (size_t)row * HIDDEN + col;
                Four d = load(dx + at), value = load(h + at), w = load(weight + col);
                for (int i = 0; i < 4; i++) {
                    x[k][i] = value.x[i] * r;
                    float gradient = d.x[i] * scale;
                    dw[k][i] += gradient * x[k][i];
                    g[k][i] = gradient * w.x[i];
                    along += g[k][i] * x[k][i];
                }
            }
        }
        along = sum(along) / HIDDEN;
        for (int k = 0; k < CHUNKS(HIDDEN); k++) {
            int col = 128 * k + 4 * lane;
            if (col < HIDDEN) {
                size_t at = (size_t)row * HIDDEN + col;
                Four before = {};
                if (!fresh) {
                    before = load(dh + at);
                }
                for (int i = 0; i < 4; i++) {
                    before.x[i] += r * (g[k][i] - x[k][i] * along);
                }
                store(dh + at, before.x);
                if (dy) {
                    for (int i = 0; i < 4; i++) {
                        before.x[i] *= y_unit[row];
                    }
                    store(dy + at, before.x);
                }
            }
        }
    }
    add_partials<HIDDEN>(dw, partials);
}

// Backward of `attention_norm`: the gradient `d` of what attention gave, and for each head the product `along` [rows,
// HEADS] of both.
extern "C" __global__ void attention_norm_backward(const bf16* dx, const float* unit, const bf16* attended,
                                                   const float* root, const float* weight, bf16* d, float* along_heads,
                                                   float* partials, int rows) {
    const int lanes = HEAD_DIM / 4;
    int lane = threadIdx.x % 32;
    float dw[CHUNKS(QUERY_SIZE)][4] = {};
    for (int row = blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += gridDim.x * WARPS) {
        float g[CHUNKS(QUERY_SIZE)][4] = {}, x[CHUNKS(QUERY_SIZE)][4] = {};
        float scale = 1.0f / unit[row], r = root[row], along = 0.0f;
        for (int k = 0; k < CHUNKS(QUERY_SIZE); k++) {
            int col = 128 * k + 4 * lane;
            if (col < QUERY_SIZE) {
                size_t at = (size_t)row * QUERY_SIZE + col;
                Four gradient = load(dx + at), value = load(attended + at), w = load(weight + col);
                for (int i = 0; i < 4; i++) {
                    x[k][i] = value.x[i] * r;
                    dw[k][i] += gradient.x[i] * scale * x[k][i];
                    g[k][i] = gradient.x[i] * scale * w.x[i];
                    along += g[k][i] * x[k][i];
                }
            }
        }
        along = sum(along) / QUERY_SIZE;
        for (int k = 0; k < CHUNKS(QUERY_SIZE); k++) {
            int col = 128 * k + 4 * lane;
            float product = 0.0f;
            if (col < QUERY_SIZE) {
                float value[4];
                for (int i = 0; i < 4; i++) {
                    value[i] = r * (g[k][i] - x[k][i] * along);
                    product += widen(narrow(value[i])) * x[k][i] / r;
                }
                store(d + (size_t)row * QUERY_SIZE + col, value);
            }
            for (int step = lanes / 2; step > 0; step /= 2) {
                product += __shfl_xor_sync(0xffffffffu, product, step);
            }
            if (lane % lanes == 0 && col < QUERY_SIZE) {
                along_heads[(size_t)row * HEADS + col / HEAD_DIM] = product;
            }
        }
    }
    add_partials<QUERY_SIZE>(dw, partials);
}

// Backward of `gate_norm`: the gradient `dy` [rows, 2 WIDE] of both products.
extern "C" __global__ void gate_norm_backward(const bf16* dx, const float* unit, const bf16* y, const float* y_unit,
                                              const float* mean, const float* root, const float* weight, bf16* dy,
                                              float* partials, int rows) {
    int lane = threadIdx.x % 32;
    float dw[CHUNKS(WIDE)][4] = {};
    for (int row = blockIdx.x * WARPS + threadIdx.x / 32; row < rows; row += gridDim.x * WARPS) {
        float g[CHUNKS(WIDE)][4] = {};
        float scale = 1.0f / unit[row], r = root[row], along = 0.0f;
        float gate_factor = y_unit[row] * mean[0], up_factor = y_unit[row] * mean[1];
        for (int k = 0; k < CHUNKS(WIDE); k++) {
            int col = 128 * k + 4 * lane;
            if (col < WIDE) {
                const bf16* at = y + (size_t)row * 2 * WIDE + col;
                Four d = load(dx + (size_t)row * WIDE + col), gate = load(at), up = load(at + WIDE);
                Four w = load(weight + col);
                for (int i = 0; i < 4; i++) {
                    float x = activate(gate.x[i] * gate_factor).x * (up.x[i] * up_factor) * r;
                    dw[k][i] += d.x[i] * scale * x;
                    g[k][i] = d.x[i] * scale * w.x[i];
                    along += g[k][i] * x;
                }
            }
        }
        along = sum(along) / WIDE;
        for (int k = 0; k < CHUNKS(WIDE); k++) {
            int col = 128 * k + 4 * lane;
            if (col < WIDE) {
                // Read again: registers have no room for both.
                const bf16* at = y + (size_t)row * 2 * WIDE + col;
                Four gate = load(at), up = load(at + WIDE);
                float of_gate[4], of_up[4];
                for (int i = 0; i < 4; i++) {
                    float2 activated = activate(gate.x[i] * gate_factor);
                    float other = up.x[i] * up_factor;
                    float d = r * (g[k][i] - activated.x * other * r * along) * y_unit[row];
                    of_gate[i] = d * other * activated.y;
                    of_up[i] = d * activated.x;
                }
                bf16* to = dy + (size_t)row * 2 * WIDE + col;
                store(to, of_gate);
                store(to + WIDE, of_up);
            }
        }
    }
    add_partials<WIDE>(dw, partials);
}

// Backward of `rotate`, in place: the turn back, and the unit of the token.
extern "C" __global__ void rotate_backward(bf16* d, const float* y_unit, const float2* turn, int rows, int positions) {
    const int pairs = QKV / 4;
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * pairs) {
        return;
    }
    int row = index / pairs, pair = index % pairs;
    int head = pair / (HEAD_DIM / 4), i = pair % (HEAD_DIM / 4) * 2;
    float factor = y_unit[row];
    bf16* at = d + (size_t)row * QKV + head * HEAD_DIM + i;
    unsigned first = *(unsigned*)at, second = *(unsigned*)(at + HEAD_DIM / 2);
    float a[2] = {widen((bf16)first) * factor, widen((bf16)(first >> 16)) * factor};
    float b[2] = {widen((bf16)second) * factor, widen((bf16)(second >> 16)) * factor};
    if (head < HEADS + KV_HEADS) {
        for (int n = 0; n < 2; n++) {
            float2 t = turn[(size_t)(row % positions) * (HEAD_DIM / 2) + i + n];
            float turned = a[n] * t.x + b[n] * t.y;
            b[n] = b[n] * t.x - a[n] * t.y;
            a[n] = turned;
        }
    }
    *(unsigned*)at = pack(a[0], a[1]);
    *(unsigned*)(at + HEAD_DIM / 2) = pack(b[0], b[1]);
}

// The gradient of the embedding by its rows: `order` has the rows of `dh` by token, those of token v from `starts[v]` on.
extern "C" __global__ void embed_backward(const float* dh, const int* order, const int* starts, float* gradient) {
    for (int col = threadIdx.x; col < HIDDEN; col += blockDim.x) {
        float total = gradient[(size_t)blockIdx.x * HIDDEN + col];
        for (int i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) {
            total += dh[(size_t)order[i] * HIDDEN + col];
        }
        gradient[(size_t)blockIdx.x * HIDDEN + col] = total;
    }
}
