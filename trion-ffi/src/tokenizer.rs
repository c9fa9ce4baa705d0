//! Tokenizer
//!
//! Text is UTF-8, given as a pointer and a size in bytes. Functions that write arrays take a capacity: with NULL and 0
//! they write only the count, so call them once to learn it and once more to get the rest.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use trion_engine::chat_template::{Message, RenderOptions};
use trion_engine::prompt_tokens;

use crate::edge::{call, handle, input, output, place, text};
use crate::model::{Loaded, trion_model};
use crate::session::trion_session;
use crate::status::trion_status::TRION_NO_TOKENIZER;
use crate::status::{Failure, trion_error, trion_status};

/// Leaves out the tokens that the model puts around a text (most often one at the beginning): for text in the middle,
/// and for what trion_model_chat() wrote.
pub const TRION_ENCODE_PLAIN: u32 = 1;

/// Leaves out the text of special tokens.
pub const TRION_DECODE_SKIP_SPECIAL: u32 = 1;

/// Ends the conversation with the words that begin the assistant's answer.
pub const TRION_CHAT_ANSWER: u32 = 1;

/// One turn of a conversation.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct trion_message {
    /// Who speaks, with a zero at its end: "system", "user" or "assistant" for most models.
    pub role: *const c_char,
    /// What is said.
    pub content: *const c_char,
    /// Bytes of it.
    pub content_size: usize,
}

const NO_TOKENIZER: Failure = Failure::Plain(TRION_NO_TOKENIZER, "the model comes without a tokenizer");

impl Loaded {
    pub(crate) fn tokenizer(&self) -> Result<&trion_engine::tokenizer::Tokenizer, Failure> {
        if self.model.has_tokenizer() { Ok(self.model.tokenizer()?) } else { Err(NO_TOKENIZER) }
    }

    fn encode(&self, text: &str, flags: u32) -> Result<Vec<u32>, Failure> {
        known(flags, TRION_ENCODE_PLAIN)?;
        let tokenizer = self.tokenizer()?;
        if flags & TRION_ENCODE_PLAIN != 0 {
            return Ok(tokenizer.encode(text, false)?);
        }
        Ok(prompt_tokens(&self.model, text, true)?)
    }
}

/// Refuses flags that this version does not know.
fn known(flags: u32, all: u32) -> Result<(), Failure> {
    if flags & !all == 0 { Ok(()) } else { Err(Failure::argument("flags has bits that have no meaning")) }
}

/// The tokens of `size` bytes of text. `flags` are TRION_ENCODE_ bits or 0. Special tokens that are written in the text
/// are recognised. Any thread.
///
/// TRION_BUFFER_TOO_SMALL, TRION_NO_TOKENIZER, TRION_TEXT, TRION_NO_TOKENS for a text without any, with flags 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_encode(
    model: *const trion_model,
    text: *const c_char,
    size: usize,
    flags: u32,
    tokens: *mut u32,
    capacity: usize,
    count: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let count = place(count)?;
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (model, text) = unsafe { (handle(model)?, self::text(text, size)?) };
        // SAFETY: `tokens` has room for `capacity`.
        unsafe { output(&model.0.encode(text, flags)?, tokens, capacity, count) }
    })
}

/// The text of `count` tokens, without a zero at its end; bytes that are not UTF-8 become U+FFFD. `flags` are
/// TRION_DECODE_ bits or 0. For tokens that come one at a time use trion_text. Any thread.
///
/// TRION_BUFFER_TOO_SMALL, TRION_NO_TOKENIZER, TRION_TEXT for a token that has no text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_decode(
    model: *const trion_model,
    tokens: *const u32,
    count: usize,
    flags: u32,
    text: *mut c_char,
    capacity: usize,
    size: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let size = place(size)?;
        known(flags, TRION_DECODE_SKIP_SPECIAL)?;
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (model, tokens) = unsafe { (handle(model)?, input(tokens, count)?) };
        let decoded = model.0.tokenizer()?.decode(tokens, flags & TRION_DECODE_SKIP_SPECIAL != 0)?;
        // SAFETY: `text` has room for `capacity`.
        unsafe { output(decoded.as_bytes(), text.cast::<u8>(), capacity, size) }
    })
}

/// The prompt for a conversation of `count` messages, by the model's chat template, without a zero at its end. `flags`
/// are TRION_CHAT_ bits or 0. Encode it with TRION_ENCODE_PLAIN: it has its special tokens. Any thread.
///
/// TRION_BUFFER_TOO_SMALL, TRION_NO_TOKENIZER for a model without a chat template, TRION_TEXT when the template refuses
/// the conversation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_model_chat(
    model: *const trion_model,
    messages: *const trion_message,
    count: usize,
    flags: u32,
    prompt: *mut c_char,
    capacity: usize,
    size: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let size = place(size)?;
        known(flags, TRION_CHAT_ANSWER)?;
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (model, messages) = unsafe { (&handle(model)?.0.model, input(messages, count)?) };
        let template = model
            .chat_template()
            .ok_or(Failure::Plain(TRION_NO_TOKENIZER, "the model comes without a chat template"))?;
        // SAFETY: the header's rule for messages, which is that of texts.
        let messages: Result<Vec<Message>, Failure> = messages.iter().map(|m| unsafe { message(m) }).collect();
        let token = |id: Option<u32>| id.and_then(|id| model.tokenizer().ok()?.id_to_token(id));
        let (bos, eos) = (token(model.bos_token_id()), token(model.eos_token_ids().first().copied()));
        let options = RenderOptions {
            add_generation_prompt: flags & TRION_CHAT_ANSWER != 0,
            bos_token: bos.as_deref(),
            eos_token: eos.as_deref(),
            date: None, // no clock is read: the same conversation gives the same prompt on every day
        };
        let rendered = template.render(&messages?, &options)?;
        // SAFETY: `prompt` has room for `capacity`.
        unsafe { output(rendered.as_bytes(), prompt.cast::<u8>(), capacity, size) }
    })
}

/// A message of the caller's.
///
/// # Safety
/// Its pointers are NULL or valid.
unsafe fn message(message: &trion_message) -> Result<Message, Failure> {
    if message.role.is_null() {
        return Err(Failure::NULL);
    }
    // SAFETY: the role is not NULL, and ends with a zero; the content is valid for its size.
    let (role, content) =
        unsafe { (std::ffi::CStr::from_ptr(message.role), text(message.content, message.content_size)?) };
    let role = role.to_str().map_err(|_| Failure::argument("a role is not UTF-8"))?;
    Ok(Message::new(role, content))
}

/// trion_model_encode() and trion_session_push() in one.
///
/// As these two; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_push_text(
    session: *mut trion_session,
    text: *const c_char,
    size: usize,
    flags: u32,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (session, text) = unsafe { (handle(session)?, self::text(text, size)?) };
        let mut session = session.lock()?;
        let tokens = session.loaded.encode(text, flags)?;
        session.push(&tokens)
    })
}
