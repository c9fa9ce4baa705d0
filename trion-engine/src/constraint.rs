//! Text that must follow a grammar: a JSON schema, a regular expression, or a grammar in the form of Lark.
//!
//! A [`Constraint`] is compiled ahead, once for a model and a grammar. A [`ConstraintState`] is a place in a text that
//! follows it: [`mask`](ConstraintState::mask) says which tokens may come next, [`accept`](ConstraintState::accept)
//! goes on by one. The mask is for [`Sampler::sample_masked`](trion_core::Sampler::sample_masked), which applies it
//! before anything else, so a constraint works with every option of the sampler.
//!
//! ```no_run
//! use trion_engine::{Constraint, Grammar, Mask, Model};
//!
//! # fn main() -> trion_engine::Result<()> {
//! # let (model, token) = (Model::open("model.safetensors")?, 0);
//! let date = Constraint::new(&model, Grammar::Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}"))?;
//! let mut state = date.start()?;
//! match state.mask() {
//!     Mask::Allowed(mask) => assert!(mask[0] & 1 == 0 || token == 0),
//!     Mask::Complete => println!("the text is whole"),
//!     Mask::DeadEnd(reason) => println!("no token fits: {reason}"),
//! }
//! state.accept(token)?;
//! # Ok(()) }
//! ```
//!
//! What grammars may say, and the bounds of time and memory, is in `docs/constraints.md`. The work is done by the
//! library `llguidance`.

mod schema;
mod vocabulary;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::Logger;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::derivre::RegexBuilder;
use llguidance::earley::Parser;

use crate::error::{Error, Result};
use crate::model::Model;
pub(crate) use vocabulary::Vocabulary;

/// Longest JSON schema, in bytes. The library calls itself once for each name in a chain of definitions. The longest
/// chain that fits into a grammar takes less than a quarter of [`STACK_BYTES`].
const MAX_SCHEMA_BYTES: usize = 1 << 17;

/// Longest regular expression, and longest grammar in the form of Lark, in bytes. Some expressions take memory and time
/// in proportion to the square of their length, which the library's own bounds do not count.
const MAX_GRAMMAR_BYTES: usize = 1 << 16;

/// Stack of the thread that compiles a grammar. Only what is used is ever touched.
const STACK_BYTES: usize = 1 << 28;

/// Blanks between two parts of a JSON text, where the schema does not say otherwise: one space, or a new line with its
/// indentation. With all that JSON allows, a model that likes blanks writes nothing else.
const WHITESPACE: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,32}";

/// What a text must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar<'a> {
    /// The text is JSON, and this JSON schema holds for it.
    JsonSchema(&'a str),
    /// The whole text matches this regular expression.
    Regex(&'a str),
    /// The text is derived from the rule `start` of this grammar.
    Lark(&'a str),
}

impl Grammar<'_> {
    /// What it is called in errors.
    const fn name(&self) -> &'static str {
        match self {
            Grammar::JsonSchema(_) => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
        }
    }

    /// As the library takes it.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    fn read(&self) -> std::result::Result<TopLevelGrammar, String> {
        let (length, limit) = match self {
            Grammar::JsonSchema(text) => (text.len(), MAX_SCHEMA_BYTES),
            Grammar::Regex(text) | Grammar::Lark(text) => (text.len(), MAX_GRAMMAR_BYTES),
        };
        if length > limit {
            return Err(format!("{length} bytes, at most {limit} expected"));
        }
        match self {
            Grammar::JsonSchema(text) => {
                let mut schema: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
                schema::check(&schema)?;
                if let Some(schema) = schema.as_object_mut() {
                    let options = serde_json::json!({ "whitespace_pattern": WHITESPACE });
                    schema.entry("x-guidance").or_insert(options);
                }
                Ok(TopLevelGrammar::from_json_schema(schema))
            }
            // An empty expression would be a comment in the grammar that it is put into below.
            Grammar::Regex("") => Ok(TopLevelGrammar::from_lark("start: \"\"".to_owned())),
            Grammar::Regex(text) => {
                // Errors of the expression alone, with places in it.
                RegexBuilder::new().mk_regex(text).map_err(|e| e.to_string())?;
                Ok(TopLevelGrammar::from_regex(text))
            }
            Grammar::Lark(text) => {
                check_nested(text)?;
                Ok(TopLevelGrammar::from_lark((*text).to_owned()))
            }
        }
    }
}

