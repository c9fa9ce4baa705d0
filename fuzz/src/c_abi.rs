//! The C interface, as a program calls it that gets numbers wrong but no pointers: sequences of calls with models,
//! sessions, texts and constraints, hostile sizes and options, and NULL anywhere.
//!
//! Every handle that is passed is NULL or alive, and every buffer is as large as its size says; all else is the header's
//! to refuse. `TRION_INTERNAL` is a defect: it is what a panic comes out as.

#![allow(unsafe_code)]

mod host;
mod session;

use std::ptr;

use arbitrary::{Arbitrary, Unstructured};
use trion::constraint::{trion_constraint, trion_constraint_free};
use trion::model::{trion_model, trion_model_free};
use trion::session::{trion_session, trion_session_free};
use trion::status::trion_status;
use trion::text::{trion_text, trion_text_free};

use host::Outputs;

/// Most calls of a sequence: each costs some microseconds at least.
const CALLS: usize = 32;

/// Handles of a kind that a sequence has at a time.
const SLOTS: usize = 4;

/// A size: mostly a small one, or one at which programs go wrong.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Size {
    Small(u8),
    Power {
        bits: u8,
        below: bool,
    },
    /// As many as are needed, and so many more or less.
    Needed(i8),
}

impl Size {
    /// The number, where `needed` are needed.
    fn of(self, needed: usize) -> usize {
        match self {
            Size::Small(n) => n.into(),
            Size::Power { bits, below } => (1_usize << (bits % 64)).wrapping_sub(below.into()),
            Size::Needed(more) => needed.wrapping_add_signed(more.into()),
        }
    }
}

/// Options of a session.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct SessionPlan {
    struct_size: Option<Size>,
    context: Size,
    max_batch: Size,
    cache: u8,
    kernel: u8,
    ignore_end: u8,
    probabilities: u8,
}

/// Options of a sampler.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct SamplerPlan {
    struct_size: Option<Size>,
    repetition_penalty: f32,
    repetition_window: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    seed: u64,
}

/// A call, with places of handles in the host's slots.
#[derive(Debug, Arbitrary)]
enum Call {
    ModelNew { to: u8, how: u8, file: u8, size: Size },
    ModelFree { model: u8 },
    ModelInfo { model: u8, size: u8 },
    New { model: u8, to: u8, plan: Option<SessionPlan>, allocator: u8 },
    Init { model: u8, to: u8, plan: SessionPlan, size: Size, shift: u8 },
    Fork { from: u8, to: u8, allocator: u8 },
    ForkInit { from: u8, to: u8, size: Size },
    Assign { session: u8, from: u8 },
    Free { session: u8 },
    SetSampler { session: u8, plan: Option<SamplerPlan> },
    Push { session: u8, tokens: Vec<u8>, wide: bool },
    PushText { session: u8, text: Vec<u8>, flags: u8 },
    Advance { session: u8, budget: Size, computes: bool },
    Run { session: u8, budget: Size, events: u8 },
    Cancel { session: u8 },
    Rewind { session: u8, length: Size },
    Together { sessions: Vec<u8>, count: Option<Size>, budget: Size, chooses: bool },
    Look { session: u8, candidates: u8 },
    Save { session: u8, size: Size },
    Load { session: u8, flip: Option<(u16, u8)>, size: Size },
    Encode { model: u8, text: Vec<u8>, flags: u8, size: Size },
    Decode { model: u8, tokens: Vec<u8>, flags: u8, size: Size },
    Chat { model: u8, roles: Vec<u8>, text: Vec<u8>, flags: u8, size: Size },
    TextNew { model: u8, to: u8, stops: Vec<u8>, special: u8 },
    TextPush { text: u8, token: u8 },
    TextFinish { text: u8 },
    Generate { session: u8, text: u8, tokens: u8, pieces: u8 },
    ConstraintNew { model: u8, to: u8, kind: u8, grammar: u8 },
    ConstraintFree { constraint: u8 },
    SetConstraint { session: u8, constraint: u8 },
}

/// A call, and which of its pointers are NULL: a bit for each, from the first.
#[derive(Debug, Arbitrary)]
struct Step {
    nulls: Option<u8>,
    call: Call,
}

/// What a program holds. Sessions end before the buffers that they may lie in.
struct Host {
    models: [*mut trion_model; SLOTS],
    sessions: [*mut trion_session; SLOTS],
    /// Memory of sessions that were made in the host's own, at the session's place.
    buffers: [Vec<u8>; SLOTS],
    texts: [*mut trion_text; SLOTS],
    constraints: [*mut trion_constraint; SLOTS],
    /// The last state that was saved.
    saved: Vec<u8>,
    /// Constraints that may still be compiled, which takes as long as a hundred other calls.
    compilations: u32,
}

