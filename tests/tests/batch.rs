//! Sessions that advance together give the bits that each gives alone: in any company, at any positions, with any budget,
//! on every kernel and any number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use trion_core::Error as CoreError;
use trion_engine::{
    Batch, CacheType, Error, Isa, Kernel, Logits, Model, Parallel, Pool, Progress, Serial, Session, SessionOptions,
};
use trion_tests::{GOLDEN, model};

/// What one session of a batch is and does: it has computed `before` tokens, and `pending` more are pushed.
#[derive(Debug, Clone, Copy)]
struct Role {
    before: usize,
    pending: usize,
    cache: CacheType,
    logits: Logits,
    max_batch: usize,
}

const fn role(before: usize, pending: usize, max_batch: usize) -> Role {
    Role { before, pending, cache: CacheType::F32, logits: Logits::Last, max_batch }
}

/// Single tokens at several positions, prompts shorter and longer than a batch, both kinds of cache, all logits.
const ROLES: [Role; 8] = [
    role(70, 1, 1),
    role(0, 1, 4),
    Role { cache: CacheType::F16, ..role(63, 1, 8) },
    role(0, 41, 16),
    Role { logits: Logits::All, ..role(5, 6, 6) },
    Role { cache: CacheType::F16, logits: Logits::All, ..role(0, 9, 64) },
    Role { cache: CacheType::F16, ..role(30, 20, 7) },
    role(128, 2, 64),
];

impl Role {
    fn options(&self) -> SessionOptions {
        let context = self.before + self.pending + 10;
        SessionOptions {
            cache: self.cache,
            logits: self.logits,
            max_batch: self.max_batch.min(context),
            ..SessionOptions::new(context)
        }
    }

    /// Tokens, which differ from session to session.
    fn tokens(&self, model: &Model) -> Vec<u32> {
        let (vocab_size, salt) = (model.config().vocab_size, self.before * 7 + self.pending);
        (0..self.before + self.pending).map(|i| ((i * i * 5 + i * salt + 3) % vocab_size) as u32).collect()
    }

    /// A session whose first tokens are computed and whose others are pending.
    fn session(&self, model: &Model, kernel: Kernel) -> Session {
        let mut session = Session::with_kernel(model, self.options(), kernel).unwrap();
        let tokens = self.tokens(model);
        for token in &tokens[..self.before] {
            session.evaluate(&[*token], &Serial).unwrap();
        }
        session.push(&tokens[self.before..]).unwrap();
        session
    }

    /// The logits that it comes to alone, on the scalar kernel and one thread.
    fn alone(&self, model: &Model) -> Vec<u32> {
        let mut session = self.session(model, Kernel::new(Isa::Scalar).unwrap());
        while session.advance(usize::MAX, &Serial).unwrap() == Progress::More {}
        bits(&session)
    }
}

fn bits(session: &Session) -> Vec<u32> {
    session.logits().expect("logits are ready").iter().map(|logit| logit.to_bits()).collect()
}

fn batch<'s>(sessions: impl IntoIterator<Item = &'s mut Session>) -> Batch<'s> {
    let mut batch = Batch::new();
    for session in sessions {
        batch.add(session).unwrap();
    }
    batch
}

/// Every kernel begins with the same bits, so sessions are made once and copied.
fn copies(model: &Model, kernel: Kernel, of: &[Session]) -> Vec<Session> {
    let copy = |session: &Session| {
        let mut copy = Session::with_kernel(model, *session.options(), kernel).unwrap();
        copy.load(&session.save().unwrap()).unwrap();
        copy
    };
    of.iter().map(copy).collect()
}

