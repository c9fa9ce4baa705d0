//! Threads are the caller's: a pool, a game engine's job system, or none.

use core::ops::Range;
#[cfg(target_has_atomic = "ptr")]
use core::sync::atomic::{AtomicUsize, Ordering};

/// Something that can run one function on several threads at once.
///
/// Work is divided by an atomic counter inside the function, so results do not depend on how many threads call it, in
/// what order, or how fast each is; an implementation cannot divide it wrongly.
pub trait Parallel: Sync {
    /// How many threads [`Parallel::run`] uses at most. It only decides how finely work is divided.
    fn threads(&self) -> usize;

    /// Calls `work` on any number of threads at once, and returns when every call has returned.
    ///
    /// One call of `work` does whatever is left to do, so calling it once, on this thread, is a right implementation.
    fn run(&self, work: &(dyn Fn() + Sync));

    /// Whether the result is no longer wanted. It is asked before every unit of work, on every thread; once true it stays
    /// true until [`Session::advance`](crate::Session::advance) has returned.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No threads but the caller's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        work();
    }
}

/// Pieces per thread that a region is cut into: enough to even out threads that are interrupted.
#[cfg(target_has_atomic = "ptr")]
const PIECES_PER_THREAD: usize = 4;

/// Calls `task` exactly once for each index of `tasks`, or for some of them only once the caller has cancelled.
pub(crate) fn run_tasks(parallel: &dyn Parallel, tasks: Range<usize>, task: &(dyn Fn(usize) + Sync)) {
    #[cfg(target_has_atomic = "ptr")]
    if tasks.len() > 1 && parallel.threads() > 1 {
        let piece = (tasks.len() / parallel.threads().saturating_mul(PIECES_PER_THREAD)).max(1);
        let next = AtomicUsize::new(0);
        let work = || {
            // Looking before adding keeps the counter from wrapping, however often `work` is called. Relaxed is enough:
            // only the counter is shared here, and `run` orders the results before its return.
            while next.load(Ordering::Relaxed) < tasks.len() {
                let from = next.fetch_add(piece, Ordering::Relaxed);
                if from >= tasks.len() {
                    break;
                }
                for index in from..(from + piece).min(tasks.len()) {
                    if parallel.cancelled() {
                        return;
                    }
                    task(tasks.start + index);
                }
            }
        };
        parallel.run(&work);
        work(); // whatever an implementation that never called `work` has left
        return;
    }
    for index in tasks {
        if parallel.cancelled() {
            return;
        }
        task(index);
    }
}
