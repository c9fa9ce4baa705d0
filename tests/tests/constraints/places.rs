//! Masks and states, token by token.

use trion_engine::{Constraint, ConstraintState, Grammar, Mask, Model};

use crate::support::{Random, after, allowed, bytes_model, character_id, pieces_model, tales};

const END: u32 = 286;

/// The bytes that a token adds to a text; none for a special one.
fn text_of(model: &Model, token: u32) -> Option<String> {
    let tokenizer = model.tokenizer().unwrap();
    let special = tokenizer.special_ids().contains(&token) || model.eos_token_ids().contains(&token);
    if special { None } else { tokenizer.decode(&[token], false).ok() }
}

#[test]
fn constraints_go_to_other_threads() {
    fn sendable<T: Send + Sync>() {}
    sendable::<Constraint>();
    sendable::<ConstraintState>();
    let model = bytes_model("threads", |_, _| ());
    let constraint = Constraint::new(&model, Grammar::Regex("[a-z]{3,9}!")).unwrap();
    let walk = |constraint: &Constraint| {
        let (mut state, mut random, mut tokens) = (constraint.start().unwrap(), Random(3), Vec::new());
        while state.mask() != Mask::Complete {
            let token = random.pick(&allowed(&mut state));
            state.accept(token).unwrap();
            tokens.push(token);
        }
        tokens
    };
    let expected = walk(&constraint);
    std::thread::scope(|scope| {
        let walks: Vec<_> = (0..4).map(|_| scope.spawn(|| walk(&constraint.clone()))).collect();
        assert!(walks.into_iter().all(|walk| walk.join().unwrap() == expected));
    });
}

/// Walks along `grammar`; at each place, every token is allowed if and only if a clone accepts it.
fn compare_with_accepting(model: &Model, grammar: Grammar<'_>, steps: usize) {
    let mut state = Constraint::new(model, grammar).unwrap().start().unwrap();
    let mut random = Random(11);
    for _ in 0..steps {
        // The end of the text may follow a text that has ended.
        let ended = state.mask() == Mask::Complete;
        let allowed = if ended { model.eos_token_ids().to_vec() } else { allowed(&mut state) };
        let before = state.clone();
        for token in (0..model.config().vocab_size as u32 + 40).chain([u32::MAX]) {
            let mut next = state.clone();
            let accepted = next.accept(token);
            assert_eq!(accepted.is_ok(), allowed.contains(&token), "{grammar:?} {token} {accepted:?}");
            if accepted.is_err() {
                assert_eq!(next.mask(), state.mask(), "a refused token changes nothing");
            }
        }
        assert_eq!(before.clone().mask(), state.mask());
        let ends = model.eos_token_ids();
        let onward: Vec<u32> = allowed.into_iter().filter(|token| !ends.contains(token)).collect();
        if onward.is_empty() {
            return;
        }
        state.accept(random.pick(&onward)).unwrap();
    }
}

