//! A `tokenizer.json` from the `tokenizer.ggml.*` metadata of a GGUF file.
//!
//! Keys, token types and defaults are those of llama.cpp (`src/llama-vocab.cpp`); the steps of the two resulting kinds of
//! tokenizer are those of the Hugging Face files of GPT-2, Llama 2, Llama 3 and Qwen2.

use std::collections::HashMap;

use serde::ser::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::{Error, Result};

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary<'a> {
    /// `model`: `"gpt2"` (byte-level BPE) or `"llama"` (`SentencePiece` BPE).
    pub model: &'a str,
    /// `pre`: which expression splits the text, for `"gpt2"`.
    pub pre: Option<&'a str>,
    /// `tokens`: the written form of every id.
    pub tokens: Vec<&'a str>,
    /// `scores` by id: higher merges first. Needed for `"llama"`.
    pub scores: Vec<f32>,
    /// `token_type` by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. May be empty.
    pub token_types: Vec<i32>,
    /// `merges`: pairs of tokens with a space between them, best first. Needed for `"gpt2"`.
    pub merges: Vec<&'a str>,
    /// `bos_token_id`; 1 for `"llama"` if absent.
    pub bos: Option<u32>,
    /// `eos_token_id`; 2 for `"llama"` if absent.
    pub eos: Option<u32>,
    /// `unknown_token_id`; 0 for `"llama"` if absent.
    pub unk: Option<u32>,
    /// `add_bos_token`; if absent, true for `"llama"` and for the Llama 3 family of `"gpt2"`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; false if absent.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; true for `"llama"` if absent, without effect on `"gpt2"`.
    pub add_space_prefix: Option<bool>,
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The size of the vocabulary of Llama 3 and of `BitNet` b1.58 2B4T, whose official GGUF file lacks `pre`.
const LLAMA3_VOCABULARY: usize = 128_256;

/// No known `SentencePiece` vocabulary has a token as long (in bytes); it bounds the time to look for merges.
const MAX_PIECE_BYTES: usize = 512;

/// Merges of a `SentencePiece` vocabulary for each of its tokens, on average; published ones have two. Where every token is
/// the beginning and the end of others, merges would take hundreds of times as much memory as the file.
const MAX_MERGES_PER_TOKEN: usize = 16;

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a byte-level vocabulary wants its text split.
#[derive(Clone, Copy, PartialEq)]
enum Split {
    Gpt2,
    Llama3,
    Qwen2,
}

impl Split {
    const KNOWN: [(&str, Split); 9] = [
        ("llama-bpe", Self::Llama3),
        ("llama3", Self::Llama3),
        ("llama-v3", Self::Llama3),
        ("falcon3", Self::Llama3),
        ("falcon-h1", Self::Llama3),
        ("falcon_e", Self::Llama3),
        ("qwen2", Self::Qwen2),
        ("gpt-2", Self::Gpt2),
        ("default", Self::Gpt2),
    ];

    fn new(pre: Option<&str>, vocab_size: usize) -> Result<Self> {
        match pre {
            None if vocab_size == LLAMA3_VOCABULARY => Ok(Self::Llama3),
            None => Ok(Self::Gpt2),
            Some(pre) => Self::KNOWN.iter().find(|(name, _)| *name == pre).map(|(_, split)| *split).ok_or_else(|| {
                let known = Self::KNOWN.map(|(name, _)| name).join(", ");
                Error::Tokenizer(format!("tokenizer.ggml.pre: {pre:?} is not supported; supported are {known}"))
            }),
        }
    }

    fn pre_tokenizer(self) -> Value {
        let pattern = match self {
            Self::Gpt2 => {
                return json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
            }
            Self::Llama3 => LLAMA3_PATTERN,
            Self::Qwen2 => QWEN2_PATTERN,
        };
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    }
}

#[derive(serde::Serialize)]
struct File<'a> {
    version: &'a str,
    truncation: Value,
    padding: Value,
    added_tokens: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

#[derive(serde::Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    dropout: Value,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocab<'a>,
    merges: Vec<(&'a str, &'a str)>,
}

/// A map from token to id, written from the list of tokens.
struct Vocab<'a>(&'a [&'a str]);

impl Serialize for Vocab<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(0u32..))
    }
}

