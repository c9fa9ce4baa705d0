//! A tokenizer's tokens as the library wants them: a tree of their bytes.

use std::sync::Arc;

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::error::{Error, Result};
use crate::model::Model;

/// Longest token that the tree holds, in bytes; the tree is walked recursively while it is built. Longer tokens are
/// never allowed, and their text is still reached by others.
const MAX_TOKEN_BYTES: usize = 512;

/// Most bytes of all tokens together: the tree counts its nodes in 22 bits.
const MAX_BYTES: usize = 1 << 22;

/// The tokens of one model, shared by all its constraints.
pub(crate) struct Vocabulary {
    /// The tree, as the library asks for it.
    pub(crate) environment: TokEnv,
    /// Sets of tokens that are precomputed for long strings.
    pub(crate) slices: SlicedBiasComputer,
    /// Tokens that end a text.
    pub(crate) eos: Vec<TokenId>,
}

impl Vocabulary {
    /// Takes some milliseconds for each ten thousand tokens.
    ///
    /// # Errors
    /// When the model has no tokenizer, or tokens that are too many for the library.
    pub(crate) fn new(model: &Model) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let size = model.config().vocab_size;
        let eos: Vec<TokenId> = model.eos_token_ids().iter().copied().filter(|id| (*id as usize) < size).collect();
        let mut words = vec![Vec::new(); size];
        for (id, word) in (0..).zip(&mut words) {
            if eos.contains(&id) || tokenizer.special_ids().binary_search(&id).is_ok() {
                if let Some(name) = tokenizer.id_to_token(id) {
                    // No text has this byte, so special tokens are met only where a grammar names them.
                    word.push(TokTrie::SPECIAL_TOKEN_MARKER);
                    word.extend_from_slice(name.as_bytes());
                }
            } else {
                // False for rows of the model that the tokenizer has no token for.
                tokenizer.append_bytes(id, false, &mut 0, word);
                if word.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
                    word.clear();
                }
            }
            if word.len() > MAX_TOKEN_BYTES {
                word.clear();
            }
        }
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MAX_BYTES {
            let message = format!("the tokens of the vocabulary have {bytes} bytes, at most {MAX_BYTES} expected");
            return Err(Error::Constraint(message));
        }
        let info = TokRxInfo::new(size as u32, eos.first().copied().unwrap_or(INVALID_TOKEN));
        let environment: TokEnv = Arc::new(Environment(TokTrie::from(&info, &words)));
        let slices = SlicedBiasComputer::new(&environment, &SlicedBiasComputer::general_slices())
            .map_err(|e| Error::Constraint(format!("vocabulary: {e}")))?;
        Ok(Vocabulary { environment, slices, eos })
    }

    /// The tree.
    pub(crate) fn trie(&self) -> &TokTrie {
        self.environment.tok_trie()
    }
}

/// The tree alone: how a text is divided into tokens is left to the model.
struct Environment(TokTrie);

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, s: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(s)
    }

    fn tokenize_is_canonical(&self) -> bool {
        // Any division is right, so no token is forced where several spell the same text.
        false
    }
}
