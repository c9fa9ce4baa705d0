//! Model
//!
//! A model is immutable. Any number of sessions on any threads share one, and keep it alive: trion_model_free() takes
//! back one reference, and the last one frees it.
//!
//! A path may lead to a file that `trion quantize` packed, which is mapped and used in place, to a GGUF file, or to a
//! directory in the form of Hugging Face; the last two are packed in memory.
//!
//! Weights and sessions are asked for in a way that can fail. The rest (names, the tokenizer's tables) comes from the
//! process's heap, in pieces of a vocabulary's size at most; where even that is exhausted, the process ends, as it does
//! in any Rust program.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;

use trion_engine::{Kernel, Model};

use crate::edge::{call, check, handle, input, place, sized_output};
use crate::runtime::{Runtime, trion_runtime};
use crate::status::{Failure, trion_error, trion_status};

/// Weights, and what comes with them: a vocabulary, a tokenizer, a chat template.
pub struct trion_model(pub(crate) Loaded);

/// A model with the runtime that it was made with; cloning shares both.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) model: Model,
    pub(crate) runtime: Arc<Runtime>,
}

/// What a model is like.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_model_info {
    /// Tokens in the vocabulary, and logits of a token.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The longest context.
    pub max_position_embeddings: usize,
    /// Bytes of the weights and everything that lies beside them.
    pub packed_bytes: usize,
    /// The token that begins a text; -1 for none.
    pub bos_token: i64,
    /// 1 if the model has a tokenizer, else 0.
    pub has_tokenizer: c_int,
    /// 1 if the model has a chat template, else 0.
    pub has_chat_template: c_int,
    /// Where it computes: "cpu", or the GPU's name. Valid as long as the model. Since version 1.1.
    pub device: *const c_char,
}

/// Gives the next bytes of a model: writes up to `size` bytes to `buffer` and returns how many, 0 only at the end or
/// when it fails.
pub type trion_read_fn = Option<unsafe extern "C" fn(user: *mut c_void, buffer: *mut c_void, size: usize) -> usize>;

/// A host's reader, for models inside archives and the like.
struct Reader {
    read: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> usize,
    user: *mut c_void,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: a function of the host's, with what it asked for and a buffer of the size that it is told.
        let count = unsafe { (self.read)(self.user, buffer.as_mut_ptr().cast(), buffer.len()) };
        if count > buffer.len() {
            let message = format!("the reader gave {count} bytes, expected at most {}", buffer.len());
            return Err(io::Error::other(message));
        }
        Ok(count)
    }
}

/// The body of the calls that make a model.
fn make(
    runtime: Option<&trion_runtime>,
    model: Option<&mut MaybeUninit<*mut trion_model>>,
    error: Option<&mut MaybeUninit<trion_error>>,
    open: impl FnOnce() -> Result<Model, Failure>,
) -> trion_status {
    call(error, || {
        let out = place(model)?;
        let runtime = Runtime::of(runtime);
        let opened = open().and_then(|model| Ok(model.on(&runtime.device)?));
        let model = opened.inspect_err(|failure| runtime.error(format_args!("model: {failure}")))?;
        runtime.info(format_args!(
            "model {}: {} layers, hidden_size {}, vocabulary of {}, {} bytes, kernel {}, device {}",
            model.name(),
            model.config().num_hidden_layers,
            model.config().hidden_size,
            model.config().vocab_size,
            model.packed().len(),
            Kernel::detect().isa().name(),
            runtime.device.name(),
        ));
        let loaded = Arc::new(trion_model(Loaded { model, runtime }));
        out.write(Arc::into_raw(loaded).cast_mut());
        Ok(())
    })
}

/// Opens the model at `path`, UTF-8 with a zero at its end. Any thread.
///
/// The tokenizer is built by the first call that needs it; trion_model_encode() of an empty text is one.
///
/// TRION_IO, TRION_MALFORMED, TRION_UNSUPPORTED, TRION_OUT_OF_MEMORY, TRION_TEXT for its chat template, TRION_DEVICE if
/// the runtime's GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_open(
    runtime: Option<&trion_runtime>,
    path: *const c_char,
    model: Option<&mut MaybeUninit<*mut trion_model>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    make(runtime, model, error, || {
        check(path, 1)?;
        // SAFETY: the path is not NULL, and ends with a zero.
        let path = unsafe { CStr::from_ptr(path) };
        let path = path.to_str().map_err(|_| Failure::argument("the path is not UTF-8"))?;
        Ok(Model::open(Path::new(path))?)
    })
}

