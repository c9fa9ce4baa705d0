//! What a JSON schema may ask for: bounds of work that the library does not count.

use serde_json::Value;

/// Longest string, in bytes. It may be a regular expression, and there may be many.
const MAX_STRING_BYTES: usize = 1 << 14;

/// Most properties of a schema. An object costs time in proportion to the square of its properties, and `allOf` makes
/// one object of several.
const MAX_PROPERTIES: usize = 2000;

/// Largest common multiple of all `multipleOf`, counted in units of the last decimal of the finest of them: as many
/// states has the automaton that divides.
const MAX_MULTIPLE: u64 = 100_000;

/// What was met in a schema.
#[derive(Default)]
struct Found {
    properties: usize,
    multiples: Vec<f64>,
}

/// Checks a whole schema.
///
/// # Errors
/// What goes beyond which bound.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut found = Found::default();
    found.visit(schema)?;
    if found.properties > MAX_PROPERTIES {
        return Err(format!("{} properties, at most {MAX_PROPERTIES} expected", found.properties));
    }
    common_multiple(&found.multiples)
        .map(|_| ())
        .ok_or_else(|| format!("multipleOf: the common multiple of all, {:?}, is too large", found.multiples))
}

impl Found {
    fn visit(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::String(text) => check_string(text),
            Value::Array(items) => items.iter().try_for_each(|item| self.visit(item)),
            Value::Object(map) => map.iter().try_for_each(|(key, value)| {
                check_string(key)?;
                match (key.as_str(), value) {
                    ("properties" | "patternProperties", Value::Object(properties)) => {
                        self.properties += properties.len();
                    }
                    ("multipleOf", Value::Number(number)) => self.multiples.extend(number.as_f64()),
                    _ => {}
                }
                self.visit(value)
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
}

fn check_string(text: &str) -> Result<(), String> {
    match text.len() {
        0..=MAX_STRING_BYTES => Ok(()),
        length => Err(format!("a string of {length} bytes, at most {MAX_STRING_BYTES} expected")),
    }
}

/// None if it is beyond [`MAX_MULTIPLE`], or a number has more decimals than can be told apart. What is not above 0 is
/// left to the library.
fn common_multiple(numbers: &[f64]) -> Option<u64> {
    let scaled = |number: f64, decimals: i32| {
        let scaled = number * 10_f64.powi(decimals);
        // Numbers that this takes for each other have more digits than the library admits.
        ((scaled - scaled.round()).abs() <= 1e-12 * scaled).then(|| scaled.round())
    };
    let numbers = numbers.iter().copied().filter(|number| *number > 0.0);
    let mut decimals = numbers.clone().map(|number| (0..=18).find(|decimals| scaled(number, *decimals).is_some()));
    let finest = decimals.try_fold(0, |finest, decimals| Some(finest.max(decimals?)))?;
    let mut common = 1;
    for number in numbers {
        let number = scaled(number, finest).filter(|number| *number <= MAX_MULTIPLE as f64)? as u64;
        common = common / greatest_common_divisor(common, number) * number;
        if common > MAX_MULTIPLE {
            return None;
        }
    }
    Some(common)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_multiples_are_counted_in_the_finest_unit() {
        for (numbers, expected) in [
            (&[][..], Some(1)),
            (&[5.0, 2.0, 10.0], Some(10)),
            (&[0.01], Some(1)),
            (&[0.01, 5.0], Some(500)),
            (&[0.25, 0.1], Some(50)),
            (&[86_400.0], Some(86_400)),
            (&[1e-7], Some(1)),
            (&[0.0, -3.0, 3.0], Some(3)),
            (&[9973.0, 9967.0], None),
            (&[99_999_999.0], None),
            (&[1e300], None),
            (&[0.3, 1.0 / 3.0], None),
            (&[10.000_009], None),
            (&[0.000_099_998_3], None),
            (&[1e-300], None),
            (&[0.1 + 0.2], Some(3)),
        ] {
            assert_eq!(common_multiple(numbers), expected, "{numbers:?}");
        }
    }
}
