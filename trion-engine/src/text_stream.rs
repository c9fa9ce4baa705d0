//! Text as it is generated: complete characters only, and nothing that may belong to a stop string.

use crate::tokenizer::Tokenizer;

/// Turns ids into text one at a time. A character whose bytes are spread over several tokens comes out whole, with the last
/// of them. What all calls return, joined, is what [`Tokenizer::decode`] makes of all ids.
///
/// A call costs time and memory in proportion to its token, however long the text already is.
#[derive(Clone, Debug)]
pub struct TextStream {
    skip_special_tokens: bool,
    strip_left: usize,
    /// Bytes that are not a whole character yet: at most 3 between calls.
    pending: Vec<u8>,
    text: String,
}

impl TextStream {
    /// A stream at the beginning of a text, where some tokenizers have put a space that is to be taken away.
    pub fn new(tokenizer: &Tokenizer, skip_special_tokens: bool) -> Self {
        let strip_left = tokenizer.leading_strip();
        Self { skip_special_tokens, strip_left, pending: Vec::new(), text: String::new() }
    }

    /// A stream that goes on with a text: its first token keeps its space. This is for completions, where the prompt and
    /// the new text are one text.
    pub fn continuing(skip_special_tokens: bool) -> Self {
        Self { skip_special_tokens, strip_left: 0, pending: Vec::new(), text: String::new() }
    }

    /// Takes the next id, and returns the text that it completes, often empty. Bytes that can never become UTF-8 come out
    /// as U+FFFD. An id that is not in the vocabulary has no text: models may have more rows than their tokenizer has ids.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        tokenizer.append_bytes(id, self.skip_special_tokens, &mut self.strip_left, &mut self.pending);
        self.text.clear();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            let (valid, invalid) = match std::str::from_utf8(rest) {
                Ok(text) => (text, None),
                Err(error) => {
                    let (valid, _) = rest.split_at(error.valid_up_to());
                    (std::str::from_utf8(valid).unwrap_or_default(), error.error_len())
                }
            };
            self.text.push_str(valid);
            done += valid.len();
            let Some(length) = invalid else { break };
            self.text.push(char::REPLACEMENT_CHARACTER);
            done += length;
        }
        self.pending.drain(..done);
        &self.text
    }

    /// Ends the text: the bytes of a character that was never completed become one U+FFFD. Pushing again begins anew,
    /// within the same text.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// Cuts a stream of text off before the first stop string.
///
/// The first is the one that is complete first; of two that end at the same character, the longer. Text that may be the
/// beginning of a stop string is held back, so at most one byte less than the longest of them.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    ready: String,
    matched: Option<usize>,
}

impl StopStrings {
    /// Stops at any of `stops`. Empty strings are left out: they would stop before the first character.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), ready: String::new(), matched: None }
    }

    /// Takes the next piece of text, of any length, and returns what is now known to come before any stop string. After a
    /// match nothing comes out any more.
    pub fn push(&mut self, piece: &str) -> &str {
        self.ready.clear();
        if self.matched.is_some() {
            return &self.ready;
        }
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at, index)))
            .min();
        if let Some((_, at, index)) = first {
            self.matched = Some(index);
            self.ready.push_str(&self.held[..at]);
            self.held.clear();
        } else {
            let keep = self.stops.iter().map(|stop| longest_beginning_at_end(&self.held, stop)).max().unwrap_or(0);
            let decided = self.held.len() - keep;
            self.ready.extend(self.held.drain(..decided));
        }
        &self.ready
    }

    /// Ends the text, and returns what was held back.
    pub fn finish(&mut self) -> &str {
        self.ready.clear();
        std::mem::swap(&mut self.ready, &mut self.held);
        &self.ready
    }

    /// The stop string that was met, if one was.
    pub fn stopped(&self) -> Option<&str> {
        self.matched.and_then(|index| self.stops.get(index)).map(String::as_str)
    }
}

