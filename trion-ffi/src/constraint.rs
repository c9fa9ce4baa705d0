//! Constraint
//!
//! Text that follows a JSON schema, a regular expression or a grammar: tokens that would lead away from it are not
//! chosen. A constraint is compiled ahead, once for a model, and any number of sessions use it.
//!
//! The text that is constrained begins after the last token that the caller pushed. Rewinding by the token that was
//! just chosen goes back in it; what is pushed after a rewind begins a new one. Where the text may end, the model may
//! end it (TRION_REASON_END); where nothing else may follow, it ends with TRION_REASON_CONSTRAINT; where nothing can
//! follow although it may not end, with TRION_REASON_DEAD_END. docs/constraints.md says what grammars may contain, and
//! which bounds there are.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use trion_core::Sampler;
use trion_engine::{Constraint, ConstraintState, Grammar, Mask};

use crate::advance::trion_reason;
use crate::edge::{call, handle, place, text};
use crate::model::{Loaded, trion_model};
use crate::session::{Inner, trion_session};
use crate::status::{Failure, trion_error, trion_status};

/// How a constraint is written.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum trion_grammar {
    /// A JSON schema: the text is JSON for which it holds.
    TRION_GRAMMAR_JSON_SCHEMA = 0,
    /// A regular expression that the whole text matches.
    TRION_GRAMMAR_REGEX = 1,
    /// A grammar in the form of Lark: the text is derived from its rule `start`.
    TRION_GRAMMAR_LARK = 2,
}

/// A compiled constraint. Immutable. It keeps its model alive.
pub struct trion_constraint {
    loaded: Loaded,
    constraint: Constraint,
}

/// A constraint at work in a session.
#[derive(Clone)]
pub(crate) struct Constrained {
    constraint: Constraint,
    /// Where the text begins.
    begin: usize,
    /// After all tokens of the text; none before the first one is asked for, and after a change.
    state: Option<ConstraintState>,
}

impl Constrained {
    /// The place in the text that `tokens` end with.
    pub(crate) fn resume(&mut self, tokens: &[u32]) -> Result<&mut ConstraintState, Failure> {
        Ok(match &mut self.state {
            Some(state) => state,
            none => none.insert(resume(&self.constraint, &tokens[self.begin.min(tokens.len())..])?),
        })
    }

    /// The next token, or why there is none.
    pub(crate) fn choose(
        &mut self,
        sampler: &mut Sampler,
        logits: &[f32],
        tokens: &[u32],
    ) -> Result<Result<u32, trion_reason>, Failure> {
        let state = self.resume(tokens)?;
        let token = match state.mask() {
            Mask::Allowed(mask) => sampler.sample_masked(logits, tokens, mask),
            Mask::Complete => return Ok(Err(trion_reason::TRION_REASON_CONSTRAINT)),
            Mask::DeadEnd(_) => None,
        };
        Ok(token.filter(|token| state.accept(*token).is_ok()).ok_or(trion_reason::TRION_REASON_DEAD_END))
    }

    /// The caller pushed tokens, so that there are `length`: the text begins after them.
    pub(crate) fn pushed(&mut self, length: usize) {
        (self.begin, self.state) = (length, None);
    }

    /// The caller went back to `length` tokens.
    pub(crate) fn rewound(&mut self, length: usize) {
        (self.begin, self.state) = (self.begin.min(length), None);
    }
}

/// A place in a text: after `tokens`, which were chosen under the constraint before.
fn resume(constraint: &Constraint, tokens: &[u32]) -> Result<ConstraintState, Failure> {
    let mut state = constraint.start()?;
    for token in tokens {
        state.accept(*token)?;
    }
    Ok(state)
}

/// Compiles `size` bytes of `source`; `grammar` is a trion_grammar. Free it with trion_constraint_free(). The work is
/// done on a thread of its own with a large stack, which ends before the call does. The first constraint of a model
/// also sorts its vocabulary. Any thread.
///
/// TRION_CONSTRAINT when the source is wrong or too large, TRION_NO_TOKENIZER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_constraint_new(
    model: *const trion_model,
    grammar: u32,
    source: *const c_char,
    size: usize,
    constraint: Option<&mut MaybeUninit<*mut trion_constraint>>,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        let out = place(constraint)?;
        // SAFETY: the header's rules for handles and for pairs of pointer and size.
        let (model, source) = unsafe { (&handle(model)?.0, text(source, size)?) };
        model.tokenizer()?;
        let grammar = match grammar {
            0 => Grammar::JsonSchema(source),
            1 => Grammar::Regex(source),
            2 => Grammar::Lark(source),
            _ => return Err(Failure::argument("grammar is no trion_grammar")),
        };
        let constraint = Constraint::new(&model.model, grammar)?;
        out.write(Box::into_raw(Box::new(trion_constraint { loaded: model.clone(), constraint })));
        Ok(())
    })
}

/// Frees a constraint; NULL does nothing. Sessions that use it keep what they need. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_constraint_free(constraint: *mut trion_constraint) {
    if !constraint.is_null() {
        // SAFETY: it came from trion_constraint_new(), and is not used again.
        drop(unsafe { Box::from_raw(constraint) });
    }
}

/// Constrains the text that the session writes from here on, or from after the tokens that are pushed next; NULL for no
/// constraint.
///
/// TRION_OTHER_MODEL, TRION_BUSY; the session is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trion_session_set_constraint(
    session: *mut trion_session,
    constraint: *const trion_constraint,
    error: Option<&mut MaybeUninit<trion_error>>,
) -> trion_status {
    call(error, || {
        // SAFETY: the header's rule for handles; a constraint may be NULL.
        let (session, constraint) = unsafe { (handle(session)?, constraint.as_ref()) };
        let mut session = session.lock()?;
        session.constrain(constraint)
    })
}

impl Inner {
    fn constrain(&mut self, constraint: Option<&trion_constraint>) -> Result<(), Failure> {
        if constraint.is_some_and(|constraint| !constraint.loaded.model.is_same(&self.loaded.model)) {
            return Err(Failure::OTHER_MODEL);
        }
        let begin = self.sequence.tokens().len();
        self.constraint = constraint.map(|c| Constrained { constraint: c.constraint.clone(), begin, state: None });
        self.ended = None;
        Ok(())
    }
}
