//! The memory of a case: what lies there before the launch, and what is expected behind it.

use std::fmt::Write;

use bytemuck::NoUninit;
use trion_core::CacheType;
use trion_core::numeric::{f16_to_f32, f32_to_f16};

use crate::layout::aligned;

/// What lies between the pieces, and where a kernel has no business to read: a NaN as a float and as two halves, trits
/// that do not exist, and integers that would be noticed in a sum.
pub(super) const NOBODYS: u32 = 0xffc1_ffc1;
/// What outputs hold before a kernel writes them: a number, so that a NaN that was not written differs from one that
/// was.
const UNWRITTEN: u32 = 0xc0de_c0de;
/// A NaN that is expected, unlike any that a case begins with: so it is known which were to be written.
const EXPECTED_NAN: u32 = 0x7fee_d0e5;
const EXPECTED_NAN_HALF: u16 = 0x7eed;
/// Bytes between pieces, at least.
const GUARD: usize = 256;

/// What a piece consists of, for comparing and for telling what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// Bytes.
    I8,
    /// Integers of 32 bits, or anything that must be equal.
    U32,
    /// A kernel may write here what it likes.
    Scratch,
}

impl Format {
    fn bytes(self) -> usize {
        match self {
            Format::F32 | Format::U32 => 4,
            Format::F16 => 2,
            Format::I8 | Format::Scratch => 1,
        }
    }
}

#[derive(Debug, Clone)]
struct Piece {
    name: &'static str,
    start: usize,
    bytes: usize,
    format: Format,
}

/// Pieces of memory, with guards around each.
#[derive(Debug, Clone)]
pub(super) struct Case {
    base: u64,
    before: Vec<u8>,
    expected: Vec<u8>,
    pieces: Vec<Piece>,
}

impl Case {
    pub(super) fn new(base: u64) -> Self {
        let guard = [NOBODYS; GUARD / 4];
        let guard = bytemuck::cast_slice(&guard).to_vec();
        Case { base, before: guard.clone(), expected: guard, pieces: Vec::new() }
    }

    /// What lies in the memory before the launch.
    pub(super) fn before(&self) -> &[u8] {
        &self.before
    }

    /// A piece that holds `values`, and its address.
    pub(super) fn piece<T: NoUninit>(&mut self, name: &'static str, format: Format, values: &[T]) -> u64 {
        let (start, values) = (self.before.len(), bytemuck::cast_slice::<T, u8>(values));
        let end = aligned(start + values.len()) + GUARD;
        for image in [&mut self.before, &mut self.expected] {
            image.extend_from_slice(values);
            // The pattern begins where the piece ends.
            image.extend(NOBODYS.to_le_bytes().iter().cycle().take(end - image.len()));
        }
        self.pieces.push(Piece { name, start, bytes: values.len(), format });
        self.base + start as u64
    }

    pub(super) fn floats(&mut self, name: &'static str, values: &[f32]) -> u64 {
        self.piece(name, Format::F32, values)
    }

    /// Floats, or no piece and the address 0.
    pub(super) fn floats_if_any(&mut self, name: &'static str, values: Option<&[f32]>) -> u64 {
        values.map_or(0, |values| self.floats(name, values))
    }

    /// Numbers of a cache, rounded to its format.
    pub(super) fn numbers(&mut self, name: &'static str, cache: CacheType, values: &[f32]) -> u64 {
        match cache {
            CacheType::F32 => self.floats(name, values),
            CacheType::F16 => {
                let halves: Vec<u16> = values.iter().map(|value| f32_to_f16(*value)).collect();
                self.piece(name, Format::F16, &halves)
            }
        }
    }

    /// A piece of so many numbers that nobody has written.
    pub(super) fn output(&mut self, name: &'static str, format: Format, count: usize) -> u64 {
        let pattern = UNWRITTEN.to_le_bytes();
        let bytes: Vec<u8> = pattern.iter().copied().cycle().take(count * format.bytes()).collect();
        self.piece(name, format, &bytes)
    }

    /// Says that `values` are expected in the piece at `address`, from number `index` on.
    pub(super) fn expect<T: NoUninit>(&mut self, address: u64, index: usize, values: &[T]) {
        let start = (address - self.base) as usize + index * size_of::<T>();
        let values = bytemuck::cast_slice::<T, u8>(values);
        self.expected[start..start + values.len()].copy_from_slice(values);
    }

    /// The same of floats.
    pub(super) fn expect_floats(&mut self, address: u64, index: usize, values: &[f32]) {
        let bits = |value: &f32| if value.is_nan() { EXPECTED_NAN } else { value.to_bits() };
        self.expect(address, index, &values.iter().map(bits).collect::<Vec<u32>>());
    }

    /// The same of a cache's numbers.
    pub(super) fn expect_numbers(&mut self, address: u64, index: usize, cache: CacheType, values: &[f32]) {
        match cache {
            CacheType::F32 => self.expect_floats(address, index, values),
            CacheType::F16 => {
                let bits = |value: &f32| if value.is_nan() { EXPECTED_NAN_HALF } else { f32_to_f16(*value) };
                self.expect(address, index, &values.iter().map(bits).collect::<Vec<u16>>());
            }
        }
    }

    /// Lets the case begin with what was expected until now.
    pub(super) fn begin_with_expected(&mut self) {
        self.before.clone_from(&self.expected);
    }

