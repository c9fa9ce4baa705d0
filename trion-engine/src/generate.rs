//! Text in, text out.

use std::time::{Duration, Instant};

use trion_core::{CacheType, Kernel, Parallel, Progress, Sampler, SamplerOptions, SessionOptions};

use crate::constraint::{Constraint, ConstraintState, Mask};
use crate::error::Result;
use crate::model::Model;
use crate::session::Session;
use crate::text_stream::{StopStrings, TextStream};

/// How a text is continued.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampler: SamplerOptions,
    /// What the text must follow; its beginning is that of the new text, not of the prompt.
    pub constraint: Option<Constraint>,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the tokenizer adds its special tokens to the prompt. A chat template writes its own.
    pub add_special_tokens: bool,
    /// Whether the text ends at a token that the model ends texts with.
    pub stop_at_eos: bool,
    /// Positions of the session; 0 for what the prompt and `max_tokens` need.
    pub context: usize,
    /// Number format of keys and values.
    pub cache: CacheType,
    /// The kernel; all give the same text.
    pub kernel: Kernel,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 128,
            sampler: SamplerOptions::GREEDY,
            constraint: None,
            stop: Vec::new(),
            add_special_tokens: true,
            stop_at_eos: true,
            context: 0,
            cache: CacheType::F32,
            kernel: Kernel::detect(),
        }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// `max_tokens` were written.
    MaxTokens,
    /// The context is full.
    Context,
    /// The model ended the text.
    EndOfText,
    /// A stop string was met.
    StopString,
    /// The callback returned false.
    Cancelled,
    /// The text is all that its constraint asks for.
    Constraint,
    /// No token continues the text as its constraint asks, or the constraint went beyond a bound. The text up to there
    /// follows the constraint, but is not whole.
    DeadEnd,
}

/// A text and how it came about.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The text that was written, without the prompt.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The tokens that were written.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// From the first token of the prompt to its logits.
    pub prompt_time: Duration,
    /// The rest.
    pub decode_time: Duration,
}

/// Continues `prompt`, and calls `on_text` with each piece of text as it comes: whole characters, and nothing of a stop
/// string. Returning false ends it.
///
/// A prompt without any token begins with the model's first token, as after a blank.
///
/// # Errors
/// When the model has no tokenizer, the prompt does not fit, an option is outside its range, or the constraint was
/// compiled for another model.
pub fn generate(
    model: &Model,
    prompt: &str,
    options: &GenerateOptions,
    parallel: &dyn Parallel,
    on_text: impl FnMut(&str) -> bool,
) -> Result<Generated> {
    let prompt = prompt_tokens(model, prompt, options.add_special_tokens)?;
    let limit = model.config().max_position_embeddings;
    let needed = prompt.len().saturating_add(options.max_tokens).min(limit).max(prompt.len());
    let context = if options.context == 0 { needed } else { options.context };
    let session_options = SessionOptions {
        max_batch: SessionOptions::new(context).max_batch.min(context),
        cache: options.cache,
        ..SessionOptions::new(context)
    };
    let mut session = Session::with_kernel(model, session_options, options.kernel)?;
    continue_session(&mut session, &prompt, options, parallel, on_text)
}

/// The tokens of a prompt; never none.
///
/// # Errors
/// When the model has no tokenizer, or no token to begin an empty prompt with.
pub fn prompt_tokens(model: &Model, prompt: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
    let mut tokens = model.tokenizer()?.encode(prompt, add_special_tokens)?;
    // A tokenizer file without a post-processor leaves the first token to the caller.
    if let Some(bos) = model.bos_token_id().filter(|_| add_special_tokens)
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    if tokens.is_empty() { Err(trion_core::Error::NoTokens.into()) } else { Ok(tokens) }
}

