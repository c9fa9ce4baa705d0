//! Threads made for short parallel regions: a token of decode has hundreds, some of a few microseconds.
//!
//! A region is opened, every thread that is awake joins it and does what is left to do, and it is closed as soon as the
//! calling thread finds nothing more. A thread that wakes too late finds it closed, so nobody waits for a sleeper.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};

use trion_core::Parallel;

use crate::error::{Error, Result};

/// How often an idle thread looks for a region before it goes to sleep: some tens of microseconds, as long as the
/// serial parts between two regions take.
const SPINS: usize = 4_000;

/// Bit 0 of [`Shared::state`]: a region is open. The bits above count the threads in it.
const OPEN: usize = 1;
const JOINED: usize = 2;

type Work = &'static (dyn Fn() + Sync);

struct Shared {
    /// Workers that have come to life: what the system allocates for a thread is allocated by then.
    started: AtomicUsize,
    /// Counts regions, so that a thread joins each at most once.
    region: AtomicUsize,
    state: AtomicUsize,
    work: Mutex<Option<Work>>,
    stop: AtomicBool,
}

struct Worker {
    handle: Option<JoinHandle<()>>,
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// A pool of threads for [`trion_core::Session::advance`]. Any number of sessions may share one; while one of them is
/// in a region, the others compute on their own thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held by the session that has a region open.
    regions: Mutex<()>,
}

impl Pool {
    /// Most threads of a pool.
    pub const MAX_THREADS: usize = 256;

    /// A pool of `threads`, the calling one included; 0 for one for each physical core. Returns when all of them run,
    /// and with that has made the last allocation of the pool's life.
    ///
    /// # Errors
    /// [`Error::Argument`] for more than [`Pool::MAX_THREADS`], or if the system cannot start them.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = if threads == 0 { default_threads() } else { threads };
        if threads > Self::MAX_THREADS {
            return Err(Error::Argument(format!("{threads} threads, expected at most {}", Self::MAX_THREADS)));
        }
        let shared = Arc::new(Shared {
            started: AtomicUsize::new(0),
            region: AtomicUsize::new(0),
            state: AtomicUsize::new(0),
            work: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1), regions: Mutex::new(()) };
        for n in 1..threads {
            let asleep = Arc::new(AtomicBool::new(false));
            let (shared, flag) = (Arc::clone(&pool.shared), Arc::clone(&asleep));
            let handle = thread::Builder::new()
                .name(format!("trion-{n}"))
                .stack_size(STACK) // or the standard library looks for a size in the environment
                .spawn(move || shared.serve(&flag))
                .map_err(|e| Error::Argument(format!("cannot start thread {n} of {threads}: {e}")))?;
            pool.workers.push(Worker { thread: handle.thread().clone(), handle: Some(handle), asleep });
        }
        while pool.shared.started.load(Ordering::Acquire) < pool.workers.len() {
            thread::yield_now();
        }
        Ok(pool)
    }
}

/// Bytes of a worker's stack: what the standard library takes where nobody says otherwise.
const STACK: usize = 2 << 20;

/// One thread for each physical core that this process may use.
fn default_threads() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed).min(Pool::MAX_THREADS)
}

impl Parallel for Pool {
    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        let guard = match self.regions.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return work(),
        };
        let region = Region::open(self, work);
        work();
        drop(region);
        drop(guard);
    }
}

/// A region that is open; dropping it, also while panicking, closes it and waits for the threads in it.
struct Region<'a>(&'a Shared);

impl<'a> Region<'a> {
    #[allow(unsafe_code)]
    fn open(pool: &'a Pool, work: &(dyn Fn() + Sync)) -> Self {
        // SAFETY: the reference is used only by threads that have joined while the region was open, and `drop` does not
        // return before it has closed the region and all of them have left, within the lifetime of `work`: `run` holds
        // both, and drops the region before it returns or unwinds.
        let work = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Work>(work) };
        *lock(&pool.shared.work) = Some(work);
        pool.shared.state.store(OPEN, Ordering::Release);
        // Sequential consistency here and in `serve`: either a thread that goes to sleep sees the new region, or its
        // flag is seen here.
        pool.shared.region.fetch_add(1, Ordering::SeqCst);
        for worker in &pool.workers {
            if worker.asleep.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        Region(&pool.shared)
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.state.load(Ordering::Acquire) != 0 {
            spins += 1;
            // A thread of the region may have lost its core.
            if spins % SPINS == 0 { thread::yield_now() } else { std::hint::spin_loop() }
        }
        *lock(&self.0.work) = None;
    }
}

impl Shared {
    /// What a worker does all its life.
    fn serve(&self, asleep: &AtomicBool) {
        self.started.fetch_add(1, Ordering::Release);
        let mut seen = 0;
        while let Some(region) = self.next_region(seen, asleep) {
            seen = region;
            let Some(joined) = Joined::join(self) else { continue };
            let work = *lock(&self.work);
            if let Some(work) = work {
                work();
            }
            drop(joined);
        }
    }

    /// Waits for a region after `seen`; `None` when the pool goes away.
    fn next_region(&self, seen: usize, asleep: &AtomicBool) -> Option<usize> {
        loop {
            for _ in 0..SPINS {
                let region = self.region.load(Ordering::Acquire);
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                if region != seen {
                    return Some(region);
                }
                std::hint::spin_loop();
            }
            asleep.store(true, Ordering::SeqCst);
            if self.region.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// A thread's presence in the open region.
struct Joined<'a>(&'a Shared);

impl<'a> Joined<'a> {
    fn join(shared: &'a Shared) -> Option<Self> {
        let join = |state: usize| (state & OPEN == OPEN).then(|| state + JOINED);
        shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).ok().map(|_| Joined(shared))
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(JOINED, Ordering::AcqRel);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker that panicked has nothing left to say.
                let _ = handle.join();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_is_complete_when_run_returns() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2_000_usize {
                let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
                pool.run(&|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= 64 {
                            break;
                        }
                        sum.fetch_add(i + round, Ordering::Relaxed);
                    }
                });
                assert_eq!(sum.into_inner(), 63 * 64 / 2 + 64 * round);
            }
        }
    }

    #[test]
    fn two_users_of_one_pool_do_not_wait_for_each_other() {
        let pool = Pool::new(3).unwrap();
        let inner = AtomicUsize::new(0);
        pool.run(&|| {
            pool.run(&|| {
                inner.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert!(inner.into_inner() >= 1);
    }

    #[test]
    fn absurd_thread_counts_are_refused() {
        assert!(Pool::new(100_000).is_err());
    }
}
