// Causal attention over whole sequences, in tiles of 64 queries and 64 keys, without a matrix of scores in memory (Dao 2023,
// "FlashAttention-2"). Rows of `qkv` [sequences * positions, QKV] have queries, keys and values. Backward is two kernels, one
// for keys and values and one for queries: nothing is added up in an order that changes.
//
// A block is four warps, each with 16 rows of the tile. Products are those of the tensor cores, 16 x 8 x 16, in bfloat16 with
// sums in single precision. Where a lane holds elements of a 16 x 8 result: rows lane / 4 and that + 8, columns
// lane % 4 * 2 and that + 1.

#define TILE 64
#define STRIDE (HEAD_DIM + 8)
#define STEPS (HEAD_DIM / 16)

typedef bf16 Tile[TILE][STRIDE];

// The product of a fragment [16, 16] and one [16, 8], added to `c`.
__device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ void load_matrices(unsigned (&r)[4], const bf16* at) {
    unsigned address = (unsigned)__cvta_generic_to_shared(at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ void load_matrices_turned(unsigned (&r)[4], const bf16* at) {
    unsigned address = (unsigned)__cvta_generic_to_shared(at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// The left side of a product: 16 rows of a tile from `row` on, all of a head.
__device__ void load_rows(unsigned (&a)[STEPS][4], const Tile& tile, int row) {
    int lane = threadIdx.x % 32;
    for (int step = 0; step < STEPS; step++) {
        load_matrices(a[step], &tile[row + lane % 16][step * 16 + lane / 16 * 8]);
    }
}

// c [16, 8 N] += a [16, HEAD_DIM] times the rows of the tile from `row` on, turned.
template <int N>
__device__ void multiply_rows(float (&c)[N][4], const unsigned (&a)[STEPS][4], const Tile& tile, int row) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            load_matrices(b, &tile[row + n * 8 + lane % 8 + lane / 16 * 8][step * 16 + lane / 8 % 2 * 8]);
            multiply(c[n], a[step], b[0], b[1]);
            multiply(c[n + 1], a[step], b[2], b[3]);
        }
    }
}

// c [16, HEAD_DIM] += p [16, 8 N] times the rows of the tile from `row` on; p is a result of this lane's, made bfloat16.
template <int N>
__device__ void multiply_columns(float (&c)[2 * STEPS][4], const float (&p)[N][4], const Tile& tile, int row) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        unsigned a[4] = {pack(p[k][0], p[k][1]), pack(p[k][2], p[k][3]), pack(p[k + 1][0], p[k + 1][1]),
                         pack(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n += 2) {
            unsigned b[4];
            load_matrices_turned(b, &tile[row + k * 8 + lane % 16][n * 8 + lane / 16 * 8]);
            multiply(c[n], a, b[0], b[1]);
            multiply(c[n + 1], a, b[2], b[3]);
        }
    }
}

// Rows of a head into shared memory, zeros behind the end of the sequence.
__device__ void load_tile(Tile& tile, const bf16* from, int stride, int first, int positions) {
    const int pieces = HEAD_DIM / 8;
    for (int i = threadIdx.x; i < TILE * pieces; i += blockDim.x) {
        int row = i / pieces, piece = i % pieces;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (first + row < positions) {
            value = *(const uint4*)(from + (size_t)(first + row) * stride + piece * 8);
        }
        *(uint4*)&tile[row][piece * 8] = value;
    }
}

// 16 rows of a result, multiplied by a factor for each of a lane's two rows.
__device__ void store_rows(bf16* to, int stride, int first, int positions, const float (&c)[2 * STEPS][4], float factor0,
                           float factor1) {
    int lane = threadIdx.x % 32, row = first + lane / 4;
    for (int n = 0; n < 2 * STEPS; n++) {
        int col = n * 8 + lane % 4 * 2;
        if (row < positions) {
            *(unsigned*)(to + (size_t)row * stride + col) = pack(c[n][0] * factor0, c[n][1] * factor0);
        }
        if (row + 8 < positions) {
            *(unsigned*)(to + (size_t)(row + 8) * stride + col) = pack(c[n][2] * factor1, c[n][3] * factor1);
        }
    }
}

// Scores are powers of two in here: products are multiplied by this.
__device__ float score_factor() {
    return 1.44269504f / sqrtf((float)HEAD_DIM);
}

