//! The way back: the bytes of one token.

use serde::Deserialize;

/// How the written form of a token stands for bytes.
#[derive(Debug, PartialEq)]
pub(crate) enum Detokenizer {
    /// Every character of a token stands for one byte (GPT-2's table).
    ByteLevel,
    /// Tokens are text with replacements (mostly `▁` for a space), and `<0xNN>` for a byte.
    SentencePiece {
        /// What to replace, by what, in order.
        replace: Vec<(String, String)>,
        /// Whether `<0xNN>` is a byte.
        byte_fallback: bool,
        /// A character that is taken away from the beginning of a text, up to so many times.
        strip: (char, usize),
    },
}

/// A step of `decoder` in a `tokenizer.json`: the kinds that occur with byte pair encoding.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
pub(crate) enum Decoder {
    /// GPT-2's byte table.
    ByteLevel,
    /// `<0xNN>` is a byte.
    ByteFallback,
    /// Joins the tokens; what follows works on the whole text.
    Fuse,
    /// One text for another.
    Replace {
        /// What to replace.
        pattern: StringPattern,
        /// By what.
        content: String,
    },
    /// Takes a character away from both ends.
    Strip {
        /// The character.
        content: char,
        /// How often at the beginning.
        start: usize,
        /// How often at the end.
        stop: usize,
    },
    /// Steps in order.
    Sequence {
        /// The steps.
        decoders: Vec<Decoder>,
    },
}

/// A pattern that is a plain string; regular expressions are refused by this type.
#[derive(Debug, Deserialize)]
pub(crate) struct StringPattern {
    /// The string.
    #[serde(rename = "String")]
    pub(crate) string: String,
}

/// How many times as long replacements may make a text, all together. Published files make one byte of a space three;
/// without a bound, each of some dozens of steps could double the text.
pub(super) const MAX_GROWTH: usize = 64;

/// Refuses replacements that together make a text longer than that.
pub(super) fn check_growth(growth: usize) -> Result<(), String> {
    if growth > MAX_GROWTH {
        return Err(format!("Replace makes a text up to {growth} times as long, at most {MAX_GROWTH} expected"));
    }
    Ok(())
}

impl StringPattern {
    /// How many times as long a text may become, if `content` takes the place of this string, which is not empty.
    pub(super) fn growth(&self, content: &str) -> usize {
        content.len().div_ceil(self.string.len().max(1)).max(1)
    }
}

impl Detokenizer {
    /// The detokenizer that does what the steps of `decoder` do.
    ///
    /// # Errors
    /// The reason, when the steps are not one of the two known sequences.
    pub(crate) fn new(decoder: Decoder) -> Result<Self, String> {
        let steps = match decoder {
            Decoder::Sequence { decoders } => decoders,
            single => vec![single],
        };
        if matches!(steps.as_slice(), [Decoder::ByteLevel]) {
            return Ok(Self::ByteLevel);
        }
        let mut replace = Vec::new();
        let (mut byte_fallback, mut fused, mut strip, mut growth) = (false, false, None, 1_usize);
        for step in steps {
            match step {
                Decoder::Replace { pattern, content } if !byte_fallback && !fused && !pattern.string.is_empty() => {
                    growth = growth.saturating_mul(pattern.growth(&content));
                    replace.push((pattern.string, content));
                }
                Decoder::ByteFallback if !byte_fallback && !fused => byte_fallback = true,
                Decoder::Fuse if !fused => fused = true,
                Decoder::Strip { content, start, stop: 0 } if fused && strip.is_none() => {
                    strip = Some((content, start));
                }
                other => {
                    return Err(format!(
                        "{other:?} is not supported in this place; supported are ByteLevel alone, or Replace (of strings), \
                         ByteFallback, Fuse, Strip (of the beginning) in this order"
                    ));
                }
            }
        }
        check_growth(growth)?;
        Ok(Self::SentencePiece { replace, byte_fallback, strip: strip.unwrap_or((' ', 0)) })
    }

    /// How many characters the beginning of a text may lose.
    pub(crate) fn leading_strip(&self) -> usize {
        match self {
            Self::ByteLevel => 0,
            Self::SentencePiece { strip, .. } => strip.1,
        }
    }

    /// Appends the bytes of `token` to `out`. `strip_left` counts the characters that may still be taken away at the
    /// beginning of the text; it is 0 as soon as something else was met.
    pub(crate) fn append(&self, token: &str, strip_left: &mut usize, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = out.len();
                for character in token.chars() {
                    let Some(byte) = byte_of(character) else {
                        // An added token may be written as plain text.
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    };
                    out.push(byte);
                }
            }
            Self::SentencePiece { replace, byte_fallback, strip } => {
                let byte = if *byte_fallback { fallback_byte(token) } else { None };
                let mut text = token.to_owned();
                for (from, to) in replace {
                    text = text.replace(from, to);
                }
                let mut bytes = match &byte {
                    Some(byte) => std::slice::from_ref(byte),
                    None => text.as_bytes(),
                };
                let mut buffer = [0; 4];
                let character: &[u8] = strip.0.encode_utf8(&mut buffer).as_bytes();
                while *strip_left > 0 && !bytes.is_empty() {
                    match bytes.strip_prefix(character) {
                        Some(rest) => {
                            bytes = rest;
                            *strip_left -= 1;
                        }
                        None => *strip_left = 0,
                    }
                }
                out.extend_from_slice(bytes);
            }
        }
    }
}

/// The byte that GPT-2 writes as `character`: printable Latin-1 stands for itself, the other 68 bytes, ascending, for the
/// characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte of a token written `<0xNN>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_table_covers_every_byte_once() {
        let mut seen = [0u32; 256];
        for character in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(character) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn fallback_bytes_have_two_hex_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xff>"), Some(255));
        for token in ["<0xA>", "<0x+1>", "<0x0AB>", "0x0A", "<0xé>", "<0x"] {
            assert_eq!(fallback_byte(token), None, "{token}");
        }
    }

    #[test]
    fn only_the_known_sequences_are_accepted() {
        let new =
            |json: &str| serde_json::from_str::<Decoder>(json).map_err(|e| e.to_string()).and_then(Detokenizer::new);
        assert_eq!(new(r#"{"type":"ByteLevel","use_regex":true}"#), Ok(Detokenizer::ByteLevel));
        let strip = r#"{"type":"Strip","content":" ","start":1,"stop":0}"#;
        assert!(new(&format!(r#"{{"type":"Sequence","decoders":[{{"type":"Fuse"}},{strip}]}}"#)).is_ok());
        assert!(new(&format!(r#"{{"type":"Sequence","decoders":[{strip},{{"type":"Fuse"}}]}}"#)).is_err());
        assert!(new(&strip.replace("\"stop\":0", "\"stop\":1")).is_err());
        assert!(new(r#"{"type":"CTC","pad_token":"","word_delimiter_token":"","cleanup":false}"#).is_err());
        assert!(new(r#"{"type":"Replace","pattern":{"Regex":"a"},"content":"b"}"#).is_err());
        assert!(new(r#"{"type":"Replace","pattern":{"String":""},"content":"b"}"#).is_err());
    }
}
