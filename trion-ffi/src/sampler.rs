//! Sampler
//!
//! How a session chooses tokens. Each session has its own; without options it always takes the most probable token.
//! With the same seed and the same calls the tokens are the same on every machine.

#[cfg(feature = "std")]
use core::mem::MaybeUninit;

use trion_core::{Sampler, SamplerOptions};

use crate::edge::Options;
#[cfg(feature = "std")]
use crate::edge::{call, handle};
#[cfg(feature = "std")]
use crate::session::trion_session;
use crate::status::Failure;
#[cfg(feature = "std")]
use crate::status::{trion_error, trion_status};

/// Options of a sampler. Fields that are zero have their default. The steps are taken in the order of the fields.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct trion_sampler_options {
    /// sizeof(trion_sampler_options).
    pub struct_size: usize,
    /// Divides the logits of tokens that were there lately, where positive, and multiplies them where negative; 0 and 1
    /// for off.
    pub repetition_penalty: f32,
    /// Tokens that the penalty looks back; 0 stands for 64.
    pub repetition_window: u32,
    /// 0 for always the most probable token, 1 for the model's own distribution.
    pub temperature: f32,
    /// Choose among the k most probable tokens, at most 256; 0 for off.
    pub top_k: u32,
    /// Choose among the most probable tokens that together reach p, up to 1; 0 and 1 for off.
    pub top_p: f32,
    /// Choose among tokens at least this fraction as probable as the first, up to 1; 0 for off.
    pub min_p: f32,
    /// Starts the random numbers.
    pub seed: u64,
}

// SAFETY: all fields may be zero, and are numbers.
unsafe impl Options for trion_sampler_options {
    const FIRST_SIZE: usize = size_of::<Self>();
}

impl trion_sampler_options {
    pub(crate) fn sampler(&self) -> Result<Sampler, Failure> {
        let or = |value: f32, default: f32| if value == 0.0 { default } else { value };
        let options = SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: or(self.top_p, 1.0),
            min_p: self.min_p,
            repetition_penalty: or(self.repetition_penalty, 1.0),
            repetition_window: match self.repetition_window {
                0 => SamplerOptions::GREEDY.repetition_window,
                window => window as usize,
            },
            seed: self.seed,
        };
        Ok(Sampler::new(options)?)
    }
}

/// Gives a session another sampler, from the next token on; NULL options for always the most probable token.
///
/// TRION_INVALID_ARGUMENT for options outside their range, TRION_BUSY; the session is unchanged then.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_set_sampler(
    session: *mut trion_session,
    options: *const trion_sampler_options,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for handles and options.
        let (session, options) = unsafe { (handle(session)?, trion_sampler_options::read(options)?) };
        session.lock()?.sampler = options.sampler()?;
        Ok(())
    })
}
