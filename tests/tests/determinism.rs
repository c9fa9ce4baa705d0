//! The first promise: the same bits on every kernel, any number of threads, any batching, any division into calls, and
//! after fork, rewind, save and load.

use std::fmt::Write;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use trion_core::{Matrix, Projection};
use trion_engine::{
    CacheType, FloatFormat, Isa, Kernel, Logits, Model, PackOptions, Packing, Parallel, Pool, Progress, Sampler,
    SamplerOptions, Serial, Session, SessionOptions, quantize,
};
use trion_tests::{GOLDEN, golden, long_golden, model, root};

/// Tokens of the prompt: more than two blocks of attention.
const TOKENS: u32 = 150;

fn prompt(model: &Model) -> Vec<u32> {
    let vocab_size = model.config().vocab_size as u32;
    (0..TOKENS).map(|i| (i * i * 5 + 3) % vocab_size).collect()
}

fn options(cache: CacheType, max_batch: usize) -> SessionOptions {
    SessionOptions { cache, max_batch, ..SessionOptions::new(TOKENS as usize + 10) }
}

fn bits(logits: Option<&[f32]>) -> Vec<u32> {
    logits.expect("logits are ready").iter().map(|logit| logit.to_bits()).collect()
}

/// The last token's logits, one token after another on the scalar kernel and one thread.
fn plain(model: &Model, cache: CacheType) -> Vec<u32> {
    let scalar = Kernel::new(Isa::Scalar).unwrap();
    let mut session = Session::with_kernel(model, options(cache, 1), scalar).unwrap();
    for token in prompt(model) {
        session.evaluate(&[token], &Serial).unwrap();
    }
    bits(session.logits())
}

#[test]
fn kernels_threads_and_batches_change_no_bit() {
    let pools: Vec<Pool> = [1, 2, 3, 7].map(|threads| Pool::new(threads).unwrap()).into();
    for name in GOLDEN {
        let model = model("kernels_threads_and_batches_change_no_bit", name);
        let prompt = prompt(&model);
        for cache in [CacheType::F32, CacheType::F16] {
            let expected = plain(&model, cache);
            for kernel in Kernel::available() {
                for pool in &pools {
                    for max_batch in [1, 3, 64, 150] {
                        let options = options(cache, max_batch);
                        let mut session = Session::with_kernel(&model, options, kernel).unwrap();
                        session.evaluate(&prompt, pool).unwrap();
                        let what = (name, kernel.isa(), pool.threads(), max_batch);
                        assert_eq!(bits(session.logits()), expected, "{what:?}");
                    }
                }
                for piece in [1, 3, 64] {
                    let mut session = Session::with_kernel(&model, options(cache, 64), kernel).unwrap();
                    for piece in prompt.chunks(piece) {
                        session.evaluate(piece, &pools[1]).unwrap();
                    }
                    assert_eq!(bits(session.logits()), expected, "{name}, pieces of {piece}");
                }
            }
        }
    }
}

/// A golden checkpoint, packed in another way.
fn packed(test: &str, name: &str, options: &PackOptions) -> Model {
    let checkpoint = long_golden(test, name);
    let file = checkpoint.join("packed.safetensors");
    quantize(&checkpoint, &file, options, &mut |_, _| {}).unwrap();
    Model::open(&file).unwrap()
}

/// Demands the bits `expected` from a model on every kernel, for some threads and batches.
fn same_bits(name: &str, model: &Model, cache: CacheType, expected: &[u32]) {
    let pool = Pool::new(3).unwrap();
    for kernel in Kernel::available() {
        for max_batch in [1, 2, 5, 150] {
            let mut session = Session::with_kernel(model, options(cache, max_batch), kernel).unwrap();
            session.evaluate(&prompt(model), &pool).unwrap();
            assert_eq!(bits(session.logits()), expected, "{:?}", (name, kernel.isa(), max_batch));
        }
    }
}

#[test]
fn how_trits_are_packed_changes_no_bit() {
    for name in GOLDEN {
        let twos = model("how_trits_are_packed_changes_no_bit", name);
        let options = PackOptions { packing: Packing::Fives, ..PackOptions::default() };
        let fives = packed("fives", name, &options);
        for layer in fives.core().layers() {
            if let Matrix::Ternary(matrix) = &layer.projection(Projection::Down).matrix {
                // Groups of 128 columns are no whole blocks of 20.
                assert_eq!(matrix.packing() == Packing::Fives, name != "qwen3_groups", "{name}");
            }
        }
        for cache in [CacheType::F32, CacheType::F16] {
            same_bits(name, &fives, cache, &plain(&twos, cache));
        }
        // A saved state of the one is one of the other.
        let mut session = Session::new(&twos, self::options(CacheType::F16, 8)).unwrap();
        session.evaluate(&prompt(&twos)[..20], &Serial).unwrap();
        let saved = session.save().unwrap();
        let mut other = Session::new(&fives, self::options(CacheType::F16, 8)).unwrap();
        other.load(&saved).unwrap();
        let next = |session: &mut Session| bits(Some(session.evaluate(&[5], &Serial).unwrap()));
        assert_eq!(next(&mut other), next(&mut session), "{name}");
    }
}

