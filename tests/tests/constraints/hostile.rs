//! Grammars that are wrong, or ask for much: each gives an error, or works within its bounds.

use std::time::{Duration, Instant};

use trion_engine::{Constraint, Grammar, Model};

use crate::support::{Random, allowed, bytes_model};

/// Far more than any of these takes without optimization, and far less than a grammar without bounds would take.
const LONGEST: Duration = Duration::from_secs(10);

/// Compiles a grammar and walks along it at random. Gives the error, or nothing.
fn outcome(model: &Model, grammar: Grammar<'_>) -> Option<String> {
    let start = Instant::now();
    let constraint = Constraint::new(model, grammar);
    let result = match constraint {
        Err(error) => Some(error.to_string()),
        Ok(constraint) => {
            let (mut state, mut random) = (constraint.start().unwrap(), Random(17));
            for _ in 0..40 {
                let tokens = allowed(&mut state);
                if tokens.is_empty() || state.accept(random.pick(&tokens)).is_err() {
                    break;
                }
            }
            None
        }
    };
    assert!(start.elapsed() < LONGEST, "{:?}", start.elapsed());
    result
}

/// `length` pieces of text.
fn chain(link: fn(usize) -> String, length: usize) -> String {
    (0..length).map(link).collect()
}

#[test]
fn wrong_grammars_are_refused_with_a_reason() {
    let model = bytes_model("wrong", |_, _| ());
    let deep = "[".repeat(10_000);
    let deep_schema = "{\"items\":".repeat(10_000);
    let deep_groups = "(".repeat(10_000) + "a" + &")".repeat(10_000);
    let deep_lark = format!("start: {}\"a\"{}\n", "(".repeat(5000), ")".repeat(5000));
    let (long_regex, long_lark) = ("a".repeat((1 << 16) + 1), " ".repeat((1 << 16) + 1));
    let long_schema = " ".repeat((1 << 17) + 1);
    let long_pattern = format!("{{\"pattern\": \"{}\"}}", "a".repeat((1 << 14) + 1));
    let many_optional = chain(|i| format!("\"p{i}\":{{}},"), 8000);
    let many_optional = format!("{{\"properties\":{{{many_optional}\"z\":{{}}}}}}");
    let cases = [
        (Grammar::JsonSchema(""), "EOF"),
        (Grammar::JsonSchema("{"), "line 1 column 1"),
        (Grammar::JsonSchema("{\"type\": }"), "column 10"),
        (Grammar::JsonSchema("3"), "object or boolean"),
        (Grammar::JsonSchema("[]"), "object or boolean"),
        (Grammar::JsonSchema("\"string\""), "object or boolean"),
        (Grammar::JsonSchema("{\"type\": 3}"), "type"),
        (Grammar::JsonSchema("{\"type\": \"ship\"}"), "ship"),
        (Grammar::JsonSchema("{\"type\": [\"string\", 1]}"), "string"),
        (Grammar::JsonSchema("{\"properties\": []}"), "properties must be an object"),
        (Grammar::JsonSchema("{\"required\": \"a\"}"), "required"),
        (Grammar::JsonSchema("{\"enum\": 1}"), "enum"),
        (Grammar::JsonSchema("{\"not\": {}}"), "not"),
        (Grammar::JsonSchema("{\"if\": {}, \"then\": {}}"), "if"),
        (Grammar::JsonSchema("{\"uniqueItems\": true}"), "uniqueItems"),
        (Grammar::JsonSchema("{\"oneOf\": [{\"minLength\": 3}, {\"maxLength\": 5}]}"), "oneOf"),
        (Grammar::JsonSchema("{\"$ref\": \"#/$defs/nowhere\"}"), "not found"),
        (Grammar::JsonSchema("{\"$ref\": \"https://example.com/schema\"}"), "Only absolute"),
        (Grammar::JsonSchema("{\"pattern\": \"(\"}"), "regex"),
        (Grammar::JsonSchema("{\"minimum\": 5, \"maximum\": 1, \"type\": \"integer\"}"), "Unsatisfiable"),
        (Grammar::JsonSchema("false"), "Unsatisfiable"),
        (Grammar::JsonSchema("{\"format\": \"martian\", \"type\": \"string\"}"), "martian"),
        (Grammar::JsonSchema("{\"x-guidance\": {\"speed\": 9}}"), "speed"),
        (Grammar::JsonSchema(&deep), "recursion limit"),
        (Grammar::JsonSchema(&deep_schema), "recursion limit"),
        (Grammar::JsonSchema(&long_schema), "at most 131072"),
        (Grammar::JsonSchema(&long_pattern), "at most 16384"),
        (Grammar::JsonSchema(&many_optional), "at most 2000"),
        (Grammar::JsonSchema("{\"multipleOf\": 99999999, \"type\": \"integer\"}"), "multipleOf"),
        (Grammar::Lark("start: %json {\"multipleOf\": 99999999}\n"), "multipleOf"),
        (Grammar::Regex("("), "unclosed group"),
        (Grammar::Regex("a)"), "unopened group"),
        (Grammar::Regex("[a"), "unclosed character class"),
        (Grammar::Regex("a{3,1}"), "repetition"),
        (Grammar::Regex("*a"), "repetition"),
        (Grammar::Regex("a\\"), "escape"),
        (Grammar::Regex("\\bword"), "regular expression"),
        (Grammar::Regex("(?=a)b"), "look"),
        (Grammar::Regex("(a)\\1"), "backreference"),
        (Grammar::Regex("\\p{Martian}"), "Unicode property"),
        (Grammar::Regex("a{99999999999}"), "regular expression"),
        (Grammar::Regex(&deep), "regular expression"),
        (Grammar::Regex(&deep_groups), "nest"),
        (Grammar::Regex(&long_regex), "at most 65536"),
        (Grammar::Lark(""), "start"),
        (Grammar::Lark("start: nowhere\n"), "nowhere"),
        (Grammar::Lark("start: NOWHERE\n"), "NOWHERE"),
        (Grammar::Lark("start \"a\"\n"), "1("),
        (Grammar::Lark("start: (\"a\"\n"), "grammar"),
        (Grammar::Lark("start: A\nA: B\nB: A\n"), "circular"),
        (Grammar::Lark("start: \"a\"\nstart: \"b\"\n"), "start"),
        (Grammar::Lark("start: /(/\n"), "regex"),
        (Grammar::Lark("start: <|nowhere|>\n"), "nowhere"),
        (Grammar::Lark("start: <[288]>\n"), "range"),
        (Grammar::Lark("start: %json {\"type\": 3}\n"), "type"),
        (Grammar::Lark("start: \"a\"~5..2\n"), "grammar"),
        (Grammar::Lark("%import nowhere.nothing\nstart: \"a\"\n"), "nowhere"),
        (Grammar::Lark("start: é\n"), "grammar"),
        (Grammar::Lark(&deep_lark), "nested"),
        (Grammar::Lark(&long_lark), "at most 65536"),
    ];
    for (grammar, expected) in cases {
        let short = format!("{grammar:?}").chars().take(80).collect::<String>();
        let error = outcome(&model, grammar).unwrap_or_else(|| panic!("{short}: compiles"));
        assert!(error.starts_with("constraint: ") && error.contains(expected), "{short}: {error}");
    }
}

