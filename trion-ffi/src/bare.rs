//! Bare metal
//!
//! The same models on machines without an operating system: microcontrollers with some hundred KB of flash and RAM. A
//! library that was built without std has these functions, those of the sections Version and Status, and nothing else;
//! every other build has them too, so that firmware can be tested on a PC. docs/bare-metal.md shows how it is built,
//! and examples/bare-metal-c is a whole program.
//!
//! A model is a constant table, trion_bare_model, that describes weights in flash. The command `trion embed` writes it
//! as C, of any model that it reads. A session lies in one buffer of the program's, with everything that changes; there
//! is no other memory, no heap, no global, no thread and no clock. Many sessions may use one table.
//!
//!     trion_bare_init(&model, &options, buffer, sizeof buffer, &session, NULL);
//!     trion_bare_push(session, prompt, prompt_count, NULL);
//!     for (;;) {
//!         do trion_bare_advance(session, budget, &progress); while (progress == TRION_BARE_MORE);
//!         trion_bare_sample(session, &token);
//!         print(token);
//!         trion_bare_push(session, &token, 1, NULL);
//!     }
//!
//! The table, the weights that it points to and the buffer stay where they are, and as they are, for as long as the
//! session is used. There is no function that ends it: the buffer is the program's again when it calls none. One call
//! at a time may use a session, and nothing guards it: an interrupt handler that comes between leaves it alone.
//!
//! The library without std asks the program for one function, `void trion_panic(void)`, which must not return. It would
//! be called where the library finds itself in a state that it holds to be impossible; no argument leads there. A
//! program that wants to go on resets the machine.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use trion_core::{Progress, Sampler, Serial, Session};

use crate::edge::{Options, cache_type, call, check, input, place};
use crate::sampler::trion_sampler_options;
use crate::status::trion_status::TRION_NO_LOGITS;
use crate::status::{Failure, trion_error, trion_status};
use crate::tables::Plan;

/// How the numbers of a matrix lie in memory. Trits are in tiles of 32 rows, as `trion embed` writes them.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_bare_form {
    /// There is no such matrix: a head that is the embedding.
    TRION_BARE_NONE = 0,
    /// Trits of two bits.
    TRION_BARE_TWOS = 1,
    /// Five trits in a byte.
    TRION_BARE_FIVES = 2,
    /// Six bits a weight, and `scales` with a float for each row.
    TRION_BARE_INT6 = 3,
    /// Signed bytes, and `scales` with a float for each row.
    TRION_BARE_INT8 = 4,
    /// Half precision.
    TRION_BARE_F16 = 5,
    /// bfloat16.
    TRION_BARE_BF16 = 6,
    /// Single precision.
    TRION_BARE_F32 = 7,
}

/// What stands between the gate and the up projection.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_bare_activation {
    /// max(0, x)^2.
    TRION_BARE_RELU2 = 0,
    /// x / (1 + exp(-x)).
    TRION_BARE_SILU = 1,
}

/// What trion_bare_advance() came to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_bare_progress {
    /// The budget is spent: advance again.
    TRION_BARE_MORE = 0,
    /// All tokens that were pushed are computed, and there are logits.
    TRION_BARE_READY = 1,
}

/// Shapes and constants, in the names of config.json.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_bare_config {
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width between the gate and up projections and the down projection.
    pub intermediate_size: u32,
    /// Blocks.
    pub num_hidden_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads.
    pub num_key_value_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// The longest context.
    pub max_position_embeddings: u32,
    /// A trion_bare_activation.
    pub hidden_act: u32,
    /// The smallest group of columns that has a scale of its own in any matrix; 0 where there is none.
    pub activation_group: u32,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Epsilon of the norms inside projections.
    pub projection_norm_eps: f32,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f32,
}

/// Floats that lie somewhere; NULL and 0 where a model has none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_bare_floats {
    /// The first one.
    pub values: *const f32,
    /// How many.
    pub count: usize,
}

/// A matrix; its shape follows from the configuration.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_bare_matrix {
    /// A trion_bare_form.
    pub form: u32,
    /// Of trits, columns that share a scale, in `scales`; 0 where one scale, `scale`, serves all.
    pub group: u32,
    /// Of trits without groups, the scale.
    pub scale: f32,
    /// 1 to divide by `scale`, 0 to multiply.
    pub divides: u32,
    /// The numbers, aligned for their type.
    pub data: *const c_void,
    /// Bytes of `data`.
    pub size: usize,
    /// Scales, as the form says: floats, or for groups of trits half-precision numbers.
    pub scales: *const c_void,
    /// Bytes of `scales`.
    pub scales_size: usize,
    /// Of a projection, the norm of its input, where the model has one there.
    pub norm: trion_bare_floats,
}