#[test]
fn six_bits_a_weight_give_the_same_bits_everywhere() {
    for name in GOLDEN {
        let options = PackOptions { embedding: FloatFormat::Int6, packing: Packing::Fives };
        let model = packed("six_bits_a_weight", name, &options);
        let expected = plain(&model, CacheType::F32);
        same_bits(name, &model, CacheType::F32, &expected);
        let all = SessionOptions { logits: Logits::All, ..self::options(CacheType::F32, TOKENS as usize) };
        let mut session = Session::new(&model, all).unwrap();
        let rows = bits(Some(session.evaluate(&prompt(&model), &Serial).unwrap()));
        assert_eq!(rows[rows.len() - expected.len()..], expected);
    }
}

#[test]
fn any_budget_gives_the_same_bits_and_bounds_the_work() {
    for name in ["bitnet_offline", "qwen3_groups"] {
        let model = model("any_budget_gives_the_same_bits_and_bounds_the_work", name);
        let prompt = prompt(&model);
        let expected = plain(&model, CacheType::F32);
        let units = trion_core::Session::row_blocks_per_token(model.core(), prompt.len());
        let pool = Pool::new(2).unwrap();
        let mut calls = Vec::new();
        for budget in [1, 2, 7, 64, 1000, usize::MAX] {
            for max_batch in [1, 5, 64] {
                let mut session = Session::new(&model, options(CacheType::F32, max_batch)).unwrap();
                session.push(&prompt).unwrap();
                let mut count = 1;
                while session.advance(budget, &pool).unwrap() == Progress::More {
                    assert_eq!(session.logits(), None);
                    count += 1;
                    assert!(count <= units * prompt.len(), "{name}: {count} calls for {} tokens", prompt.len());
                }
                assert_eq!(bits(session.logits()), expected, "{name}, budget {budget}, batch {max_batch}");
                calls.push((budget, max_batch, count));
            }
        }
        println!("{name}: {units} row-blocks a token; (budget, batch, calls) {calls:?}");
        let count = |wanted| calls.iter().find(|(budget, batch, _)| (*budget, *batch) == wanted).unwrap().2;
        assert!(count((1, 1)) > count((7, 1)) && count((7, 1)) > count((1000, 1)));
        assert_eq!(count((usize::MAX, 64)), 1);
        // What one token costs is known before it is computed.
        let mut session = Session::new(&model, options(CacheType::F32, 64)).unwrap();
        for position in 1..=70 {
            session.push(&prompt[..1]).unwrap();
            assert_eq!(session.advance(usize::MAX, &pool).unwrap(), Progress::Ready);
            let expected = trion_core::Session::row_blocks_per_token(model.core(), position);
            assert_eq!(session.spent(), expected);
        }
        // One token at a time, a budget of one row-block stops after each: nothing is done in larger steps.
        assert!(count((1, 1)) > TOKENS as usize * model.config().num_hidden_layers * 20);
    }
}