// `attended` [rows, QUERY_SIZE], and the logarithm (base 2) of each query's sum, `logs` [rows, HEADS]. Grid: tiles, heads,
// sequences.
extern "C" __global__ void __launch_bounds__(128) attend(const bf16* qkv, bf16* attended, float* logs, int positions) {
    __shared__ __align__(16) Tile queries, keys, values;
    int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bf16* sequence = qkv + (size_t)blockIdx.z * positions * QKV;
    const bf16* key = sequence + QUERY_SIZE + head / (HEADS / KV_HEADS) * HEAD_DIM;
    load_tile(queries, sequence + head * HEAD_DIM, QKV, tile * TILE, positions);
    __syncthreads();
    unsigned a[STEPS][4];
    load_rows(a, queries, warp * 16);
    float out[2 * STEPS][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};
    float factor = score_factor();
    for (int t = 0; t <= tile; t++) {
        load_tile(keys, key, QKV, t * TILE, positions);
        load_tile(values, key + KV_HEADS * HEAD_DIM, QKV, t * TILE, positions);
        __syncthreads();
        float s[8][4] = {};
        multiply_rows(s, a, keys, 0);
        float now[2] = {most[0], most[1]};
        for (int n = 0; n < 8; n++) {
            for (int i = 0; i < 4; i++) {
                int row = warp * 16 + lane / 4 + i / 2 * 8, col = n * 8 + lane % 4 * 2 + i % 2;
                s[n][i] = t == tile && col > row ? -INFINITY : s[n][i] * factor;
                now[i / 2] = fmaxf(now[i / 2], s[n][i]);
            }
        }
        for (int half = 0; half < 2; half++) {
            now[half] = fmaxf(now[half], __shfl_xor_sync(0xffffffffu, now[half], 1));
            now[half] = fmaxf(now[half], __shfl_xor_sync(0xffffffffu, now[half], 2));
            float shrink = exp2f(most[half] - now[half]);
            most[half] = now[half];
            total[half] *= shrink;
            for (int n = 0; n < 2 * STEPS; n++) {
                out[n][2 * half] *= shrink;
                out[n][2 * half + 1] *= shrink;
            }
        }
        for (int n = 0; n < 8; n++) {
            for (int i = 0; i < 4; i++) {
                s[n][i] = exp2f(s[n][i] - most[i / 2]);
                total[i / 2] += s[n][i];
            }
        }
        multiply_columns(out, s, values, 0);
        __syncthreads();
    }
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        int row = tile * TILE + warp * 16 + lane / 4 + half * 8;
        if (lane % 4 == 0 && row < positions) {
            logs[((size_t)blockIdx.z * positions + row) * HEADS + head] = most[half] + log2f(total[half]);
        }
    }
    bf16* to = attended + (size_t)blockIdx.z * positions * QUERY_SIZE + head * HEAD_DIM;
    store_rows(to, QUERY_SIZE, tile * TILE + warp * 16, positions, out, 1.0f / total[0], 1.0f / total[1]);
}