/// A block, in the names of checkpoints.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_bare_layer {
    /// self_attn.q_proj.
    pub q_proj: trion_bare_matrix,
    /// self_attn.k_proj.
    pub k_proj: trion_bare_matrix,
    /// self_attn.v_proj.
    pub v_proj: trion_bare_matrix,
    /// self_attn.o_proj.
    pub o_proj: trion_bare_matrix,
    /// mlp.gate_proj.
    pub gate_proj: trion_bare_matrix,
    /// mlp.up_proj.
    pub up_proj: trion_bare_matrix,
    /// mlp.down_proj.
    pub down_proj: trion_bare_matrix,
    /// input_layernorm.
    pub input_layernorm: trion_bare_floats,
    /// self_attn.attn_sub_norm, which not every model has.
    pub attn_sub_norm: trion_bare_floats,
    /// self_attn.q_norm, which not every model has.
    pub q_norm: trion_bare_floats,
    /// self_attn.k_norm, which not every model has.
    pub k_norm: trion_bare_floats,
    /// post_attention_layernorm.
    pub post_attention_layernorm: trion_bare_floats,
    /// mlp.ffn_sub_norm, which not every model has.
    pub ffn_sub_norm: trion_bare_floats,
}

/// A model whose weights lie in memory, in flash for example.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_bare_model {
    /// sizeof(trion_bare_model).
    pub struct_size: usize,
    /// Shapes and constants.
    pub config: trion_bare_config,
    /// The token embedding.
    pub embedding: trion_bare_matrix,
    /// The blocks, `config.num_hidden_layers` of them.
    pub layers: *const trion_bare_layer,
    /// The norm before the head.
    pub norm: trion_bare_floats,
    /// The output head; TRION_BARE_NONE where it is the embedding.
    pub head: trion_bare_matrix,
}

// SAFETY: zeros are numbers and NULL, and any bits are numbers and pointers.
unsafe impl Options for trion_bare_model {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Options of a session on bare metal. Fields that are zero have their default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct trion_bare_options {
    /// sizeof(trion_bare_options).
    pub struct_size: usize,
    /// Tokens that the session can hold; 0 for the model's longest context.
    pub context: usize,
    /// Tokens of a prompt that are computed together; 0 for 1, which takes the least memory. The results are the same.
    pub max_batch: usize,
    /// A trion_cache; TRION_CACHE_F16 halves the memory of keys and values.
    pub cache: u32,
}

// SAFETY: all fields may be zero, and are numbers.
unsafe impl Options for trion_bare_options {
    const FIRST_SIZE: usize = size_of::<Self>();
}

impl trion_bare_options {
    /// Reads the caller's options for a model.
    ///
    /// # Safety
    /// As [`Options::read`].
    unsafe fn plan(model: *const trion_bare_model, options: *const Self) -> Result<Plan, Failure> {
        // Tables have no default.
        check(model, 1)?;
        // SAFETY: the caller's promise.
        let (model, options) = unsafe { (trion_bare_model::read(model)?, Self::read(options)?) };
        Plan::new(model, options.context, options.max_batch, cache_type(options.cache)?)
    }
}

/// A sequence of tokens and everything that the model keeps of it.
pub struct trion_bare_session {
    pub(crate) session: Session<'static, 'static>,
    pub(crate) sampler: Sampler,
}

/// What a pointer to a session points to.
///
/// # Safety
/// `session` is NULL or came from trion_bare_init(), its buffer was not used otherwise, and nobody else uses it now.
unsafe fn session_at<'a>(session: *mut trion_bare_session) -> Result<&'a mut trion_bare_session, Failure> {
    check(session, 1)?;
    // SAFETY: the caller's promise; the pointer is not NULL, and aligned.
    Ok(unsafe { &mut *session })
}

/// Bytes of the buffer for a session of a model, at any address; NULL options for the defaults. NAME_SESSION_SIZE of
/// `trion embed` is at least as large, for the options that the command was given.
///
/// TRION_INVALID_ARGUMENT for options outside their range, TRION_MALFORMED for a configuration that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_size(
    model: *const trion_bare_model,
    options: *const trion_bare_options,
    size: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(size)?;
        // SAFETY: the header's rules for tables and options.
        let plan = unsafe { trion_bare_options::plan(model, options)? };
        out.write(plan.bytes());
        Ok(())
    })
}

