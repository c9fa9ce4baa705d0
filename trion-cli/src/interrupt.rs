//! Ctrl-C: the text so far is kept, and the exit code is that of a shell's interrupted command.

use std::io::{self, Write};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::common::Failure;

/// What a shell reports for a command that Ctrl-C ended.
pub(crate) const EXIT_CODE: u8 = 130;

/// Nothing to keep: Ctrl-C ends the program at once.
const IDLE: u8 = 0;
/// Text is being written: Ctrl-C asks for its end.
const WRITING: u8 = 1;
/// The end was asked for; another Ctrl-C ends the program at once.
const STOPPING: u8 = 2;

/// What Ctrl-C does at the moment.
pub(crate) struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    /// Listens to Ctrl-C from here on.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let shared = Arc::clone(&state);
        let handler = move || {
            if shared.compare_exchange(WRITING, STOPPING, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                // The shell's prompt begins on a line of its own; if it cannot, nobody is left to tell.
                let _ = writeln!(io::stderr());
                process::exit(i32::from(EXIT_CODE));
            }
        };
        ctrlc::set_handler(handler).map_err(|e| Failure::Argument(format!("cannot listen to Ctrl-C: {e}")))?;
        Ok(Interrupt(state))
    }

    /// Text is being written from here on. An end that was asked for stays so.
    pub(crate) fn writing(&self) {
        // It fails only in the two states that are right already.
        let _ = self.0.compare_exchange(IDLE, WRITING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether Ctrl-C has asked for the end of the text.
    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) == STOPPING
    }

    /// The text has ended; gives whether Ctrl-C asked for it.
    pub(crate) fn ended(&self) -> bool {
        self.0.swap(IDLE, Ordering::Relaxed) == STOPPING
    }
}
