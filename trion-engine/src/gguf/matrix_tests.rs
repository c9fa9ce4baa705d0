//! Matrices as the packer receives them, from files written by hand and by others.

use std::path::{Path, PathBuf};

use super::GgufCheckpoint;
use super::tests::Writer;
use crate::source::{Checkpoint, FloatType, MatrixId, Projection, SourceMatrix, TritScale, VectorId, float_at};

/// Half-precision numbers.
const ONE: u16 = 0x3c00;
const TWO: u16 = 0x4000;

/// A file of one block with 2 heads, hidden size 256 and heads of 128, with the given tensors, each in whole alignments.
fn file(architecture: &str, tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::header(3, tensors.len() as u64, 6).text("general.architecture", architecture);
    for (key, size) in [
        ("embedding_length", 256),
        ("attention.head_count", 2),
        ("feed_forward_length", 256),
        ("block_count", 1),
        ("vocab_size", 8),
    ] {
        writer = writer.size(&format!("{architecture}.{key}"), size);
    }
    let mut data = Vec::new();
    for (name, dims, kind, bytes) in tensors {
        writer = writer.tensor(name, dims, *kind, data.len() as u64);
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut bytes = writer.data(0).0;
    bytes.extend(data);
    bytes
}

/// What a matrix turned out to be.
#[derive(Debug, PartialEq)]
enum Read {
    Trits(TritScale, Vec<i8>),
    Floats(Vec<f32>),
}

fn read(checkpoint: &GgufCheckpoint<'_>, id: MatrixId) -> Result<Read, String> {
    let config = &checkpoint.settings().config;
    let [rows, cols] = match id {
        MatrixId::Layer(_, projection) => projection.shape(config),
        _ => [config.vocab_size, config.hidden_size],
    };
    match checkpoint.matrix(id).map_err(|e| e.to_string())?.ok_or("absent")? {
        SourceMatrix::Trits { scale, rows: read } => {
            let mut trits = vec![9; rows * cols];
            for (row, out) in trits.chunks_mut(cols).enumerate() {
                read(row, out).map_err(|e| e.to_string())?;
            }
            Ok(Read::Trits(scale, trits))
        }
        SourceMatrix::Float { dtype, bytes } => {
            Ok(Read::Floats((0..rows * cols).map(|i| float_at(dtype, &bytes, i)).collect()))
        }
    }
}

/// The query projection `[256, 256]` of a file whose only tensors are it and, if any, its `.scale`.
fn query(architecture: &str, kind: u32, bytes: Vec<u8>, scale: Option<f32>) -> Result<Read, String> {
    let mut tensors: Vec<(&str, &[u64], u32, Vec<u8>)> = vec![("blk.0.attn_q.weight", &[256, 256], kind, bytes)];
    if let Some(scale) = scale {
        tensors.push(("blk.0.attn_q.scale", &[1], 0, scale.to_le_bytes().to_vec()));
    }
    let bytes = file(architecture, &tensors);
    let checkpoint = GgufCheckpoint::open(Path::new("file.gguf"), &bytes).map_err(|e| e.to_string())?;
    read(&checkpoint, MatrixId::Layer(0, Projection::Query))
}

/// The trit of the stored matrix at `[row, col]`: different in every row.
fn stored(row: usize, col: usize) -> i8 {
    i8::from(col == row) - i8::from(col == (row + 1) % 256)
}

/// `TQ2_0` blocks of [`stored`] with the scale of each row.
fn tq2_0(scale: impl Fn(usize) -> u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in 0..256 {
        let mut block = [0_u8; 66];
        for col in 0..256 {
            block[32 * (col / 128) + col % 32] |= ((stored(row, col) + 1) as u8) << (2 * (col % 128 / 32));
        }
        block[64..].copy_from_slice(&scale(row).to_le_bytes());
        bytes.extend(block);
    }
    bytes
}

/// Two-bit blocks of `size` weights of [`stored`], with scale 1.
fn q2_0(size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in 0..256 * 256 / size {
        bytes.extend(ONE.to_le_bytes());
        for byte in 0..size / 4 {
            let at = |i| block * size + 4 * byte + i;
            bytes.push((0..4).map(|i| ((stored(at(i) / 256, at(i) % 256) + 1) as u8) << (2 * i)).sum());
        }
    }
    bytes
}

/// Singles of [`stored`] times a magnitude for each element.
fn singles(magnitude: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let all = (0..256 * 256).map(|i| f32::from(stored(i / 256, i % 256)) * magnitude(i / 256, i % 256));
    all.flat_map(f32::to_le_bytes).collect()
}

fn matrix(row: impl Fn(usize) -> usize) -> Vec<i8> {
    (0..256 * 256).map(|i| stored(row(i / 256), i % 256)).collect()
}

/// Rows of a head of 128 as the converter of llama moves them: row i of half s from 2 i + s.
fn interleaved(row: usize) -> usize {
    let (head, half, i) = (row / 128, row % 128 / 64, row % 64);
    128 * head + 2 * i + half
}

#[test]
fn only_llama_has_interleaved_queries() {
    let one = TritScale::Multiply(1.0);
    for architecture in ["bitnet", "bitnet-b1.58", "bitnet-25", "qwen3"] {
        let found = query(architecture, 35, tq2_0(|_| ONE), None);
        assert_eq!(found, Ok(Read::Trits(one.clone(), matrix(|row| row))), "{architecture}");
    }
    let expected = matrix(interleaved);
    assert_eq!(query("llama", 35, tq2_0(|_| ONE), None), Ok(Read::Trits(one.clone(), expected.clone())));
    // Floats that are ternary, and floats that are not.
    assert_eq!(query("llama", 0, singles(|_, _| 1.0), None), Ok(Read::Trits(one, expected)));
    let weight = |row: usize, col: usize| f32::from(stored(row, col)) * (1 + col) as f32;
    let floats = (0..256 * 256).map(|i| weight(interleaved(i / 256), i % 256)).collect();
    assert_eq!(query("llama", 0, singles(|_, col| (1 + col) as f32), None), Ok(Read::Floats(floats)));
}

#[test]
fn scales_of_rows_move_with_their_rows() {
    // Rows of the second half of a stored head have twice the scale.
    let scale = |row: usize| if row % 128 < 64 { ONE } else { TWO };
    for (architecture, source) in [("bitnet", (|row| row) as fn(usize) -> usize), ("llama", interleaved)] {
        let scales = (0..256).map(|row| scale(source(row))).collect();
        let expected = Read::Trits(TritScale::Groups { size: 256, scales }, matrix(source));
        assert_eq!(query(architecture, 35, tq2_0(scale), None), Ok(expected), "{architecture}");
    }
}

#[test]
fn the_tensor_scale_is_multiplied_in_or_refused() {
    let expected = Ok(Read::Trits(TritScale::Multiply(0.75), matrix(|row| row)));
    assert_eq!(query("bitnet", 35, tq2_0(|_| ONE), Some(0.75)), expected);
    // Floats of one magnitude are trits in a BitNet; 0.3 is no half-precision number.
    let expected = Ok(Read::Trits(TritScale::Multiply(0.3 * 0.75), matrix(|row| row)));
    assert_eq!(query("bitnet", 0, singles(|_, _| 0.3), Some(0.75)), expected);
    let groups = query("bitnet", 35, tq2_0(|row| if row == 7 { TWO } else { ONE }), Some(0.75)).unwrap_err();
    let floats = query("bitnet", 0, singles(|_, col| col as f32), Some(0.75)).unwrap_err();
    for error in [groups, floats] {
        assert!(error.contains("blk.0.attn_q.weight: has a tensor .scale"), "{error}");
    }
    for scale in [f32::NAN, f32::INFINITY] {
        let error = query("bitnet", 35, tq2_0(|_| ONE), Some(scale)).unwrap_err();
        assert!(error.contains("expected a finite number"), "{error}");
    }
}

#[test]
fn floats_stay_floats_where_ternary_is_not_the_rule() {
    let weights = |magnitude: f32| (0..256 * 256).map(|i| f32::from(stored(i / 256, i % 256)) * magnitude).collect();
    assert_eq!(query("qwen3", 0, singles(|_, _| 0.3), None), Ok(Read::Floats(weights(0.3))));
    let infinite = singles(|row, _| if row == 9 { f32::INFINITY } else { 1.0 });
    let found = query("bitnet", 0, infinite, None);
    assert!(matches!(found, Ok(Read::Floats(_))), "infinities are left to the packer to judge");
}

#[test]
fn q8_0_of_a_bitnet_is_ternary() {
    // d = 1, q = 64 t: products of an eight-bit and an eleven-bit integer are exact.
    let mut bytes = Vec::new();
    for block in 0..256 * 256 / 32 {
        bytes.extend(ONE.to_le_bytes());
        bytes.extend((0..32).map(|i| (64 * stored((32 * block + i) / 256, (32 * block + i) % 256)) as u8));
    }
    let expected = Ok(Read::Trits(TritScale::Multiply(64.0), matrix(|row| row)));
    assert_eq!(query("bitnet", 8, bytes, None), expected);
}

#[test]
fn the_size_of_a_block_of_two_bits_shows_in_the_length() {
    let expected = Ok(Read::Trits(TritScale::Multiply(1.0), matrix(|row| row)));
    for (kind, size) in [(42, 64), (42, 128), (142, 128)] {
        assert_eq!(query("bitnet", kind, q2_0(size), None), expected, "{kind} {size}");
    }
    let mut long = q2_0(64);
    long.resize(long.len() + 32, 0);
    let mut between = q2_0(128);
    between.resize(between.len() + 32, 0);
    for (what, bytes) in [("long", long), ("between", between)] {
        let error = query("bitnet", 42, bytes, None).unwrap_err();
        assert!(error.contains("18432 (blocks of 64) or 17408 (blocks of 128)"), "{what}: {error}");
    }
    let mut short = q2_0(128);
    short.truncate(short.len() - 32);
    assert!(query("bitnet", 42, short, None).unwrap_err().contains("has 17376 bytes, expected 17408"));
}

#[test]
fn impossible_blocks_are_refused_with_their_place() {
    let spoil = |mut bytes: Vec<u8>, at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let block = 66 * 3;
    let rows: [(&str, u32, Vec<u8>, &str); 7] = [
        ("NaN", 35, spoil(tq2_0(|_| ONE), block + 64, &[0, 0x7e]), "scale NaN in block 3"),
        ("infinity", 35, spoil(tq2_0(|_| ONE), block + 64, &[0, 0x7c]), "scale inf in block 3"),
        ("a negative scale", 35, spoil(tq2_0(|_| ONE), block + 64, &[0, 0xbc]), "scale -1 in block 3"),
        ("TQ1_0 of NaN", 34, [[0; 52].as_slice(), &[0, 0x7e]].concat().repeat(256), "scale NaN in block 0"),
        ("code 3", 35, spoil(tq2_0(|_| ONE), block + 5, &[0b1101_0101]), "row 3, column 101"),
        ("code 3 of Q2_0", 42, spoil(q2_0(64), 18 * 5 + 2 + 1, &[0b0101_1101]), "row 1, column 69"),
        ("I2_S of NaN", 36, [vec![0; 256 * 64], f32::NAN.to_le_bytes().to_vec()].concat(), "scale NaN"),
    ];
    for (what, kind, bytes, expected) in rows {
        let error = query("bitnet", kind, bytes, None).unwrap_err();
        assert!(error.starts_with("file.gguf: blk.0.attn_q.weight: ") && error.contains(expected), "{what}: {error}");
    }
}

#[test]
fn keys_that_are_left_out_have_llama_cpps_meaning() {
    let open = |keys: u64, change: fn(Writer) -> Writer| {
        let base = Writer::header(3, 0, 6 + keys)
            .text("general.architecture", "qwen3")
            .size("qwen3.embedding_length", 64)
            .size("qwen3.attention.head_count", 4)
            .size("qwen3.feed_forward_length", 64)
            .size("qwen3.block_count", 1)
            .size("qwen3.vocab_size", 8);
        let bytes = change(base).data(0).0;
        GgufCheckpoint::open(Path::new("file.gguf"), &bytes).map(|c| c.settings().config).map_err(|e| e.to_string())
    };
    let config = open(0, |w| w).unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads, config.rope_theta), (16, 4, 10_000.0));
    assert_eq!(open(1, |w| w.size("qwen3.attention.key_length", 32)).unwrap().head_dim, 32);
    assert_eq!(open(1, |w| w.size("qwen3.rope.dimension_count", 8)).unwrap().head_dim, 8);
}

