//! Calls with sessions.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use trion::advance::{
    trion_event, trion_event_kind, trion_session_advance, trion_session_cancel, trion_session_compute,
    trion_session_push, trion_session_rewind, trion_session_run,
};
use trion::inspect::{
    trion_candidate, trion_session_candidates, trion_session_logits, trion_session_token_units, trion_session_tokens,
};
use trion::sampler::{trion_sampler_options, trion_session_set_sampler};
use trion::session::{
    trion_allocator, trion_session, trion_session_assign, trion_session_fork, trion_session_fork_init,
    trion_session_free, trion_session_init, trion_session_new, trion_session_options, trion_session_size,
};
use trion::state::{trion_session_load, trion_session_save, trion_session_saved_size};
use trion::status::trion_status;
use trion::status::trion_status::{TRION_BUFFER_TOO_SMALL, TRION_OK};
use trion::together::{TRION_MAX_SESSIONS, trion_sessions_advance, trion_sessions_compute};
use trion::tokenizer::trion_session_push_text;

use super::host::{MOST, Outputs, at};
use super::{Host, SamplerPlan, SessionPlan, Size};

/// Options with room behind them, so that a size which is larger than theirs is one that can be read.
#[repr(C)]
struct Roomy<T> {
    options: T,
    room: [u8; 4096],
}

impl SessionPlan {
    fn options(&self) -> Roomy<trion_session_options> {
        let size = size_of::<trion_session_options>();
        let options = trion_session_options {
            struct_size: self.struct_size.map_or(size, |stated| stated.of(size)),
            context: self.context.of(4),
            max_batch: self.max_batch.of(2),
            cache: u32::from(self.cache % 3),
            kernel: u32::from(self.kernel % 7),
            ignore_end: u32::from(self.ignore_end % 3),
            probabilities: u32::from(self.probabilities % 3),
        };
        Roomy { options, room: [0; 4096] }
    }
}

impl SamplerPlan {
    fn options(&self) -> Roomy<trion_sampler_options> {
        let size = size_of::<trion_sampler_options>();
        let options = trion_sampler_options {
            struct_size: self.struct_size.map_or(size, |stated| stated.of(size)),
            repetition_penalty: self.repetition_penalty,
            repetition_window: self.repetition_window,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        };
        Roomy { options, room: [0; 4096] }
    }
}

unsafe extern "C" fn allocate(_: *mut c_void, size: usize, alignment: usize) -> *mut c_void {
    let Ok(layout) = Layout::from_size_align(size, alignment) else { return ptr::null_mut() };
    assert!(size > 0, "an allocation of nothing");
    // SAFETY: the size is not zero.
    unsafe { alloc(layout) }.cast()
}

unsafe extern "C" fn allocate_nothing(_: *mut c_void, _: usize, _: usize) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C" fn release(_: *mut c_void, memory: *mut c_void, size: usize, alignment: usize) {
    let layout = Layout::from_size_align(size, alignment).expect("the layout that was asked for");
    // SAFETY: the library gives back what `allocate` gave, with its size and alignment.
    unsafe { dealloc(memory.cast(), layout) }
}

/// An allocator, or none.
fn allocator(choice: u8) -> Option<trion_allocator> {
    let with = |allocate: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void| trion_allocator {
        user: ptr::null_mut(),
        allocate: Some(allocate),
        release: Some(release),
    };
    match choice % 6 {
        1 => Some(with(allocate)),
        2 => Some(with(allocate_nothing)),
        3 => Some(trion_allocator { release: None, ..with(allocate) }),
        4 => Some(trion_allocator { allocate: None, ..with(allocate) }),
        _ => None,
    }
}

/// Takes events until a count is spent.
unsafe extern "C" fn take_event(user: *mut c_void, event: *const trion_event) -> c_int {
    // SAFETY: `user` is the count that `run` passed.
    let left = unsafe { &mut *user.cast::<u8>() };
    // SAFETY: the library gives an event.
    check_event(unsafe { &*event });
    *left = left.saturating_sub(1);
    c_int::from(*left > 0)
}

/// What holds of every event of a small model.
fn check_event(event: &trion_event) {
    assert!(event.token < 10, "token {} of a vocabulary of 10", event.token);
    assert!((0.0..=1.0).contains(&event.probability), "{}", event.probability);
    let done = event.kind == trion_event_kind::TRION_EVENT_DONE;
    assert_eq!(done, event.reason != trion::advance::trion_reason::TRION_REASON_NONE);
}

