//! From the tables of `bare.rs` to a model and a session of the core, in the caller's buffer: the handle first, then the
//! model, its layers, and what the core's session keeps.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::slice;

use trion_core::{
    Activation, CacheType, Config, Error, FloatData, FloatMatrix, Int6Matrix, Kernel, Layer, LayerNorm, Linear, Matrix,
    Model, Packing, Projection, Rescale, Sampler, SamplerOptions, Session, SessionOptions, TernaryMatrix,
};

use crate::bare::{
    trion_bare_activation, trion_bare_config, trion_bare_floats, trion_bare_form, trion_bare_layer, trion_bare_matrix,
    trion_bare_model, trion_bare_session,
};
use crate::edge::{check, input};
use crate::status::Failure;

/// The handle, the model and its layers begin at multiples of this.
const ALIGNMENT: usize = 16;
const _: () = assert!(align_of::<trion_bare_session>() <= ALIGNMENT);
const _: () = assert!(align_of::<Model<'_>>() <= ALIGNMENT && align_of::<Layer<'_>>() <= ALIGNMENT);

/// Bytes of the handle, up to where the model begins.
const HANDLE: usize = size_of::<trion_bare_session>().next_multiple_of(ALIGNMENT);
/// Bytes of the model, up to where its layers begin.
const MODEL: usize = size_of::<Model<'_>>().next_multiple_of(ALIGNMENT);

/// A model's tables and a session's options, whose numbers are in their ranges.
pub(crate) struct Plan {
    tables: trion_bare_model,
    config: Config,
    options: SessionOptions,
}

impl Plan {
    pub(crate) fn new(
        tables: trion_bare_model,
        context: usize,
        max_batch: usize,
        cache: CacheType,
    ) -> Result<Self, Failure> {
        let config = config(&tables.config).map_err(|error| refused(None, "config", error))?;
        let limit = config.max_position_embeddings;
        let context = if context == 0 { limit } else { context };
        let max_batch = max_batch.max(1);
        for (field, found, limit) in [("context", context, limit), ("max_batch", max_batch, context)] {
            if found > limit {
                return Err(Error::Options { field, found, limit }.into());
            }
        }
        Ok(Plan { tables, config, options: SessionOptions { max_batch, cache, ..SessionOptions::new(context) } })
    }

    /// Bytes behind the model and its layers.
    const fn own_bytes(&self) -> usize {
        HANDLE + MODEL + self.config.num_hidden_layers * size_of::<Layer<'_>>()
    }

    /// Bytes of a session in a buffer at any address; `usize::MAX` if they cannot be counted.
    pub(crate) const fn bytes(&self) -> usize {
        Session::bytes(&self.config, &self.options).saturating_add(self.own_bytes() + ALIGNMENT - 1)
    }

    /// Builds a session, always with the most probable token, in a buffer of the caller's.
    ///
    /// # Safety
    /// What the tables point to is valid for reading, `buffer` is NULL or valid for reading and writing `size` bytes, and
    /// all of it is left alone for as long as the session is used.
    pub(crate) unsafe fn build(
        &self,
        buffer: *mut c_void,
        size: usize,
    ) -> Result<NonNull<trion_bare_session>, Failure> {
        check(buffer.cast::<u8>(), size)?;
        let expected = self.bytes();
        if size < expected {
            return Err(Error::BufferTooSmall { found: size, expected }.into());
        }
        let buffer = NonNull::new(buffer.cast::<u8>()).ok_or(Failure::NULL)?;
        let skip = buffer.align_offset(ALIGNMENT);
        let used = skip + self.own_bytes();
        // SAFETY: `bytes` has room for `skip` and for all of these pieces, each at its alignment.
        let (handle, model, layers, rest) = unsafe {
            let handle = buffer.add(skip);
            let model = handle.add(HANDLE);
            (handle.cast(), model.cast(), model.add(MODEL).cast(), buffer.add(used))
        };
        // SAFETY: the caller's promise about the tables, and `layers` has room for the configuration's.
        let built = unsafe { self.model(layers)? };
        let model: NonNull<Model<'static>> = model;
        // SAFETY: the place is the model's, and nobody writes to it again while the session is used.
        let model: &'static Model<'static> = unsafe {
            model.write(built);
            model.as_ref()
        };
        // SAFETY: what is left of the buffer, which is the session's alone. It holds bytes of the caller's side, and the
        // core never reads one before it has written it.
        let memory: &'static mut [u8] = unsafe { slice::from_raw_parts_mut(rest.as_ptr(), size - used) };
        let session = Session::new(model, self.options, Kernel::detect(), memory)?;
        let sampler = Sampler::new(SamplerOptions::GREEDY)?;
        // SAFETY: the buffer begins with room for the handle.
        unsafe { handle.write(trion_bare_session { session, sampler }) };
        Ok(handle)
    }

