"""Writes a GGUF file of the shape of bitnet-b1.58-2B-4T with random weights: trits in TQ2_0, embedding in Q6_K.

    python3 make_gguf.py OUT.gguf
"""

import sys

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 2560, 30, 20, 5, 128, 6912, 128256
# Weights of a block, and its bytes without the scale, in both formats.
BLOCK, TQ2_0_BYTES, Q6_K_BYTES = 256, 64, 208
TYPES = gguf.GGMLQuantizationType


def f16_bytes(value):
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


def blocks(rows, cols, data, scale):
    """Rows of blocks, each of which ends with its scale."""
    count = rows * cols // BLOCK
    out = np.empty((count, data.shape[1] + 2), np.uint8)
    out[:, :-2], out[:, -2:] = data, f16_bytes(scale)
    return out.reshape(rows, -1)


def main(path):
    random = np.random.default_rng(1)
    # Bytes of four trits, two bits each: 0, 1 or 2.
    codes = np.array([a + 4 * b + 16 * c + 64 * d for a in range(3) for b in range(3) for c in range(3) for d in range(3)],
                     np.uint8)
    writer = gguf.GGUFWriter(path, "bitnet")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    # A vocabulary that nobody reads: three special tokens, the bytes, and numbers.
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    tokens += [b"t%d" % i for i in range(len(tokens), VOCAB)]
    types += [gguf.TokenType.NORMAL] * (VOCAB - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types(types)

    def ternary(name, rows, cols):
        data = codes[random.integers(0, len(codes), (rows * cols // BLOCK, TQ2_0_BYTES), dtype=np.uint8)]
        # Outputs as large as inputs, as a trained model keeps them.
        writer.add_tensor(name, blocks(rows, cols, data, 1.2 / np.sqrt(cols)), raw_dtype=TYPES.TQ2_0)

    def ones(name, size):
        writer.add_tensor(name, np.ones(size, np.float32))

    data = random.integers(0, 256, (VOCAB * HIDDEN // BLOCK, Q6_K_BYTES), dtype=np.uint8)
    writer.add_tensor("token_embd.weight", blocks(VOCAB, HIDDEN, data, 1e-5), raw_dtype=TYPES.Q6_K)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight", HIDDEN)
        ones(block + "attn_sub_norm.weight", HIDDEN)
        ones(block + "ffn_norm.weight", HIDDEN)
        ones(block + "ffn_sub_norm.weight", INTERMEDIATE)
        ternary(block + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        ternary(block + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        ternary(block + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        ternary(block + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        ternary(block + "ffn_gate.weight", INTERMEDIATE, HIDDEN)
        ternary(block + "ffn_up.weight", INTERMEDIATE, HIDDEN)
        ternary(block + "ffn_down.weight", HIDDEN, INTERMEDIATE)
    ones("output_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main(sys.argv[1])
