//! Models on the GPU against the CPU.

use trion_core::{CacheType, FloatData, Logits, Matrix, Progress, Sampler, SamplerOptions, Serial, SessionOptions};
use trion_cuda::{CudaBatch, CudaDevice, CudaModel, CudaSession};
use trion_engine::{Model, Pool, Session};

use crate::top_k::difference_of_top_k;
use crate::{Outcome, difference, tokens};

/// Compares prompts and greedy decoding, with both caches and several batch sizes, and everything a session can do.
pub(crate) fn compare_model(
    devices: &[CudaDevice],
    pool: &Pool,
    name: &str,
    model: &Model,
    prompts: &[usize],
    decode: usize,
) -> Outcome<usize> {
    let uploaded: Vec<CudaModel> =
        devices.iter().map(|device| CudaModel::upload(device, model.core())).collect::<Result<_, _>>()?;
    let longest = model.config().max_position_embeddings;
    let mut failed = 0;
    for cache in [CacheType::F32, CacheType::F16] {
        for (i, prompt) in prompts.iter().enumerate() {
            let prompt = (*prompt).min(longest - 1);
            let decode = decode.min(longest - prompt);
            let context = prompt + decode;
            let max_batch = [64, 7, 512][i % 3].min(context);
            let options = SessionOptions { max_batch, cache, ..SessionOptions::new(context) };
            let outcome = compare(model, &uploaded, pool, options, &tokens(model, prompt), decode)?;
            failed += usize::from(outcome.is_some());
            let result = outcome.unwrap_or_else(|| "equal".to_owned());
            println!("{name:44}  {:>5}  {prompt:>6}  {max_batch:>6}  {decode:>6}  {result}", format!("{cache:?}"));
        }
        let (mut moved, mut sampled) = (None, None);
        for uploaded in &uploaded {
            moved = moved.or(operations(model, uploaded, pool, cache)?).or(together(model, uploaded, cache)?);
            sampled = sampled.or(sampling(model, uploaded, pool, cache)?);
        }
        for (what, outcome) in [("all, fork, save, batch", moved), ("sampling", sampled)] {
            failed += usize::from(outcome.is_some());
            let result = outcome.unwrap_or_else(|| "equal".to_owned());
            println!("{name:44}  {:>5}  {what:>22}  {result}", format!("{cache:?}"));
        }
    }
    Ok(failed)
}

/// The model with a bfloat16 number in the last column of the embedding of the second token; none if it has other
/// numbers there.
pub(crate) fn with_number(model: &Model, bits: u16) -> Outcome<Option<Model>> {
    let Matrix::Float(embedding) = model.core().embedding() else { return Ok(None) };
    let FloatData::Bf16(values) = embedding.data() else { return Ok(None) };
    let mut bytes = model.packed().to_vec();
    let row = tokens(model, 2)[1] as usize;
    let at =
        values.as_ptr() as usize - model.packed().as_ptr() as usize + 2 * ((row + 1) * model.config().hidden_size - 1);
    bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    Ok(Some(Model::from_bytes(&bytes)?))
}