#[test]
fn no_budget_does_no_work() {
    let model = model("no_budget_does_no_work", "bitnet_offline");
    let mut session = Session::new(&model, options(CacheType::F32, 8)).unwrap();
    session.push(&[1, 2, 3]).unwrap();
    for _ in 0..10 {
        assert_eq!(session.advance(0, &Serial).unwrap(), Progress::More);
    }
    assert_eq!(session.advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
}

#[test]
fn all_logits_are_those_of_each_last_token() {
    for name in GOLDEN {
        let model = model("all_logits_are_those_of_each_last_token", name);
        let prompt = prompt(&model);
        let all = SessionOptions { logits: Logits::All, ..options(CacheType::F32, TOKENS as usize) };
        let mut session = Session::new(&model, all).unwrap();
        let rows = bits(Some(session.evaluate(&prompt, &Serial).unwrap()));
        let mut one = Session::new(&model, options(CacheType::F32, 1)).unwrap();
        for (token, row) in prompt.iter().zip(rows.chunks(model.config().vocab_size)) {
            one.evaluate(&[*token], &Serial).unwrap();
            assert_eq!(bits(one.logits()), row, "{name}");
        }
    }
}

#[test]
fn all_logits_are_there_for_tokens_pushed_on_the_way() {
    let model = model("all_logits_are_there_for_tokens_pushed_on_the_way", "bitnet_offline");
    let all = SessionOptions { logits: Logits::All, ..options(CacheType::F32, 8) };
    let mut session = Session::new(&model, all).unwrap();
    let expected = bits(Some(session.evaluate(&[1, 2, 3, 4, 5], &Serial).unwrap()));
    session.rewind(0).unwrap();
    session.push(&[1, 2, 3]).unwrap();
    assert_eq!(session.advance(50, &Serial).unwrap(), Progress::More);
    session.push(&[4, 5]).unwrap();
    assert_eq!(session.advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
    assert_eq!(bits(session.logits()), expected);
}

#[test]
fn fork_rewind_save_and_load_change_no_bit() {
    let pool = Pool::new(2).unwrap();
    for name in GOLDEN {
        let model = model("fork_rewind_save_and_load_change_no_bit", name);
        let prompt = prompt(&model);
        for cache in [CacheType::F32, CacheType::F16] {
            let expected = plain(&model, cache);
            for cut in [1, 33, 64, 149] {
                let mut session = Session::new(&model, options(cache, 64)).unwrap();
                session.evaluate(&prompt[..cut], &pool).unwrap();

                let mut fork = session.fork().unwrap();
                assert_eq!(bits(fork.logits()), bits(session.logits()));
                fork.evaluate(&prompt[cut..], &pool).unwrap();
                assert_eq!(bits(fork.logits()), expected, "{name}: fork at {cut}");

                let mut loaded = Session::new(&model, options(cache, 3)).unwrap();
                loaded.evaluate(&prompt[..7], &pool).unwrap();
                loaded.load(&session.save().unwrap()).unwrap();
                assert_eq!(loaded.tokens(), session.tokens());
                assert_eq!(bits(loaded.logits()), bits(session.logits()));
                loaded.evaluate(&prompt[cut..], &pool).unwrap();
                assert_eq!(bits(loaded.logits()), expected, "{name}: load at {cut}");

                session.evaluate(&[0, 1, 2], &pool).unwrap();
                session.rewind(cut).unwrap();
                assert_eq!(session.logits(), None);
                session.evaluate(&prompt[cut..], &pool).unwrap();
                assert_eq!(bits(session.logits()), expected, "{name}: rewind to {cut}");
            }
        }
    }
}

#[test]
fn a_token_under_way_can_be_forked_saved_and_rewound() {
    let model = model("a_token_under_way_can_be_forked_saved_and_rewound", "bitnet_offline");
    let prompt = prompt(&model);
    let expected = plain(&model, CacheType::F32);
    let finish = |session: &mut Session| {
        while session.advance(usize::MAX, &Serial).unwrap() == Progress::More {}
        bits(session.logits())
    };
    for stops in [1, 10, 50, 200] {
        let mut session = Session::new(&model, options(CacheType::F32, 16)).unwrap();
        session.push(&prompt).unwrap();
        for _ in 0..stops {
            assert_eq!(session.advance(5, &Serial).unwrap(), Progress::More);
        }
        let mut fork = session.fork().unwrap();
        assert_eq!(finish(&mut fork), expected);
        let mut loaded = Session::new(&model, options(CacheType::F32, 5)).unwrap();
        loaded.load(&session.save().unwrap()).unwrap();
        assert_eq!(finish(&mut loaded), expected);
        let mut rewound = session.fork().unwrap();
        rewound.rewind(20).unwrap();
        rewound.push(&prompt[20..]).unwrap();
        assert_eq!(finish(&mut rewound), expected);
        assert_eq!(finish(&mut session), expected);
    }
}

/// One thread, which cancels at the query after `left` others.
struct Cancelling {
    left: AtomicUsize,
}

impl Parallel for Cancelling {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        work();
    }

    fn cancelled(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

#[test]
fn a_cancelled_call_changes_no_bit_of_what_follows() {
    let model = model("a_cancelled_call_changes_no_bit_of_what_follows", "bitnet_offline");
    let prompt = prompt(&model);
    for cache in [CacheType::F32, CacheType::F16] {
        let expected = plain(&model, cache);
        for max_batch in [1, 64] {
            let mut session = Session::new(&model, options(cache, max_batch)).unwrap();
            session.push(&prompt).unwrap();
            let (mut left, mut cancelled) = (0, 0);
            loop {
                let parallel = Cancelling { left: AtomicUsize::new(left) };
                if session.advance(usize::MAX, &parallel).unwrap() == Progress::Ready {
                    break;
                }
                assert!(parallel.cancelled());
                assert_eq!(session.logits(), None);
                assert_eq!(session.tokens(), prompt);
                (left, cancelled) = (left * 3 / 2 + 1, cancelled + 1);
            }
            assert!(cancelled > 10, "{cancelled} cancelled calls");
            assert_eq!(bits(session.logits()), expected, "batch {max_batch}");
        }
    }
}

#[test]
fn logits_stay_until_new_ones_are_begun() {
    let model = model("logits_stay_until_new_ones_are_begun", "bitnet_offline");
    let mut session = Session::new(&model, options(CacheType::F32, 8)).unwrap();
    let first = bits(Some(session.evaluate(&[1, 2, 3], &Serial).unwrap()));
    session.push(&[4, 5]).unwrap();
    assert_eq!(bits(session.logits()), first);
    // What was pushed and not computed can be taken back: the logits are the last token's again.
    let fork = session.fork().unwrap();
    session.rewind(3).unwrap();
    assert_eq!(session.advance(1, &Serial).unwrap(), Progress::Ready);
    assert_eq!(bits(session.logits()), first);
    // Copies made while tokens were pending can do the same.
    session.push(&[4, 5]).unwrap();
    let mut loaded = Session::new(&model, options(CacheType::F32, 8)).unwrap();
    loaded.load(&session.save().unwrap()).unwrap();
    for mut copy in [fork, loaded] {
        assert_eq!((bits(copy.logits()), copy.tokens()), (first.clone(), session.tokens()));
        copy.rewind(3).unwrap();
        assert_eq!(copy.advance(1, &Serial).unwrap(), Progress::Ready);
        assert_eq!(bits(copy.logits()), first);
    }
    assert_eq!(session.advance(1, &Serial).unwrap(), Progress::More);
    assert_eq!(session.logits(), None);
}

/// A host's job system that runs jobs one after another, some not at all: the work is still complete.
struct OddHost(usize);

impl Parallel for OddHost {
    fn threads(&self) -> usize {
        8
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(work);
            }
        });
    }
}