/// A model in the `size` bytes of a packed file or of a GGUF file at `data`, which are copied. Any thread.
///
/// As trion_model_open(); messages call the file `memory`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_copy(
    runtime: Option<&trion_runtime>,
    data: *const c_void,
    size: usize,
    model: Option<&mut MaybeUninit<*mut trion_model>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    make(runtime, model, error, || {
        // SAFETY: the header's rule for pairs of pointer and size.
        Ok(Model::from_bytes(unsafe { input(data.cast::<u8>(), size)? })?)
    })
}

/// A model in the `size` bytes of a packed file at `data`, which are used where they are: nothing is copied. Any
/// thread.
///
/// The caller promises that the bytes stay as they are, at their place, until the model and all its sessions are gone.
/// `data` lies at a multiple of 64.
///
/// As trion_model_open(); TRION_INVALID_ARGUMENT for another address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_borrow(
    runtime: Option<&trion_runtime>,
    data: *const c_void,
    size: usize,
    model: Option<&mut MaybeUninit<*mut trion_model>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    make(runtime, model, error, || {
        if !data.addr().is_multiple_of(64) {
            return Err(Failure::argument("data does not lie at a multiple of 64"));
        }
        // SAFETY: the caller promises that the bytes outlive the model, for which `'static` stands.
        Ok(Model::from_static(unsafe { input::<'static>(data.cast::<u8>(), size)? })?)
    })
}

/// A model in `size` bytes of a packed file or of a GGUF file that `read(user, ...)` gives, from the first to the last.
/// Any thread; the reader is called on this one, before the call returns.
///
/// As trion_model_open(); TRION_IO if the reader ends early.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_read(
    runtime: Option<&trion_runtime>,
    read: trion_read_fn,
    user: *mut c_void,
    size: usize,
    model: Option<&mut MaybeUninit<*mut trion_model>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    make(runtime, model, error, || {
        let read = read.ok_or(Failure::NULL)?;
        Ok(Model::read(&mut Reader { read, user }, size)?)
    })
}

/// Adds a reference: one more trion_model_free() is due. NULL does nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_retain(model: *const trion_model) {
    if !model.is_null() {
        // SAFETY: the handle came from an `Arc`, of which the caller holds a reference.
        unsafe { Arc::increment_strong_count(model) };
    }
}

/// Takes back a reference; NULL does nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_free(model: *mut trion_model) {
    if !model.is_null() {
        // SAFETY: the handle came from an `Arc`, and the caller gives up one of its references.
        unsafe { Arc::decrement_strong_count(model) };
    }
}

/// What a model is like. `info_size` is sizeof(trion_model_info): a library that knows more fields leaves those out,
/// and one that knows fewer writes zeros. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_get_info(
    model: *const trion_model,
    info: *mut trion_model_info,
    info_size: usize,
) -> trion_status {
    call(None, || {
        // SAFETY: the header's rule for handles.
        let loaded = &unsafe { handle(model)? }.0;
        let (model, config) = (&loaded.model, loaded.model.config());
        let known = trion_model_info {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            max_position_embeddings: config.max_position_embeddings,
            packed_bytes: model.packed().len(),
            bos_token: model.bos_token_id().map_or(-1, i64::from),
            has_tokenizer: c_int::from(model.has_tokenizer()),
            has_chat_template: c_int::from(model.has_chat_template()),
            device: loaded.runtime.device_name().as_ptr(),
        };
        // SAFETY: `info` is valid for writing `info_size` bytes.
        unsafe { sized_output(&known, info, info_size) }
    })
}

/// 1 if `token` ends a text, else 0; 0 for NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_ends_text(model: *const trion_model, token: u32) -> c_int {
    // SAFETY: the header's rule for handles.
    unsafe { handle(model) }.map_or(0, |model| c_int::from(model.0.model.eos_token_ids().contains(&token)))
}