    /// The model, with its layers at `place`.
    ///
    /// # Safety
    /// As [`Plan::build`]; `place` is aligned, and valid for writing as many layers as the configuration has.
    unsafe fn model(&self, place: NonNull<Layer<'static>>) -> Result<Model<'static>, Failure> {
        let (c, tables) = (&self.config, &self.tables);
        let table = [c.vocab_size, c.hidden_size];
        // SAFETY: the caller's promise.
        unsafe {
            let refuse = |tensor| move |error| refused(None, tensor, error);
            let embedding = matrix(&tables.embedding, table).map_err(refuse("embed_tokens"))?;
            let head = match tables.head.form {
                form if form == trion_bare_form::TRION_BARE_NONE as u32 => None,
                _ => Some(matrix(&tables.head, table).map_err(refuse("lm_head"))?),
            };
            let norm = floats(&tables.norm).map_err(refuse("norm"))?.unwrap_or(&[]);
            let found = elements(tables.layers, c.num_hidden_layers).map_err(refuse("layers"))?;
            for (n, table) in found.iter().enumerate() {
                place.add(n).write(layer(c, n, table)?);
            }
            let layers = slice::from_raw_parts(place.as_ptr(), found.len());
            Model::new(*c, embedding, layers, norm, head).map_err(refuse("model"))
        }
    }
}

/// What is wrong with the tables, and where.
fn refused(layer: Option<usize>, tensor: &'static str, error: Error) -> Failure {
    Failure::Tables { layer, tensor, error }
}

fn config(table: &trion_bare_config) -> Result<Config, Error> {
    let config = Config {
        vocab_size: table.vocab_size as usize,
        hidden_size: table.hidden_size as usize,
        intermediate_size: table.intermediate_size as usize,
        num_hidden_layers: table.num_hidden_layers as usize,
        num_attention_heads: table.num_attention_heads as usize,
        num_key_value_heads: table.num_key_value_heads as usize,
        head_dim: table.head_dim as usize,
        max_position_embeddings: table.max_position_embeddings as usize,
        rms_norm_eps: table.rms_norm_eps,
        projection_norm_eps: table.projection_norm_eps,
        rope_theta: table.rope_theta,
        hidden_act: match table.hidden_act {
            act if act == trion_bare_activation::TRION_BARE_RELU2 as u32 => Activation::Relu2,
            act if act == trion_bare_activation::TRION_BARE_SILU as u32 => Activation::Silu,
            act => return Err(unknown("hidden_act", act, "a trion_bare_activation")),
        },
        activation_group: table.activation_group as usize,
    };
    config.validate()?;
    Ok(config)
}

fn unknown(field: &'static str, found: u32, expected: &'static str) -> Error {
    Error::Config { field, found: f64::from(found), expected }
}

/// A layer of the tables.
///
/// # Safety
/// What the table points to is valid for reading, for as long as the layer is used.
unsafe fn layer(config: &Config, n: usize, table: &trion_bare_layer) -> Result<Layer<'static>, Failure> {
    let projection = |projection: Projection, table: &trion_bare_matrix| {
        // SAFETY: the caller's promise.
        let linear = unsafe {
            matrix(table, projection.shape(config)).and_then(|matrix| Ok(Linear { matrix, norm: floats(&table.norm)? }))
        };
        linear.map_err(|error| refused(Some(n), projection.name(), error))
    };
    let norm = |norm: LayerNorm, table: &trion_bare_floats| {
        // SAFETY: the caller's promise.
        unsafe { floats(table) }.map_err(|error| refused(Some(n), norm.name(), error))
    };
    Ok(Layer {
        projections: [
            projection(Projection::Query, &table.q_proj)?,
            projection(Projection::Key, &table.k_proj)?,
            projection(Projection::Value, &table.v_proj)?,
            projection(Projection::Output, &table.o_proj)?,
            projection(Projection::Gate, &table.gate_proj)?,
            projection(Projection::Up, &table.up_proj)?,
            projection(Projection::Down, &table.down_proj)?,
        ],
        norms: [
            norm(LayerNorm::Attention, &table.input_layernorm)?,
            norm(LayerNorm::AttentionSub, &table.attn_sub_norm)?,
            norm(LayerNorm::Query, &table.q_norm)?,
            norm(LayerNorm::Key, &table.k_norm)?,
            norm(LayerNorm::Mlp, &table.post_attention_layernorm)?,
            norm(LayerNorm::MlpSub, &table.ffn_sub_norm)?,
        ],
    })
}

