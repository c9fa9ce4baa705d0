//! Constraints: the first byte chooses the kind of grammar, the next ones the tokens that are tried, and what follows the
//! first zero is the grammar.

use std::sync::Once;

use trion_engine::{Constraint, Grammar, Mask};

use crate::small::MODEL;

/// The library of grammars panics where it meets an error of its own, and Trion makes an error of that. `libFuzzer` would
/// end at any panic, caught or not.
static PANICS_MAY_BE_CAUGHT: Once = Once::new();

/// Compiles the grammar for the small model, and goes a few tokens along it.
///
/// # Panics
/// If a mask allows a token that is refused, or forbids one that is accepted.
pub fn run(bytes: &[u8]) {
    PANICS_MAY_BE_CAUGHT.call_once(|| drop(std::panic::take_hook()));
    let Some((kind, rest)) = bytes.split_first() else { return };
    let (choices, source) = rest.split_at(rest.iter().position(|byte| *byte == 0).unwrap_or(0));
    let source = String::from_utf8_lossy(source.get(1..).unwrap_or(&[]));
    let grammar = match kind % 3 {
        0 => Grammar::Regex(&source),
        1 => Grammar::Lark(&source),
        _ => Grammar::JsonSchema(&source),
    };
    let constraint = match Constraint::new(&MODEL, grammar) {
        Ok(constraint) => constraint,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let vocabulary = MODEL.config().vocab_size as u32;
    let Ok(mut state) = constraint.start() else { return };
    for choice in choices.iter().take(8) {
        let mut copy = state.clone();
        let token = u32::from(*choice) % (vocabulary + 1);
        let Mask::Allowed(mask) = state.mask() else { break };
        let allows = |token: u32| mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
        assert!((0..vocabulary).any(allows), "a mask allows at least one token");
        let expected = allows(token) && token < vocabulary;
        assert!(matches!(copy.mask(), Mask::Allowed(other) if other == mask), "a copy is at the same place");
        match copy.accept(token) {
            Ok(()) => {
                assert!(expected, "token {token} is forbidden, and was accepted");
                state = copy;
            }
            // The library may give up at one of its bounds, which is a dead end from then on.
            Err(error) => {
                assert!(!expected || matches!(copy.mask(), Mask::DeadEnd(_)), "token {token} is allowed: {error}");
            }
        }
    }
}
