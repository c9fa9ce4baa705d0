//! Byte-level BPE tokenizers, made and applied by the tokenizers library.

use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder, TokenizerImpl};

use crate::error::{Error, Result};

/// The token that documents begin with, and that separates them in a text.
pub const END: &str = "<|endoftext|>";
/// Tokens that every tokenizer has: the bytes, and [`END`].
const LEAST: usize = 257;

/// Learns a tokenizer of `vocab_size` tokens from text files, and writes it to `to`.
///
/// # Errors
/// [`Error::Argument`] if `vocab_size` is below 257 or texts have too few words for it, [`Error::Io`] for files.
pub fn train(texts: &[PathBuf], vocab_size: usize, to: &Path) -> Result<()> {
    if vocab_size < LEAST {
        let message = format!("a vocabulary of {vocab_size}: expected at least {LEAST}, for the bytes and {END}");
        return Err(Error::Argument(message));
    }
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .special_tokens(vec![AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let library = |error: tokenizers::Error| Error::malformed(to, error.to_string());
    let mut tokenizer: TokenizerImpl<BPE, tokenizers::normalizers::NFC, ByteLevel, ByteLevel, ByteLevel> =
        TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_post_processor(None)
            .with_decoder(Some(ByteLevel::default()))
            .build()
            .map_err(library)?;
    let mut documents = Vec::new();
    for path in texts {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        documents.extend(text.split(END).filter(|text| !text.is_empty()).map(str::to_owned));
    }
    tokenizer.train(&mut trainer, documents.into_iter()).map_err(library)?;
    let found = tokenizer.get_vocab_size(true);
    if found != vocab_size {
        let message = format!("the texts gave {found} tokens, expected {vocab_size}; take more text or fewer tokens");
        return Err(Error::Argument(message));
    }
    let json = tokenizer.to_string(true).map_err(library)?;
    crate::files::write_whole(to, |file| std::io::Write::write_all(file, json.as_bytes()))
}

/// Reads a tokenizer, and gives the id of [`END`] with it.
///
/// # Errors
/// [`Error::Malformed`] if it is none, or has no such token.
pub fn open(path: &Path) -> Result<(Tokenizer, u32)> {
    let tokenizer = Tokenizer::from_file(path).map_err(|e| Error::malformed(path, e.to_string()))?;
    let end = tokenizer.token_to_id(END).ok_or_else(|| Error::malformed(path, format!("has no token {END}")))?;
    Ok((tokenizer, end))
}
