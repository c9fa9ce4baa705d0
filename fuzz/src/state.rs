//! A saved state of a session of the small model: the first byte chooses the session that loads it, the others are the
//! state. A bit of the first byte puts the right fingerprint in, which an adversary can know and mutations rarely find.

use trion_engine::{CacheType, Kernel, Logits, Progress, Serial, Session, SessionOptions};

use crate::check::same_bits;
use crate::small::MODEL;

/// Positions of the session.
const CONTEXT: usize = 6;

/// Tokens of a batch of the session.
const MAX_BATCH: usize = 3;

/// Where the fingerprint of the model lies in a state, the number of rows of logits, and from where on the tokens.
const FINGERPRINT: std::ops::Range<usize> = 8..16;
const ROWS: std::ops::Range<usize> = 40..48;
const TOKENS: usize = 48;

/// The session that a first byte chooses.
fn session(choice: u8, kernel: Kernel) -> Session {
    let options = SessionOptions {
        max_batch: MAX_BATCH,
        cache: if choice & 1 == 0 { CacheType::F32 } else { CacheType::F16 },
        logits: if choice & 2 == 0 { Logits::Last } else { Logits::All },
        ..SessionOptions::new(CONTEXT)
    };
    Session::with_kernel(&MODEL, options, kernel).expect("a session")
}

/// Loads the state; what loads can be saved again, and goes on.
///
/// # Panics
/// If a state that is refused changes the session, or one that loads is not whole.
pub fn run(bytes: &[u8]) {
    let Some((choice, state)) = bytes.split_first() else { return };
    let mut state = state.to_vec();
    if choice & 4 != 0
        && let Some(place) = state.get_mut(FINGERPRINT)
    {
        place.copy_from_slice(&MODEL.core().fingerprint().to_le_bytes());
    }
    let mut loaded = session(*choice, Kernel::fastest());
    let before = loaded.evaluate(&[3, 1], &Serial).expect("logits").to_vec();
    if let Err(error) = loaded.load(&state) {
        assert!(!error.to_string().is_empty());
        assert_eq!(loaded.tokens(), [3, 1], "{error}: the session is unchanged");
        assert_eq!(loaded.logits(), Some(&before[..]), "{error}: the session is unchanged");
        return;
    }
    assert!(loaded.tokens().len() <= CONTEXT);
    assert!(loaded.tokens().iter().all(|token| (*token as usize) < MODEL.config().vocab_size));
    let tokens = state[TOKENS..].as_chunks::<4>().0.iter().map(|le| u32::from_le_bytes(*le));
    assert!(loaded.tokens().iter().copied().eq(tokens.take(loaded.tokens().len())));
    let rows = state[ROWS].try_into().map_or(0, u64::from_le_bytes);
    if rows <= if choice & 2 == 0 { 1 } else { MAX_BATCH as u64 } {
        assert_eq!(loaded.save().expect("a state"), state, "a state that was loaded is saved as it was");
    } else {
        assert_eq!(loaded.logits(), None, "logits for which there is no room are computed anew when they are wanted");
    }

    let plain = Kernel::new(trion_engine::Isa::Scalar).expect("plain Rust is everywhere");
    let mut other = session(*choice, plain);
    other.load(&state).expect("what one session loads, another does");
    let fork = loaded.fork().expect("a fork");
    assert_eq!(fork.tokens(), loaded.tokens());
    for token in [None, Some(7)] {
        let outcomes = [&mut loaded, &mut other].map(|session| go_on(session, token));
        match outcomes {
            [Ok(first), Ok(second)] => assert!(same_bits(&first, &second), "{first:?} and {second:?}"),
            [first, second] => assert_eq!(first, second),
        }
    }
}

/// Pushes a token, if there is one, and computes; what was refused is an outcome too.
fn go_on(session: &mut Session, token: Option<u32>) -> Result<Vec<f32>, String> {
    if let Some(token) = token {
        session.push(&[token]).map_err(|e| e.to_string())?;
    }
    while session.advance(5, &Serial).map_err(|e| e.to_string())? == Progress::More {}
    Ok(session.logits().unwrap_or(&[]).to_vec())
}
