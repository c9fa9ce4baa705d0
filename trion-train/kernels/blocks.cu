// What lies between products, forward. Products give sums of quantised numbers; they become numbers when multiplied by the
// mean of the weights and by the unit of the token, which is one over the scale of its activations.

// `RMSNorm` and quantisation of a row in registers: `q` has whole numbers (absmax, 127 steps).
template <int COLS>
__device__ void norm_and_quantize(float (&x)[CHUNKS(COLS)][4], int row, const float* weight, float lambda, bf16* q,
                                  float* root, float* unit) {
    int lane = threadIdx.x % 32;
    float squares = 0.0f;
    for (int k = 0; k < CHUNKS(COLS); k++) {
        for (int i = 0; i < 4; i++) {
            squares += x[k][i] * x[k][i];
        }
    }
    float r = 1.0f / sqrtf(sum(squares) / COLS + NORM_EPS);
    float most = 0.0f;
    for (int k = 0; k < CHUNKS(COLS); k++) {
        int col = 128 * k + 4 * lane;
        if (col < COLS) {
            Four w = load(weight + col);
            for (int i = 0; i < 4; i++) {
                x[k][i] *= r * w.x[i];
                most = fmaxf(most, fabsf(x[k][i]));
            }
        }
    }
    float scale = lambda > 0.0f ? 127.0f / fmaxf(largest(most), 1e-5f) : 1.0f;
    for (int k = 0; k < CHUNKS(COLS); k++) {
        int col = 128 * k + 4 * lane;
        if (col < COLS) {
            for (int i = 0; i < 4 && lambda > 0.0f; i++) {
                x[k][i] = quantized(x[k][i] * scale, -128.0f, 127.0f, lambda);
            }
            store(q + (size_t)row * COLS + col, x[k]);
        }
    }
    if (lane == 0) {
        root[row] = r;
        unit[row] = 1.0f / scale;
    }
}

// Rows of the embedding.
extern "C" __global__ void embed(const float* embedding, const int* ids, float* h, int rows) {
    int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    for (int col = 4 * lane; col < HIDDEN; col += 128) {
        store(h + (size_t)row * HIDDEN + col, load(embedding + (size_t)ids[row] * HIDDEN + col).x);
    }
}

// `h_out` = `h` + the product `y` of the layer before, if there is one; and the norm of it, quantised.
extern "C" __global__ void residual_norm(const float* h, const bf16* y, const float* y_unit, const float* y_mean,
                                         float* h_out, const float* weight, float lambda, bf16* q, float* root,
                                         float* unit, int rows) {
    int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    float x[CHUNKS(HIDDEN)][4] = {};
    float factor = y ? y_unit[row] * *y_mean : 0.0f;
    for (int k = 0; k < CHUNKS(HIDDEN); k++) {
        int col = 128 * k + 4 * lane;
        if (col < HIDDEN) {
            size_t at = (size_t)row * HIDDEN + col;
            Four value = load(h + at);
            if (y) {
                Four sums = load(y + at);
                for (int i = 0; i < 4; i++) {
                    value.x[i] += sums.x[i] * factor;
                }
                store(h_out + at, value.x);
            }
            for (int i = 0; i < 4; i++) {
                x[k][i] = value.x[i];
            }
        }
    }
    norm_and_quantize<HIDDEN>(x, row, weight, lambda, q, root, unit);
}

// The norm of what attention gave, quantised.
extern "C" __global__ void attention_norm(const bf16* attended, const float* weight, float lambda, bf16* q, float* root,
                                          float* unit, int rows) {
    int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    float x[CHUNKS(QUERY_SIZE)][4] = {};
    for (int k = 0; k < CHUNKS(QUERY_SIZE); k++) {
        int col = 128 * k + 4 * lane;
        if (col < QUERY_SIZE) {
            Four value = load(attended + (size_t)row * QUERY_SIZE + col);
            for (int i = 0; i < 4; i++) {
                x[k][i] = value.x[i];
            }
        }
    }
    norm_and_quantize<QUERY_SIZE>(x, row, weight, lambda, q, root, unit);
}

// The activation function of the gate: its value, and its slope.
__device__ float2 activate(float gate) {
#if SILU
    float s = 1.0f / (1.0f + expf(-gate));
    return make_float2(gate * s, s * (1.0f + gate * (1.0f - s)));
#else
    float positive = fmaxf(gate, 0.0f);
    return make_float2(positive * positive, 2.0f * positive);
#endif
}

// The norm of activated gate times up, quantised. `y` [rows, 2 WIDE] has the gate first; `mean` has both means.
extern "C" __global__ void gate_norm(const bf16* y, const float* y_unit, const float* mean, const float* weight,
                                     float lambda, bf16* q, float* root, float* unit, int rows) {
    int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    float x[CHUNKS(WIDE)][4] = {};
    float gate_factor = y_unit[row] * mean[0], up_factor = y_unit[row] * mean[1];
    for (int k = 0; k < CHUNKS(WIDE); k++) {
        int col = 128 * k + 4 * lane;
        if (col < WIDE) {
            const bf16* at = y + (size_t)row * 2 * WIDE + col;
            Four gate = load(at), up = load(at + WIDE);
            for (int i = 0; i < 4; i++) {
                x[k][i] = activate(gate.x[i] * gate_factor).x * (up.x[i] * up_factor);
            }
        }
    }
    norm_and_quantize<WIDE>(x, row, weight, lambda, q, root, unit);
}

// Numbers of products, and rotary embedding of queries and keys (the halves of a head are pairs). `turn` [positions,
// HEAD_DIM / 2] has cosines and sines. A thread has two pairs.
extern "C" __global__ void rotate(const bf16* y, const float* y_unit, const float* means, const float2* turn, bf16* qkv,
                                  int rows, int positions) {
    const int pairs = QKV / 4;
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * pairs) {
        return;
    }
    int row = index / pairs, pair = index % pairs;
    int head = pair / (HEAD_DIM / 4), i = pair % (HEAD_DIM / 4) * 2;
    float factor = y_unit[row] * means[head < HEADS ? 0 : head < HEADS + KV_HEADS ? 1 : 2];
    size_t at = (size_t)row * QKV + head * HEAD_DIM + i;
    unsigned first = *(const unsigned*)(y + at), second = *(const unsigned*)(y + at + HEAD_DIM / 2);
    float a[2] = {widen((bf16)first) * factor, widen((bf16)(first >> 16)) * factor};
    float b[2] = {widen((bf16)second) * factor, widen((bf16)(second >> 16)) * factor};
    if (head < HEADS + KV_HEADS) {
        for (int n = 0; n < 2; n++) {
            float2 t = turn[(size_t)(row % positions) * (HEAD_DIM / 2) + i + n];
            float turned = a[n] * t.x - b[n] * t.y;
            b[n] = b[n] * t.x + a[n] * t.y;
            a[n] = turned;
        }
    }
    *(unsigned*)(qkv + at) = pack(a[0], a[1]);
    *(unsigned*)(qkv + at + HEAD_DIM / 2) = pack(b[0], b[1]);
}