#[test]
fn linear_scaling_by_one_is_no_scaling() {
    for (by, accepted) in [(1.0, true), (2.0, false)] {
        for kind in [Some("linear"), None] {
            let mut writer = Writer::header(3, 0, 7 + u64::from(kind.is_some()))
                .text("general.architecture", "bitnet")
                .size("bitnet.embedding_length", 64)
                .size("bitnet.attention.head_count", 4)
                .size("bitnet.feed_forward_length", 64)
                .size("bitnet.block_count", 1)
                .size("bitnet.vocab_size", 8)
                .float("bitnet.rope.scaling.factor", by);
            if let Some(kind) = kind {
                writer = writer.text("bitnet.rope.scaling.type", kind);
            }
            let bytes = writer.data(0).0;
            let opened = GgufCheckpoint::open(Path::new("file.gguf"), &bytes).map(|_| ()).map_err(|e| e.to_string());
            assert_eq!(opened.is_ok(), accepted, "{kind:?} by {by}: {opened:?}");
        }
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn golden_files_are_read_whole() {
    for name in ["small/i2_s", "small/q2_0", "wide/tq1_0", "wide/tq2_0"] {
        let path = repository(&format!("tests/golden/gguf/{name}.gguf"));
        let bytes = std::fs::read(&path).unwrap();
        let checkpoint = GgufCheckpoint::open(&path, &bytes).unwrap();
        for projection in Projection::ALL {
            let found = read(&checkpoint, MatrixId::Layer(0, projection)).unwrap();
            assert!(matches!(found, Read::Trits(TritScale::Multiply(_), _)), "{name} {projection:?}");
        }
        let embedding = checkpoint.matrix(MatrixId::Embedding).unwrap();
        assert!(matches!(embedding, Some(SourceMatrix::Float { dtype: FloatType::F16, .. })), "{name}");
        assert!(checkpoint.matrix(MatrixId::Head).unwrap().is_none());
        assert!(checkpoint.vector(VectorId::FinalNorm).unwrap().is_some());
    }
}

#[test]
fn files_cut_anywhere_are_refused() {
    for name in ["small/q2_0", "wide/tq1_0"] {
        let path = repository(&format!("tests/golden/gguf/{name}.gguf"));
        let whole = std::fs::read(&path).unwrap();
        // Every byte of the header, and some of the data.
        for length in (0..4096).chain((4096..whole.len()).step_by(997)) {
            let refused = match GgufCheckpoint::open(&path, &whole[..length]) {
                Err(_) => true,
                Ok(cut) => Projection::ALL.iter().any(|p| cut.matrix(MatrixId::Layer(0, *p)).is_err()),
            };
            assert!(refused, "{name} cut to {length} bytes was accepted");
        }
    }
}

/// Files by another writer, which lie beside the repository on some machines.
#[test]
fn foreign_files_hold_their_reference_trits() {
    let directory = repository("../shared/cases/f_gguf");
    let Ok(reference) = std::fs::read(directory.join("reference.safetensors")) else {
        eprintln!("skipped: no {}", directory.display());
        return;
    };
    let reference = safetensors::SafeTensors::deserialize(&reference).unwrap();
    let names = [
        (Projection::Query, "attn_q"),
        (Projection::Key, "attn_k"),
        (Projection::Value, "attn_v"),
        (Projection::Output, "attn_output"),
        (Projection::Gate, "ffn_gate"),
        (Projection::Up, "ffn_up"),
        (Projection::Down, "ffn_down"),
    ];
    for format in ["i2_s", "tq1_0", "tq2_0", "q2_0_g64"] {
        let path = directory.join(format!("{format}.gguf"));
        let bytes = std::fs::read(&path).unwrap();
        let checkpoint = GgufCheckpoint::open(&path, &bytes).unwrap();
        for (projection, name) in names {
            let trits = reference.tensor(&format!("ternary.blk.0.{name}")).unwrap();
            let trits = trits.data().iter().map(|byte| *byte as i8).collect();
            let scale = reference.tensor(&format!("scale.blk.0.{name}")).unwrap();
            let scale = TritScale::Multiply(float_at(FloatType::F32, scale.data(), 0));
            let found = read(&checkpoint, MatrixId::Layer(0, projection));
            assert!(found == Ok(Read::Trits(scale, trits)), "{format} {name}");
        }
    }
}