/// Writes the `tokenizer.json` of a GGUF vocabulary; read it with [`Tokenizer::from_json`](super::Tokenizer::from_json).
///
/// # Errors
/// [`Error::Tokenizer`] for another `model` or `pre` than the known ones, lists of different lengths, an id out of range, a
/// token that is there twice, a merge that is not two tokens.
pub fn tokenizer_json_from_gguf(vocabulary: &GgufVocabulary<'_>) -> Result<String> {
    vocabulary.check()?;
    let file = match vocabulary.model {
        "gpt2" => vocabulary.byte_level()?,
        "llama" => vocabulary.sentence_piece()?,
        other => {
            let message = format!("tokenizer.ggml.model: {other:?} is not supported; supported are gpt2, llama");
            return Err(Error::Tokenizer(message));
        }
    };
    serde_json::to_string(&file).map_err(|error| Error::Tokenizer(error.to_string()))
}

impl<'a> GgufVocabulary<'a> {
    fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(Error::Tokenizer("tokenizer.ggml.tokens: the vocabulary is empty".into()));
        }
        if !self.token_types.is_empty() && self.token_types.len() != count {
            let types = self.token_types.len();
            return Err(Error::Tokenizer(format!("tokenizer.ggml.token_type: {types} types of {count} tokens")));
        }
        let mut seen = HashMap::with_capacity(count);
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(before) = seen.insert(*token, id) {
                return Err(Error::Tokenizer(format!("tokenizer.ggml.tokens: {token:?} is at {before} and at {id}")));
            }
        }
        Ok(())
    }

    fn byte_level(&self) -> Result<File<'_>> {
        let split = Split::new(self.pre, self.tokens.len())?;
        let merges: Vec<_> = self
            .merges
            .iter()
            .map(|merge| {
                merge.split_once(' ').ok_or_else(|| {
                    Error::Tokenizer(format!("tokenizer.ggml.merges: {merge:?} is not two tokens with a space between"))
                })
            })
            .collect::<Result<_>>()?;
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        self.file(
            (self.bos, self.eos, self.unk),
            self.add_bos.unwrap_or(split == Split::Llama3),
            if split == Split::Qwen2 { json!({"type": "NFC"}) } else { Value::Null },
            split.pre_tokenizer(),
            byte_level,
            Model {
                kind: "BPE",
                dropout: Value::Null,
                unk_token: None,
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: split == Split::Llama3,
                vocab: Vocab(&self.tokens),
                merges,
            },
        )
    }

    fn sentence_piece(&self) -> Result<File<'_>> {
        // The ids that SentencePiece gives these tokens unless it is told otherwise.
        let within = |id: u32| ((id as usize) < self.tokens.len()).then_some(id);
        let bos = self.bos.or_else(|| within(1));
        let eos = self.eos.or_else(|| within(2));
        let unk = self.unk.or_else(|| within(0));
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut normalizers = vec![replace];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix.unwrap_or(true) {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let model = Model {
            kind: "BPE",
            dropout: Value::Null,
            unk_token: unk.map(|id| self.token("unknown_token_id", id)).transpose()?,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: Vocab(&self.tokens),
            merges: self.merges_from_scores()?,
        };
        self.file(
            (bos, eos, unk),
            self.add_bos.unwrap_or(true),
            json!({"type": "Sequence", "normalizers": normalizers}),
            Value::Null,
            json!({"type": "Sequence", "decoders": decoders}),
            model,
        )
    }

    fn file<'b>(
        &'b self,
        (bos, eos, unk): (Option<u32>, Option<u32>, Option<u32>),
        add_bos: bool,
        normalizer: Value,
        pre_tokenizer: Value,
        decoder: Value,
        model: Model<'b>,
    ) -> Result<File<'b>> {
        let bos = self.named("bos_token_id", bos)?;
        let eos = self.named("eos_token_id", eos)?;
        Ok(File {
            version: "1.0",
            truncation: Value::Null,
            padding: Value::Null,
            added_tokens: self.added_tokens([bos.map(|b| b.0), eos.map(|e| e.0), unk]),
            normalizer,
            pre_tokenizer,
            post_processor: self.post_processor(bos, add_bos, eos)?,
            decoder,
            model,
        })
    }

    fn named(&self, key: &str, id: Option<u32>) -> Result<Option<(u32, &'a str)>> {
        id.map(|id| self.token(key, id).map(|token| (id, token))).transpose()
    }

    fn token(&self, key: &str, id: u32) -> Result<&'a str> {
        self.tokens.get(id as usize).copied().ok_or_else(|| {
            let count = self.tokens.len();
            Error::Tokenizer(format!("tokenizer.ggml.{key}: {id} is not an id of a vocabulary of {count}"))
        })
    }

    /// The tokens that are found in the text before any merging: the special ones and those that the user defined.
    fn added_tokens(&self, named: [Option<u32>; 3]) -> Value {
        let added = self.tokens.iter().zip(0u32..).filter_map(|(token, id)| {
            let kind = self.token_types.get(id as usize).copied().unwrap_or(NORMAL);
            let special = matches!(kind, UNKNOWN | CONTROL) || named.contains(&Some(id));
            (special || kind == USER_DEFINED).then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": special})
            })
        });
        // An empty token would match everywhere.
        added.filter(|token| token["content"] != "").collect()
    }

    fn post_processor(&self, bos: Option<(u32, &str)>, add_bos: bool, eos: Option<(u32, &str)>) -> Result<Value> {
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut pair =
            vec![json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}})];
        let mut special_tokens = serde_json::Map::new();
        let add_eos = self.add_eos.unwrap_or(false);
        for (wanted, at_end, key, token) in [(add_bos, false, "bos", bos), (add_eos, true, "eos", eos)] {
            if !wanted {
                continue;
            }
            let (id, text) = token.ok_or_else(|| {
                Error::Tokenizer(format!("tokenizer.ggml.{key}_token_id: missing, but add_{key}_token asks for it"))
            })?;
            let piece = json!({"SpecialToken": {"id": text, "type_id": 0}});
            let place = if at_end { single.len() } else { 0 };
            single.insert(place, piece.clone());
            pair.insert(if at_end { pair.len() } else { 0 }, piece);
            special_tokens.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
        }
        if special_tokens.is_empty() {
            return Ok(Value::Null);
        }
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens}))
    }

    /// The merges that lead to every piece: all its divisions into two pieces, pieces of higher score first. This is how a
    /// `SentencePiece` model, which has scores, becomes one with ranked merges (transformers, `SentencePieceExtractor`).
    fn merges_from_scores(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let (count, scores) = (self.tokens.len(), self.scores.len());
        if scores != count {
            return Err(Error::Tokenizer(format!("tokenizer.ggml.scores: {scores} scores of {count} tokens")));
        }
        let ids: HashMap<&str, u32> = self
            .tokens
            .iter()
            .zip(0u32..)
            .filter(|(_, id)| matches!(self.token_types.get(*id as usize).copied().unwrap_or(NORMAL), NORMAL | UNUSED))
            .map(|(token, id)| (*token, id))
            .collect();
        let mut pieces: Vec<(&str, u32)> = ids.iter().map(|(token, id)| (*token, *id)).collect();
        pieces.sort_unstable_by(|a, b| {
            self.scores[b.1 as usize].total_cmp(&self.scores[a.1 as usize]).then(a.1.cmp(&b.1))
        });
        let mut merges = Vec::with_capacity(pieces.len());
        for (piece, id) in pieces {
            if piece.len() > MAX_PIECE_BYTES {
                let length = piece.len();
                let message =
                    format!("tokenizer.ggml.tokens: {length} bytes at {id}, at most {MAX_PIECE_BYTES} expected");
                return Err(Error::Tokenizer(message));
            }
            let first = merges.len();
            merges.extend(piece.char_indices().skip(1).filter_map(|(middle, _)| {
                let (left, right) = piece.split_at(middle);
                Some(((left, *ids.get(left)?), (right, *ids.get(right)?)))
            }));
            merges[first..].sort_unstable_by_key(|(left, right)| (left.1, right.1));
            if merges.len() > MAX_MERGES_PER_TOKEN * count.max(MAX_PIECE_BYTES) {
                let message = format!(
                    "tokenizer.ggml.tokens: more than {MAX_MERGES_PER_TOKEN} ways for each of {count} tokens to be made of \
                     two others"
                );
                return Err(Error::Tokenizer(message));
            }
        }
        Ok(merges.into_iter().map(|(left, right)| (left.0, right.0)).collect())
    }
}
