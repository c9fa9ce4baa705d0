//! Calls with models, texts and constraints, and what all calls share.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::LazyLock;

use trion::constraint::{trion_constraint, trion_constraint_free, trion_constraint_new, trion_session_set_constraint};
use trion::model::{
    trion_model, trion_model_borrow, trion_model_copy, trion_model_ends_text, trion_model_free, trion_model_get_info,
    trion_model_info, trion_model_read, trion_model_retain,
};
use trion::status::trion_status::{TRION_INTERNAL, TRION_OK};
use trion::status::{trion_error, trion_status};
use trion::text::{
    trion_generate, trion_piece, trion_stop, trion_text, trion_text_finish, trion_text_free, trion_text_new,
    trion_text_options, trion_text_push,
};
use trion::tokenizer::{trion_message, trion_model_chat, trion_model_decode, trion_model_encode};

use super::{Host, SLOTS, Size};
use crate::small::PACKED;

/// Most elements of a buffer: a size that is larger is refused, or goes with NULL.
pub(super) const MOST: usize = 1 << 16;

/// Where the outputs of a call go, and which of its pointers are NULL.
pub(super) struct Outputs {
    nulls: u8,
    next: u32,
    error: trion_error,
    wants_error: bool,
}

/// What stands in an error that no call wrote.
const UNWRITTEN: trion_error = trion_error { status: TRION_OK, message: [0x55; 512] };

impl Outputs {
    pub(super) fn new(nulls: Option<u8>) -> Self {
        Outputs { nulls: nulls.unwrap_or(0), next: 0, error: UNWRITTEN, wants_error: false }
    }

    /// Whether the next pointer is not NULL.
    pub(super) fn keeps(&mut self) -> bool {
        let bit = self.nulls >> (self.next % 8) & 1;
        self.next += 1;
        bit == 0
    }

    /// A pointer, or NULL.
    pub(super) fn pointer<T>(&mut self, pointer: *const T) -> *const T {
        if self.keeps() { pointer } else { ptr::null() }
    }

    /// A pointer to an output, or NULL.
    pub(super) fn place<'a, T>(&mut self, out: &'a mut MaybeUninit<T>) -> Option<&'a mut MaybeUninit<T>> {
        self.keeps().then_some(out)
    }

    /// Where the error goes, or NULL.
    pub(super) fn error(&mut self) -> Option<&mut MaybeUninit<trion_error>> {
        self.wants_error = self.keeps();
        if !self.wants_error {
            return None;
        }
        let error = (&raw mut self.error).cast::<MaybeUninit<trion_error>>();
        // SAFETY: an error is also memory for one, and calls write nothing but errors there.
        Some(unsafe { &mut *error })
    }

    /// What holds of every call.
    pub(super) fn check(&self, status: trion_status) {
        assert_ne!(status, TRION_INTERNAL, "a defect");
        if status == TRION_OK || !self.wants_error {
            return;
        }
        assert_eq!(self.error.status, status, "the error says what the call returned");
        let message = self.error.message.map(|c| c as u8);
        let end = message.iter().position(|byte| *byte == 0).expect("a message ends with a zero");
        let text = std::str::from_utf8(&message[..end]).expect("a message is UTF-8");
        assert!(!text.is_empty(), "{status:?} says nothing");
    }
}

/// A place in the slots.
pub(super) fn at(slot: u8) -> usize {
    usize::from(slot) % SLOTS
}

/// Bytes of a file at a multiple of 64, for as long as the process runs.
#[repr(C, align(64))]
struct Aligned([u8; 64]);

static BORROWED: LazyLock<Vec<(Vec<Aligned>, usize)>> = LazyLock::new(|| {
    let copy = |file: &Vec<u8>| {
        let line = |line: &[u8]| {
            let mut aligned = Aligned([0; 64]);
            aligned.0[..line.len()].copy_from_slice(line);
            aligned
        };
        (file.chunks(64).map(line).collect(), file.len())
    };
    PACKED.iter().map(copy).collect()
});

/// A model for as long as the process runs, whose tokenizer is built once: two of them.
struct Shared([*mut trion_model; 2]);