/// Checks the schemas within a grammar in the form of Lark. What only looks like one, in a string or a comment, is
/// checked too, if it is JSON.
fn check_nested(grammar: &str) -> std::result::Result<(), String> {
    grammar.match_indices("%json").try_for_each(|(at, marker)| {
        let rest = &grammar[at + marker.len()..];
        match serde_json::Deserializer::from_str(rest).into_iter().next() {
            Some(Ok(nested)) => schema::check(&nested).map_err(|e| format!("%json at byte {at}: {e}")),
            // The library says what is wrong.
            Some(Err(_)) | None => Ok(()),
        }
    })
}

/// The bounds of the library. All count work and not time, so the same grammar ends in the same way everywhere.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// A grammar that is compiled for the tokens of one model. Immutable, and shared by any number of texts and threads;
/// cloning shares it.
#[derive(Clone)]
pub struct Constraint(Arc<Compiled>);

struct Compiled {
    vocabulary: Arc<Vocabulary>,
    /// At the beginning of a text. It is copied and never moved on.
    start: Parser,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// Compiles `grammar` for the tokens of `model`. The first call for a model also builds a tree of its tokens, which
    /// all constraints of the model share.
    ///
    /// The work is done on a thread of its own with a large stack, which ends before the call does.
    ///
    /// # Errors
    /// [`Error::Constraint`] says what was wrong with the grammar and where, or which bound it goes beyond;
    /// [`Error::Tokenizer`] when the model has no tokenizer.
    pub fn new(model: &Model, grammar: Grammar<'_>) -> Result<Self> {
        on_large_stack(|| {
            let vocabulary = model.constraint_vocabulary()?;
            let fail = |reason: String| Error::Constraint(format!("{}: {}", grammar.name(), reason.trim_end()));
            let init = GrammarInit::Serialized(grammar.read().map_err(fail)?);
            let environment = &vocabulary.environment;
            let slices = vocabulary.slices.extra_lexemes();
            let start = init
                .to_cgrammar(Some(environment.clone()), &mut Logger::new(0, 0), limits(), slices)
                .and_then(|compiled| Parser::new(environment.clone(), compiled, limits(), Arc::default()))
                .map_err(|e| fail(e.to_string()))?;
            Ok(Constraint(Arc::new(Compiled { vocabulary, start })))
        })
    }

    /// Whether it was compiled for `model`, or for a clone of it.
    pub fn belongs_to(&self, model: &Model) -> bool {
        model.constraint_vocabulary().is_ok_and(|vocabulary| Arc::ptr_eq(&vocabulary, &self.0.vocabulary))
    }

    /// The beginning of a text.
    ///
    /// # Errors
    /// [`Error::Constraint`] if the library fails.
    pub fn start(&self) -> Result<ConstraintState> {
        let parser = guarded(|| self.0.start.deep_clone()).map_err(Error::Constraint)?;
        Ok(ConstraintState {
            constraint: self.clone(),
            parser: Some(Box::new(parser)),
            outcome: Outcome::Unknown,
            accepting: false,
            words: Vec::new(),
        })
    }
}

/// Runs `work` on a thread with a stack for deep recursion. A panic in it becomes an error.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("trion-constraint".to_owned()).stack_size(STACK_BYTES);
        let thread =
            thread.spawn_scoped(scope, work).map_err(|e| Error::Constraint(format!("cannot start a thread: {e}")))?;
        thread.join().unwrap_or_else(|panic| Err(Error::Constraint(panic_message(&*panic))))
    })
}

/// Runs a call of the library, which panics where it meets an error of its own. Who gets
/// an error must not use what the call was changing any more.
fn guarded<T>(call: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| panic_message(&*panic))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the library failed: {}", text.unwrap_or("without a message"))
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask<'a> {
    /// At least one token: bit `token % 32` of word `token / 32` is set for those that are allowed. The words cover the
    /// model's vocabulary. Where the text is whole already but may go on, the tokens that end a text are among them.
    Allowed(&'a [u32]),
    /// The text is whole, and nothing may follow but its end.
    Complete,
    /// The text is not whole, and no token of the vocabulary continues it, or the library gave up at one of its bounds;
    /// why, in words. This is final.
    DeadEnd(&'a str),
}

/// What is known about a place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Unknown,
    Allowed,
    Complete,
    DeadEnd(String),
}

/// A place in a text that follows a [`Constraint`]. A clone is independent: it goes its own way.
pub struct ConstraintState {
    constraint: Constraint,
    /// None after the end of the text, and after a panic, which leaves it in no defined state.
    parser: Option<Box<Parser>>,
    outcome: Outcome,
    /// Whether the text may end here; known when `outcome` is.
    accepting: bool,
    /// The mask, if `outcome` is `Allowed`.
    words: Vec<u32>,
}

