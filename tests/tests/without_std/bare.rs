//! The core without libc, std or an allocator, against the engine.

use std::process::Command;

use trion_engine::{Model, Sampler, SamplerOptions, Serial, Session, SessionOptions};
use trion_tests::{golden, root};

#[test]
fn a_program_without_libc_generates_the_same_tokens() {
    let bare = root().join("tests/bare");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(bare.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(root().join("target/bare"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program = root().join("target/bare/release/trion-bare");
    let ran = Command::new(&program).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let numbers: Vec<u64> = String::from_utf8(ran.stdout).unwrap().lines().map(|l| l.parse().unwrap()).collect();

    let model = Model::open(golden("bitnet_offline")).unwrap();
    let mut session = Session::new(&model, SessionOptions { max_batch: 4, ..SessionOptions::new(28) }).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::GREEDY).unwrap();
    session.evaluate(&[1, 17, 4, 60], &Serial).unwrap();
    let mut expected = Vec::new();
    for _ in 0..24 {
        let token = sampler.sample(session.logits().unwrap(), session.tokens());
        expected.push(u64::from(token));
        session.evaluate(&[token], &Serial).unwrap();
    }
    let hash = session
        .logits()
        .unwrap()
        .iter()
        .fold(0_u64, |hash, logit| hash.wrapping_mul(31).wrapping_add(u64::from(logit.to_bits())));
    expected.push(hash);
    assert_eq!(numbers, expected);
    println!("{} bytes without libc: {:?}", program.metadata().unwrap().len(), numbers);
}
