//! As many tokens as asked for, in one session that begins anew whenever it is full; then as many sessions:
//! `cargo run --release -p trion-engine --example soak -- MODEL TOKENS SESSIONS`.
//!
//! Prints, for each tenth of the tokens, microseconds a token and the memory of the process, which stay what they are; and
//! the memory before and after sessions were made and given back.

use std::time::Instant;
use std::{env, fs};

use trion_engine::{CacheType, Error, Model, Progress, Sampler, SamplerOptions, Serial, Session, SessionOptions};

const CONTEXT: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, tokens, sessions] = &arguments[..] else { return Err("expected MODEL TOKENS SESSIONS".into()) };
    let (model, tokens, sessions) = (Model::open(model)?, tokens.parse::<usize>()?, sessions.parse::<usize>()?);
    let options = SessionOptions { cache: CacheType::F16, ..SessionOptions::new(CONTEXT) };
    let mut writer = Writer {
        session: Session::new(&model, options)?,
        sampler: Sampler::new(SamplerOptions { temperature: 0.8, seed: 1, ..SamplerOptions::GREEDY })?,
    };
    println!("{:>10} {:>12} {:>12}", "tokens", "us a token", "memory KiB");
    for tenth in 1..=10 {
        let start = Instant::now();
        for _ in 0..tokens / 10 {
            writer.write_token()?;
        }
        let each = start.elapsed().as_secs_f64() * 1e6 / (tokens / 10).max(1) as f64;
        println!("{:>10} {each:>12.2} {:>12}", tokens / 10 * tenth, resident()?);
    }
    let before = resident()?;
    for _ in 0..sessions {
        let mut session = Session::new(&model, options)?;
        session.evaluate(&[0], &Serial)?;
    }
    println!("{sessions} sessions made and given back: {before} KiB before, {} after", resident()?);
    Ok(())
}

struct Writer {
    session: Session,
    sampler: Sampler,
}

impl Writer {
    fn write_token(&mut self) -> Result<(), Error> {
        if self.session.tokens().len() == CONTEXT {
            self.session.rewind(0)?;
        }
        let next = match self.session.tokens() {
            [] => 0,
            _ => self.session.sample(&mut self.sampler)?,
        };
        self.session.push(&[next])?;
        while self.session.advance(usize::MAX, &Serial)? == Progress::More {}
        Ok(())
    }
}

/// Memory of this process that is there, in KiB, as Linux tells it.
fn resident() -> Result<u64, Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
