//! What holds of every model that opens, whatever its file said.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex};

use trion_engine::{Kernel, Logits, Model, Serial, Session, SessionOptions};

/// Tokens that a model is tried with.
const TOKENS: usize = 3;

/// Whether two rows of numbers have the same bits. Of a NaN only that it is one is defined (docs/numerics.md).
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// Computes a few tokens: all at once on the fastest kernel, and one by one in plain Rust; both give the same logits.
///
/// # Panics
/// If they do not, or a session cannot be had.
pub fn runs(model: &Model) {
    let config = model.config();
    let context = config.max_position_embeddings.min(TOKENS);
    let options = SessionOptions { max_batch: context, logits: Logits::All, ..SessionOptions::new(context) };
    let last = config.vocab_size as u32 - 1;
    let tokens = &[0, last, last / 2][..context];

    let mut together =
        Session::with_kernel(model, options, Kernel::fastest()).expect("a session of a model that opens");
    let logits = together.evaluate(tokens, &Serial).expect("logits of a model that opens");
    assert_eq!(logits.len(), context * config.vocab_size);

    let plain = Kernel::new(trion_engine::Isa::Scalar).expect("plain Rust is everywhere");
    let mut alone = Session::with_kernel(model, options, plain).expect("a session of a model that opens");
    for (token, expected) in tokens.iter().zip(logits.chunks_exact(config.vocab_size)) {
        let found = alone.evaluate(&[*token], &Serial).expect("logits of a model that opens");
        assert!(same_bits(found, expected), "token {token}: {found:?} alone, {expected:?} together");
    }
}

/// Tokenizers that were checked: building one takes as long as all else together, and most files have the same.
static CHECKED: LazyLock<Mutex<HashSet<u64>>> = LazyLock::new(Mutex::default);

/// Whether a text comes for the first time.
fn is_new(text: &str) -> bool {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    CHECKED.lock().expect("nobody panics meanwhile").insert(hasher.finish())
}

/// What holds of a model that was opened, or refused: an error has words.
///
/// # Panics
/// If it does not hold.
pub fn opened(result: trion_engine::Result<Model>) {
    match result {
        Ok(model) => {
            runs(&model);
            if model.tokenizer_json().is_some_and(is_new) {
                match model.tokenizer() {
                    Ok(tokenizer) => crate::tokenizer::check(tokenizer, "Once, a \u{e9}\n"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