#[test]
fn kernels_threads_order_and_budgets_change_no_bit() {
    let pools = [1, 2, 3, 7].map(|threads| Pool::new(threads).unwrap());
    for name in GOLDEN {
        let model = model("batch-kernels", name);
        let expected = ROLES.map(|role| role.alone(&model));
        let begun: Vec<Session> = ROLES.iter().map(|role| role.session(&model, Kernel::detect())).collect();
        for kernel in Kernel::available() {
            for (n, budget) in [usize::MAX, 3, 50, 400, 3000].into_iter().enumerate() {
                let mut sessions = copies(&model, kernel, &begun);
                // Another order each time, and other threads.
                let (turn, pool) = (n * 3 % sessions.len(), &pools[n % pools.len()]);
                let mut calls = 1;
                loop {
                    let (first, last) = sessions.split_at_mut(turn);
                    if batch(last.iter_mut().chain(first)).advance(budget, pool).unwrap() == Progress::Ready {
                        break;
                    }
                    let spent: usize = sessions.iter().map(Session::spent).sum();
                    // At most a tile of numbers of 32 bits beyond, for the 43 tokens that go through it together.
                    assert!((budget..budget + 8 * 43).contains(&spent), "{spent} of {budget}");
                    calls += 1;
                }
                assert!(if budget == usize::MAX { calls == 1 } else { budget > 50 || calls > 20 }, "{calls} calls");
                for ((session, expected), role) in sessions.iter().zip(&expected).zip(ROLES) {
                    let what = (name, kernel.isa(), pool.threads(), budget, role);
                    assert_eq!(&bits(session), expected, "{what:?}");
                }
            }
        }
    }
}

