//! How fast it is, and ought to be.

use std::time::Instant;

use trion_core::{CacheType, Progress, Sampler, SamplerOptions, SessionOptions};
use trion_cuda::measure::{Gemv, Packing};
use trion_cuda::roofline::{self, Card, Launch, total_ms};
use trion_cuda::{CudaBatch, CudaDevice, CudaModel, CudaSession, KernelSet, MemoryPlan, measure};
use trion_engine::{FloatFormat, Model, PackOptions, Pool, SHAPE_2B4T, random_model};

use crate::compare::compare;
use crate::{Outcome, tokens};

/// Times of products from device memory, and what part of a copy's bandwidth that is.
pub(crate) fn speed_of_gemv(device: &CudaDevice) -> Outcome<()> {
    let copy = measure::copy_bandwidth(device)?;
    println!("copy: {copy:.0} GB/s, read and written");
    println!("{:>7}  {:>6}  {:>4}  {:>8}  {:>6}  {:>10}", "rows", "cols", "bits", "us", "GB/s", "of a copy");
    let shapes = [(2560, 2560), (3840, 2560), (6912, 2560), (13_824, 2560), (2560, 6912), (55_296, 5120)];
    for (rows, cols) in shapes {
        for (packing, bits) in [(Packing::Twos, 2.0), (Packing::Fives, 1.6)] {
            if packing == Packing::Fives && device.kernel_set() != KernelSet::Sm90 {
                continue;
            }
            let Gemv { micros, bytes } = measure::gemv(device, [rows, cols], packing)?;
            let rate = (bytes + cols + 4 * rows) as f64 / micros / 1e3;
            println!("{rows:>7}  {cols:>6}  {bits:>4}  {micros:>8.2}  {rate:>6.0}  {:>8.1} %", 100.0 * rate / copy);
        }
    }
    Ok(())
}

/// What `speed_of_2b4t` measures, and its options.
const PROMPT: usize = 512;

const DECODED: usize = 128;

const OPTIONS: SessionOptions =
    SessionOptions { max_batch: PROMPT, cache: CacheType::F16, ..SessionOptions::new(1024) };

/// The model is measured with a head of bytes.
fn int8_head() -> PackOptions {
    PackOptions { embedding: FloatFormat::Int8, ..PackOptions::default() }
}

/// Milliseconds that are predicted of a token in the middle of those decoded, and of the prompt.
fn predicted(model: &Model, card: &Card) -> [f64; 2] {
    let token = roofline::token(model.core(), &OPTIONS, PROMPT + DECODED / 2, card);
    [total_ms(&token), total_ms(&roofline::prompt(model.core(), &OPTIONS, PROMPT, card))]
}

/// What a GTX 1050 and an H100 ought to need, from their ceilings alone.
pub(crate) fn predict() -> Outcome<()> {
    let model = random_model(&SHAPE_2B4T, &int8_head(), 1)?;
    let card = Card::GTX_1050;
    println!("{card:?}");
    print_launches("a token", &roofline::token(model.core(), &OPTIONS, PROMPT + DECODED / 2, &card), &card);
    print_launches("a prompt", &roofline::prompt(model.core(), &OPTIONS, PROMPT, &card), &card);
    for (set, card) in [(KernelSet::Sm61, Card::H100), (KernelSet::Sm90, Card::H100_OVERLAPPING)] {
        println!("{card:?}");
        let [token, prompt] = predicted(&model, &card);
        println!("H100, {set:?}: {token:.3} ms a token at position 576, {prompt:.1} ms a prompt of 512 by dp4a");
    }
    Ok(())
}

fn print_launches(what: &str, launches: &[Launch], card: &Card) {
    let heads = ["count", "blocks", "threads", "MB", "M dp4a", "us each", "ms"];
    let [count, blocks, threads, mb, dp4a, micros, ms] = heads;
    println!("{what:22}  {count:>5}  {blocks:>6}  {threads:>7}  {mb:>7}  {dp4a:>7}  {micros:>8}  {ms:>7}");
    let mut bytes = 0.0;
    for launch in launches {
        let Launch { name, count, shape: [blocks, threads], micros, .. } = *launch;
        let (mb, dp4a) = (launch.bytes as f64 / 1e6, launch.dp4a as f64 / 1e6);
        bytes += mb * count as f64 / 1e3;
        let ms = count as f64 * micros / 1e3;
        println!("{name:22}  {count:>5}  {blocks:>6}  {threads:>7}  {mb:>7.2}  {dp4a:>7.2}  {micros:>8.1}  {ms:>7.3}");
    }
    let (ms, floor) = (total_ms(launches), 1e3 * bytes / card.bandwidth);
    println!("{what}: {ms:.2} ms; its {bytes:.3} GB alone {floor:.2} ms at {:.1} GB/s", card.bandwidth);
}

