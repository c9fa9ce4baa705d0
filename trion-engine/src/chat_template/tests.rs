use super::*;

fn conversation() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief."),
        Message::new("user", "  Hi <b> & \"you\"\n"),
        Message::new("assistant", "Hello."),
        Message::new("user", "Bye"),
    ]
}

fn render(source: &str, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
    ChatTemplate::new(source)?.render(messages, options)
}

/// What `source` makes of no messages.
fn evaluate(source: &str) -> String {
    render(source, &[], &RenderOptions::default()).unwrap()
}

fn refusal(source: &str) -> String {
    render(source, &conversation(), &RenderOptions::default()).unwrap_err().to_string()
}

const PROMPT: RenderOptions<'_> =
    RenderOptions { add_generation_prompt: true, bos_token: Some("<BOS>"), eos_token: Some("<EOS>"), date: None };

#[test]
fn llama3() {
    let source = "{% set ns = messages %}{% for turn in ns %}\
        {% set text = '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' + turn['content'] | trim + '<|eot_id|>' %}\
        {% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    let expected = "<BOS><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\nHi <b> & \"you\"<|eot_id|>\
        <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>";
    let prompt = format!("{expected}<|start_header_id|>assistant<|end_header_id|>\n\n");
    assert_eq!(render(source, &conversation(), &PROMPT).unwrap(), prompt);
    let closed = RenderOptions { add_generation_prompt: false, ..PROMPT };
    assert_eq!(render(source, &conversation(), &closed).unwrap(), expected);
}

