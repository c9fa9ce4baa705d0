//! Whole texts, with real and with random weights.

use serde_json::Value;
use trion_engine::{Constraint, GenerateOptions, Grammar, Model, SamplerOptions, Serial, StopReason, generate};

use crate::support::{bytes_model, pieces_model, samplers, tales, write};

const CREW: &str = r##"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "rank": {"enum": ["captain", "mate", "cook"]},
        "age": {"type": "integer", "minimum": 16, "maximum": 99},
        "ships": {"type": "array", "items": {"$ref": "#/$defs/ship"}, "minItems": 1, "maxItems": 2}
    },
    "required": ["name", "rank", "age", "ships"],
    "additionalProperties": false,
    "$defs": {"ship": {
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{1,3}$"}, "afloat": {"type": "boolean"}},
        "required": ["code"],
        "additionalProperties": false
    }}
}"##;

fn check_crew(text: &str) {
    let crew: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let crew = crew.as_object().unwrap();
    assert_eq!(crew.len(), 4, "{text}");
    let letters = crew["name"].as_str().unwrap().chars().count();
    assert!((1..=12).contains(&letters), "{text}");
    assert!(["captain", "mate", "cook"].contains(&crew["rank"].as_str().unwrap()), "{text}");
    assert!((16..=99).contains(&crew["age"].as_i64().unwrap()), "{text}");
    let ships = crew["ships"].as_array().unwrap();
    assert!((1..=2).contains(&ships.len()), "{text}");
    for ship in ships {
        let code = ship["code"].as_str().unwrap();
        let (letters, digits) = code.split_at(2);
        assert!(letters.bytes().all(|b| b.is_ascii_uppercase()), "{text}");
        assert!((1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        assert!(ship.get("afloat").is_none_or(Value::is_boolean), "{text}");
        assert!(ship.as_object().unwrap().keys().all(|key| key == "code" || key == "afloat"), "{text}");
    }
}

fn models(test: &str) -> [Model; 2] {
    [tales(), bytes_model(test, |_, _| ())]
}

#[test]
fn json_follows_its_schema() {
    for model in models("json") {
        let constraint = Constraint::new(&model, Grammar::JsonSchema(CREW)).unwrap();
        for sampler in samplers() {
            let generated = write(&model, &constraint, sampler, 500);
            assert_eq!(generated.stop, StopReason::Constraint, "{}", generated.text);
            check_crew(&generated.text);
        }
    }
}

#[test]
fn text_matches_its_regular_expression() {
    for model in models("regex") {
        let constraint = Constraint::new(&model, Grammar::Regex("(cat|dog)s?(-[0-9]{2,4}){2}|[^a-z]x/\\\\")).unwrap();
        for sampler in samplers() {
            let generated = write(&model, &constraint, sampler, 60);
            let text = generated.text.as_str();
            // Four digits at the end leave nothing but the end; fewer leave it to the model.
            assert!([StopReason::Constraint, StopReason::EndOfText].contains(&generated.stop), "{text}");
            let animal = text.strip_prefix("cat").or_else(|| text.strip_prefix("dog"));
            let Some(rest) = animal else {
                let mut characters = text.chars();
                assert!(characters.next().is_some_and(|c| !c.is_ascii_lowercase()), "{text}");
                assert_eq!(characters.as_str(), "x/\\");
                continue;
            };
            let rest = rest.strip_prefix('s').unwrap_or(rest);
            let numbers: Vec<&str> = rest.strip_prefix('-').unwrap().split('-').collect();
            assert_eq!(numbers.len(), 2, "{text}");
            let is_number = |n: &&str| (2..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
            assert!(numbers.iter().all(is_number), "{text}");
        }
    }
}

#[test]
fn text_is_derived_from_its_grammar() {
    let grammar =
        "start: sum\nsum: term (\" + \" term)~0..3\nterm: NUMBER | \"(\" sum \")\"\nNUMBER: /[1-9][0-9]{0,2}/\n";
    for model in models("lark") {
        let constraint = Constraint::new(&model, Grammar::Lark(grammar)).unwrap();
        for sampler in samplers() {
            let generated = write(&model, &constraint, sampler, 200);
            let text = generated.text.as_str();
            let mut depth = 0;
            for character in text.chars() {
                depth += i32::from(character == '(') - i32::from(character == ')');
                assert!(depth >= 0 && "0123456789+() ".contains(character), "{text}");
            }
            let whole = matches!(generated.stop, StopReason::Constraint | StopReason::EndOfText);
            assert!(whole || generated.stop == StopReason::MaxTokens, "{text}: {:?}", generated.stop);
            assert!(!whole || depth == 0, "{text}");
        }
    }
}

#[test]
fn tokens_with_spaces_and_bytes_of_their_own() {
    let pieces = [
        "<unk>", "<s>", "</s>", "▁", "{", "}", "\"", ":", "▁a", "a", "b", "ab", "\":", "1", "2", ",", "▁1", "[", "]",
        "▁[", "<0xC3>", "<0xA9>", "<0x61>", "<0x0A>", "<0xFF>",
    ];
    let model = pieces_model("pieces", &pieces);
    let schema = r#"{"type": "object", "properties": {"ab": {"type": "array", "items": {"enum": [1, 2, 12]},
        "maxItems": 3}}, "required": ["ab"], "additionalProperties": false}"#;
    let constraint = Constraint::new(&model, Grammar::JsonSchema(schema)).unwrap();
    for sampler in samplers() {
        let generated = write(&model, &constraint, sampler, 600);
        assert_eq!(generated.stop, StopReason::Constraint, "{}", generated.text);
        let value: Value = serde_json::from_str(&generated.text).unwrap();
        assert!(value["ab"].as_array().unwrap().len() <= 3);
    }
    // A character that is spelled by its bytes, between tokens that begin with a space.
    let constraint = Constraint::new(&model, Grammar::Regex(" aé a")).unwrap();
    for sampler in samplers() {
        assert_eq!(write(&model, &constraint, sampler, 60).text, " aé a");
    }
}

