//! Always the same work on one thread, for tools that count instructions:
//! `cargo run --release -p trion-engine --example fixed_work -- MODEL KERNEL`.
//!
//! A prompt of 32 tokens, then 16 tokens, each the most likely one: the prompt gives the first of them. Prints the 16
//! ids, which are the same on every kernel.

use std::env;
use std::hint::black_box;

use trion_engine::{Error, Isa, Kernel, Model, Pool, Sampler, SamplerOptions, Session, SessionOptions};

const PROMPT: u32 = 32;
const DECODE: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, kernel] = &arguments[..] else { return Err("expected MODEL KERNEL".into()) };
    let isa = Isa::ALL.into_iter().find(|isa| isa.name() == kernel).ok_or("no kernel of that name")?;
    let kernel = Kernel::new(isa).ok_or("this processor has not what the kernel needs")?;
    let model = Model::open(model)?;
    let pool = Pool::new(1)?;
    let prompt: Vec<u32> = (0..PROMPT).map(|i| i.wrapping_mul(7919) % model.config().vocab_size as u32).collect();
    let options = SessionOptions { max_batch: prompt.len(), ..SessionOptions::new(prompt.len() + DECODE) };
    let mut session = Session::with_kernel(&model, options, kernel)?;
    let mut greedy = Sampler::new(SamplerOptions::GREEDY)?;
    let first = greedy.sample(prompt_stage(&mut session, &prompt, &pool)?, &[]);
    let tokens = decode_stage(&mut session, &mut greedy, first, &pool)?;
    println!("{}", tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    Ok(())
}

/// The logits after a prompt. Never inlined: the counts are found by this name.
#[inline(never)]
fn prompt_stage<'s>(session: &'s mut Session, prompt: &[u32], pool: &Pool) -> Result<&'s [f32], Error> {
    session.evaluate(black_box(prompt), pool)
}

/// [`DECODE`] tokens, `first`, which is known, being the first. Never inlined: the counts are found by this name.
#[inline(never)]
fn decode_stage(session: &mut Session, greedy: &mut Sampler, first: u32, pool: &Pool) -> Result<Vec<u32>, Error> {
    let mut tokens = vec![first];
    while tokens.len() < DECODE {
        let last = [tokens[tokens.len() - 1]];
        tokens.push(greedy.sample(session.evaluate(black_box(&last), pool)?, &[]));
    }
    Ok(tokens)
}