impl Host {
    /// Puts a session into its slot, and its memory, if that is the program's.
    fn keep(&mut self, to: u8, session: *mut trion_session, buffer: Vec<u8>) {
        self.free(to);
        self.sessions[at(to)] = session;
        self.buffers[at(to)] = buffer;
    }

    pub(super) fn new_session(
        &mut self,
        model: u8,
        to: u8,
        plan: Option<SessionPlan>,
        choice: u8,
        out: &mut Outputs,
    ) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let options = plan.map(|plan| plan.options());
        let options = options.as_ref().map_or(ptr::null(), |options| &raw const options.options);
        let allocator = allocator(choice);
        let mut session = MaybeUninit::uninit();
        let place = out.place(&mut session);
        // SAFETY: the model is NULL or alive, and options have room for any size that is read.
        let status = unsafe { trion_session_new(model, options, allocator.as_ref(), place, out.error()) };
        if status == TRION_OK {
            // SAFETY: the call wrote the session.
            self.keep(to, unsafe { session.assume_init() }, Vec::new());
        }
        status
    }

    pub(super) fn init(
        &mut self,
        model: u8,
        to: u8,
        plan: SessionPlan,
        size: Size,
        shift: u8,
        out: &mut Outputs,
    ) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let options = plan.options();
        let options = &raw const options.options;
        let mut needed = MaybeUninit::uninit();
        // SAFETY: as below.
        let sized = unsafe { trion_session_size(model, options, Some(&mut needed), None) };
        // SAFETY: the call wrote the size, if it says so.
        let needed = if sized == TRION_OK { unsafe { needed.assume_init() } } else { 64 };
        let shift = usize::from(shift % 64);
        let mut buffer = vec![0; size.of(needed).min(MOST) + shift];
        let (room, to_buffer) = (buffer.len() - shift, buffer[shift..].as_mut_ptr());
        let mut session = MaybeUninit::uninit();
        let (to_buffer, place) = (out.pointer(to_buffer).cast_mut(), out.place(&mut session));
        // SAFETY: the model is NULL or alive, options have room for any size that is read, and the buffer is as large as
        // its size says and lives as long as the session.
        let status = unsafe { trion_session_init(model, options, to_buffer.cast(), room, place, out.error()) };
        // Less can be enough where the buffer happens to lie well.
        assert!(status != TRION_BUFFER_TOO_SMALL || room < needed, "{room} bytes, {needed} needed");
        if status == TRION_OK {
            // SAFETY: the call wrote the session.
            self.keep(to, unsafe { session.assume_init() }, buffer);
        }
        status
    }

    pub(super) fn fork(&mut self, from: u8, to: u8, choice: u8, out: &mut Outputs) -> trion_status {
        let from = out.pointer(self.sessions[at(from)]);
        let allocator = allocator(choice);
        let mut fork = MaybeUninit::uninit();
        let place = out.place(&mut fork);
        // SAFETY: the session is NULL or alive.
        let status = unsafe { trion_session_fork(from, allocator.as_ref(), place, out.error()) };
        if status == TRION_OK {
            // SAFETY: the call wrote the session.
            self.keep(to, unsafe { fork.assume_init() }, Vec::new());
        }
        status
    }

    pub(super) fn fork_init(&mut self, from: u8, to: u8, size: Size, out: &mut Outputs) -> trion_status {
        let from = out.pointer(self.sessions[at(from)]);
        let mut buffer = vec![0; size.of(16_384).min(MOST)];
        let mut fork = MaybeUninit::uninit();
        let (memory, room) = (out.pointer(buffer.as_mut_ptr()).cast_mut(), buffer.len());
        let place = out.place(&mut fork);
        // SAFETY: the session is NULL or alive, and the buffer is as large as its size says and lives as long as the fork.
        let status = unsafe { trion_session_fork_init(from, memory.cast(), room, place, out.error()) };
        if status == TRION_OK {
            // SAFETY: the call wrote the session.
            self.keep(to, unsafe { fork.assume_init() }, buffer);
        }
        status
    }

    pub(super) fn assign(&mut self, session: u8, from: u8, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let from = out.pointer(self.sessions[at(from)]);
        // SAFETY: sessions are NULL or alive.
        let status = unsafe { trion_session_assign(session, from, out.error()) };
        if status == TRION_OK {
            assert_eq!(tokens(session), tokens(from));
        }
        status
    }

    pub(super) fn free(&mut self, session: u8) -> trion_status {
        // SAFETY: the slot is NULL or holds a session that was not freed.
        unsafe { trion_session_free(self.sessions[at(session)]) };
        self.sessions[at(session)] = ptr::null_mut();
        TRION_OK
    }

    pub(super) fn set_sampler(&mut self, session: u8, plan: Option<SamplerPlan>, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let options = plan.map(|plan| plan.options());
        let options = options.as_ref().map_or(ptr::null(), |options| &raw const options.options);
        // SAFETY: the session is NULL or alive, and options have room for any size that is read.
        unsafe { trion_session_set_sampler(session, options, out.error()) }
    }

    pub(super) fn push(&mut self, session: u8, some: &[u8], wide: bool, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let limit = if wide { 256 } else { 10 };
        let some: Vec<u32> = some.iter().map(|token| u32::from(*token) % limit).collect();
        let data = out.pointer(some.as_ptr());
        let before = tokens(session);
        // SAFETY: the session is NULL or alive, and tokens are NULL or as many as their count says.
        let status = unsafe { trion_session_push(session, data, some.len(), out.error()) };
        let after = tokens(session);
        assert_eq!(after, if status == TRION_OK { [before, some].concat() } else { before });
        status
    }

    pub(super) fn push_text(&mut self, session: u8, text: &[u8], flags: u8, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let data = out.pointer(text.as_ptr());
        // SAFETY: the session is NULL or alive, and the text is NULL or as long as its size says.
        unsafe { trion_session_push_text(session, data.cast(), text.len(), flags.into(), out.error()) }
    }

    pub(super) fn advance(&mut self, session: u8, budget: Size, computes: bool, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let mut event = MaybeUninit::uninit();
        let (budget, place) = (budget.of(1), out.place(&mut event));
        let function = if computes { trion_session_compute } else { trion_session_advance };
        // SAFETY: the session is NULL or alive.
        let status = unsafe { function(session, budget, place) };
        if status == TRION_OK {
            // SAFETY: the call wrote the event.
            check_event(unsafe { event.assume_init_ref() });
        }
        status
    }

    pub(super) fn run(&mut self, session: u8, budget: Size, mut events: u8, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let on_event = if out.keeps() { Some(take_event as _) } else { None };
        let mut event = MaybeUninit::uninit();
        let (budget, place) = (budget.of(1), out.place(&mut event));
        // SAFETY: the session is NULL or alive, and the callback gets its count.
        unsafe { trion_session_run(session, budget, on_event, (&raw mut events).cast(), place) }
    }

    pub(super) fn cancel(&mut self, session: u8) -> trion_status {
        // SAFETY: the session is NULL or alive.
        unsafe { trion_session_cancel(self.sessions[at(session)]) };
        TRION_OK
    }

    pub(super) fn rewind(&mut self, session: u8, length: Size, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let before = tokens(session);
        let length = length.of(before.len());
        // SAFETY: the session is NULL or alive.
        let status = unsafe { trion_session_rewind(session, length, out.error()) };
        let kept = if status == TRION_OK { length } else { before.len() };
        assert_eq!(tokens(session), before[..kept]);
        status
    }

    pub(super) fn together(
        &mut self,
        some: &[u8],
        count: Option<Size>,
        budget: Size,
        chooses: bool,
        out: &mut Outputs,
    ) -> trion_status {
        let mut sessions: Vec<*mut trion_session> = some.iter().map(|session| self.sessions[at(*session)]).collect();
        let count = count.map_or(sessions.len(), |count| count.of(sessions.len())).min(2 * TRION_MAX_SESSIONS);
        sessions.resize(count, ptr::null_mut());
        let mut events = vec![MaybeUninit::<trion_event>::uninit(); count];
        let (data, place) = (out.pointer(sessions.as_ptr()), out.pointer(events.as_mut_ptr()).cast_mut());
        let function = if chooses { trion_sessions_advance } else { trion_sessions_compute };
        // SAFETY: sessions are NULL or alive, and arrays are NULL or as long as the count says.
        let status = unsafe { function(data, count, budget.of(1), place.cast(), out.error()) };
        let mut different = sessions.clone();
        different.sort_unstable();
        different.dedup();
        if different.len() < count || different.contains(&ptr::null_mut()) {
            assert_ne!(status, TRION_OK, "a session twice, or none");
        }
        if status == TRION_OK {
            for event in &events {
                // SAFETY: the call wrote every event.
                check_event(unsafe { event.assume_init_ref() });
            }
        }
        status
    }

    pub(super) fn look(&mut self, session: u8, candidates: u8, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]);
        let mut units = MaybeUninit::uninit();
        // SAFETY: the session is NULL or alive.
        let status = unsafe { trion_session_token_units(session, out.place(&mut units)) };
        if status == TRION_OK {
            // SAFETY: the call wrote the units.
            assert!(unsafe { units.assume_init() } > 0);
        }
        let (mut logits, mut count) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the session is NULL or alive.
        if unsafe { trion_session_logits(session, out.place(&mut logits), out.place(&mut count)) } == TRION_OK {
            // SAFETY: the call wrote both, and nothing changes the session meanwhile.
            let logits = unsafe { std::slice::from_raw_parts(logits.assume_init(), count.assume_init()) };
            assert_eq!(logits.len(), 10);
        }
        let mut found = vec![trion_candidate { token: u32::MAX, probability: 0.0 }; candidates.into()];
        let mut count = MaybeUninit::uninit();
        let (to, capacity) = (out.pointer(found.as_mut_ptr()).cast_mut(), found.len());
        let place = out.place(&mut count);
        // SAFETY: the session is NULL or alive, and candidates are NULL or as many as their capacity says.
        let status = unsafe { trion_session_candidates(session, to, capacity, place) };
        if status == TRION_OK && !to.is_null() {
            // SAFETY: the call wrote the count.
            let count = unsafe { count.assume_init() };
            assert!(found[..count.min(capacity)].iter().all(|candidate| candidate.token < 10));
        }
        status
    }

    pub(super) fn save(&mut self, session: u8, size: Size, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]);
        let mut needed = MaybeUninit::uninit();
        // SAFETY: the session is NULL or alive.
        let sized = unsafe { trion_session_saved_size(session, Some(&mut needed)) };
        // SAFETY: the call wrote the size, if it says so.
        let needed = if sized == TRION_OK { unsafe { needed.assume_init() } } else { 0 };
        let mut buffer = vec![0; size.of(needed).min(MOST)];
        let mut written = MaybeUninit::uninit();
        let (to, capacity) = (out.pointer(buffer.as_mut_ptr()).cast_mut(), buffer.len());
        let place = out.place(&mut written);
        // SAFETY: the session is NULL or alive, and the buffer is NULL or as large as its capacity says.
        let status = unsafe { trion_session_save(session, to.cast(), capacity, place, out.error()) };
        if status == TRION_OK {
            // SAFETY: the call wrote the size.
            assert_eq!(unsafe { written.assume_init() }, needed);
            buffer.truncate(needed);
            self.saved = buffer;
        }
        status
    }

    pub(super) fn load(&mut self, session: u8, flip: Option<(u16, u8)>, size: Size, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let mut saved = self.saved.clone();
        if let Some((at, to)) = flip
            && let Some(byte) = saved.get_mut(usize::from(at))
        {
            *byte = to;
        }
        let size = size.of(saved.len()).min(saved.len());
        let data = out.pointer(saved.as_ptr());
        let before = tokens(session);
        // SAFETY: the session is NULL or alive, and the state is NULL or has that many bytes at least.
        let status = unsafe { trion_session_load(session, data.cast(), size, out.error()) };
        if status != TRION_OK {
            assert_eq!(tokens(session), before, "a session that did not load is unchanged");
        }
        status
    }
}

/// The tokens of a session; none for NULL.
fn tokens(session: *const trion_session) -> Vec<u32> {
    let (mut tokens, mut count) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the session is NULL or alive.
    if unsafe { trion_session_tokens(session, Some(&mut tokens), Some(&mut count)) } != TRION_OK {
        return Vec::new();
    }
    // SAFETY: the call wrote both, and nothing changes the session meanwhile.
    unsafe { std::slice::from_raw_parts(tokens.assume_init(), count.assume_init()) }.to_vec()
}
