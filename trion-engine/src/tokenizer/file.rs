//! What a `tokenizer.json` may say: everything else is refused before the `tokenizers` crate sees it.
//!
//! That crate is written for files of trusted origin: some steps panic on values out of range, some read a random number.
//! The types below list the steps that byte-pair-encoding language models use; a file with another step does not parse.

use std::collections::HashMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::detokenizer::{Decoder, Detokenizer, MAX_GROWTH, StringPattern, check_growth};
use crate::{Error, Result};

/// Most tokens that a template puts around a text; published ones put one or two. Each may stand for many ids, so that
/// their number grows with the square of the file's size.
const MAX_AROUND: usize = 256;

/// The checked parts of a `tokenizer.json` that are not left to the `tokenizers` crate.
pub(crate) struct File {
    /// From `decoder`.
    pub(crate) detokenizer: Detokenizer,
    /// Ids before every text, from `post_processor`.
    pub(crate) prefix: Vec<u32>,
    /// Ids after every text, from `post_processor`.
    pub(crate) suffix: Vec<u32>,
    /// From `added_tokens`.
    pub(crate) added_tokens: Vec<AddedToken>,
    /// The ids of `model.vocab`, in the order of the file.
    pub(crate) ids: Vec<u32>,
}

/// A token that is found in the text before any merging.
#[derive(Deserialize)]
pub(crate) struct AddedToken {
    /// Its id.
    pub(crate) id: u32,
    /// Its text.
    pub(crate) content: String,
    /// Whether it is left out of decoded text.
    pub(crate) special: bool,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Normalizer>,
    #[serde(rename = "pre_tokenizer")]
    _pre_tokenizer: Option<PreTokenizer>,
    post_processor: Option<PostProcessor>,
    decoder: Option<Decoder>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    vocab: Ids,
    #[serde(rename = "merges")]
    _merges: IgnoredAny,
}

/// The ids of a map from tokens to ids: the tokens, of which there are many, are kept by the `tokenizers` crate alone.
struct Ids(Vec<u32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct IdVisitor;
        impl<'de> Visitor<'de> for IdVisitor {
            type Value = Ids;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Ids, A::Error> {
                let mut ids = Vec::new();
                while let Some((IgnoredAny, id)) = map.next_entry()? {
                    ids.push(id);
                }
                Ok(Ids(ids))
            }
        }
        deserializer.deserialize_map(IdVisitor)
    }
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    Sequence {
        normalizers: Vec<Normalizer>,
    },
    Replace {
        pattern: StringPattern,
        content: String,
    },
    Prepend {
        prepend: String,
    },
    #[serde(rename = "NFC")]
    Nfc,
    #[serde(rename = "NFD")]
    Nfd,
    #[serde(rename = "NFKC")]
    Nfkc,
    #[serde(rename = "NFKD")]
    Nfkd,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    Sequence {
        #[serde(rename = "pretokenizers")]
        _pretokenizers: Vec<PreTokenizer>,
    },
    Split,
    ByteLevel,
    Metaspace,
    Digits,
    Punctuation,
    Whitespace,
    WhitespaceSplit,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    ByteLevel,
    Sequence { processors: Vec<PostProcessor> },
    TemplateProcessing { single: Vec<Piece>, special_tokens: HashMap<String, SpecialToken> },
}

#[derive(Deserialize)]
enum Piece {
    Sequence { id: String },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
struct SpecialToken {
    ids: Vec<u32>,
}

impl File {
    /// Reads and checks the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the place and the reason.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(json).map_err(|error| Error::Tokenizer(error.to_string()))?;
        raw.model.check().map_err(|reason| Error::Tokenizer(format!("model: {reason}")))?;
        if let Some(normalizer) = &raw.normalizer {
            normalizer.check().map_err(|reason| Error::Tokenizer(format!("normalizer: {reason}")))?;
        }
        let decoder = raw.decoder.ok_or_else(|| Error::Tokenizer("decoder: missing".into()))?;
        let detokenizer = Detokenizer::new(decoder).map_err(|reason| Error::Tokenizer(format!("decoder: {reason}")))?;
        let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
        if let Some(post_processor) = &raw.post_processor {
            post_processor
                .collect(&mut prefix, &mut suffix)
                .map_err(|reason| Error::Tokenizer(format!("post_processor: {reason}")))?;
        }
        Ok(Self { detokenizer, prefix, suffix, added_tokens: raw.added_tokens, ids: raw.model.vocab.0 })
    }
}

impl Model {
    fn check(&self) -> std::result::Result<(), String> {
        let kind = self.kind.as_deref().unwrap_or("BPE");
        if kind != "BPE" {
            return Err(format!("type {kind:?}, only \"BPE\" is supported"));
        }
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err("dropout makes ids random".into());
        }
        for (name, value) in [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ] {
            if value.as_ref().is_some_and(|value| !value.is_empty()) {
                return Err(format!("{name} is not supported"));
            }
        }
        Ok(())
    }
}

impl Normalizer {
    fn check(&self) -> std::result::Result<(), String> {
        check_growth(self.growth()?)
    }

    /// How many times as long this step may make a text.
    fn growth(&self) -> std::result::Result<usize, String> {
        match self {
            Self::Sequence { normalizers } => {
                normalizers.iter().try_fold(1, |growth: usize, step| Ok(growth.saturating_mul(step.growth()?)))
            }
            Self::Replace { pattern, .. } if pattern.string.is_empty() => Err("Replace of an empty string".into()),
            Self::Replace { pattern, content } => Ok(pattern.growth(content)),
            // It comes before each piece between special tokens, however short that is.
            Self::Prepend { prepend } if prepend.len() > MAX_GROWTH => {
                Err(format!("Prepend of {} bytes, at most {MAX_GROWTH} expected", prepend.len()))
            }
            _ => Ok(1),
        }
    }
}

impl PostProcessor {
    /// Adds the ids that this step puts around a single text. A later step goes around an earlier one.
    fn collect(&self, prefix: &mut Vec<u32>, suffix: &mut Vec<u32>) -> std::result::Result<(), String> {
        match self {
            Self::ByteLevel => Ok(()),
            Self::Sequence { processors } => processors.iter().try_for_each(|step| step.collect(prefix, suffix)),
            Self::TemplateProcessing { single, special_tokens } => {
                let (mut before, mut after, mut texts) = (Vec::new(), Vec::new(), 0);
                for piece in single {
                    match piece {
                        Piece::Sequence { id } if id == "A" && texts == 0 => texts = 1,
                        Piece::Sequence { id } => return Err(format!("sequence {id:?} in a template of one text")),
                        Piece::SpecialToken { id } => {
                            let token =
                                special_tokens.get(id).ok_or_else(|| format!("{id:?} is not in special_tokens"))?;
                            if texts == 0 { &mut before } else { &mut after }.extend_from_slice(&token.ids);
                            if before.len() + after.len() > MAX_AROUND {
                                return Err(format!("more than {MAX_AROUND} tokens around a text"));
                            }
                        }
                    }
                }
                if texts == 0 {
                    return Err("the template lacks the text".into());
                }
                before.append(prefix);
                *prefix = before;
                suffix.append(&mut after);
                Ok(())
            }
        }
    }
}
