//! Text to token ids and back, for byte-pair-encoding vocabularies in the Hugging Face `tokenizer.json` form.
//!
//! The `tokenizers` crate splits and merges text; what it is given is checked first, because it panics on some files that
//! are well-formed JSON. Special tokens around a text and the way back from ids to bytes are done here: the first is two
//! lists of ids, the second must work one token at a time (see [`TextStream`](crate::text_stream::TextStream)).

mod detokenizer;
mod file;
mod gguf;

use std::collections::HashSet;

use detokenizer::Detokenizer;
pub use gguf::{GgufVocabulary, tokenizer_json_from_gguf};

use crate::{Error, Result};

/// A vocabulary and the rules that turn text into its ids and ids into text. `Send` and `Sync`: share one among sessions.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    detokenizer: Detokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    special_ids: Vec<u32>,
    vocab_size: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("prefix", &self.prefix)
            .field("suffix", &self.suffix)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`. Truncation and padding that the file asks for are ignored: both are for
    /// training batches.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the bytes are not JSON, the model is not deterministic byte pair encoding, a step is of a
    /// kind that is not supported, the vocabulary is empty, or an id is given twice or to no token.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let file = file::File::parse(json)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| Error::Tokenizer(error.to_string()))?;
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        inner.with_decoder(None::<tokenizers::DecoderWrapper>);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::Tokenizer(error.to_string()))?;

        let found = inner.get_vocab_size(false);
        if found != file.ids.len() {
            let count = file.ids.len();
            return Err(Error::Tokenizer(format!("model: {count} tokens in vocab, of which {found} are different")));
        }
        let mut ids = HashSet::with_capacity(file.ids.len());
        for id in file.ids {
            if !ids.insert(id) {
                let token = inner.id_to_token(id).unwrap_or_default();
                return Err(Error::Tokenizer(format!("id {id} belongs to {token:?} and to another token")));
            }
        }
        for token in &file.added_tokens {
            // An added token that the vocabulary lacks gets the next free id from the library, whatever its file says.
            match inner.token_to_id(&token.content) {
                Some(id) if id == token.id => ids.insert(id),
                found => {
                    let content = &token.content;
                    let found = found.map_or("none".into(), |id| id.to_string());
                    let message = format!("added token {content:?}: id {} expected, {found} found", token.id);
                    return Err(Error::Tokenizer(message));
                }
            };
        }
        let Some(&largest) = ids.iter().max() else {
            return Err(Error::Tokenizer("the vocabulary is empty".into()));
        };
        for &id in file.prefix.iter().chain(&file.suffix) {
            if !ids.contains(&id) {
                return Err(Error::Tokenizer(format!("post_processor: id {id} is not in the vocabulary")));
            }
        }
        let mut special_ids: Vec<u32> = file.added_tokens.iter().filter(|t| t.special).map(|t| t.id).collect();
        special_ids.sort_unstable();
        special_ids.dedup();
        Ok(Self {
            inner,
            detokenizer: file.detokenizer,
            prefix: file.prefix,
            suffix: file.suffix,
            special_ids,
            vocab_size: (largest as usize).saturating_add(1),
        })
    }

    /// The ids of `text`. Special tokens written in `text` are recognised; `add_special_tokens` also puts those around it
    /// that the model expects (most often one at the beginning). A character that no token covers becomes the unknown token;
    /// without one it is left out. A vocabulary with all 256 bytes covers every character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the unknown token is needed, and the file names one that is not in its vocabulary.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| Error::Tokenizer(error.to_string()))?;
        if !add_special_tokens {
            return Ok(encoding.get_ids().to_vec());
        }
        Ok([self.prefix.as_slice(), encoding.get_ids(), self.suffix.as_slice()].concat())
    }

    /// The text of `ids`, without its special tokens if `skip_special_tokens`. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id that is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut bytes = Vec::new();
        let mut strip_left = self.leading_strip();
        for &id in ids {
            if !self.append_bytes(id, skip_special_tokens, &mut strip_left, &mut bytes) {
                let size = self.vocab_size;
                return Err(Error::Tokenizer(format!("id {id} is not in the vocabulary of {size} ids")));
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The id of the token that is written `token` in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How the token `id` is written in the vocabulary. This is not its text: see [`decode`](Self::decode).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes of the token `id` within a text, which are not always whole characters. Special tokens have none, and neither
    /// have ids that the vocabulary lacks.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_bytes(id, true, &mut 0, &mut bytes);
        bytes
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of the special tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.special_ids
    }

    /// Appends the bytes of token `id` to `out`; `strip_left` counts the characters that may still be taken away from the
    /// beginning of the text. False if there is no such token.
    pub(crate) fn append_bytes(
        &self,
        id: u32,
        skip_special_tokens: bool,
        strip_left: &mut usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(token) = self.inner.id_to_token(id) else {
            return false;
        };
        if !(skip_special_tokens && self.special_ids.binary_search(&id).is_ok()) {
            self.detokenizer.append(&token, strip_left, out);
        }
        true
    }

    /// How many characters the beginning of a text may lose: the space that `SentencePiece` puts before a text.
    pub(crate) fn leading_strip(&self) -> usize {
        self.detokenizer.leading_strip()
    }
}

#[cfg(test)]
pub(crate) mod tests;
