//! A session allocates when it is made, and never again.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use trion_engine::{Batch, Logits, Model, Pool, Progress, Sampler, SamplerOptions, Session, SessionOptions};
use trion_tests::golden;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations while `f` runs, on all threads.
fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    f();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Without the test harness, whose own threads the counter would see too.
fn main() {
    assert!(allocations(|| drop(vec![1_u8; 100])) == 1, "the counter counts");
    let pool = Pool::new(2).unwrap();
    for name in ["bitnet_offline", "llama_rms_norm", "llama_float", "qwen3_groups"] {
        let model = Model::open(golden(name)).unwrap();
        let mut session = Session::new(&model, SessionOptions { max_batch: 8, ..SessionOptions::new(64) }).unwrap();
        let mut fork = session.fork().unwrap();
        let options = SamplerOptions { temperature: 0.8, top_k: 40, top_p: 0.9, ..SamplerOptions::GREEDY };
        let mut sampler = Sampler::new(options).unwrap();
        let count = allocations(|| {
            session.push(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap();
            while session.advance(3, &pool).unwrap() == Progress::More {}
            for _ in 0..40 {
                let token = sampler.sample(session.logits().unwrap(), session.tokens());
                session.evaluate(&[token], &pool).unwrap();
            }
            session.rewind(5).unwrap();
            session.evaluate(&[3], &pool).unwrap();
        });
        assert_eq!(count, 0, "{name}");
        let all = SessionOptions { logits: Logits::All, max_batch: 8, ..SessionOptions::new(64) };
        let mut all = Session::new(&model, all).unwrap();
        let count = allocations(|| {
            all.evaluate(&[1, 2, 3, 4, 5], &pool).unwrap();
            fork.push(&[1]).unwrap();
        });
        assert_eq!(count, 0, "{name}");
        let mut sessions = [session, fork, all];
        let count = allocations(|| {
            for round in 0..20 {
                for session in &mut sessions {
                    session.push(&[round, 2]).unwrap();
                }
                loop {
                    let mut batch = Batch::new();
                    for session in &mut sessions {
                        batch.add(session).unwrap();
                    }
                    if batch.advance(200, &pool).unwrap() == Progress::Ready {
                        break;
                    }
                }
            }
        });
        assert_eq!(count, 0, "{name}");
    }
}
