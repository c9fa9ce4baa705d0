// Rows of the embedding, and the tokens they belong to.
#include "common.cuh"

// Sets the position of the batch's first token.
extern "C" __global__ void begin(Slot* slots, int first) {
    in_turn();
    slots[0].position = first;
}

// The row of each token: of consecutive ones of one session (`is_prompt`), or of one of each. Grid: tokens, pieces of
// 256 columns.
extern "C" __global__ void __launch_bounds__(256)
embed(const Slot* slots, int is_prompt, const void* weights, const void* scales, float scale, int kind, int group,
      int cols, float* hidden) {
    in_turn();
    int t = blockIdx.x, col = blockIdx.y * 256 + threadIdx.x;
    if (col >= cols) return;
    const Slot slot = slots[is_prompt ? 0 : t];
    int row = (int)slot.tokens[slot.position + (is_prompt ? t : 0)];
    float w;
    if (kind == KIND_F32) {
        w = ((const float*)weights)[float_index<4>(row, col, (cols + 127) / 128)];
    } else if (kind == KIND_F16) {
        w = half_to_float(((const u16*)weights)[float_index<8>(row, col, (cols + 255) / 256)]);
    } else if (kind == KIND_BF16) {
        w = bf16_to_float(((const u16*)weights)[float_index<8>(row, col, (cols + 255) / 256)]);
    } else if (kind == KIND_I8) {
        u8 byte = ((const u8*)weights)[float_index<16>(row, col, (cols + 511) / 512)];
        w = (float)((int)byte - 128);
        scale = ((const float*)scales)[row];
    } else {
        u32 word = ((const u32*)weights)[trit_word(row, col / 16, (cols + 255) / 256)];
        int code = (word >> (8 * (col % 4) + 2 * (col % 16 / 4))) & 3;
        w = (float)(code - 1);
        if (kind == KIND_DIVIDE) scale = div(1.0f, scale);
        if (kind == KIND_GROUPS) {
            int groups = (cols + group - 1) / group;
            scale = half_to_float(((const u16*)scales)[((size_t)(row / 32) * groups + col / group) * 32 + row % 32]);
        }
    }
    hidden[(size_t)t * cols + col] = mul(w, scale);
}