/// A matrix of the tables.
///
/// # Safety
/// As [`layer`].
unsafe fn matrix(table: &trion_bare_matrix, [rows, cols]: [usize; 2]) -> Result<Matrix<'static>, Error> {
    const TWOS: u32 = trion_bare_form::TRION_BARE_TWOS as u32;
    const FIVES: u32 = trion_bare_form::TRION_BARE_FIVES as u32;
    const INT6: u32 = trion_bare_form::TRION_BARE_INT6 as u32;
    const INT8: u32 = trion_bare_form::TRION_BARE_INT8 as u32;
    const F16: u32 = trion_bare_form::TRION_BARE_F16 as u32;
    const BF16: u32 = trion_bare_form::TRION_BARE_BF16 as u32;
    const F32: u32 = trion_bare_form::TRION_BARE_F32 as u32;
    // SAFETY: the caller's promise; numbers of these types may have any bits.
    unsafe {
        let float = |data| Ok(FloatMatrix::new(rows, cols, data)?.into());
        match table.form {
            TWOS | FIVES => {
                let packing = if table.form == TWOS { Packing::Twos } else { Packing::Fives };
                let rescale = match (table.group as usize, table.divides) {
                    (0, 0) => Rescale::Multiply(table.scale),
                    (0, 1) => Rescale::Divide(table.scale),
                    (0, divides) => return Err(unknown("divides", divides, "0 or 1")),
                    (size, _) => Rescale::Groups { size, scales: numbers(table.scales, table.scales_size)? },
                };
                Ok(TernaryMatrix::new(rows, cols, packing, numbers(table.data, table.size)?, rescale)?.into())
            }
            INT6 => {
                let scales = numbers(table.scales, table.scales_size)?;
                Ok(Int6Matrix::new(rows, cols, numbers(table.data, table.size)?, scales)?.into())
            }
            INT8 => {
                let scales = numbers(table.scales, table.scales_size)?;
                float(FloatData::I8 { values: numbers(table.data, table.size)?, scales })
            }
            F16 => float(FloatData::F16(numbers(table.data, table.size)?)),
            BF16 => float(FloatData::Bf16(numbers(table.data, table.size)?)),
            F32 => float(FloatData::F32(numbers(table.data, table.size)?)),
            form => Err(unknown("form", form, "a trion_bare_form of a matrix")),
        }
    }
}

/// Floats of the tables; `None` where there are none.
///
/// # Safety
/// As [`layer`].
unsafe fn floats(table: &trion_bare_floats) -> Result<Option<&'static [f32]>, Error> {
    if table.values.is_null() && table.count == 0 {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { elements(table.values, table.count) }.map(Some)
}

/// Numbers of type T in `size` bytes.
///
/// # Safety
/// As [`layer`]; T takes any bits.
unsafe fn numbers<T>(data: *const c_void, size: usize) -> Result<&'static [T], Error> {
    if !size.is_multiple_of(size_of::<T>()) {
        let expected = size.next_multiple_of(size_of::<T>());
        return Err(Error::Length { tensor: "bytes", found: size, expected });
    }
    // SAFETY: the caller's promise.
    unsafe { elements(data.cast(), size / size_of::<T>()) }
}

/// [`input`], with a pointer that is none as an error of the tables.
///
/// # Safety
/// As [`input`].
unsafe fn elements<T>(pointer: *const T, count: usize) -> Result<&'static [T], Error> {
    if pointer.is_null() {
        return Err(Error::Length { tensor: "NULL", found: 0, expected: count });
    }
    // SAFETY: the caller's promise.
    unsafe { input(pointer, count) }.map_err(|_| Error::Misaligned { tensor: "data", expected: align_of::<T>() })
}