#[test]
fn any_company_gives_the_same_bits() {
    let model = model("batch-company", "bitnet_online");
    let expected = ROLES.map(|role| role.alone(&model));
    let begun: Vec<Session> = ROLES.iter().map(|role| role.session(&model, Kernel::detect())).collect();
    for company in 1_u32..1 << ROLES.len() {
        let mut sessions = copies(&model, Kernel::detect(), &begun);
        let chosen = |n: usize| company >> n & 1 == 1;
        let taking_part = sessions.iter_mut().enumerate().filter(|(n, _)| chosen(*n)).map(|(_, session)| session);
        assert_eq!(batch(taking_part).advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
        for (n, (session, expected)) in sessions.iter().zip(&expected).enumerate() {
            if chosen(n) {
                assert_eq!(&bits(session), expected, "company {company:b}, session {n}");
            }
        }
    }
}

#[test]
fn a_step_costs_what_its_sessions_cost_alone() {
    let model = model("batch-cost", "qwen3_groups");
    let mut sessions: Vec<Session> = ROLES.iter().map(|role| role.session(&model, Kernel::detect())).collect();
    let mut alone = copies(&model, Kernel::detect(), &sessions);
    assert_eq!(batch(&mut sessions).advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
    for (session, together) in alone.iter_mut().zip(&sessions) {
        assert_eq!(session.advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
        assert_eq!(session.spent(), together.spent());
    }
}

#[test]
fn logits_are_there_as_soon_as_a_session_has_come_through() {
    let model = model("batch-early", "bitnet_offline");
    let (short, long) = (role(5, 1, 8), role(0, 100, 8));
    let mut sessions = [short.session(&model, Kernel::detect()), long.session(&model, Kernel::detect())];
    let mut calls = 0;
    while sessions[0].logits().is_none() || calls == 0 {
        assert_eq!(batch(&mut sessions).advance(64, &Serial).unwrap(), Progress::More);
        calls += 1;
    }
    assert_eq!(bits(&sessions[0]), short.alone(&model));
    // Nine tokens of the 106 took that long: the long prompt's batches did not come first.
    let mut rest = 0;
    while batch(&mut sessions).advance(64, &Serial).unwrap() == Progress::More {
        rest += 1;
    }
    assert!(calls * 5 < rest, "{calls} calls for the short one, {rest} more for the long one");
    assert_eq!(bits(&sessions[1]), long.alone(&model));
}

/// `SplitMix64`: the tests' choices.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Whatever happens to sessions between two calls: each ends with the logits of its tokens.
#[test]
fn sessions_may_change_in_any_way_between_calls() {
    let pool = Pool::new(2).unwrap();
    for (name, cache) in [("bitnet_offline", CacheType::F32), ("qwen3_groups", CacheType::F16)] {
        let model = model("batch-changes", name);
        let options = SessionOptions { cache, max_batch: 5, ..SessionOptions::new(80) };
        let vocab_size = model.config().vocab_size;
        let fresh = || Session::new(&model, options).unwrap();
        let mut expected = std::collections::HashMap::<Vec<u32>, Vec<u32>>::new();
        let mut checks = 0;
        for seed in 0..12 {
            let mut random = Random(seed);
            let mut sessions: Vec<Session> = (0..5).map(|_| fresh()).collect();
            for _ in 0..300 {
                let one = random.below(sessions.len());
                match random.below(12) {
                    0..4 => {
                        let count = (1 + random.below(7)).min(80 - sessions[one].tokens().len());
                        let tokens: Vec<u32> = (0..count).map(|_| random.below(vocab_size) as u32).collect();
                        let _ = sessions[one].push(&tokens);
                    }
                    4 => {
                        let len = random.below(sessions[one].tokens().len() + 1);
                        sessions[one].rewind(len).unwrap();
                    }
                    5 => sessions[one] = fresh(),
                    6 => {
                        let copy = sessions[random.below(5)].fork().unwrap();
                        sessions[one] = copy;
                    }
                    7 => {
                        let saved = sessions[random.below(5)].save().unwrap();
                        sessions[one].load(&saved).unwrap();
                    }
                    // Some go on alone.
                    8 => drop(sessions[one].advance(random.below(400), &Serial)),
                    _ => {
                        let company = random.below(1 << sessions.len());
                        let chosen = sessions.iter_mut().enumerate().filter(|(n, _)| company >> n & 1 == 1);
                        let _ = batch(chosen.map(|(_, session)| session)).advance(random.below(3000), &pool);
                    }
                }
                for session in &sessions {
                    let Some(logits) = session.logits() else { continue };
                    // Pending tokens leave the logits of those before in place; which these are is told by a copy.
                    let mut copy = session.fork().unwrap();
                    if copy.advance(usize::MAX, &Serial).unwrap() == Progress::Ready && copy.spent() > 0 {
                        continue;
                    }
                    checks += 1;
                    let expected = expected.entry(session.tokens().to_vec()).or_insert_with(|| {
                        let mut plain =
                            Session::with_kernel(&model, options, Kernel::new(Isa::Scalar).unwrap()).unwrap();
                        plain.evaluate(session.tokens(), &Serial).unwrap();
                        bits(&plain)
                    });
                    assert!(
                        logits.iter().map(|logit| logit.to_bits()).eq(expected.iter().copied()),
                        "{name}, seed {seed}"
                    );
                }
            }
            for session in &mut sessions {
                if session.tokens().is_empty() {
                    session.push(&[1]).unwrap();
                }
            }
            while let Ok(Progress::More) = batch(&mut sessions).advance(usize::MAX, &pool) {}
        }
        println!("{name}: {checks} logits compared, {} texts", expected.len());
        assert!(checks > 500 && expected.len() > 50, "{checks} logits compared, {} texts", expected.len());
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
    let model = model("batch-cancel", "bitnet_offline");
    let expected = ROLES.map(|role| role.alone(&model));
    let mut sessions: Vec<Session> = ROLES.iter().map(|role| role.session(&model, Kernel::detect())).collect();
    let (mut left, mut cancelled) = (0, 0);
    loop {
        let parallel = Cancelling { left: AtomicUsize::new(left) };
        if batch(&mut sessions).advance(usize::MAX, &parallel).unwrap() == Progress::Ready {
            break;
        }
        assert!(parallel.cancelled());
        (left, cancelled) = (left * 3 / 2 + 1, cancelled + 1);
    }
    assert!(cancelled > 10, "{cancelled} cancelled calls");
    for ((session, expected), role) in sessions.iter().zip(&expected).zip(ROLES) {
        assert_eq!(&bits(session), expected, "{role:?}");
    }
}

fn refusal<T>(result: trion_engine::Result<T>) -> CoreError {
    match result {
        Err(Error::Core(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn what_cannot_advance_together_is_refused_and_unchanged() {
    let one = model("batch-refused", "bitnet_offline");
    let other = model("batch-refused-other", "bitnet_offline");
    let options = SessionOptions { max_batch: 4, ..SessionOptions::new(16) };
    let session = |model: &Model| Session::new(model, options).unwrap();

    // The same weights, but not the same model.
    let (mut a, mut b, mut c) = (session(&one), session(&other), session(&one.clone()));
    for session in [&mut a, &mut b, &mut c] {
        session.push(&[1, 2, 3]).unwrap();
    }
    let mut both = Batch::new();
    both.add(&mut a).unwrap();
    assert_eq!(refusal(both.add(&mut b)), CoreError::OtherModel);
    both.add(&mut c).unwrap();
    assert_eq!(both.advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
    assert_eq!(b.logits(), None);
    assert_eq!(bits(&a), bits(&c));

    // Nothing to compute: ready if there are logits, an error if there are none.
    assert_eq!(batch([&mut a, &mut c]).advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
    assert_eq!((a.spent(), c.spent()), (0, 0));
    assert_eq!(refusal(Batch::new().advance(usize::MAX, &Serial)), CoreError::NoTokens);
    let (mut new, mut rewound) = (session(&one), a.fork().unwrap());
    rewound.rewind(1).unwrap();
    assert_eq!(refusal(batch([&mut new, &mut rewound]).advance(usize::MAX, &Serial)), CoreError::NoTokens);
    // Beside others such sessions take no part.
    a.push(&[5]).unwrap();
    let progress = batch([&mut new, &mut rewound, &mut a]).advance(usize::MAX, &Serial).unwrap();
    assert_eq!((progress, new.logits(), rewound.logits()), (Progress::Ready, None, None));
    assert_eq!((rewound.tokens(), a.tokens()), ([1].as_slice(), [1, 2, 3, 5].as_slice()));

    // As many sessions as there is room for, and one more.
    let mut many: Vec<Session> = (0..=Batch::MAX_SESSIONS).map(|_| session(&one)).collect();
    for (n, session) in many.iter_mut().enumerate() {
        session.push(&[1, 2, n as u32 % 5]).unwrap();
    }
    let (last, rest) = many.split_last_mut().unwrap();
    let mut full = batch(rest);
    let limit = Batch::MAX_SESSIONS;
    assert_eq!(refusal(full.add(last)), CoreError::Options { field: "sessions", found: limit + 1, limit });
    assert_eq!(full.advance(usize::MAX, &Pool::new(2).unwrap()).unwrap(), Progress::Ready);
    for n in 5..limit {
        assert_eq!(bits(&many[n]), bits(&many[n - 5]));
    }
    assert_ne!(bits(&many[0]), bits(&many[1]));

    // No budget, no work.
    let last = &mut many[limit];
    for _ in 0..10 {
        assert_eq!(batch([&mut *last]).advance(0, &Serial).unwrap(), Progress::More);
    }
    assert_eq!(batch([&mut *last]).advance(usize::MAX, &Serial).unwrap(), Progress::Ready);
}

#[test]
fn pending_tokens_are_those_that_are_left() {
    let model = model("batch-pending", "bitnet_offline");
    let mut sessions = [role(3, 20, 8), role(7, 1, 4)].map(|role| role.session(&model, Kernel::detect()));
    assert!(Batch::new().is_empty());
    let mut seen = vec![sessions.each_ref().map(Session::pending)];
    loop {
        let together = batch(&mut sessions);
        assert!(!together.is_empty());
        let progress = together.advance(1, &Serial).unwrap();
        let left = sessions.each_ref().map(Session::pending);
        for (session, pending) in sessions.iter().zip(left) {
            assert_eq!(session.logits().is_some(), pending == 0);
        }
        if seen.last() != Some(&left) {
            seen.push(left);
        }
        if progress == Progress::Ready {
            break;
        }
    }
    // Batches of eight; the single token goes through the head too, behind the first.
    assert_eq!(seen, [[20, 1], [12, 1], [12, 0], [4, 0], [0, 0]]);
    sessions[0].rewind(10).unwrap();
    sessions[0].push(&[1, 2]).unwrap();
    assert_eq!(sessions[0].pending(), 2);
    sessions[0].rewind(11).unwrap();
    assert_eq!(sessions[0].pending(), 1);
}