#[test]
fn a_mask_is_what_can_be_accepted() {
    let model = bytes_model("accept", |_, _| ());
    for grammar in [
        Grammar::Regex("(the|then|a[0-9]*) ?(end|é+)"),
        Grammar::Regex("(?s:.)*"),
        Grammar::JsonSchema(r#"{"type": "object", "properties": {"the": {"type": ["number", "null"]}}}"#),
        Grammar::Lark("start: \"(\" start \")\" | <|eot_id|> | \"the\"\n"),
    ] {
        compare_with_accepting(&model, grammar, 12);
    }
    compare_with_accepting(&tales(), Grammar::Regex("(the|then|a[0-9]*) ?[^a-m]+"), 2);
    let model = pieces_model("accept-pieces", &["<unk>", "▁a", "a", "b", "<0x61>", "<0xC3>", "<0xA9>", "▁", "aab"]);
    compare_with_accepting(&model, Grammar::Regex(" a[aé]{2} (b|a)+"), 8);
}

#[test]
fn a_mask_is_what_continues_a_word_of_the_language() {
    let model = tales();
    let words = ["cat", "cattle", "dog", "dogs and cats", "a", "then the sea"];
    let pattern = words.join("|");
    let constraint = Constraint::new(&model, Grammar::Regex(&pattern)).unwrap();
    let mut random = Random(5);
    for _ in 0..20 {
        let (mut state, mut text) = (constraint.start().unwrap(), String::new());
        loop {
            let whole = words.contains(&text.as_str());
            assert_eq!(state.may_end(), whole, "{text}");
            let expected: Vec<u32> = (0..model.config().vocab_size as u32)
                .filter(|token| match text_of(&model, *token) {
                    Some(piece) => {
                        !piece.is_empty() && words.iter().any(|word| word.starts_with(&(text.clone() + &piece)))
                    }
                    None => whole && model.eos_token_ids().contains(token),
                })
                .collect();
            if whole && expected.iter().all(|token| model.eos_token_ids().contains(token)) {
                assert_eq!(state.mask(), Mask::Complete, "{text}");
                break;
            }
            assert_eq!(allowed(&mut state), expected, "{text}");
            let token = random.pick(&expected);
            state.accept(token).unwrap();
            let Some(piece) = text_of(&model, token) else { break };
            text.push_str(&piece);
        }
    }
}

#[test]
fn a_clone_goes_its_own_way() {
    let model = bytes_model("clone", |_, _| ());
    let id = |character| character_id(&model, character);
    let mut original = after(&model, Grammar::Regex("a(bx+|cy+)z"), "a");
    let (mut left, mut right) = (original.clone(), original.clone());
    left.accept(id('b')).unwrap();
    right.accept(id('c')).unwrap();
    for (state, expected) in [(&mut left, "x"), (&mut right, "y"), (&mut original, "bc")] {
        assert_eq!(allowed(state), expected.chars().map(id).collect::<Vec<_>>());
    }
    // The end of one is not the end of the other.
    let mut fork = left.clone();
    for character in ['x', 'x', 'z'] {
        fork.accept(id(character)).unwrap();
    }
    assert_eq!(fork.mask(), Mask::Complete);
    assert_eq!(fork.clone().mask(), Mask::Complete);
    assert_eq!(allowed(&mut left), [id('x')]);
}

#[test]
fn the_end_of_a_text() {
    let model = bytes_model("end", |_, _| ());
    let a = character_id(&model, 'a');
    let mut state = after(&model, Grammar::Regex("a+"), "");
    assert!(!state.may_end());
    assert!(state.accept(END).is_err());
    state.accept(a).unwrap();
    assert!(state.may_end());
    assert_eq!(allowed(&mut state), [a, END]);
    state.accept(END).unwrap();
    assert_eq!(state.mask(), Mask::Complete);
    assert!(state.may_end());
    let error = state.accept(a).unwrap_err().to_string();
    assert!(error.contains("ended"), "{error}");
    // A text that is whole by itself takes the token that ends it, and no other.
    let mut state = after(&model, Grammar::Regex("ab"), "ab");
    assert_eq!(state.mask(), Mask::Complete);
    assert!(state.accept(a).is_err());
    state.accept(END).unwrap();
    assert_eq!(state.mask(), Mask::Complete);
}

#[test]
fn special_tokens_come_where_a_grammar_names_them() {
    let model = bytes_model("special", |_, _| ());
    let turn = model.tokenizer().unwrap().token_to_id("<|eot_id|>").unwrap();
    let mut state = after(&model, Grammar::Lark("start: \"a\" <|eot_id|> \"b\"\n"), "a");
    assert_eq!(allowed(&mut state), [turn]);
    state.accept(turn).unwrap();
    assert_eq!(allowed(&mut state), [character_id(&model, 'b')]);
    // Not as a text, though it would spell one.
    let mut state = after(&model, Grammar::Regex("(?s:.)*"), "");
    let free = allowed(&mut state);
    assert!(!free.contains(&turn) && free.contains(&END) && free.len() > 200);
    let mut state = after(&model, Grammar::Regex("<\\|eot_id\\|>"), "");
    assert_eq!(allowed(&mut state), [character_id(&model, '<')]);
}

#[test]
fn characters_may_be_spelled_by_their_bytes() {
    let model = bytes_model("bytes", |_, _| ());
    // GPT-2's names of the bytes C3 and A9.
    let (first, second) = (character_id(&model, 'Ã'), character_id(&model, '©'));
    let mut state = after(&model, Grammar::Regex("é"), "");
    assert_eq!(allowed(&mut state), [first]);
    state.accept(first).unwrap();
    assert_eq!(allowed(&mut state), [second]);
    assert!(!state.may_end());
    state.accept(second).unwrap();
    assert_eq!(state.mask(), Mask::Complete);
}

#[test]
fn many_tokens_are_accepted_without_asking_for_masks() {
    let model = bytes_model("many", |_, _| ());
    let mut state = after(&model, Grammar::JsonSchema("{}"), "[\"");
    let mut random = Random(1);
    for _ in 0..5000 {
        state.accept(character_id(&model, random.pick(&['a', 'b', 'z', '0', '{', 'Q']))).unwrap();
    }
    for character in ['"', ']'] {
        state.accept(character_id(&model, character)).unwrap();
    }
    assert!(state.may_end());
}