#[test]
fn grammars_that_ask_for_much_stay_within_bounds() {
    let model = bytes_model("much", |_, _| ());
    let rules = chain(|i| format!("r{i}:r{}\n", i + 1), 5000) + "r5000:\"b\"\nstart:r0\n";
    let terminals = chain(|i| format!("A{i}:((((A{}))))\n", i + 1), 3000) + "A3000:\"b\"\nstart:A0\n";
    let references = chain(|i| format!("\"d{i}\":{{\"allOf\":[{{\"$ref\":\"#/$defs/d{}\"}},{{}}]}},", i + 1), 2500);
    let references = format!("{{\"$ref\":\"#/$defs/d0\",\"$defs\":{{{references}\"d2500\":{{\"type\":\"string\"}}}}}}");
    let optional = chain(|i| format!("(a{i})?"), 2500);
    let alternatives = format!("start: {}\"c\"\n", "\"a\" | ".repeat(8000));
    let names = chain(|i| format!("\"v{i}\","), 12_000);
    let names = format!("{{\"enum\":[{names}1]}}");
    let properties = chain(|i| format!("\"p{i}\":{{}},"), 1000);
    let properties = format!("{{\"properties\":{{{properties}\"z\":{{}}}}}}");
    for grammar in [
        Grammar::Regex("((a{1,1000}){1,1000}){1,1000}"),
        Grammar::Regex("(((((a?){99}b?){99}c?){99}d?){99}e?){99}"),
        Grammar::Regex("a{100000}"),
        Grammar::Regex("(.*a.{300}b)*c"),
        Grammar::Regex("(a*)*(a|a|aa)*b"),
        Grammar::Regex("(\\w{1,500}\\W{1,500}){1,500}"),
        Grammar::Regex("\\p{L}{1,1000}\\p{Lu}{1,1000}"),
        Grammar::Regex(&optional),
        Grammar::Lark("start: start \"a\" | \"b\"\n"),
        Grammar::Lark("start: start\n"),
        Grammar::Lark("start: a\na: b\nb: a | \"x\"\n"),
        Grammar::Lark("start: a*\na: a a | \"\" | /[a-z]/\n"),
        Grammar::Lark("start: (\"a\"~0..5000)~0..5000\n"),
        Grammar::Lark("start: a~100000\na: /[ab]/\n"),
        Grammar::Lark(&rules),
        Grammar::Lark(&terminals),
        Grammar::Lark(&alternatives),
        Grammar::JsonSchema("{\"maxLength\": 4294967296, \"type\": \"string\"}"),
        Grammar::JsonSchema("{\"maxItems\": 1000000000, \"minItems\": 99999, \"type\": \"array\"}"),
        Grammar::JsonSchema("{\"multipleOf\": 0.0000001, \"type\": \"number\"}"),
        Grammar::JsonSchema("{\"multipleOf\": 9973, \"type\": \"integer\"}"),
        Grammar::JsonSchema(&properties),
        Grammar::JsonSchema("{\"minimum\": -1e308, \"maximum\": 1e308, \"type\": \"number\"}"),
        Grammar::JsonSchema("{\"$ref\": \"#\"}"),
        Grammar::JsonSchema("{\"allOf\": [{\"$ref\": \"#\"}]}"),
        Grammar::JsonSchema(
            "{\"$defs\": {\"a\": {\"$ref\": \"#/$defs/b\"}, \"b\": {\"$ref\": \"#/$defs/a\"}}, \"$ref\": \"#/$defs/a\"}",
        ),
        Grammar::JsonSchema(
            "{\"properties\": {\"a\": {\"$ref\": \"#\"}}, \"required\": [\"a\"], \"type\": \"object\"}",
        ),
        Grammar::JsonSchema(&references),
        Grammar::JsonSchema(&names),
    ] {
        let start = Instant::now();
        let error = outcome(&model, grammar);
        let short = format!("{grammar:?}").chars().take(60).collect::<String>();
        println!("{:?} {short} {}", start.elapsed(), error.unwrap_or_default().chars().take(150).collect::<String>());
    }
}