// SAFETY: models may be used on any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    Shared([0, 4].map(|file| {
        let mut model = MaybeUninit::uninit();
        let (data, size) = (PACKED[file].as_ptr(), PACKED[file].len());
        // SAFETY: the bytes are as many as their size says.
        let status = unsafe { trion_model_copy(None, data.cast(), size, Some(&mut model), None) };
        assert_eq!(status, TRION_OK, "a small model");
        // SAFETY: the call wrote the model.
        unsafe { model.assume_init() }
    }))
});

/// Another reference to a model that is there already.
pub(super) fn shared_model(number: u8) -> *mut trion_model {
    let model = SHARED.0[usize::from(number) % SHARED.0.len()];
    // SAFETY: the model is alive.
    unsafe { trion_model_retain(model) };
    model
}

/// A reader of a slice that moves on.
unsafe extern "C" fn read(user: *mut c_void, buffer: *mut c_void, size: usize) -> usize {
    // SAFETY: `user` is the slice that `model_new` passed.
    let rest = unsafe { &mut *user.cast::<&[u8]>() };
    let (now, later) = rest.split_at(size.min(rest.len()));
    // SAFETY: the buffer has room for `size` bytes, and nobody else has it.
    unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(now.as_ptr(), now.len()) };
    *rest = later;
    now.len()
}

/// Takes pieces of text until a count is spent, each of them UTF-8.
unsafe extern "C" fn take_text(user: *mut c_void, text: *const c_char, size: usize) -> c_int {
    // SAFETY: `user` is the count that `generate` passed.
    let left = unsafe { &mut *user.cast::<u8>() };
    // SAFETY: the library gives `size` bytes at `text`.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), size) };
    assert!(std::str::from_utf8(text).is_ok(), "{text:?}");
    *left = left.saturating_sub(1);
    c_int::from(*left > 0)
}

impl Host {
    pub(super) fn model_new(&mut self, to: u8, how: u8, file: u8, size: Size, out: &mut Outputs) -> trion_status {
        // Not the first, whose tokenizer would be built for each model anew: the program begins with it.
        let file = 1 + usize::from(file) % (PACKED.len() - 1);
        let bytes = &PACKED[file][..];
        let mut model = MaybeUninit::<*mut trion_model>::uninit();
        let size = size.of(bytes.len());
        let short = size.min(bytes.len());
        let data = out.pointer(bytes.as_ptr());
        let place = out.place(&mut model);
        let made = place.is_some();
        let status = match how % 3 {
            // SAFETY: `data` is NULL or has `short` bytes.
            0 => unsafe { trion_model_copy(None, data.cast(), short, place, out.error()) },
            1 => {
                let (lines, length) = &BORROWED[file];
                let data = if data.is_null() { ptr::null() } else { lines.as_ptr() };
                // SAFETY: the bytes stay as they are as long as the process runs.
                unsafe { trion_model_borrow(None, data.cast(), size.min(*length), place, out.error()) }
            }
            _ => {
                let mut rest = bytes;
                let read = if data.is_null() { None } else { Some(read as _) };
                // A size that is larger than what is there is asked for, within reason.
                let size = size.min(MOST);
                // SAFETY: the reader gives what `rest` has.
                unsafe { trion_model_read(None, read, (&raw mut rest).cast(), size, place, out.error()) }
            }
        };
        if status == TRION_OK {
            assert!(made, "a model that nobody wanted");
            // SAFETY: the call wrote the model.
            self.keep_model(to, unsafe { model.assume_init() });
        }
        status
    }

    /// Puts a model into its slot.
    pub(super) fn keep_model(&mut self, to: u8, model: *mut trion_model) {
        self.model_free(to);
        self.models[at(to)] = model;
    }

    pub(super) fn model_free(&mut self, model: u8) -> trion_status {
        // SAFETY: the slot is NULL or holds the only reference of this program; what was made of the model has its own.
        unsafe { trion_model_free(self.models[at(model)]) };
        self.models[at(model)] = ptr::null_mut();
        TRION_OK
    }