/// Time of a token at position 512 and of a prompt of 512, at the shape of 2B4T with random weights and an int8 head.
pub(crate) fn speed_of_2b4t(device: &CudaDevice, pool: &Pool) -> Outcome<usize> {
    let model = random_model(&SHAPE_2B4T, &int8_head(), 1)?;
    let options = OPTIONS;
    let (multiprocessors, set) = (device.multiprocessors(), device.kernel_set());
    println!("{:?}", MemoryPlan::new(model.core(), &options, multiprocessors, set));
    let start = Instant::now();
    let uploaded = CudaModel::upload(device, model.core())?;
    println!("2b4t shape, int8 head: upload {:.2} s", start.elapsed().as_secs_f64());
    let failed = compare(
        &model,
        std::slice::from_ref(&uploaded),
        pool,
        SessionOptions { context: 100, max_batch: 64, ..options },
        &tokens(&model, 80),
        8,
    )?;
    println!("2b4t shape, prompt 80, decode 8: {}", failed.as_deref().unwrap_or("equal"));

    let prompt = tokens(&model, PROMPT);
    let mut session = CudaSession::new(&uploaded, options)?;
    session.evaluate(&prompt)?;
    session.greedy(8)?;
    let (mut prompt_times, mut token_times) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        session.rewind(0)?;
        let start = Instant::now();
        session.evaluate(&prompt)?;
        prompt_times.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        session.greedy(DECODED)?;
        token_times.push(start.elapsed().as_secs_f64() * 1e3 / DECODED as f64);
    }
    let sampled = sampling_times(&mut session, &prompt)?;
    println!("ms a token of 128 drawn by top-k 40, from the largest logits and from all: {sampled:.3?}");
    session.rewind(512)?;
    session.evaluate(&[1])?;
    for count in [2, 4, 8, 16] {
        let mut sessions = (0..count).map(|_| session.fork()).collect::<Result<Vec<_>, _>>()?;
        let mut rows: Vec<&mut CudaSession> = sessions.iter_mut().collect();
        let mut batch = CudaBatch::new(&uploaded, count, options.context)?;
        batch.greedy(&mut rows, 8)?;
        let start = Instant::now();
        batch.greedy(&mut rows, 128)?;
        let step = start.elapsed().as_secs_f64() * 1e3 / 128.0;
        println!("{count} sessions together: {step:.3} ms a step, {:.0} tokens/s", count as f64 / step * 1e3);
    }
    drop(session);
    let card = measure::card(device)?;
    println!("{card:?}");
    let measured = [&mut token_times, &mut prompt_times].map(|times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let names = ["a token at positions 512 to 640", "a prompt of 512"];
    for ((name, measured), predicted) in names.into_iter().zip(measured).zip(predicted(&model, &card)) {
        // Prompts are reckoned as `dp4a` makes them.
        if card.overlaps && name.contains("prompt") {
            println!("{name}: {measured:.3} ms by tensor cores");
            continue;
        }
        let ratio = predicted / measured;
        let judgement = if (0.75..=1.25).contains(&ratio) { "within" } else { "not within" };
        println!("{name}: {measured:.3} ms, predicted {predicted:.3}, ratio {ratio:.2}, {judgement} 25 %");
    }
    Ok(usize::from(failed.is_some()) + usize::from(sampled.is_none()))
}

/// Milliseconds of a drawn token behind a prompt: from the largest logits, and from all. None if other tokens are drawn.
fn sampling_times(session: &mut CudaSession, prompt: &[u32]) -> Outcome<Option<[f64; 2]>> {
    let options = SamplerOptions { temperature: 0.8, top_k: 40, seed: 7, ..SamplerOptions::GREEDY };
    let (mut times, mut texts) = ([0.0; 2], [Vec::new(), Vec::new()]);
    for (i, reads_all) in [false, true].into_iter().enumerate() {
        let mut sampler = Sampler::new(options)?;
        session.rewind(0)?;
        session.evaluate(prompt)?;
        let start = Instant::now();
        for _ in 0..128 {
            let token = if reads_all {
                session.read_logits()?;
                sampler.sample(session.logits().unwrap_or(&[]), session.tokens())
            } else {
                sampler.sample_candidates(&session.top_k(options.top_k)?, session.tokens())
            };
            texts[i].push(token);
            session.push(&[token])?;
            while session.compute(usize::MAX)? == Progress::More {}
        }
        session.read_logits()?;
        times[i] = start.elapsed().as_secs_f64() * 1e3 / 128.0;
    }
    Ok((texts[0] == texts[1]).then_some(times))
}
