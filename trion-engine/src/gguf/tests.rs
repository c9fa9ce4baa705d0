//! Files that lie, and blocks by hand.

use std::path::Path;

use super::GgufCheckpoint;
use super::blocks::Kind;
use crate::source::Checkpoint;

/// Writes a GGUF header piece by piece.
#[derive(Clone, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn header(version: u32, tensors: u64, keys: u64) -> Self {
        let mut writer = Writer(b"GGUF".to_vec());
        writer.0.extend(version.to_le_bytes());
        writer.0.extend(tensors.to_le_bytes());
        writer.0.extend(keys.to_le_bytes());
        writer
    }

    fn bytes(mut self, text: &[u8]) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text);
        self
    }

    fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn long(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn text(self, key: &str, value: &str) -> Self {
        self.bytes(key.as_bytes()).number(8).bytes(value.as_bytes())
    }

    pub(super) fn size(self, key: &str, value: u32) -> Self {
        self.bytes(key.as_bytes()).number(4).number(value)
    }

    pub(super) fn float(self, key: &str, value: f32) -> Self {
        self.bytes(key.as_bytes()).number(6).number(value.to_bits())
    }

    pub(super) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self = self.bytes(name.as_bytes()).number(dims.len() as u32);
        for dim in dims {
            self = self.long(*dim);
        }
        self.number(kind).long(offset)
    }

    /// Pads to 32 bytes, and adds data.
    pub(super) fn data(mut self, count: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + count, 0);
        self
    }
}

/// A small llama with as many keys as `change` adds.
fn llama(keys: u64, tensors: u64, change: impl FnOnce(Writer) -> Writer) -> Writer {
    let base = Writer::header(3, tensors, 6 + keys)
        .text("general.architecture", "llama")
        .size("llama.embedding_length", 64)
        .size("llama.attention.head_count", 2)
        .size("llama.feed_forward_length", 64)
        .size("llama.block_count", 1)
        .size("llama.vocab_size", 8);
    change(base)
}