#[test]
fn bitnet_2b4t() {
    let source = "{% for turn in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
        {{ turn['role'] | capitalize + ': ' + turn['content'] | trim + '<|eot_id|>' }}{% endfor %}\
        {% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
    assert_eq!(
        render(source, &conversation(), &PROMPT).unwrap(),
        "<BOS>System: Be brief.<|eot_id|>User: Hi <b> & \"you\"<|eot_id|>Assistant: Hello.<|eot_id|>\
         User: Bye<|eot_id|>Assistant: "
    );
}

#[test]
fn falcon3() {
    let source = "{%- if tools %}{{ raise_exception('no tools here') }}{%- endif %}\n\
        {%- for turn in messages %}\n    \
            {%- if turn.role in ['system', 'user'] %}\n        \
                {{- '<|' ~ turn.role ~ '|>\n' + turn.content.strip() + '\n' }}\n    \
            {%- elif turn.role == 'assistant' %}\n        \
                {%- if not loop.last %}\n            {{- '<|assistant|>\n' + turn.content + eos_token + '\n' }}\n        \
                {%- else %}\n            {{- '<|assistant|>\n' + turn.content + eos_token }}\n        {%- endif %}\n    \
            {%- endif %}\n    \
            {%- if loop.last and add_generation_prompt %}\n        {{- '<|assistant|>\n' }}\n    {%- endif %}\n\
        {%- endfor %}";
    assert_eq!(
        render(source, &conversation(), &PROMPT).unwrap(),
        "<|system|>\nBe brief.\n<|user|>\nHi <b> & \"you\"\n<|assistant|>\nHello.<EOS>\n<|user|>\nBye\n<|assistant|>\n"
    );
}

/// `ChatML` with what Qwen3 does: the last question is searched backwards, thoughts before it are dropped.
const QWEN3: &str = r"
{%- if tools %}
    {{- raise_exception('unreachable') }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for turn in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and turn.role == 'user' and turn.content is string and not(turn.content.startswith('<tool_response>') and turn.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>' + '\n' }}
    {%- elif turn.role == 'assistant' %}
        {%- set content = turn.content %}
        {%- if turn.reasoning_content is defined and turn.reasoning_content is not none %}
            {{- raise_exception('unreachable') }}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and thought %}
            {{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

#[test]
fn qwen3() {
    let messages = [
        Message::new("system", "S"),
        Message::new("user", "A"),
        Message::new("assistant", "<think>\nhm\n</think>\n\nB"),
        Message::new("user", "C"),
        Message::new("assistant", "<think>\nso\n</think>\n\nD"),
    ];
    assert_eq!(
        render(QWEN3, &messages, &PROMPT).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n\
         <|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n<think>\nso\n</think>\n\nD<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn blocks_are_trimmed_and_one_last_newline_dropped() {
    let source = "{% for turn in messages %}\n    {% if turn.role == 'user' %}\n{{ turn.role }}\n    {% endif %}\n{% endfor %}\nend\n";
    assert_eq!(render(source, &conversation(), &PROMPT).unwrap(), "user\nuser\nend");
}

#[test]
fn generation_tags_do_nothing() {
    let source = "{% for turn in messages %}{% generation %}{{ turn.role }}{% endgeneration %}\n\
        {%- generation -%}  ,  {%- endgeneration -%} {% endfor %}{% if add_generation_prompt %}!{% endif %}";
    assert_eq!(render(source, &conversation(), &PROMPT).unwrap(), "system,user,assistant,user,!");
    for unchanged in ["{% generation", "{%}generation", "{%generation%", "generation{%%}"] {
        assert_eq!(without_generation_tags(unchanged), unchanged);
    }
}

#[test]
fn loop_controls_and_python_methods() {
    assert_eq!(
        evaluate(
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "013"
    );
    assert_eq!(
        evaluate("{{ 'a-b-c'.replace('-', '+') }} {{ ', '.join(['x', 'y']) }} {{ ' x '.strip() }}"),
        "a+b+c x, y x"
    );
    assert_eq!(
        evaluate("{{ 'a-b-c'.replace('-', '+', 1) }} {{ {'k': 1}.get('z', 2) }} {{ 'aXb'.upper().split('X') | last }}"),
        "a+b-c 2 B"
    );
    assert_eq!(
        evaluate("{% for key, value in {'b': 1, 'a': none}.items() %}{{ key }}={{ value }};{% endfor %}"),
        "b=1;a=None;"
    );
    assert_eq!(
        evaluate("{{ true }} {{ missing }}{{ bos_token is defined }} {{ tools is none }} {{ documents is none }}"),
        "True False True True"
    );
}

#[test]
fn tojson_is_pythons() {
    assert_eq!(
        evaluate(r#"{{ {'b': "<é'&\"\n", 'a': [1, 2.5, true, none], 'c': {}} | tojson }}"#),
        r#"{"b": "<é'&\"\n", "a": [1, 2.5, true, null], "c": {}}"#
    );
    assert_eq!(
        evaluate("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
    );
    assert_eq!(evaluate("{{ 'é' | tojson(ensure_ascii=false) }}"), "\"é\"");
    let messages = [Message::new("user", "x")];
    assert_eq!(render("{{ messages | tojson }}", &messages, &PROMPT).unwrap(), r#"[{"role": "user", "content": "x"}]"#);
    assert!(refusal("{{ missing | tojson }}").contains("tojson"));
    assert!(refusal("{{ 1 | tojson(indent=1000000000) }}").contains("indent"));
    assert!(refusal("{{ 1 | tojson(sort_keys=true) }}").contains("sort_keys"));
}

#[test]
fn the_date_is_the_callers() {
    let source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}";
    assert_eq!(evaluate(source), "26 Jul 2024");
    let on = |pattern: &str, date: Date| {
        render(&format!("{{{{ strftime_now('{pattern}') }}}}"), &[], &RenderOptions { date: Some(date), ..PROMPT })
    };
    let date = Date::new(2025, 3, 9).unwrap();
    assert_eq!(render(source, &[], &RenderOptions { date: Some(date), ..PROMPT }).unwrap(), "09 Mar 2025");
    assert_eq!(
        on("%A %a %e %-d/%-m/%y %B %j %F 100%%", date).unwrap(),
        "Sunday Sun  9 9/3/25 March 068 2025-03-09 100%"
    );
    assert_eq!(on("%A %j", Date::new(2000, 12, 31).unwrap()).unwrap(), "Sunday 366");
    assert_eq!(on("%A", Date::new(1970, 1, 1).unwrap()).unwrap(), "Thursday");
    assert_eq!(on("%A", Date::new(1, 1, 1).unwrap()).unwrap(), "Monday");
    for pattern in ["%H:%M", "%", "%-", "%q"] {
        assert!(on(pattern, date).unwrap_err().to_string().contains("date"), "{pattern}");
    }
    assert!(refusal("{{ strftime_now('%Y') }}").contains("strftime_now"));
    for (year, month, day) in
        [(2025, 2, 29), (1900, 2, 29), (2025, 0, 1), (2025, 13, 1), (2025, 4, 31), (2025, 1, 0), (0, 1, 1)]
    {
        assert_eq!(Date::new(year, month, day), None);
    }
    assert!(Date::new(2000, 2, 29).is_some() && Date::new(2024, 2, 29).is_some());
}

#[test]
fn failing_templates_say_why() {
    assert!(refusal("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    let syntax = ChatTemplate::new("line\n{% if %}").unwrap_err().to_string();
    assert!(syntax.starts_with("chat template: syntax error") && syntax.contains(":2"), "{syntax}");
    assert!(refusal("{{ 'a' | no_such_filter }}").contains("no_such_filter"));
    assert!(refusal("{{ messages + 1 }}").contains('+'));
    assert!(refusal("{{ missing.attribute }}").contains("undefined"));
    assert!(refusal("{% for x in 3 %}{% endfor %}").contains("number"));
    assert!(refusal("{{ messages[0].content.no_such_method() }}").contains("no_such_method"));
    assert!(refusal("{% include 'other' %}").contains("other"));
}

#[test]
fn hostile_templates_end() {
    let doubled =
        "{% set ns = namespace(x=messages) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    let grown = |step: &str| {
        format!("{{% set ns = namespace(x='xx') %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}")
    };
    for (source, expected) in [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(), "fuel"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".to_owned(), "fuel"),
        ("{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}".to_owned(), "recursion limit"),
        ("{% include 'chat_template' %}".to_owned(), "recursion limit"),
        (grown("ns.x ~ ns.x"), "fuel"),
        (grown("[ns.x, ns.x] | join"), "fuel"),
        (grown("ns.x.replace('x', ns.x)"), "fuel"),
        (grown("ns.x.join([ns.x] * 1000)"), "fuel"),
        ("{{ 'x' * 99999999999 }}".to_owned(), "fuel"),
        ("{{ '%99999999999d' | format(1) }}".to_owned(), "fuel"),
        ("{{ '{:99999999999}'.format(1) }}".to_owned(), "format"),
        (format!("{doubled}{{{{ ns.x | tojson }}}}"), "fuel"),
        (format!("{{{{ {}1", "(".repeat(100_000)), "recursion"),
        ("{{ 'xxxxxxxxxxxxxxxx' * 1100000 }}".to_owned(), "17600000"),
    ] {
        let error = render(&source, &conversation(), &PROMPT).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_long_conversation_is_within_the_limits() {
    let messages: Vec<Message> = (0..4000)
        .map(|turn| Message::new(if turn % 2 == 0 { "user" } else { "assistant" }, "word ".repeat(500)))
        .collect();
    let prompt = render(QWEN3, &messages, &PROMPT).unwrap();
    assert!(prompt.len() > 4000 * 2500);
}
