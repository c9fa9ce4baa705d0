// Query and key norms, rotary embedding, and the write to the cache, of a prompt's tokens.
#include "common.cuh"

// A warp for each head of each token: query heads first, then key heads, then value heads. Grid: heads / 4, tokens.
template <class F>
DEVICE void rotate_heads(const Slot* slots, int layer, float* query, const float* key, const float* value,
                         const float* q_norm, const float* k_norm, float eps, int heads, int kv_heads, int head_dim) {
    in_turn();
    int lane = threadIdx.x, unit = blockIdx.x * 4 + threadIdx.y, t = blockIdx.y;
    if (unit >= heads + 2 * kv_heads) return;
    const Slot slot = slots[0];
    int p = slot.position + t, half = head_dim / 2;
    bool is_query = unit < heads, is_value = unit >= heads + kv_heads;
    int head = is_query ? unit : (unit - heads) % kv_heads;
    typename F::Bits* keys = cache_of<F>(slot, layer, is_query ? 0 : head, kv_heads, head_dim) + (size_t)p * head_dim;
    if (is_value) {
        const float* from = value + ((size_t)t * kv_heads + head) * head_dim;
        typename F::Bits* to = keys + (size_t)slot.context * head_dim;
        for (int i = lane; i < head_dim; i += 32) F::store(to + i, from[i]);
        return;
    }
    float* at = query + ((size_t)t * heads + head) * head_dim;
    const float* from = is_query ? at : key + ((size_t)t * kv_heads + head) * head_dim;
    const float* norm = is_query ? q_norm : k_norm;
    float r = norm ? head_norm(from, eps, head_dim) : 1.0f;
    for (int i = lane; i < half; i += 32) {
        float2 pair = rotate_pair(from, i, norm, r, slot.rotation + (size_t)p * head_dim, half);
        if (is_query) {
            at[i] = pair.x;
            at[i + half] = pair.y;
        } else {
            F::store(keys + i, pair.x);
            F::store(keys + i + half, pair.y);
        }
    }
}

#define ROTATE(name, F)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128) name(                                                            \
        const Slot* slots, int layer, float* query, const float* key, const float* value, const float* q_norm,         \
        const float* k_norm, float eps, int heads, int kv_heads, int head_dim) {                                       \
        rotate_heads<F>(slots, layer, query, key, value, q_norm, k_norm, eps, heads, kv_heads, head_dim);              \
    }

ROTATE(rotate_f32, F32)
ROTATE(rotate_f16, F16)
