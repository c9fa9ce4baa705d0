//! The kernels of `ceilings.cu`, which measure a card: what they compute is right too.

use super::case::Format;
use super::{Bench, named};
use crate::error::Result;
use crate::kernels::{Shape, args};

pub(super) fn check(bench: &mut Bench) -> Result<()> {
    let one = Shape { grid: [1, 1, 1], block: [1, 1], shared: 0 };
    let mut case = bench.case();
    let at = case.piece("number", Format::U32, &[41_u32]);
    case.expect(at, 0, &[44_u32]);
    let touch = (named!(bench, touch), one, &args![at][..]);
    bench.run("three times".to_owned(), &case, &[touch; 3])?;

    let lines = 64_usize;
    let mut case = bench.case();
    let words = case.piece("words", Format::U32, &vec![0_u32; 32 * lines]);
    let out = case.output("word", Format::U32, 1);
    case.expect(out, 0, &[0_u32]);
    let chase = (named!(bench, chase), one, &args![words, lines, 7, 1000, out][..]);
    bench.run("1000 reads".to_owned(), &case, &[chase])?;

    for steps in [1, 16, 1000] {
        let mut case = bench.case();
        let out = case.output("sum", Format::F32, 1);
        case.expect_floats(out, 0, &[(0..steps).fold(0.0, |sum, _| sum + 0.1)]);
        let launch = (named!(bench, add_in_turn), one, &args![0.1_f32, steps, out][..]);
        bench.run(format!("{steps} additions"), &case, &[launch])?;
    }

    for steps in [1, 8, 100] {
        let (blocks, threads, a) = (3, 256, 0x0102_ff04_i32);
        let mut case = bench.case();
        let out = case.output("sums", Format::U32, blocks * threads);
        let sum_of = |thread: i32| {
            let product: i32 = a.to_le_bytes().iter().zip(thread.to_le_bytes()).map(|(a, b)| dot(*a, b)).sum();
            (0..8).fold(0, |all, k| all ^ (k + steps * product))
        };
        let sums: Vec<i32> = (0..blocks * threads).map(|i| sum_of((i % threads) as i32)).collect();
        case.expect(out, 0, &sums);
        let shape = Shape { grid: [blocks, 1, 1], block: [threads, 1], shared: 0 };
        let launch = (named!(bench, dot_products), shape, &args![a, steps, out][..]);
        bench.run(format!("{steps} steps"), &case, &[launch])?;
    }
    Ok(())
}

/// The product of two signed bytes.
fn dot(a: u8, b: u8) -> i32 {
    i32::from(a as i8) * i32::from(b as i8)
}