    /// What differs first in the memory that was found, if anything.
    pub(super) fn compare(&self, found: &[u8]) -> Option<String> {
        if found == self.expected {
            return None;
        }
        let mut differences = String::new();
        let mut end = 0;
        for (i, piece) in self.pieces.iter().enumerate() {
            let before = i.checked_sub(1).map_or("the first", |before| self.pieces[before].name);
            self.compare_guard(found, end..piece.start, before, &mut differences);
            end = piece.start + piece.bytes;
            self.compare_piece(found, piece, &mut differences);
        }
        let last = self.pieces.last().map_or("", |piece| piece.name);
        self.compare_guard(found, end..found.len(), last, &mut differences);
        (!differences.is_empty()).then_some(differences)
    }

    fn compare_guard(&self, found: &[u8], place: std::ops::Range<usize>, before: &str, differences: &mut String) {
        let pairs = || found[place.clone()].iter().zip(&self.expected[place.clone()]);
        let Some(first) = pairs().position(|(a, b)| a != b) else { return };
        let count = pairs().filter(|(a, b)| a != b).count();
        let _ = write!(differences, "[{count} bytes written outside, the first {first} bytes behind {before}] ");
    }

    fn compare_piece(&self, found: &[u8], piece: &Piece, differences: &mut String) {
        let place = piece.start..piece.start + piece.bytes;
        if piece.format == Format::Scratch || found[place.clone()] == self.expected[place] {
            return;
        }
        let size = piece.format.bytes();
        let numbers = |image: &'_ [u8], i: usize| number(&image[piece.start + i * size..], piece.format);
        let differs = |i: &usize| {
            let [before, expected, found] = [&self.before[..], &self.expected, found].map(|image| numbers(image, *i));
            let both_nan = expected.is_nan() && found.is_nan();
            expected.bits != found.bits && !(both_nan && expected.bits != before.bits)
        };
        let Some(first) = (0..piece.bytes / size).find(differs) else { return };
        let count = (first..piece.bytes / size).filter(differs).count();
        let [before, expected, found] = [&self.before[..], &self.expected, found].map(|image| numbers(image, first));
        let what = if found.bits == before.bits {
            " (not written)"
        } else if expected.bits == before.bits {
            " (to be left as it was)"
        } else {
            ""
        };
        let _ = write!(
            differences,
            "[{}: {count} of {} differ, number {first} is {}, expected {}{what}] ",
            piece.name,
            piece.bytes / size,
            found.show(),
            expected.show()
        );
    }
}

/// A number of a piece.
#[derive(Debug, Clone, Copy)]
struct Number {
    bits: u32,
    format: Format,
}

fn number(from: &[u8], format: Format) -> Number {
    let mut le = [0; 4];
    le[..format.bytes()].copy_from_slice(&from[..format.bytes()]);
    Number { bits: u32::from_le_bytes(le), format }
}

impl Number {
    fn value(self) -> Option<f32> {
        match self.format {
            Format::F32 => Some(f32::from_bits(self.bits)),
            Format::F16 => Some(f16_to_f32(self.bits as u16)),
            Format::I8 | Format::U32 | Format::Scratch => None,
        }
    }

    fn is_nan(self) -> bool {
        self.value().is_some_and(f32::is_nan)
    }

    fn show(self) -> String {
        match (self.value(), self.format) {
            (Some(value), _) => format!("{value:e} ({:#x})", self.bits),
            (None, Format::I8) => (self.bits as u8 as i8).to_string(),
            (None, _) => format!("{:#x}", self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case of one output of three floats, of which two are to be written.
    fn case() -> (Case, usize) {
        let mut case = Case::new(1 << 20);
        case.floats("input", &[1.0]);
        let out = case.output("output", Format::F32, 3);
        case.expect_floats(out, 0, &[2.0, f32::NAN]);
        let start = (out - (1 << 20)) as usize;
        (case, start)
    }

    #[test]
    fn what_was_written_as_expected_is_equal() {
        let (case, start) = case();
        let mut found = case.expected.clone();
        assert_eq!(case.compare(&found), None);
        found[start + 4..start + 8].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        assert_eq!(case.compare(&found), None, "a NaN is as good as another");
    }

    #[test]
    fn what_differs_is_told() {
        let (case, start) = case();
        let told = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut found = case.expected.clone();
            change(&mut found);
            case.compare(&found).unwrap()
        };
        let told_of_nothing = case.compare(&case.before).unwrap();
        assert!(told_of_nothing.contains("output: 2 of 3 differ, number 0"), "{told_of_nothing}");
        assert!(told_of_nothing.contains("not written"), "{told_of_nothing}");
        let one = told(&|found| found[start] ^= 1);
        assert!(one.contains("number 0 is 2.0000002e0 (0x40000001), expected 2e0 (0x40000000)"), "{one}");
        let left = told(&|found| found[start + 8] ^= 1);
        assert!(left.contains("number 2") && left.contains("to be left as it was"), "{left}");
        let outside = told(&|found| found[start + 12] = 0);
        assert!(outside.contains("1 bytes written outside, the first 0 bytes behind output"), "{outside}");
        let front = told(&|found| found[0] = 0);
        assert!(front.contains("written outside"), "{front}");
        let input = told(&|found| found[GUARD] ^= 1);
        assert!(input.contains("input: 1 of 1"), "{input}");
    }

    #[test]
    fn a_nan_that_was_there_is_not_one_that_was_written() {
        let mut case = Case::new(0);
        let out = case.floats("output", &[f32::NAN, f32::NAN]);
        case.expect_floats(out, 0, &[f32::NAN]);
        let mut found = case.expected.clone();
        found[GUARD..GUARD + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        assert_eq!(case.compare(&found), None);
        found[GUARD + 4..GUARD + 8].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        assert!(case.compare(&found).unwrap().contains("number 1"));
    }
}
