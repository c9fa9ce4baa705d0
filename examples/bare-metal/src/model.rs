//! A model of tables and bytes that the build script wrote.

use core::ops::Range;

use trion_core::{
    Activation, Config, Error, FloatData, FloatMatrix, Layer, Linear, Model, Packing, Projection, Rescale,
    TernaryMatrix,
};

/// Places of a layer's tensors in the blob.
struct LayerTable {
    projections: [(Range<usize>, f32); 7],
    norms: [Option<Range<usize>>; 6],
}

/// Places of the embedding's numbers. A model has one form.
#[allow(dead_code)]
enum EmbeddingTable {
    Bf16(Range<usize>),
    I8 { values: Range<usize>, scales: Range<usize> },
}

include!(concat!(env!("OUT_DIR"), "/model.rs"));

/// Aligned as the kernels like it.
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

static BLOB: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.bin")));

fn bytes(range: &Range<usize>) -> &'static [u8] {
    &BLOB.0[range.clone()]
}

/// Numbers of a type that any bits make, at an address that suits it: pieces begin at multiples of 64.
fn numbers<T: Copy>(range: &Range<usize>) -> &'static [T] {
    let bytes = bytes(range);
    // SAFETY: used for i8, u16 and f32 alone; the build script placed whole numbers, aligned to 64 bytes.
    unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

fn layer(table: &LayerTable) -> Result<Layer<'static>, Error> {
    let mut projections = [None; 7];
    for (projection, (place, scale)) in Projection::ALL.into_iter().zip(&table.projections) {
        let [rows, cols] = projection.shape(&CONFIG);
        let matrix = TernaryMatrix::new(rows, cols, Packing::Twos, bytes(place), Rescale::Multiply(*scale))?;
        projections[projection as usize] = Some(Linear { matrix: matrix.into(), norm: None });
    }
    let [Some(q), Some(k), Some(v), Some(o), Some(gate), Some(up), Some(down)] = projections else {
        return Err(Error::NoTokens);
    };
    Ok(Layer {
        projections: [q, k, v, o, gate, up, down],
        norms: table.norms.each_ref().map(|norm| norm.as_ref().map(numbers)),
    })
}

/// Calls `f` with the model.
pub fn with_model<T>(f: impl FnOnce(&Model<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let mut layers = heapless::Vec::<Layer<'static>, { LAYERS.len() }>::new();
    for table in &LAYERS {
        // The vector has room for each.
        let _ = layers.push(layer(table)?);
    }
    let data = match &EMBEDDING {
        EmbeddingTable::Bf16(place) => FloatData::Bf16(numbers(place)),
        EmbeddingTable::I8 { values, scales } => FloatData::I8 { values: numbers(values), scales: numbers(scales) },
    };
    let embedding = FloatMatrix::new(CONFIG.vocab_size, CONFIG.hidden_size, data)?;
    f(&Model::new(CONFIG, embedding.into(), &layers, numbers(&NORM), None)?)
}