impl Clone for ConstraintState {
    fn clone(&self) -> Self {
        // The library's own clone would share a cache, and a lock, with the original.
        let parser = self.parser.as_ref().map(|parser| Box::new(parser.deep_clone()));
        ConstraintState {
            constraint: self.constraint.clone(),
            parser,
            outcome: self.outcome.clone(),
            accepting: self.accepting,
            words: self.words.clone(),
        }
    }
}

impl std::fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintState").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl ConstraintState {
    /// The constraint that the text follows.
    pub fn constraint(&self) -> &Constraint {
        &self.constraint
    }

    /// Which tokens may come next. Computed once for a place, mostly in some tens of microseconds; asking again is
    /// free.
    pub fn mask(&mut self) -> Mask<'_> {
        if self.outcome == Outcome::Unknown {
            self.look();
        }
        match &self.outcome {
            Outcome::Allowed => Mask::Allowed(&self.words),
            Outcome::Complete => Mask::Complete,
            Outcome::DeadEnd(reason) => Mask::DeadEnd(reason),
            Outcome::Unknown => Mask::DeadEnd("nothing is known"),
        }
    }

    /// Whether the text is whole and may end here, even if it may also go on.
    pub fn may_end(&mut self) -> bool {
        self.mask();
        self.accepting
    }

    /// Goes on by one token. A token that ends texts leads to [`Mask::Complete`] where the text may end.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a token that is not allowed here, also at the end of the text and in a dead end; the
    /// state is unchanged. The same error if the library gives up at one of its bounds, which is a dead end from then
    /// on.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        // Also gives the library fuel for the step.
        let reason = match self.mask() {
            Mask::Allowed(_) => None,
            Mask::Complete => Some("the text has ended".to_owned()),
            Mask::DeadEnd(reason) => Some(reason.to_owned()),
        };
        let vocabulary = self.constraint.0.vocabulary.clone();
        let ends = vocabulary.eos.contains(&token);
        if ends && self.accepting {
            self.parser = None;
            self.outcome = Outcome::Complete;
            return Ok(());
        }
        let refuse = |reason: &str| {
            let text = vocabulary.trie().token_dbg(token);
            Err(Error::Constraint(format!("token {token} ({text}) is not allowed here: {reason}")))
        };
        if let Some(reason) = reason {
            return refuse(&reason);
        }
        if token as usize >= vocabulary.trie().vocab_size() {
            return refuse("it is not in the vocabulary");
        }
        let Some(parser) = &mut self.parser else { return refuse("the text has ended") };
        let step = guarded(|| {
            if ends && parser.scan_eos() {
                return Ok(true);
            }
            if parser.validate_tokens(&[token]) == 0 {
                return Ok(false);
            }
            let bytes = vocabulary.trie().decode_raw(&[token]);
            // Bytes that a grammar's `stop` hides stay in the text: tokens are not taken back.
            parser.apply_token(&bytes, token).map(|_hidden| true).map_err(|e| e.to_string())
        });
        match step {
            Ok(Ok(true)) => {
                self.outcome = Outcome::Unknown;
                Ok(())
            }
            Ok(Ok(false)) => refuse("the grammar has another continuation"),
            Ok(Err(reason)) | Err(reason) => {
                let refused = refuse(&reason);
                self.end_dead(reason);
                refused
            }
        }
    }

    /// Finds out what may come next.
    fn look(&mut self) {
        let vocabulary = self.constraint.0.vocabulary.clone();
        let Some(parser) = &mut self.parser else { return };
        let looked = guarded(|| {
            let mut set = parser.compute_bias(&vocabulary.slices, &[]);
            if let Some(error) = parser.get_error() {
                return Err(error.message());
            }
            let accepting = parser.is_accepting();
            // The library sets the first of these where a grammar asks for the end of the text.
            if vocabulary.eos.first().is_some_and(|eos| set.is_allowed(*eos)) {
                vocabulary.eos.iter().for_each(|eos| set.allow_token(*eos));
            }
            Ok((set, accepting))
        });
        let (mut set, accepting) = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(reason)) | Err(reason) => return self.end_dead(reason),
        };
        self.accepting = accepting;
        if set.is_zero() {
            if accepting {
                self.outcome = Outcome::Complete;
            } else {
                self.end_dead("no token of the vocabulary continues the text".to_owned());
            }
            return;
        }
        if accepting {
            vocabulary.eos.iter().for_each(|eos| set.allow_token(*eos));
        }
        // The library's set has room for one token more.
        let words = vocabulary.trie().vocab_size().div_ceil(32);
        self.words.clear();
        self.words.extend_from_slice(&set.as_slice()[..words]);
        self.outcome = Outcome::Allowed;
    }

    fn end_dead(&mut self, reason: String) {
        self.parser = None;
        self.accepting = false;
        self.outcome = Outcome::DeadEnd(reason);
    }
}
