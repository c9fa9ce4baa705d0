//! What is checked where nobody says what to check.

use trion_engine::{Model, prompt_tokens};

use crate::error::Result;

/// Of several lengths, so that some are padded when they go through a graph together.
const SENTENCES: [&str; 20] = [
    "The river was",
    "Once upon a time there was a small ship that nobody wanted to sail.",
    "Yes.",
    "My grandmother kept bees behind the house, and every spring",
    "In the morning the harbour is quiet.",
    "A good map shows what is there; a better one also shows what you may safely leave out when you are in a hurry.",
    "How many",
    "The second law says that heat does not flow from cold to warm by itself, and so",
    "Snow fell for three days.",
    "She opened the letter, read it twice, and laughed",
    "Numbers such as 12, 365 and 2048 are easy to remember because",
    "Dear Sir,",
    "Bread needs flour, water, salt and time.",
    "When the lights went out, the whole street",
    "It is not known who built the bridge",
    "The cat sat on the warm stone and watched the fish, which took no notice of it at all.",
    "Rain",
    "To tie the knot, hold the short end in your left hand and",
    "They had walked all day without seeing anyone, until at last an old man with a lantern came up the path towards them.",
    "\"Who is there?\" asked the king.",
];

/// Twenty prompts that leave room for `tokens` behind each: English sentences if the model has a tokenizer, or else
/// rows of 3 to 24 tokens that look random.
///
/// # Errors
/// If the tokenizer refuses a sentence.
pub fn default_prompts(model: &Model, tokens: usize) -> Result<Vec<Vec<u32>>> {
    let room = model.config().max_position_embeddings.saturating_sub(tokens).max(1);
    let mut prompts = Vec::new();
    // Knuth's generator (MMIX): the same numbers everywhere.
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for (index, sentence) in SENTENCES.iter().enumerate() {
        let mut prompt = if model.has_tokenizer() {
            prompt_tokens(model, sentence, true)?
        } else {
            // Lengths go up and down, so that neighbours differ.
            let length = 3 + index * 13 % 22;
            (0..length).map(|_| (random() % model.config().vocab_size as u64) as u32).collect()
        };
        prompt.truncate(room);
        prompts.push(prompt);
    }
    Ok(prompts)
}
