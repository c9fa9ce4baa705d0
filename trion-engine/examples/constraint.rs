//! What a constraint costs: `constraint MODEL [SCHEMA_FILE]`.

use std::time::{Duration, Instant};

use trion_engine::{Constraint, Grammar, Mask, Model, Pool, Sampler, SamplerOptions, Session, SessionOptions};

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "rank": {"enum": ["captain", "mate", "cook"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "voyages": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 5},
        "married": {"type": "boolean"}
    },
    "required": ["name", "rank", "age", "voyages", "married"],
    "additionalProperties": false
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = Model::open(arguments.next().ok_or("which model?")?)?;
    let schema = arguments.next().map(std::fs::read_to_string).transpose()?;
    let grammar = Grammar::JsonSchema(schema.as_deref().unwrap_or(SCHEMA));

    let start = Instant::now();
    Constraint::new(&model, Grammar::Regex("a"))?;
    println!("tree of {} tokens: {:?}", model.config().vocab_size, start.elapsed());
    let start = Instant::now();
    let constraint = Constraint::new(&model, grammar)?;
    println!("compiled: {:?}", start.elapsed());
    let start = Instant::now();
    let mut first = constraint.start()?;
    println!("started: {:?}", start.elapsed());

    let pool = Pool::new(0)?;
    let (mut masks, mut accepts) = (Vec::new(), Vec::new());
    first.mask();
    for seed in 0..20 {
        // Each text begins with what the first has learned: a clone takes the caches along.
        let mut state = first.clone();
        let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::GREEDY })?;
        let context = model.config().max_position_embeddings.min(300);
        let mut session = Session::new(&model, SessionOptions::new(context))?;
        session.evaluate(&trion_engine::prompt_tokens(&model, "The crew: ", true)?, &pool)?;
        while session.tokens().len() < context {
            let start = Instant::now();
            let mask = state.mask();
            masks.push(start.elapsed());
            let Mask::Allowed(mask) = mask else { break };
            let logits = session.logits().unwrap_or(&[]);
            let Some(token) = sampler.sample_masked(logits, session.tokens(), mask) else { break };
            let start = Instant::now();
            state.accept(token)?;
            accepts.push(start.elapsed());
            session.evaluate(&[token], &pool)?;
        }
    }
    summarize("mask", &mut masks);
    summarize("accept", &mut accepts);
    Ok(())
}

fn summarize(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let mean = times.iter().sum::<Duration>() / times.len().max(1) as u32;
    println!(
        "{what}: {} times, mean {mean:?}, median {:?}, 99 of 100 below {:?}, longest {:?}",
        times.len(),
        at(50),
        at(99),
        times.last().copied().unwrap_or_default()
    );
}
