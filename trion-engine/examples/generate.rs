//! Continues a text: `cargo run --release -p trion-engine --example generate -- MODEL PROMPT`.

use std::env;
use std::io::{Write, stdout};

use trion_engine::{GenerateOptions, Model, Pool, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, prompt] = &arguments[..] else { return Err("expected MODEL PROMPT".into()) };
    let model = Model::open(model)?;
    let pool = Pool::new(0)?;
    let options = GenerateOptions { max_tokens: 32, ..GenerateOptions::default() };
    print!("{prompt}");
    let generated = generate(&model, prompt, &options, &pool, |piece| {
        print!("{piece}");
        stdout().flush().is_ok()
    })?;
    println!("\n({} tokens, {:?})", generated.tokens.len(), generated.stop);
    Ok(())
}