    pub(super) fn model_info(&mut self, model: u8, size: u8, out: &mut Outputs) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let size = usize::from(size);
        let mut info = [MaybeUninit::<trion_model_info>::uninit(); 4];
        let room = size.min(size_of_val(&info));
        let place = out.pointer(info.as_mut_ptr()).cast_mut().cast::<trion_model_info>();
        // SAFETY: the model is NULL or alive, and there is room for `room` bytes.
        let status = unsafe { trion_model_get_info(model, place, room) };
        // SAFETY: the model is NULL or alive.
        assert!([0, 1].contains(&unsafe { trion_model_ends_text(model, size as u32) }));
        status
    }

    pub(super) fn encode(&mut self, model: u8, text: &[u8], flags: u8, size: Size, out: &mut Outputs) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let mut tokens = vec![u32::MAX; size.of(text.len()).min(MOST)];
        let mut count = MaybeUninit::uninit();
        let (data, to) = (out.pointer(text.as_ptr()), out.pointer(tokens.as_mut_ptr()).cast_mut());
        let (place, capacity) = (out.place(&mut count), tokens.len());
        // SAFETY: pointers are NULL or as long as their sizes say.
        let status = unsafe {
            trion_model_encode(model, data.cast(), text.len(), flags.into(), to, capacity, place, out.error())
        };
        if status == TRION_OK && !to.is_null() {
            // SAFETY: the call wrote the count.
            let count = unsafe { count.assume_init() };
            assert!(tokens[..count].iter().all(|token| *token != u32::MAX), "tokens were written");
            assert!(tokens[count..].iter().all(|token| *token == u32::MAX), "and nothing behind them");
        }
        status
    }

    pub(super) fn decode(&mut self, model: u8, ids: &[u8], flags: u8, size: Size, out: &mut Outputs) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let ids: Vec<u32> = ids.iter().map(|id| u32::from(id % 12)).collect();
        let mut text = vec![0_u8; size.of(ids.len()).min(MOST)];
        let mut length = MaybeUninit::uninit();
        let (data, to) = (out.pointer(ids.as_ptr()), out.pointer(text.as_mut_ptr()).cast_mut());
        let (place, capacity) = (out.place(&mut length), text.len());
        // SAFETY: pointers are NULL or as long as their sizes say.
        let status = unsafe {
            trion_model_decode(model, data, ids.len(), flags.into(), to.cast(), capacity, place, out.error())
        };
        if status == TRION_OK && !to.is_null() {
            // SAFETY: the call wrote the length.
            let length = unsafe { length.assume_init() };
            assert!(std::str::from_utf8(&text[..length]).is_ok(), "decoded text is UTF-8");
        }
        status
    }

    pub(super) fn chat(
        &mut self,
        model: u8,
        roles: &[u8],
        text: &[u8],
        flags: u8,
        size: Size,
        out: &mut Outputs,
    ) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let names = [c"user", c"assistant", c"", c"\xff"];
        let messages: Vec<trion_message> = roles
            .iter()
            .map(|role| {
                let role_text = names.get(usize::from(role % 5)).map_or(ptr::null(), |name| name.as_ptr());
                let content = if role & 128 == 0 { text.as_ptr().cast() } else { ptr::null() };
                trion_message { role: role_text, content, content_size: text.len() }
            })
            .collect();
        let mut prompt = vec![0_u8; size.of(text.len()).min(MOST)];
        let mut length = MaybeUninit::uninit();
        let (data, to) = (out.pointer(messages.as_ptr()), out.pointer(prompt.as_mut_ptr()).cast_mut());
        let (place, capacity) = (out.place(&mut length), prompt.len());
        // SAFETY: pointers are NULL or as long as their sizes say, and roles end with a zero.
        unsafe { trion_model_chat(model, data, messages.len(), flags.into(), to.cast(), capacity, place, out.error()) }
    }

    pub(super) fn text_new(&mut self, model: u8, to: u8, stops: &[u8], special: u8, out: &mut Outputs) -> trion_status {
        let model = out.pointer(self.models[at(model)]);
        let strings = [c"a", c"ab", c" a", c"", c"\xff"];
        let stops: Vec<*const c_char> = stops
            .iter()
            .map(|stop| strings.get(usize::from(stop % 6)).map_or(ptr::null(), |stop| stop.as_ptr()))
            .collect();
        let options = trion_text_options {
            struct_size: size_of::<trion_text_options>(),
            stops: out.pointer(stops.as_ptr()),
            stop_count: stops.len(),
            special: u32::from(special % 3),
            beginning: u32::from(special / 3 % 3),
        };
        let mut text = MaybeUninit::<*mut trion_text>::uninit();
        let (options, place) = (out.pointer(&raw const options), out.place(&mut text));
        // SAFETY: the model is NULL or alive, and stop strings end with a zero.
        let status = unsafe { trion_text_new(model, options, place, out.error()) };
        if status == TRION_OK {
            // SAFETY: the slot is NULL or holds a text that was not freed.
            unsafe { trion_text_free(self.texts[at(to)]) };
            // SAFETY: the call wrote the text.
            self.texts[at(to)] = unsafe { text.assume_init() };
        }
        status
    }

    pub(super) fn text_push(&mut self, text: u8, token: u8, out: &mut Outputs) -> trion_status {
        let mut piece = MaybeUninit::<trion_piece>::uninit();
        let place = out.place(&mut piece);
        // SAFETY: the slot is NULL or holds a text that was not freed, which nobody else uses.
        let status = unsafe { trion_text_push(self.texts[at(text)].as_mut(), u32::from(token % 12), place) };
        check_piece(status, piece);
        status
    }

    pub(super) fn text_finish(&mut self, text: u8, out: &mut Outputs) -> trion_status {
        let mut piece = MaybeUninit::<trion_piece>::uninit();
        let place = out.place(&mut piece);
        // SAFETY: the slot is NULL or holds a text that was not freed, which nobody else uses.
        let status = unsafe { trion_text_finish(self.texts[at(text)].as_mut(), place) };
        check_piece(status, piece);
        status
    }

    pub(super) fn generate(
        &mut self,
        session: u8,
        text: u8,
        tokens: u8,
        mut pieces: u8,
        out: &mut Outputs,
    ) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        // SAFETY: the slot is NULL or holds a text that was not freed, which nobody else uses.
        let text = unsafe { self.texts[at(text)].as_mut() };
        let mut stop = MaybeUninit::<trion_stop>::uninit();
        let on_text = if out.keeps() { Some(take_text as _) } else { None };
        let (place, user) = (out.place(&mut stop), (&raw mut pieces).cast());
        // SAFETY: handles are NULL or alive, and the callback gets its count.
        unsafe { trion_generate(session, text, tokens.into(), on_text, user, place, out.error()) }
    }

    pub(super) fn constraint_new(
        &mut self,
        model: u8,
        to: u8,
        kind: u8,
        grammar: u8,
        out: &mut Outputs,
    ) -> trion_status {
        if self.compilations == 0 {
            return TRION_OK;
        }
        self.compilations -= 1;
        let model = out.pointer(self.models[at(model)]);
        let grammars = ["(ab|a)*1?", "start: \"a\" start? \"b\"", r#"{"enum": ["ab", 1]}"#, "(", ""];
        let grammar = grammars[usize::from(grammar) % grammars.len()];
        let mut constraint = MaybeUninit::<*mut trion_constraint>::uninit();
        let (source, place) = (out.pointer(grammar.as_ptr()), out.place(&mut constraint));
        // SAFETY: the model is NULL or alive, and the source is NULL or as long as its size says.
        let status = unsafe {
            trion_constraint_new(model, u32::from(kind % 4), source.cast(), grammar.len(), place, out.error())
        };
        if status == TRION_OK {
            self.constraint_free(to);
            // SAFETY: the call wrote the constraint.
            self.constraints[at(to)] = unsafe { constraint.assume_init() };
        }
        status
    }

    pub(super) fn constraint_free(&mut self, constraint: u8) -> trion_status {
        // SAFETY: the slot is NULL or holds a constraint that was not freed; sessions have their own.
        unsafe { trion_constraint_free(self.constraints[at(constraint)]) };
        self.constraints[at(constraint)] = ptr::null_mut();
        TRION_OK
    }

    pub(super) fn set_constraint(&mut self, session: u8, constraint: u8, out: &mut Outputs) -> trion_status {
        let session = out.pointer(self.sessions[at(session)]).cast_mut();
        let constraint = out.pointer(self.constraints[at(constraint)]);
        // SAFETY: handles are NULL or alive.
        unsafe { trion_session_set_constraint(session, constraint, out.error()) }
    }
}

/// A piece of text that a call wrote is UTF-8.
fn check_piece(status: trion_status, piece: MaybeUninit<trion_piece>) {
    if status == TRION_OK {
        // SAFETY: the call wrote the piece.
        let piece = unsafe { piece.assume_init() };
        // SAFETY: the piece is valid until the next call with the text.
        let text = unsafe { std::slice::from_raw_parts(piece.data.cast::<u8>(), piece.size) };
        assert!(std::str::from_utf8(text).is_ok(), "{text:?}");
    }
}
