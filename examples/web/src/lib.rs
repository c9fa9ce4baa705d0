//! A writer for a web page: `trion.js` puts a model and a prompt into this module's memory, and takes text out, token by
//! token. WebAssembly has one thread here, so there is one writer.

use std::sync::{Mutex, PoisonError};

use trion_engine::text_stream::TextStream;
use trion_engine::{
    CacheType, Error, Kernel, Model, Progress, Sampler, SamplerOptions, Serial, Session, SessionOptions, prompt_tokens,
};

/// What a model's bytes are put into: it begins at a multiple of 64, as weights that are used in place must.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// Everything between two calls.
struct Writer {
    /// What the page hands in: a model, or a prompt.
    inbox: Vec<Line>,
    inbox_bytes: usize,
    /// What the page takes out: a piece of text, or an error.
    outbox: String,
    model: Option<Model>,
    text: Option<Text>,
}

/// A text that is being written.
struct Text {
    session: Session,
    sampler: Sampler,
    stream: TextStream,
    left: usize,
}

static WRITER: Mutex<Writer> =
    Mutex::new(Writer { inbox: Vec::new(), inbox_bytes: 0, outbox: String::new(), model: None, text: None });

/// What a call gives: 1 or 0, or -1 with words about it in the outbox.
fn call(work: impl FnOnce(&mut Writer) -> Result<bool, Error>) -> i32 {
    let mut writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    writer.outbox.clear();
    match work(&mut writer) {
        Ok(more) => i32::from(more),
        Err(error) => {
            writer.outbox = error.to_string();
            -1
        }
    }
}

/// Makes room for `bytes`, and gives the place.
#[unsafe(no_mangle)]
pub extern "C" fn inbox(bytes: usize) -> *mut u8 {
    let mut writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    writer.inbox = vec![Line([0; 64]); bytes.div_ceil(size_of::<Line>())];
    writer.inbox_bytes = bytes;
    writer.inbox.as_mut_ptr().cast()
}

/// Where the text, or the error, of the last call lies.
#[unsafe(no_mangle)]
pub extern "C" fn outbox() -> *const u8 {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner).outbox.as_ptr()
}

/// Bytes of the text, or the error, of the last call.
#[unsafe(no_mangle)]
pub extern "C" fn outbox_bytes() -> usize {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner).outbox.len()
}

/// Opens the model in the inbox, which it keeps. The outbox gets the name of the kernel.
#[unsafe(no_mangle)]
pub extern "C" fn open() -> i32 {
    call(|writer| {
        // For as long as the page lives.
        let lines: &'static [Line] = Vec::leak(std::mem::take(&mut writer.inbox));
        let model = Model::from_static(&bytemuck::cast_slice(lines)[..writer.inbox_bytes])?;
        // Built now, and not when the first text is wanted.
        model.tokenizer()?;
        writer.model = Some(model);
        writer.outbox = Kernel::detect().isa().name().to_owned();
        Ok(true)
    })
}

/// Begins a text of at most `tokens` with the prompt in the inbox. Temperature 0 takes the most probable token each time.
#[unsafe(no_mangle)]
pub extern "C" fn begin(tokens: usize, temperature: f32, seed: u32) -> i32 {
    call(|writer| {
        let model = writer.model.as_ref().ok_or_else(|| Error::Argument("no model was opened".to_owned()))?;
        let prompt = &bytemuck::cast_slice::<_, u8>(&writer.inbox)[..writer.inbox_bytes];
        let prompt = str::from_utf8(prompt).map_err(|_| Error::Argument("the prompt is not UTF-8".to_owned()))?;
        let ids = prompt_tokens(model, prompt, true)?;
        let context = model.config().max_position_embeddings.min(ids.len() + tokens);
        let options = SessionOptions { cache: CacheType::F16, ..SessionOptions::new(context) };
        let mut session = Session::new(model, options)?;
        session.push(&ids)?;
        let sampler =
            Sampler::new(SamplerOptions { temperature, top_p: 0.95, seed: seed.into(), ..SamplerOptions::GREEDY })?;
        let stream = TextStream::continuing(true);
        writer.text = Some(Text { session, sampler, stream, left: tokens });
        Ok(true)
    })
}

/// Writes one more token: the outbox gets its text. 0 if it was the last.
#[unsafe(no_mangle)]
pub extern "C" fn step() -> i32 {
    call(|writer| {
        let (Some(model), Some(text)) = (&writer.model, &mut writer.text) else {
            return Err(Error::Argument("no text was begun".to_owned()));
        };
        while text.session.advance(usize::MAX, &Serial)? == Progress::More {}
        let token = text.session.sample(&mut text.sampler)?;
        let ended = model.eos_token_ids().contains(&token);
        if !ended {
            writer.outbox.push_str(text.stream.push(model.tokenizer()?, token));
            text.left = text.left.saturating_sub(1);
        }
        if ended || text.left == 0 || text.session.tokens().len() == text.session.options().context {
            writer.outbox.push_str(text.stream.finish());
            writer.text = None;
            return Ok(false);
        }
        text.session.push(&[token])?;
        Ok(true)
    })
}