#[test]
fn text_that_is_cut_short_keeps_its_reason() {
    let model = bytes_model("short", |_, _| ());
    let constraint = Constraint::new(&model, Grammar::Regex("xyzzy")).unwrap();
    for (max_tokens, text, stop) in [
        (0, "", StopReason::MaxTokens),
        (3, "xyz", StopReason::MaxTokens),
        (5, "xyzzy", StopReason::Constraint),
        (6, "xyzzy", StopReason::Constraint),
    ] {
        let generated = write(&model, &constraint, SamplerOptions::GREEDY, max_tokens);
        assert_eq!((generated.text.as_str(), generated.stop), (text, stop));
    }
    let options = GenerateOptions { context: 5, constraint: Some(constraint), ..GenerateOptions::default() };
    let generated = generate(&model, "a", &options, &Serial, |_| true).unwrap();
    // The prompt has two tokens, and the last that is written is not computed.
    assert_eq!((generated.text.as_str(), generated.stop), ("xyzz", StopReason::Context));
    let empty = Constraint::new(&model, Grammar::Regex("")).unwrap();
    let generated = write(&model, &empty, SamplerOptions::GREEDY, 10);
    assert_eq!((generated.text.as_str(), generated.stop), ("", StopReason::Constraint));
}

#[test]
fn text_that_may_end_goes_on_where_no_token_ends_it() {
    let model = bytes_model("no-eos", |config, _| {
        config.as_object_mut().unwrap().remove("eos_token_id");
    });
    assert!(model.eos_token_ids().is_empty());
    let open = Constraint::new(&model, Grammar::Regex("[ab]+")).unwrap();
    let closed = Constraint::new(&model, Grammar::Regex("[ab]{7}")).unwrap();
    for sampler in samplers() {
        let generated = write(&model, &open, sampler, 20);
        assert_eq!((generated.text.len(), generated.stop), (20, StopReason::MaxTokens));
        let generated = write(&model, &closed, sampler, 20);
        assert_eq!((generated.text.len(), generated.stop), (7, StopReason::Constraint));
    }
}

#[test]
fn a_dead_end_keeps_the_text_before_it() {
    // The only token that has a tilde has two of them.
    let model = bytes_model("tilde", |_, tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.remove("~").unwrap();
        vocabulary.insert("~~".to_owned(), id);
    });
    let text = |pattern| {
        let constraint = Constraint::new(&model, Grammar::Regex(pattern)).unwrap();
        let generated = write(&model, &constraint, SamplerOptions::GREEDY, 20);
        (generated.text, generated.stop)
    };
    assert_eq!(text("sea~"), ("sea".to_owned(), StopReason::DeadEnd));
    assert_eq!(text("sea~~"), ("sea~~".to_owned(), StopReason::Constraint));
    assert_eq!(text("[^\\s\\S]"), (String::new(), StopReason::DeadEnd));
    // A bound of the library's work, in the middle of a text.
    let (written, stop) = text("((a{1,1000}){1,1000}){1,1000}b");
    assert!(written.bytes().all(|b| b == b'a'), "{written}");
    assert!([StopReason::DeadEnd, StopReason::MaxTokens].contains(&stop), "{stop:?}");
}

#[test]
fn a_constraint_of_another_model_is_refused() {
    let [model, other] = models("other");
    let constraint = Some(Constraint::new(&other, Grammar::Regex("a")).unwrap());
    let options = GenerateOptions { constraint, ..GenerateOptions::default() };
    let error = generate(&model, "a", &options, &Serial, |_| true).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    assert!(generate(&other.clone(), "a", &options, &Serial, |_| true).is_ok());
    let none = Model::open(trion_tests::golden("llama_float")).unwrap();
    assert!(Constraint::new(&none, Grammar::Regex("a")).unwrap_err().to_string().contains("tokenizer"));
}