/// [`generate`] in a session that may hold tokens already: a conversation that goes on. `prompt` comes after them. The
/// last token that is written is not computed: push it before what follows.
///
/// # Errors
/// As [`generate`].
pub fn continue_session(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    parallel: &dyn Parallel,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<Generated> {
    let model = session.model().clone();
    let tokenizer = model.tokenizer()?;
    let mut choice = Choice::new(&model, options)?;
    let mut stream = TextStream::continuing(true);
    let mut stops = StopStrings::new(options.stop.clone());
    let mut generated = Generated {
        text: String::new(),
        prompt_tokens: prompt.len(),
        tokens: Vec::new(),
        stop: StopReason::MaxTokens,
        prompt_time: Duration::ZERO,
        decode_time: Duration::ZERO,
    };
    let start = Instant::now();
    session.evaluate(prompt, parallel)?;
    generated.prompt_time = start.elapsed();

    let start = Instant::now();
    while generated.tokens.len() < options.max_tokens {
        let token = match choice.next(session)? {
            Ok(token) => token,
            Err(stop) => {
                generated.stop = stop;
                break;
            }
        };
        if options.stop_at_eos && model.eos_token_ids().contains(&token) {
            generated.stop = StopReason::EndOfText;
            break;
        }
        if !choice.accept(token) {
            generated.stop = StopReason::DeadEnd;
            break;
        }
        generated.tokens.push(token);
        let piece = stops.push(stream.push(tokenizer, token));
        generated.text.push_str(piece);
        if !piece.is_empty() && !on_text(piece) {
            generated.stop = StopReason::Cancelled;
            break;
        }
        if stops.stopped().is_some() {
            generated.stop = StopReason::StopString;
            break;
        }
        if session.tokens().len() == session.options().context {
            generated.stop = StopReason::Context;
            break;
        }
        if generated.tokens.len() < options.max_tokens {
            session.push(&[token])?;
            while session.compute(usize::MAX, parallel)? == Progress::More {}
        }
    }
    session.read_logits()?;
    if matches!(generated.stop, StopReason::MaxTokens | StopReason::Context) && choice.is_complete() {
        generated.stop = StopReason::Constraint;
    }
    if !matches!(generated.stop, StopReason::StopString | StopReason::Cancelled) {
        let last = stops.push(stream.finish()).to_owned() + stops.finish();
        if !last.is_empty() {
            generated.text.push_str(&last);
            on_text(&last);
        }
    }
    generated.decode_time = start.elapsed();
    Ok(generated)
}

/// How the next token is found, and whether there is one.
struct Choice {
    sampler: Sampler,
    state: Option<ConstraintState>,
}

impl Choice {
    fn new(model: &Model, options: &GenerateOptions) -> Result<Self> {
        if options.constraint.as_ref().is_some_and(|constraint| !constraint.belongs_to(model)) {
            return Err(crate::Error::Argument("constraint: was compiled for another model".to_owned()));
        }
        Ok(Choice {
            sampler: Sampler::new(options.sampler)?,
            state: options.constraint.as_ref().map(Constraint::start).transpose()?,
        })
    }

    /// The next token, or why there is none.
    ///
    /// # Errors
    /// If a GPU fails.
    fn next(&mut self, session: &mut Session) -> Result<std::result::Result<u32, StopReason>> {
        let Some(state) = &mut self.state else { return session.sample(&mut self.sampler).map(Ok) };
        // The mask comes before the largest logits are looked for, so that all are wanted.
        session.read_logits()?;
        let (logits, history) = (session.last_logits(), session.tokens());
        Ok(match state.mask() {
            Mask::Allowed(mask) => self.sampler.sample_masked(logits, history, mask).ok_or(StopReason::DeadEnd),
            Mask::Complete => Err(StopReason::Constraint),
            Mask::DeadEnd(_) => Err(StopReason::DeadEnd),
        })
    }

    /// Goes on by the token that was found. False if that cannot be followed, which is the case at a bound of the
    /// constraint.
    fn accept(&mut self, token: u32) -> bool {
        if let Some(state) = &mut self.state {
            return state.accept(token).is_ok();
        }
        true
    }

    /// Whether nothing may follow.
    fn is_complete(&mut self) -> bool {
        if let Some(state) = &mut self.state {
            return state.mask() == Mask::Complete;
        }
        false
    }
}