impl Drop for Host {
    fn drop(&mut self) {
        // In an order that the header allows: what is made of a model keeps it alive.
        self.models.iter().for_each(|model| {
            // SAFETY: the slot is NULL or holds the only reference that this program has to a model.
            unsafe { trion_model_free(*model) }
        });
        self.sessions.iter().for_each(|session| {
            // SAFETY: the slot is NULL or holds a session that was not freed.
            unsafe { trion_session_free(*session) }
        });
        self.texts.iter().for_each(|text| {
            // SAFETY: the slot is NULL or holds a text that was not freed.
            unsafe { trion_text_free(*text) }
        });
        self.constraints.iter().for_each(|constraint| {
            // SAFETY: the slot is NULL or holds a constraint that was not freed.
            unsafe { trion_constraint_free(*constraint) }
        });
    }
}

/// Makes the calls.
///
/// # Panics
/// If one of them reports a defect, or does not do what the header says.
pub fn run(bytes: &[u8]) {
    let mut host = Host {
        models: [ptr::null_mut(); SLOTS],
        sessions: [ptr::null_mut(); SLOTS],
        buffers: std::array::from_fn(|_| Vec::new()),
        texts: [ptr::null_mut(); SLOTS],
        constraints: [ptr::null_mut(); SLOTS],
        saved: Vec::new(),
        compilations: u32::from(bytes.first().is_some_and(|first| first % 8 == 0)),
    };
    // Most calls do nothing without these.
    for to in 0..2 {
        host.keep_model(to, host::shared_model(to));
        host.step(Step { nulls: None, call: Call::New { model: 0, to, plan: None, allocator: 0 } });
    }
    let mut input = Unstructured::new(bytes);
    for _ in 0..CALLS {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        if input.is_empty() {
            break;
        }
        host.step(step);
    }
}

impl Host {
    /// Makes one call.
    fn step(&mut self, step: Step) {
        let mut out = Outputs::new(step.nulls);
        let status = self.call(step.call, &mut out);
        out.check(status);
    }

    fn call(&mut self, call: Call, out: &mut Outputs) -> trion_status {
        match call {
            Call::ModelNew { to, how, file, size } => self.model_new(to, how, file, size, out),
            Call::ModelFree { model } => self.model_free(model),
            Call::ModelInfo { model, size } => self.model_info(model, size, out),
            Call::New { model, to, plan, allocator } => self.new_session(model, to, plan, allocator, out),
            Call::Init { model, to, plan, size, shift } => self.init(model, to, plan, size, shift, out),
            Call::Fork { from, to, allocator } => self.fork(from, to, allocator, out),
            Call::ForkInit { from, to, size } => self.fork_init(from, to, size, out),
            Call::Assign { session, from } => self.assign(session, from, out),
            Call::Free { session } => self.free(session),
            Call::SetSampler { session, plan } => self.set_sampler(session, plan, out),
            Call::Push { session, tokens, wide } => self.push(session, &tokens, wide, out),
            Call::PushText { session, text, flags } => self.push_text(session, &text, flags, out),
            Call::Advance { session, budget, computes } => self.advance(session, budget, computes, out),
            Call::Run { session, budget, events } => self.run(session, budget, events, out),
            Call::Cancel { session } => self.cancel(session),
            Call::Rewind { session, length } => self.rewind(session, length, out),
            Call::Together { sessions, count, budget, chooses } => {
                self.together(&sessions, count, budget, chooses, out)
            }
            Call::Look { session, candidates } => self.look(session, candidates, out),
            Call::Save { session, size } => self.save(session, size, out),
            Call::Load { session, flip, size } => self.load(session, flip, size, out),
            Call::Encode { model, text, flags, size } => self.encode(model, &text, flags, size, out),
            Call::Decode { model, tokens, flags, size } => self.decode(model, &tokens, flags, size, out),
            Call::Chat { model, roles, text, flags, size } => self.chat(model, &roles, &text, flags, size, out),
            Call::TextNew { model, to, stops, special } => self.text_new(model, to, &stops, special, out),
            Call::TextPush { text, token } => self.text_push(text, token, out),
            Call::TextFinish { text } => self.text_finish(text, out),
            Call::Generate { session, text, tokens, pieces } => self.generate(session, text, tokens, pieces, out),
            Call::ConstraintNew { model, to, kind, grammar } => self.constraint_new(model, to, kind, grammar, out),
            Call::ConstraintFree { constraint } => self.constraint_free(constraint),
            Call::SetConstraint { session, constraint } => self.set_constraint(session, constraint, out),
        }
    }
}