#[test]
fn a_host_cannot_divide_work_wrongly() {
    let model = model("a_host_cannot_divide_work_wrongly", "llama_bitlinear");
    let expected = plain(&model, CacheType::F32);
    for calls in [0, 1, 5] {
        let mut session = Session::new(&model, options(CacheType::F32, 64)).unwrap();
        session.evaluate(&prompt(&model), &OddHost(calls)).unwrap();
        assert_eq!(bits(session.logits()), expected, "{calls} calls");
    }
}

#[test]
fn samplers_repeat_themselves() {
    let model = model("samplers_repeat_themselves", "bitnet_offline");
    let sampled = |seed| {
        let options = SamplerOptions {
            temperature: 0.9,
            top_k: 20,
            top_p: 0.95,
            min_p: 0.01,
            repetition_penalty: 1.1,
            seed,
            ..SamplerOptions::GREEDY
        };
        let mut sampler = Sampler::new(options).unwrap();
        let mut session = Session::new(&model, self::options(CacheType::F32, 8)).unwrap();
        session.evaluate(&[1, 2, 3], &Serial).unwrap();
        for _ in 0..60 {
            let token = sampler.sample(session.logits().unwrap(), session.tokens());
            session.evaluate(&[token], &Serial).unwrap();
        }
        session.tokens().to_vec()
    };
    assert_eq!(sampled(7), sampled(7));
    assert_ne!(sampled(7), sampled(8));
}

#[test]
fn two_sessions_share_a_pool_and_a_model() {
    let model = model("two_sessions_share_a_pool_and_a_model", "bitnet_online");
    let expected = plain(&model, CacheType::F32);
    let pool = Pool::new(3).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let mut session = Session::new(&model, options(CacheType::F32, 16)).unwrap();
                    session.evaluate(&prompt(&model), &pool).unwrap();
                    assert_eq!(bits(session.logits()), expected);
                }
            });
        }
    });
}

/// What `tests/c/determinism.c` prints, where it is defined, is what this library comes to.
#[test]
fn programs_in_c_come_to_the_same_bits() {
    let model = Model::open(root().join("models/tales-14m.safetensors")).unwrap();
    let prompt = trion_engine::prompt_tokens(&model, "The ship had been at sea for nine days when", true).unwrap();
    let sampled = SamplerOptions { temperature: 0.8, top_p: 0.95, seed: 7, ..SamplerOptions::GREEDY };
    let mut lines = String::new();
    for options in [SamplerOptions::GREEDY, sampled] {
        let mut sampler = Sampler::new(options).unwrap();
        let mut session = Session::new(&model, SessionOptions::new(512)).unwrap();
        let mut next = prompt.clone();
        let mut bytes = Vec::new();
        for _ in 0..64 {
            let logits = session.evaluate(&next, &Serial).unwrap().to_vec();
            next = vec![sampler.sample(&logits, session.tokens())];
            bytes.extend(next[0].to_le_bytes());
        }
        bytes.extend(session.logits().unwrap().iter().flat_map(|logit| logit.to_le_bytes()));
        // FNV-1a (Fowler, Noll and Vo).
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        writeln!(lines, "tokens 64 hash {hash:016x}").unwrap();
    }
    assert_eq!(lines, fs::read_to_string(golden("tales-14m.hashes")).unwrap());
}