#[test]
fn files_that_lie_are_refused_by_name() {
    let rows: Vec<(&str, Writer, &str)> = vec![
        ("magic", Writer(b"GGML____".to_vec()), "GGUF"),
        ("nothing", Writer(Vec::new()), "header"),
        ("version 1", Writer::header(1, 0, 0), "version"),
        ("big-endian", Writer::header(3_u32.swap_bytes(), 0, 0), "big-endian"),
        ("cut in the counts", Writer(b"GGUF\x03\0\0\0\x01".to_vec()), "tensor count"),
        ("too many tensors", Writer::header(3, u64::MAX, 0), "tensor count"),
        ("too many keys", Writer::header(3, 0, 1 << 60), "metadata count"),
        ("a long key", Writer::header(3, 0, 1).long(1 << 40).long(0), "metadata key"),
        ("a key that is not UTF-8", Writer::header(3, 0, 1).bytes(b"\xff\xfe").number(4).number(1), "UTF-8"),
        ("an unknown value type", Writer::header(3, 0, 1).bytes(b"k").number(99).long(0), "value type 99"),
        ("a long text", Writer::header(3, 0, 1).bytes(b"k").number(8).long(1 << 50), "k: "),
        ("a long list", Writer::header(3, 0, 1).bytes(b"k").number(9).number(8).long(1 << 60), "entries"),
        (
            "nested lists",
            Writer::header(3, 0, 1).bytes(b"k").number(9).number(9).long(1).number(9).long(1).number(9).long(0),
            "nests",
        ),
        ("a key twice", Writer::header(3, 0, 2).size("k", 1).size("k", 2).data(0), "occurs twice"),
        ("no architecture", Writer::header(3, 0, 1).size("k", 1).data(0), "general.architecture"),
        ("another architecture", Writer::header(3, 0, 1).text("general.architecture", "mamba"), "mamba"),
        ("architecture of another type", Writer::header(3, 0, 1).size("general.architecture", 1), "expected text"),
        ("sizes missing", Writer::header(3, 0, 1).text("general.architecture", "llama"), "llama.embedding_length"),
        ("a size of another type", llama(1, 0, |w| w.text("llama.context_length", "x")), "llama.context_length"),
        ("alignment", llama(1, 0, |w| w.size("general.alignment", 3)), "general.alignment"),
        ("parts", llama(1, 0, |w| w.size("split.count", 2)), "split.count"),
        ("scaling", llama(1, 0, |w| w.text("llama.rope.scaling.type", "yarn")), "yarn"),
        ("activation", llama(1, 0, |w| w.text("llama.hidden_activation", "gelu")), "gelu"),
        (
            "part of a head",
            llama(2, 0, |w| w.size("llama.attention.key_length", 16).size("llama.rope.dimension_count", 8)),
            "rope.dimension_count",
        ),
        ("narrow values", llama(1, 0, |w| w.size("llama.attention.value_length", 16)), "value_length"),
        (
            "a scale of no matrix",
            llama(0, 1, |w| w.tensor("output_norm.scale", &[1], 0, 0).data(4)),
            "output_norm.scale",
        ),
        ("a block in disguise", llama(0, 1, |w| w.tensor("blk.00.attn_q.weight", &[4], 0, 0).data(16)), "blk.00"),
        ("version 0", Writer::header(0, 0, 0), "is 0, supported are 2 and 3"),
        ("no dimensions", llama(0, 1, |w| w.tensor("t", &[], 0, 0).data(64)), "dimensions"),
        ("an overflowing shape", llama(0, 1, |w| w.tensor("t", &[1 << 40, 1 << 40], 0, 0).data(64)), "overflows"),
        ("an offset outside", llama(0, 1, |w| w.tensor("t", &[4], 0, 1 << 40).data(64)), "offset"),
        ("an odd offset", llama(0, 1, |w| w.tensor("t", &[4], 0, 7).data(64)), "offset"),
        (
            "two tensors in one place",
            llama(0, 2, |w| w.tensor("t", &[4], 0, 0).tensor("u", &[4], 0, 0).data(64)),
            "offset",
        ),
        (
            "a tensor twice",
            llama(0, 2, |w| w.tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).data(64)),
            "occurs twice",
        ),
        (
            "a tensor that nobody reads",
            llama(0, 1, |w| w.tensor("blk.0.attn_q.bias", &[64], 0, 0).data(256)),
            "attn_q.bias",
        ),
    ];
    for (what, writer, expected) in rows {
        let error = match GgufCheckpoint::open(Path::new("file.gguf"), &writer.0) {
            Ok(_) => panic!("{what} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with("file.gguf: ") && error.contains(expected), "{what}: {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_when_they_are_read() {
    use crate::source::{MatrixId, VectorId};
    let open = |kind: u32, dims: &'static [u64], bytes: usize| {
        let base = |w: Writer| w.tensor("token_embd.weight", dims, kind, 0).data(bytes);
        llama(0, 1, base).0
    };
    let rows: [(&str, Vec<u8>, &str); 5] = [
        ("another shape", open(0, &[64, 9], 64 * 9 * 4), "[9, 64]"),
        ("too few bytes", open(0, &[64, 8], 100), "100 bytes"),
        ("a type that is not supported", open(12, &[64, 8], 4096), "Q4_K"),
        ("Prism's five trits a byte", open(143, &[64, 8], 4096), "PTQ1_0"),
        ("columns that are not whole blocks", open(35, &[64, 8], 4096), "multiple of 256"),
    ];
    for (what, bytes, expected) in rows {
        let checkpoint = GgufCheckpoint::open(Path::new("file.gguf"), &bytes).unwrap();
        let error = checkpoint.matrix(MatrixId::Embedding).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("token_embd.weight") && error.contains(expected), "{what}: {error}");
        assert!(checkpoint.vector(VectorId::FinalNorm).unwrap().is_none());
    }
}

#[test]
fn blocks_decode_as_their_layouts_say() {
    // Element i of each block is the trit i % 3 - 1.
    let expected = |count: usize| (0..count).map(|i| (i % 3) as i8 - 1).collect::<Vec<_>>();
    let code = |i: usize| (i % 3) as u8;
    let check = |kind: Kind, block: &[u8]| {
        let mut out = vec![9; kind.block().0];
        assert!(kind.trits(block, &mut out).is_ok());
        assert_eq!(out, expected(out.len()), "{kind:?}");
    };
    let mut block = vec![0_u8; 66];
    for i in 0..256 {
        block[32 * (i / 128) + i % 32] |= code(i) << (2 * (i % 128 / 32));
    }
    check(Kind::Tq2_0, &block);

    let mut block = vec![0_u8; 32];
    for i in 0..128 {
        block[i % 32] |= code(i) << (6 - 2 * (i / 32));
    }
    check(Kind::I2S, &block);

    for size in [64, 128] {
        let mut block = vec![0_u8; 2 + size / 4];
        for i in 0..size {
            block[2 + i / 4] |= code(i) << (2 * (i % 4));
        }
        check(Kind::Q2 { block: size }, &block);
    }

    let mut block = vec![0_u8; 54];
    let digits = |from: usize, stride: usize, count: usize| {
        let value = (0..5).fold(0_u32, |v, n| 3 * v + if n < count { u32::from(code(from + n * stride)) } else { 0 });
        (value * 256).div_ceil(243) as u8
    };
    for (j, byte) in block[..32].iter_mut().enumerate() {
        *byte = digits(j, 32, 5);
    }
    for j in 0..16 {
        block[32 + j] = digits(160 + j, 16, 5);
    }
    for j in 0..4 {
        block[48 + j] = digits(240 + j, 4, 4);
    }
    check(Kind::Tq1_0, &block);
}

#[test]
fn codes_that_are_no_trits_are_refused_but_in_i2_s() {
    let mut out = vec![0; 256];
    assert!(Kind::Tq2_0.trits(&[0xff; 66], &mut out).is_err());
    assert!(Kind::Q2 { block: 64 }.trits(&[0xff; 18], &mut out[..64]).is_err());
    assert!(Kind::I2S.trits(&[0xff; 32], &mut out[..128]).is_ok());
    assert_eq!(out[..128], [0; 128]);
}

#[test]
fn float_blocks_are_products_of_their_parts() {
    let mut block = vec![0_u8; 34];
    block[..2].copy_from_slice(&0x3800_u16.to_le_bytes()); // 0.5
    block[2] = 0x80;
    block[33] = 3;
    let (_, bytes) = Kind::Q8_0.floats(&block).unwrap();
    let singles: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|le| f32::from_le_bytes(*le)).collect();
    assert_eq!((singles[0], singles[1], singles[31]), (-64.0, 0.0, 1.5));

    let mut block = vec![0_u8; 210];
    block[208..].copy_from_slice(&0x3c00_u16.to_le_bytes()); // 1
    block[192..208].fill(2);
    block[64 + 5] = 0x70; // low bits 7 of element 128 + 64 + 5
    block[128 + 32 + 5] = 0b10 << 4; // its high bits
    let (_, bytes) = Kind::Q6K.floats(&block).unwrap();
    let singles: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|le| f32::from_le_bytes(*le)).collect();
    assert_eq!((singles[0], singles[128 + 64 + 5]), (-64.0, 2.0 * (7.0 + 32.0 - 32.0)));
}

#[test]
fn float_scales_that_are_not_finite_are_found() {
    for (kind, at) in [(Kind::Q8_0, 0), (Kind::Q6K, 208)] {
        let mut blocks = vec![0_u8; 2 * kind.block().1];
        assert_eq!(kind.bad_float_scale(&blocks), None);
        blocks[kind.block().1 + at + 1] = 0x7e;
        assert!(kind.bad_float_scale(&blocks).is_some_and(f32::is_nan), "{kind:?}");
    }
}
