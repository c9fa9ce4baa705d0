// Attention of one token while the context is short. Grid: heads; dynamic shared memory as attention_head.cuh says.
#include "attention_head.cuh"

#define ATTEND(name, F)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                              \
        const int* position, float* query, const float* key, const float* value, F::Bits* cache, const float* rotation,      \
        const float* q_norm, const float* k_norm, float eps, int group, int head_dim, int context, float c) {                \
        extern __shared__ float vectors[];                                                                                   \
        __shared__ AttentionShared shared;                                                                                   \
        attend<F>(shared, vectors, blockIdx.x, *position, query, key, value, cache, rotation, q_norm, k_norm, eps, group,    \
                  head_dim, context, c);                                                                                     \
    }

ATTEND(attention_head_f32, F32)
ATTEND(attention_head_f16, F16)
