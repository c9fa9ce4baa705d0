//! A build helper for firmware: reads a model with the engine and writes tables and bytes, so that a program that includes
//! them holds no parser. `src/model.rs` makes a model of them.

use std::env;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use trion_core::{FloatData, LayerNorm, Matrix, Projection, Rescale};
use trion_engine::Model;

/// Every tensor begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// Puts bytes into the blob; gives their place.
fn place(blob: &mut Vec<u8>, bytes: impl Iterator<Item = u8>) -> Range<usize> {
    blob.resize(blob.len().next_multiple_of(ALIGNMENT), 0);
    let start = blob.len();
    blob.extend(bytes);
    start..blob.len()
}

fn floats(blob: &mut Vec<u8>, values: &[f32]) -> Range<usize> {
    place(blob, values.iter().flat_map(|v| v.to_le_bytes()))
}

/// Writes `model.rs` and `model.bin` for a model with an embedding in bfloat16 or int8, two bits a trit and one scale for
/// each matrix.
pub fn embed(checkpoint: &Path) -> Model {
    println!("cargo::rerun-if-changed={}", checkpoint.display());
    let opened = Model::open(checkpoint).expect("a model");
    let model = opened.core();
    let c = model.config();
    let mut blob = Vec::new();
    let mut source = String::new();
    writeln!(source, "pub const CONFIG: Config = Config {{ vocab_size: {}, hidden_size: {}, intermediate_size: {}, num_hidden_layers: {}, num_attention_heads: {}, num_key_value_heads: {}, head_dim: {}, max_position_embeddings: {}, rms_norm_eps: {:?}, projection_norm_eps: {:?}, rope_theta: {:?}, hidden_act: Activation::{:?}, activation_group: {} }};",
        c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.max_position_embeddings, c.rms_norm_eps, c.projection_norm_eps,
        c.rope_theta, c.hidden_act, c.activation_group).expect("text");
    let Matrix::Float(embedding) = model.embedding() else { panic!("expected an embedding in bfloat16 or int8") };
    let table = match embedding.data() {
        FloatData::Bf16(bits) => {
            format!("EmbeddingTable::Bf16({:?})", place(&mut blob, bits.iter().flat_map(|b| b.to_le_bytes())))
        }
        FloatData::I8 { values, scales } => {
            let values = place(&mut blob, values.iter().map(|v| *v as u8));
            format!("EmbeddingTable::I8 {{ values: {values:?}, scales: {:?} }}", floats(&mut blob, scales))
        }
        _ => panic!("expected an embedding in bfloat16 or int8"),
    };
    writeln!(source, "const EMBEDDING: EmbeddingTable = {table};").expect("text");
    writeln!(source, "const NORM: Range<usize> = {:?};", floats(&mut blob, model.norm())).expect("text");
    writeln!(source, "const LAYERS: [LayerTable; {}] = [", c.num_hidden_layers).expect("text");
    for layer in model.layers() {
        writeln!(source, "LayerTable {{ projections: [").expect("text");
        for projection in Projection::ALL {
            let Matrix::Ternary(m) = &layer.projection(projection).matrix else { panic!("a ternary projection") };
            let Rescale::Multiply(scale) = m.rescale() else { panic!("one multiplier") };
            let range = place(&mut blob, m.packed().iter().copied());
            writeln!(source, "({range:?}, {scale:?}),").expect("text");
        }
        writeln!(source, "], norms: [").expect("text");
        for norm in 0..LayerNorm::ALL.len() {
            match layer.norms[norm] {
                Some(values) => writeln!(source, "Some({:?}),", floats(&mut blob, values)),
                None => writeln!(source, "None,"),
            }
            .expect("text");
        }
        writeln!(source, "] }},").expect("text");
    }
    writeln!(source, "];").expect("text");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("model.rs"), source).expect("a writable OUT_DIR");
    fs::write(out.join("model.bin"), blob).expect("a writable OUT_DIR");
    opened
}