// Gradients of keys and values, which are put where `qkv` has them. `d` [rows, QUERY_SIZE] is the gradient of what attention
// gave, `along` [rows, HEADS] its products with it. Grid: tiles, key heads, sequences.
extern "C" __global__ void __launch_bounds__(128) attend_backward_keys(const bf16* qkv, const bf16* d, const float* logs,
                                                                       const float* along, bf16* dqkv, int positions) {
    __shared__ __align__(16) Tile queries, gradients;
    __shared__ float log_of[TILE], along_of[TILE];
    int tile = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    size_t first = (size_t)blockIdx.z * positions;
    int at_key = QUERY_SIZE + blockIdx.y * HEAD_DIM, at_value = at_key + KV_HEADS * HEAD_DIM;
    load_tile(queries, qkv + first * QKV + at_key, QKV, tile * TILE, positions);
    load_tile(gradients, qkv + first * QKV + at_value, QKV, tile * TILE, positions);
    __syncthreads();
    unsigned key[STEPS][4], value[STEPS][4];
    load_rows(key, queries, warp * 16);
    load_rows(value, gradients, warp * 16);
    float dk[2 * STEPS][4] = {}, dv[2 * STEPS][4] = {};
    float factor = score_factor();
    for (int head = blockIdx.y * (HEADS / KV_HEADS); head < (blockIdx.y + 1) * (HEADS / KV_HEADS); head++) {
        for (int t = tile; t < gridDim.x; t++) {
            __syncthreads();
            load_tile(queries, qkv + first * QKV + head * HEAD_DIM, QKV, t * TILE, positions);
            load_tile(gradients, d + first * QUERY_SIZE + head * HEAD_DIM, QUERY_SIZE, t * TILE, positions);
            if (threadIdx.x < TILE) {
                int row = t * TILE + threadIdx.x;
                size_t at = (first + row) * HEADS + head;
                log_of[threadIdx.x] = row < positions ? logs[at] : INFINITY;
                along_of[threadIdx.x] = row < positions ? along[at] : 0.0f;
            }
            __syncthreads();
            // Turned: rows are keys, columns queries, 32 at a time.
            for (int from = 0; from < TILE; from += 32) {
                float p[4][4] = {}, dp[4][4] = {};
                multiply_rows(p, key, queries, from);
                multiply_rows(dp, value, gradients, from);
                for (int n = 0; n < 4; n++) {
                    for (int i = 0; i < 4; i++) {
                        int row = warp * 16 + lane / 4 + i / 2 * 8, col = from + n * 8 + lane % 4 * 2 + i % 2;
                        p[n][i] = t == tile && row > col ? 0.0f : exp2f(p[n][i] * factor - log_of[col]);
                        dp[n][i] = p[n][i] * (dp[n][i] - along_of[col]);
                    }
                }
                multiply_columns(dv, p, gradients, from);
                multiply_columns(dk, dp, queries, from);
            }
        }
    }
    float scale = 1.0f / sqrtf((float)HEAD_DIM);
    store_rows(dqkv + first * QKV + at_key, QKV, tile * TILE + warp * 16, positions, dk, scale, scale);
    store_rows(dqkv + first * QKV + at_value, QKV, tile * TILE + warp * 16, positions, dv, 1.0f, 1.0f);
}

// The same for queries. Grid: tiles, heads, sequences.
extern "C" __global__ void __launch_bounds__(128) attend_backward_queries(const bf16* qkv, const bf16* d,
                                                                          const float* logs, const float* along,
                                                                          bf16* dqkv, int positions) {
    __shared__ __align__(16) Tile keys, values;
    int tile = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    size_t first = (size_t)blockIdx.z * positions;
    const bf16* key = qkv + first * QKV + QUERY_SIZE + head / (HEADS / KV_HEADS) * HEAD_DIM;
    load_tile(keys, qkv + first * QKV + head * HEAD_DIM, QKV, tile * TILE, positions);
    load_tile(values, d + first * QUERY_SIZE + head * HEAD_DIM, QUERY_SIZE, tile * TILE, positions);
    __syncthreads();
    unsigned query[STEPS][4], gradient[STEPS][4];
    load_rows(query, keys, warp * 16);
    load_rows(gradient, values, warp * 16);
    float log_of[2], along_of[2], dq[2 * STEPS][4] = {};
    for (int half = 0; half < 2; half++) {
        int row = tile * TILE + warp * 16 + lane / 4 + half * 8;
        size_t at = (first + row) * HEADS + head;
        log_of[half] = row < positions ? logs[at] : INFINITY;
        along_of[half] = row < positions ? along[at] : 0.0f;
    }
    float factor = score_factor();
    for (int t = 0; t <= tile; t++) {
        __syncthreads();
        load_tile(keys, key, QKV, t * TILE, positions);
        load_tile(values, key + KV_HEADS * HEAD_DIM, QKV, t * TILE, positions);
        __syncthreads();
        for (int from = 0; from < TILE; from += 32) {
            float p[4][4] = {}, dp[4][4] = {};
            multiply_rows(p, query, keys, from);
            multiply_rows(dp, gradient, values, from);
            for (int n = 0; n < 4; n++) {
                for (int i = 0; i < 4; i++) {
                    int row = warp * 16 + lane / 4 + i / 2 * 8, col = from + n * 8 + lane % 4 * 2 + i % 2;
                    float weight = t == tile && col > row ? 0.0f : exp2f(p[n][i] * factor - log_of[i / 2]);
                    dp[n][i] = weight * (dp[n][i] - along_of[i / 2]);
                }
            }
            multiply_columns(dq, dp, keys, from);
        }
    }
    float scale = 1.0f / sqrtf((float)HEAD_DIM);
    store_rows(dqkv + first * QKV + head * HEAD_DIM, QKV, tile * TILE + warp * 16, positions, dq, scale, scale);
}
