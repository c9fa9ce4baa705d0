//! Every kernel of this machine computes the same text, and says what it came to:
//! `cargo run --release -p trion-engine --example logits -- MODEL`.
//!
//! A prompt of 48 tokens, in batches of 20, then 16 tokens, each the most likely one. Prints the kernel's name and a hash
//! (FNV-1a) of the logits of every one of them: the same on every kernel of every machine.

use std::env;

use trion_engine::{Error, Kernel, Model, Sampler, SamplerOptions, Serial, Session, SessionOptions};

const PROMPT: u32 = 48;
const BATCH: usize = 20;
const DECODE: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model] = &arguments[..] else { return Err("expected MODEL".into()) };
    let model = Model::open(model)?;
    for kernel in Kernel::available() {
        println!("{} {:016x}", kernel.isa().name(), hash_of_logits(&model, kernel)?);
    }
    Ok(())
}

fn hash_of_logits(model: &Model, kernel: Kernel) -> Result<u64, Error> {
    let prompt: Vec<u32> = (0..PROMPT).map(|i| i.wrapping_mul(7919) % model.config().vocab_size as u32).collect();
    let options = SessionOptions { max_batch: BATCH, ..SessionOptions::new(prompt.len() + DECODE) };
    let mut session = Session::with_kernel(model, options, kernel)?;
    let mut greedy = Sampler::new(SamplerOptions::GREEDY)?;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut logits = session.evaluate(&prompt, &Serial)?;
    for _ in 0..DECODE {
        for byte in logits.iter().flat_map(|logit| logit.to_bits().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let next = greedy.sample(logits, &[]);
        logits = session.evaluate(&[next], &Serial)?;
    }
    Ok(hash)
}