/// Makes a session in `buffer` of `size` bytes, at least trion_bare_size(), at any address. Every weight is looked at
/// once, so that what follows can rely on it. The session always takes the most probable token until it is given
/// another sampler.
///
/// TRION_INVALID_ARGUMENT for options outside their range, TRION_BUFFER_TOO_SMALL, TRION_MALFORMED if the tables do not
/// hold what they say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_init(
    model: *const trion_bare_model,
    options: *const trion_bare_options,
    buffer: *mut c_void,
    size: usize,
    session: Option<&mut MaybeUninit<*mut trion_bare_session>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(session)?;
        // SAFETY: the header's rules for tables, options and buffers.
        unsafe {
            let plan = trion_bare_options::plan(model, options)?;
            out.write(plan.build(buffer, size)?.as_ptr());
        }
        Ok(())
    })
}

/// Gives a session another sampler, from the next token on; NULL options for always the most probable token.
///
/// TRION_INVALID_ARGUMENT for options outside their range; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_set_sampler(
    session: *mut trion_bare_session,
    options: *const trion_sampler_options,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for sessions and options.
        let (session, options) = unsafe { (session_at(session)?, trion_sampler_options::read(options)?) };
        session.sampler = options.sampler()?;
        Ok(())
    })
}

/// Appends tokens. The next trion_bare_advance() computes them; until then the logits from before can be read.
///
/// TRION_NO_TOKENS for none, TRION_TOKEN_OUT_OF_RANGE, TRION_CONTEXT_FULL; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_push(
    session: *mut trion_bare_session,
    tokens: *const u32,
    count: usize,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for sessions, and for pointers with sizes.
        let (session, tokens) = unsafe { (session_at(session)?, input(tokens, count)?) };
        Ok(session.session.push(tokens)?)
    })
}

/// Computes tokens that were pushed, for at most `budget` row-blocks or the smallest step beyond; SIZE_MAX for all. A
/// row-block is 32 rows of a ternary matrix for one token, or what takes about as long. How work is divided into calls
/// changes no bit of the result.
///
/// TRION_NO_TOKENS if nothing was pushed since the session was made or rewound.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_advance(
    session: *mut trion_bare_session,
    budget: usize,
    progress: Option<&mut MaybeUninit<trion_bare_progress>>,
) -> trion_status {
    call(None, || {
        let out = place(progress)?;
        // SAFETY: the header's rules for sessions.
        let session = unsafe { session_at(session)? };
        out.write(match session.session.advance(budget, &Serial)? {
            Progress::More => trion_bare_progress::TRION_BARE_MORE,
            Progress::Ready => trion_bare_progress::TRION_BARE_READY,
        });
        Ok(())
    })
}

/// The logits of the last token that was computed, one for each token of the vocabulary. They lie in the session's
/// buffer, and are good until trion_bare_advance() begins new ones.
///
/// TRION_NO_LOGITS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_logits(
    session: *const trion_bare_session,
    logits: Option<&mut MaybeUninit<*const f32>>,
    count: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let (out_logits, out_count) = (place(logits)?, place(count)?);
        // SAFETY: the header's rules for sessions.
        let session = unsafe { session_at(session.cast_mut())? };
        let logits = session.session.logits().ok_or(NO_LOGITS)?;
        out_logits.write(logits.as_ptr());
        out_count.write(logits.len());
        Ok(())
    })
}

/// Chooses a token by the logits, which TRION_BARE_READY tells of, and by the tokens before. It is not added to the
/// session: push it to go on.
///
/// TRION_NO_LOGITS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_sample(
    session: *mut trion_bare_session,
    token: Option<&mut MaybeUninit<u32>>,
) -> trion_status {
    call(None, || {
        let out = place(token)?;
        // SAFETY: the header's rules for sessions.
        let trion_bare_session { session, sampler } = unsafe { session_at(session)? };
        out.write(sampler.sample(session.logits().ok_or(NO_LOGITS)?, session.tokens()));
        Ok(())
    })
}

/// Forgets all tokens from `position` on; 0 begins anew. The sampler goes on as it is.
///
/// TRION_INVALID_ARGUMENT if there are fewer tokens; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_rewind(
    session: *mut trion_bare_session,
    position: usize,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for sessions.
        Ok(unsafe { session_at(session)? }.session.rewind(position)?)
    })
}

/// Tokens in the session, those included that are not computed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_bare_position(
    session: *const trion_bare_session,
    position: Option<&mut MaybeUninit<usize>>,
) -> trion_status {
    call(None, || {
        let out = place(position)?;
        // SAFETY: the header's rules for sessions.
        out.write(unsafe { session_at(session.cast_mut())? }.session.tokens().len());
        Ok(())
    })
}

const NO_LOGITS: Failure = Failure::Plain(TRION_NO_LOGITS, "there are no logits: push tokens and advance first");
