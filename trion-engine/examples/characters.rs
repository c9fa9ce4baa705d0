//! Characters of a game that speak at the same time, on one model, with a bounded piece of work in each frame:
//! `cargo run --release -p trion-engine --example characters -- MODEL`.

use std::time::{Duration, Instant};

use trion_engine::text_stream::TextStream;
use trion_engine::tokenizer::Tokenizer;
use trion_engine::{Batch, Model, Pool, Sampler, SamplerOptions, Session, SessionOptions, prompt_tokens};

/// Who speaks, and how it begins.
const CHARACTERS: [(&str, &str); 4] = [
    ("captain", "\"We have been at sea for nine days,\" said the captain,"),
    ("cook", "\"There is nothing left to eat,\" said the cook, \"but"),
    ("lady", "\"My dear sir,\" cried the lady,"),
    ("doctor", "\"It is of no use,\" said the doctor, \"the"),
];

/// Row-blocks that the model may take of a frame, whoever speaks.
const FRAME_BUDGET: usize = 4_000;
/// Tokens that a character says.
const LINE: usize = 40;

struct Character {
    name: &'static str,
    session: Session,
    sampler: Sampler,
    text: TextStream,
    line: String,
    spoken: usize,
}

impl Character {
    fn new(model: &Model, name: &'static str, prompt: &str, seed: u64) -> trion_engine::Result<Self> {
        let prompt = prompt_tokens(model, prompt, true)?;
        // A short batch: a character that begins to speak does not hold up the others.
        let options = SessionOptions { max_batch: 8, ..SessionOptions::new(prompt.len() + LINE) };
        let mut session = Session::new(model, options)?;
        session.push(&prompt)?;
        let sampler = Sampler::new(SamplerOptions { temperature: 0.8, top_p: 0.95, seed, ..SamplerOptions::GREEDY })?;
        Ok(Character { name, session, sampler, text: TextStream::continuing(true), line: String::new(), spoken: 0 })
    }

    fn is_done(&self) -> bool {
        self.spoken == LINE
    }

    /// Says the next word, if the model has come so far, and has the one after it computed.
    fn speak(&mut self, tokenizer: &Tokenizer) -> trion_engine::Result<()> {
        let Some(logits) = self.session.logits() else { return Ok(()) };
        let token = self.sampler.sample(logits, self.session.tokens());
        self.line.push_str(self.text.push(tokenizer, token));
        self.spoken += 1;
        if !self.is_done() {
            self.session.push(&[token])?;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(std::env::args().nth(1).ok_or("which model?")?)?;
    let tokenizer = model.tokenizer()?;
    let pool = Pool::new(0)?;
    let mut characters = Vec::new();
    for (seed, (name, prompt)) in CHARACTERS.into_iter().enumerate() {
        println!("{name}: {prompt} ...");
        characters.push(Character::new(&model, name, prompt, seed as u64)?);
    }

    let (mut frames, mut total, mut longest) = (0, Duration::ZERO, Duration::ZERO);
    while characters.iter().any(|character| !character.is_done()) {
        let start = Instant::now();
        let mut batch = Batch::new();
        for character in characters.iter_mut().filter(|character| !character.is_done()) {
            batch.add(&mut character.session)?;
        }
        // Whether all are ready or not, each is asked.
        let _ = batch.advance(FRAME_BUDGET, &pool)?;
        for character in characters.iter_mut().filter(|character| !character.is_done()) {
            character.speak(tokenizer)?;
        }
        frames += 1;
        total += start.elapsed();
        longest = longest.max(start.elapsed());
    }
    for character in &characters {
        println!("\n{}: ...{}", character.name, character.line);
    }
    let tokens = CHARACTERS.len() * LINE;
    let each = total / frames;
    println!("\n{tokens} tokens in {frames} frames; a frame took {each:?}, the longest {longest:?}");
    Ok(())
}
