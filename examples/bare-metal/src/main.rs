//! Writes a story on a Cortex-M4F: the model lies in flash, the session in one static arena, and there is no allocator.
//! At the end it prints each token's number, a hash of the last logits, and what it took of the machine.

#![no_std]
#![no_main]

use core::cell::UnsafeCell;
use core::fmt::{self, Write};

use trion_core::{CacheType, Error, Kernel, Progress, Sampler, SamplerOptions, Serial, Session, SessionOptions};

mod machine;
mod model;

include!(concat!(env!("OUT_DIR"), "/texts.rs"));

/// `<|endoftext|>Once upon a time`, as the model's tokenizer has it.
const PROMPT: [u32; 10] = [0, 47, 78, 324, 401, 279, 259, 257, 308, 69];
const TOKENS: usize = 64;
/// Half precision halves the memory of keys and values.
const OPTIONS: SessionOptions = SessionOptions { cache: CacheType::F16, max_batch: 1, ..SessionOptions::new(128) };
/// The session's size is known when the program is built.
const ARENA_BYTES: usize = Session::bytes(&model::CONFIG, &OPTIONS);

struct Arena(UnsafeCell<model::Aligned<[u8; ARENA_BYTES]>>);

// SAFETY: the program has one thread.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new(model::Aligned([0; ARENA_BYTES])));

/// The debugger's console.
struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        machine::write(text.as_bytes());
        Ok(())
    }
}

/// What was written: tokens, a hash of the last logits, and ticks of the longest token.
struct Written {
    tokens: heapless::Vec<u32, TOKENS>,
    hash: u64,
    longest: u32,
}

fn generate() -> Result<Written, Error> {
    model::with_model(|model| {
        // SAFETY: this is the only place that touches the arena, and it runs once.
        let arena = unsafe { &mut (*ARENA.0.get()).0 };
        let mut session = Session::new(model, OPTIONS, Kernel::detect(), arena)?;
        let mut sampler =
            Sampler::new(SamplerOptions { temperature: 0.7, top_p: 0.9, seed: 1, ..SamplerOptions::GREEDY })?;
        let mut written = Written { tokens: heapless::Vec::new(), hash: 0, longest: 0 };
        let mut next = &PROMPT[..];
        let mut token = [0];
        while !written.tokens.is_full() {
            session.push(next)?;
            let mut since = 0;
            machine::ticks(&mut since);
            // A timer, or a watchdog, has its turn between pieces of work.
            while session.advance(1, &Serial)? == Progress::More {}
            let took = machine::ticks(&mut since);
            if next.len() == 1 {
                written.longest = written.longest.max(took);
            }
            token[0] = sampler.sample(session.logits().unwrap_or(&[]), session.tokens());
            machine::write(TEXTS.get(token[0] as usize).unwrap_or(&&[][..]));
            let _ = written.tokens.push(token[0]); // it is not full
            next = &token;
        }
        let bits = session.logits().unwrap_or(&[]).iter().map(|logit| u64::from(logit.to_bits()));
        written.hash = bits.fold(0, |hash: u64, bits| hash.wrapping_mul(31).wrapping_add(bits));
        Ok(written)
    })
}

fn main() -> ! {
    match generate() {
        Ok(Written { tokens, hash, longest }) => {
            // Writing to the console does not fail.
            let _ = writeln!(Console, "\ntokens {tokens:?}\nlogits {hash:016x}");
            let _ = writeln!(Console, "ticks of the longest token {longest}");
            let (flash, variables, stack) = (machine::flash_used(), machine::variables(), machine::stack_used());
            let _ = writeln!(Console, "flash {flash}\nvariables {variables}\narena {ARENA_BYTES}\nstack {stack}");
            machine::exit(0)
        }
        Err(_) => machine::exit(1),
    }
}