pub(crate) fn compare(
    model: &Model,
    uploaded: &[CudaModel],
    pool: &Pool,
    options: SessionOptions,
    prompt: &[u32],
    decode: usize,
) -> Outcome<Option<String>> {
    let mut cpu = Session::new(model, options)?;
    let mut greedy = Sampler::new(SamplerOptions::GREEDY)?;
    let expected = cpu.evaluate(prompt, pool)?;
    let mut gpus = Vec::new();
    for uploaded in uploaded {
        let mut gpu = CudaSession::new(uploaded, options)?;
        let set = uploaded.device().kernel_set();
        if let Some(what) = difference(&format!("{set:?}, prompt"), gpu.evaluate(prompt)?, expected) {
            return Ok(Some(what));
        }
        let on_device = gpu.fork()?;
        gpus.push((set, gpu, on_device));
    }
    let mut chosen = Vec::new();
    for i in 0..decode {
        let token = greedy.sample(cpu.logits().unwrap_or(&[]), &[]);
        chosen.push(token);
        let expected = cpu.evaluate(&[token], pool)?;
        for (set, gpu, _) in &mut gpus {
            if let Some(what) = difference(&format!("{set:?}, token {i}"), gpu.evaluate(&[token])?, expected) {
                return Ok(Some(what));
            }
        }
    }
    for (set, _, on_device) in &mut gpus {
        if on_device.greedy(decode)? != chosen {
            return Ok(Some(format!("{set:?}, greedy tokens differ")));
        }
        let (found, expected) = (on_device.logits().unwrap_or(&[]), cpu.logits().unwrap_or(&[]));
        if let Some(what) = difference(&format!("{set:?}, greedy"), found, expected) {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// Logits of every position, rewinding, forks, and states that move between CPU and GPU.
fn operations(model: &Model, uploaded: &CudaModel, pool: &Pool, cache: CacheType) -> Outcome<Option<String>> {
    let context = 40.min(model.config().max_position_embeddings);
    let options = SessionOptions { max_batch: 32.min(context), cache, logits: Logits::All, context };
    let tokens = tokens(model, 30.min(context));
    let (first, rest) = tokens.split_at(tokens.len() / 2);
    let mut cpu = Session::new(model, options)?;
    let mut gpu = CudaSession::new(uploaded, options)?;
    if let Some(what) = difference("all logits", gpu.evaluate(first)?, cpu.evaluate(first, pool)?) {
        return Ok(Some(what));
    }
    let mut saved = vec![0; gpu.saved_bytes()];
    if gpu.save(&mut saved)? != saved.len() {
        return Ok(Some("a saved state has another length than was said".to_owned()));
    }
    // The sign and payload of a NaN may differ.
    if saved != cpu.save()? && !cpu.logits().unwrap_or(&[]).iter().any(|logit| logit.is_nan()) {
        return Ok(Some("saved states differ".to_owned()));
    }
    let expected = cpu.evaluate(rest, pool)?.to_vec();
    let mut fork = gpu.fork()?;
    if let Some(what) = difference("fork", fork.evaluate(rest)?, &expected) {
        return Ok(Some(what));
    }
    // Of another shape, and with something else in it.
    let roomier = SessionOptions { context: (context + 5).min(model.config().max_position_embeddings), ..options };
    let mut taken = CudaSession::new(uploaded, roomier)?;
    taken.push(&rest[..1])?;
    taken.fork_from(&gpu)?;
    if let Some(what) = difference("taken over", taken.evaluate(rest)?, &expected) {
        return Ok(Some(what));
    }
    let mut loaded = CudaSession::new(uploaded, options)?;
    loaded.load(&saved)?;
    if let Some(what) = difference("loaded", loaded.evaluate(rest)?, &expected) {
        return Ok(Some(what));
    }
    let mut from_gpu = Session::new(model, options)?;
    from_gpu.load(&saved)?;
    if let Some(what) = difference("loaded by the CPU", from_gpu.evaluate(rest, pool)?, &expected) {
        return Ok(Some(what));
    }
    loaded.rewind(first.len())?;
    Ok(difference("rewound", loaded.evaluate(rest)?, &expected))
}

/// Tokens drawn from the largest logits that the GPU finds, against those drawn on the CPU from all; and sessions that
/// are copied and saved while the GPU alone has their logits.
fn sampling(model: &Model, uploaded: &CudaModel, pool: &Pool, cache: CacheType) -> Outcome<Option<String>> {
    let context = 40.min(model.config().max_position_embeddings);
    let options = SessionOptions { max_batch: 4.min(context), cache, ..SessionOptions::new(context) };
    let prompt = tokens(model, 6.min(context / 2));
    let warm = SamplerOptions { temperature: 0.8, top_k: 40, seed: 7, ..SamplerOptions::GREEDY };
    for sampler in [
        SamplerOptions::GREEDY,
        warm,
        SamplerOptions { top_k: 1, ..warm },
        SamplerOptions { top_k: 256, repetition_penalty: 1.2, ..warm },
        SamplerOptions { top_k: 0, top_p: 0.9, min_p: 0.01, temperature: 3.0, ..warm },
        SamplerOptions { temperature: 0.0, repetition_penalty: 1.5, ..warm },
    ] {
        let (mut all, mut some) = (Sampler::new(sampler)?, Sampler::new(sampler)?);
        let mut cpu = Session::new(model, options)?;
        let mut gpu = CudaSession::new(uploaded, options)?;
        let mut next = prompt.clone();
        while gpu.tokens().len() + next.len() <= context {
            cpu.evaluate(&next, pool)?;
            gpu.push(&next)?;
            while gpu.compute(usize::MAX)? == Progress::More {}
            let token = all.sample(cpu.logits().unwrap_or(&[]), cpu.tokens());
            let count = some.candidates(gpu.tokens().len()).ok_or("these options need all logits")?;
            let found = gpu.top_k(count)?;
            if gpu.logits().is_some() {
                return Ok(Some("logits were copied that nobody asked for".to_owned()));
            }
            if let Some(what) = difference_of_top_k(&found, cpu.logits().unwrap_or(&[]), count) {
                return Ok(Some(format!("{sampler:?}, position {}: {what}", cpu.tokens().len())));
            }
            if some.sample_candidates(&found, gpu.tokens()) != token || some != all {
                return Ok(Some(format!("{sampler:?}, position {}: another token", cpu.tokens().len())));
            }
            next = vec![token];
        }
        let expected = cpu.logits().unwrap_or(&[]);
        let mut saved = vec![0; gpu.saved_bytes()];
        gpu.save(&mut saved)?;
        let mut loaded = CudaSession::new(uploaded, options)?;
        loaded.load(&saved)?;
        let again = loaded.top_k(7)?;
        let copied = gpu.fork()?;
        gpu.read_logits()?;
        for (what, session) in [("loaded", &loaded), ("copied", &copied), ("read", &gpu)] {
            if let Some(what) = difference(what, session.logits().unwrap_or(&[]), expected) {
                return Ok(Some(what));
            }
        }
        if let Some(what) = difference_of_top_k(&again, expected, 7) {
            return Ok(Some(format!("loaded: {what}")));
        }
    }
    Ok(None)
}

/// Sessions that advance together, at different positions, against each alone.
fn together(model: &Model, uploaded: &CudaModel, cache: CacheType) -> Outcome<Option<String>> {
    let context = 100.min(model.config().max_position_embeddings);
    let (mut alone, mut joined) = (Vec::new(), Vec::new());
    for i in 0..9_usize {
        // Contexts differ, so that caches are laid out differently.
        let options = SessionOptions { max_batch: 8, cache, ..SessionOptions::new(context - i) };
        let mut session = CudaSession::new(uploaded, options)?;
        session.push(&tokens(model, 1 + 9 * i % (context - 30)))?;
        joined.push(session.fork()?);
        alone.push(session);
    }
    let mut batch = CudaBatch::new(uploaded, 9, context)?;
    for (round, count) in [9, 8, 1, 2, 5].into_iter().enumerate() {
        let mut rows: Vec<&mut CudaSession> = joined.iter_mut().take(count).collect();
        if round > 0 {
            for row in &mut rows {
                row.push(&[3])?;
            }
        }
        if round == 3 {
            // The batch finds these logits on the device alone.
            let _ = rows[0].compute(usize::MAX)?;
        }
        // A budget of 1 is spent by every batch of a prompt.
        while batch.advance(&mut rows, if round == 0 { 1 } else { usize::MAX }, &Serial)? == Progress::More {}
        batch.greedy(&mut rows, 2)?;
        for session in alone.iter_mut().take(count) {
            if round > 0 {
                session.push(&[3])?;
            }
            let _ = session.advance(usize::MAX)?;
            session.greedy(2)?;
        }
        for (i, (joined, alone)) in joined.iter().zip(&alone).take(count).enumerate() {
            if joined.tokens() != alone.tokens() {
                return Ok(Some(format!("{count} sessions together, session {i}: other tokens")));
            }
            let (found, expected) = (joined.logits().unwrap_or(&[]), alone.logits().unwrap_or(&[]));
            if let Some(what) = difference(&format!("{count} sessions together, session {i}"), found, expected) {
                return Ok(Some(what));
            }
        }
    }
    Ok(None)
}