/// The length of the longest proper beginning of `stop` that `text` ends with, in bytes.
fn longest_beginning_at_end(text: &str, stop: &str) -> usize {
    let begins = |length: &usize| text.ends_with(&stop[..*length]);
    stop.char_indices().map(|(at, _)| at).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::{byte_level, sentence_piece};

    /// Pushes `ids` and returns all pieces; the last is from `finish`.
    fn pieces(stream: &mut TextStream, tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(tokenizer, id).to_owned()).collect();
        pieces.push(stream.finish().to_owned());
        pieces
    }

    #[test]
    fn split_characters_come_out_whole() {
        let tokenizer = byte_level();
        let crab: Vec<u32> = "🦀".bytes().map(u32::from).collect();
        let mut stream = TextStream::new(&tokenizer, true);
        assert_eq!(pieces(&mut stream, &tokenizer, &crab), ["", "", "", "🦀", ""]);
        let mut stream = TextStream::new(&tokenizer, true);
        assert_eq!(pieces(&mut stream, &tokenizer, &crab[..3]), ["", "", "", "\u{FFFD}"]);
        // A lone continuation byte, then the beginning of a character that an "a" interrupts.
        let broken = [crab[1], crab[0], crab[1], u32::from(b'a')];
        let mut stream = TextStream::new(&tokenizer, true);
        assert_eq!(pieces(&mut stream, &tokenizer, &broken), ["\u{FFFD}", "", "", "\u{FFFD}a", ""]);
        assert_eq!(tokenizer.decode(&broken, true).unwrap(), "\u{FFFD}\u{FFFD}a");
    }

    #[test]
    fn the_joined_pieces_are_the_decoded_text() {
        let text = " ab  abb<s> é🦀\n中 \u{FFFD} he hell<end>x ";
        for tokenizer in [byte_level(), sentence_piece()] {
            let ids = tokenizer.encode(text, true).unwrap();
            for skip in [false, true] {
                let mut stream = TextStream::new(&tokenizer, skip);
                let joined = pieces(&mut stream, &tokenizer, &ids).concat();
                assert_eq!(joined, tokenizer.decode(&ids, skip).unwrap());
            }
        }
    }

    #[test]
    fn random_ids_stream_as_they_decode() {
        let mut random = Random(1);
        for tokenizer in [byte_level(), sentence_piece()] {
            for _ in 0..2000 {
                let length = random.below(12);
                let ids: Vec<u32> = (0..length).map(|_| random.below(tokenizer.vocab_size()) as u32).collect();
                let skip = random.below(2) == 0;
                let mut stream = TextStream::new(&tokenizer, skip);
                let pieces = pieces(&mut stream, &tokenizer, &ids);
                assert!(stream.pending.is_empty());
                assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip).unwrap(), "{ids:?}");
            }
        }
    }

    #[test]
    fn only_the_beginning_of_a_text_loses_its_space() {
        let tokenizer = sentence_piece();
        let id = |token| tokenizer.token_to_id(token).unwrap();
        let ids = [1, id("▁a"), id("▁a"), id("▁"), id("▁")];
        let mut stream = TextStream::new(&tokenizer, true);
        assert_eq!(pieces(&mut stream, &tokenizer, &ids).concat(), "a a  ");
        let mut stream = TextStream::continuing(true);
        assert_eq!(pieces(&mut stream, &tokenizer, &ids).concat(), " a a  ");
    }

    #[test]
    fn ids_out_of_the_vocabulary_have_no_text() {
        let tokenizer = byte_level();
        let mut stream = TextStream::new(&tokenizer, false);
        assert_eq!(stream.push(&tokenizer, u32::MAX), "");
        assert_eq!(stream.push(&tokenizer, 259), "<end>");
    }

    #[test]
    fn text_before_a_stop_string_comes_out() {
        let mut stops = StopStrings::new(vec!["aab".into(), String::new()]);
        assert_eq!(stops.push("xaa"), "x");
        assert_eq!(stops.stopped(), None);
        assert_eq!(stops.push("a"), "a");
        assert_eq!(stops.push("bcd"), "");
        assert_eq!(stops.stopped(), Some("aab"));
        assert_eq!(stops.push("more"), "");
        assert_eq!(stops.finish(), "");
        assert_eq!(stops.stopped(), Some("aab"));
        let mut unmatched = StopStrings::new(vec!["aab".into()]);
        assert_eq!(unmatched.push("xa"), "x");
        assert_eq!(unmatched.finish(), "a");
        assert_eq!(unmatched.stopped(), None);
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        let stops = |names: &[&str]| StopStrings::new(names.iter().map(|&name| name.to_owned()).collect());
        let mut inner = stops(&["abcd", "bc"]);
        assert_eq!(inner.push("abcd"), "a");
        assert_eq!(inner.stopped(), Some("bc"));
        let mut same_end = stops(&["bc", "abc"]);
        assert_eq!(same_end.push("xabc"), "x");
        assert_eq!(same_end.stopped(), Some("abc"));
        let mut none = stops(&[]);
        assert_eq!(none.push("text"), "text");
        assert_eq!(none.finish(), "");
    }

    /// xorshift64*: enough to cut texts at random.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
        }

        fn text(&mut self, alphabet: &[char], length: usize) -> String {
            (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
        }
    }

    /// What should come out, by looking at every beginning of the whole text.
    fn expected(text: &str, stops: &[String]) -> (String, bool) {
        let ends = text.char_indices().map(|(at, character)| at + character.len_utf8());
        for end in ends {
            let ending = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            if let Some(longest) = ending.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn any_cut_of_a_text_stops_at_the_same_place() {
        let mut random = Random(7);
        let (mut stopped, mut held) = (0, 0);
        for round in 0..20_000 {
            let alphabet: &[char] = if round % 2 == 0 { &['a', 'b'] } else { &['a', 'é', '🦀'] };
            let length = random.below(16);
            let text = random.text(alphabet, length);
            let stops: Vec<String> = (0..random.below(4))
                .map(|_| {
                    let length = random.below(5);
                    random.text(alphabet, length)
                })
                .collect();
            let mut stream = StopStrings::new(stops.clone());
            let (mut out, mut rest) = (String::new(), text.as_str());
            while !rest.is_empty() {
                let cuts: Vec<usize> = rest.char_indices().map(|(at, _)| at).chain([rest.len()]).collect();
                let (piece, after) = rest.split_at(cuts[random.below(cuts.len())]);
                out.push_str(stream.push(piece));
                rest = after;
            }
            let was_stopped = stream.stopped().is_some();
            stopped += usize::from(was_stopped);
            held += usize::from(!stream.held.is_empty());
            let longest = stops.iter().map(String::len).max().unwrap_or(1);
            assert!(stream.held.len() < longest.max(1), "{text} {stops:?}");
            out.push_str(stream.finish());
            assert_eq!((out, was_stopped), expected(&text, &stops), "{text} {stops:?}");
        }
        assert!(stopped > 5000 && held > 1000, "{stopped} stopped, {held} held back");
    }
}
