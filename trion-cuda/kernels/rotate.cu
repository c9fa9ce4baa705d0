// Query and key norms, rotary embedding, and the write to the cache.
#include "common.cuh"

// The cache is [layers, heads, 2, context, head_dim], keys before values, as trion-core's. `cache` points to the
// layer.
//
// A warp for each head of each token: query heads first, then key heads, then value heads. Grid: heads / 4, tokens.
template <class F>
DEVICE void rotate_heads(const int* position, float* query, const float* key, const float* value,
                         typename F::Bits* cache,
                         const float* rotation, const float* q_norm, const float* k_norm, float eps, int heads,
                         int kv_heads,
                         int head_dim, int context) {
    int lane = threadIdx.x, unit = blockIdx.x * 4 + threadIdx.y, t = blockIdx.y;
    if (unit >= heads + 2 * kv_heads) return;
    int p = *position + t, half = head_dim / 2;
    bool is_query = unit < heads, is_value = unit >= heads + kv_heads;
    int head = is_query ? unit : (unit - heads) % kv_heads;
    const float* from = is_query ? query + ((size_t)t * heads + head) * head_dim
                                 : (is_value ? value : key) + ((size_t)t * kv_heads + head) * head_dim;
    typename F::Bits* to = cache + ((size_t)(head * 2 + is_value) * context + p) * head_dim;
    if (is_value) {
        for (int i = lane; i < head_dim; i += 32) F::store(to + i, from[i]);
        return;
    }
    const float* norm = is_query ? q_norm : k_norm;
    float r = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (int i = lane; i < head_dim; i += 32) squares = add(squares, mul(from[i], from[i]));
        r = div(1.0f, root(add(div(fold(squares), (float)head_dim), eps)));
    }
    const float* cosines = rotation + (size_t)p * head_dim;
    const float* sines = cosines + half;
    for (int i = lane; i < half; i += 32) {
        float a = from[i], b = from[i + half];
        if (norm) {
            a = mul(mul(a, r), norm[i]);
            b = mul(mul(b, r), norm[i + half]);
        }
        float x = sub(mul(a, cosines[i]), mul(b, sines[i]));
        float y = add(mul(b, cosines[i]), mul(a, sines[i]));
        if (is_query) {
            float* out = query + ((size_t)t * heads + head) * head_dim;
            out[i] = x;
            out[i + half] = y;
        } else {
            F::store(to + i, x);
            F::store(to + i + half, y);
        }
    }
}

#define ROTATE(name, F)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128) name(                                                            \
        const int* position, float* query, const float* key, const float* value, F::Bits* cache,                       \
        const float* rotation,                                                                                         \
        const float* q_norm, const float* k_norm, float eps, int heads, int kv_heads, int head_dim, int context) {     \
        rotate_heads<F>(position, query, key, value, cache, rotation, q_norm, k_norm, eps, heads, kv_heads, head_dim,  \
                        context);                                                                                      \
    }

ROTATE(rotate_f32, F32)
ROTATE(rotate_f16, F16)
