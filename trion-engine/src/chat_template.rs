//! From a conversation to a prompt: the Jinja templates that come with chat models.
//!
//! Templates are written for the Jinja2 environment of transformers (`apply_chat_template`); this is that environment, for
//! messages of plain text. A template is a program from a file: it gets no clock, no file and no network, and a bounded
//! number of steps and bytes of text. One thing minijinja does not bound: lists that a template nests in one another over
//! and over can exhaust the memory or the stack. Take templates from where you would take a script.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State};

use crate::{Error, Result};

/// Steps and 64-byte units of text of one rendering (minijinja's "fuel"): under a second, and at most 128 MB of text. A
/// template takes about 50 steps for a message.
const FUEL: u64 = 2_000_000;

/// The longest prompt, in bytes.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// How deep `tojson` follows nested values.
const MAX_JSON_DEPTH: usize = 64;

/// The widest indentation of `tojson`.
const MAX_JSON_INDENT: usize = 16;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant` for most models.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: i32,
    month: u32,
    day: u32,
}

impl Date {
    /// The day `day` (from 1) of month `month` (from 1) of `year` (1 to 9999); `None` if there is no such day.
    pub fn new(year: i32, month: u32, day: u32) -> Option<Self> {
        let date = Self { year, month, day };
        ((1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=date.month_lengths()[month as usize - 1]).contains(&day))
        .then_some(date)
    }

    fn month_lengths(self) -> [u32; 12] {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    }

    /// The day of the year, from 1.
    fn ordinal(self) -> u32 {
        self.month_lengths().iter().take(self.month as usize - 1).sum::<u32>() + self.day
    }

    /// The day of the week, 0 for Sunday.
    fn weekday(self) -> usize {
        let before = self.year - 1;
        let days = before * 365 + before / 4 - before / 100 + before / 400 + self.ordinal() as i32;
        (days % 7) as usize
    }

    /// Writes the date the way of C's `strftime`; `None` for a code that asks for the time of the day or is unknown.
    fn format(self, pattern: &str) -> Option<String> {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
        let Self { year, month, day } = self;
        let month_name = MONTHS[month as usize - 1];
        let day_name = DAYS[self.weekday()];
        let mut text = String::new();
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            let piece = match characters.next()? {
                'Y' => year.to_string(),
                'y' => format!("{:02}", year % 100),
                'm' => format!("{month:02}"),
                'd' => format!("{day:02}"),
                'e' => format!("{day:2}"),
                'j' => format!("{:03}", self.ordinal()),
                'B' => month_name.into(),
                'b' | 'h' => month_name[..3].into(),
                'A' => day_name.into(),
                'a' => day_name[..3].into(),
                'F' => format!("{year}-{month:02}-{day:02}"),
                '%' => "%".into(),
                '-' => match characters.next()? {
                    'd' => day.to_string(),
                    'm' => month.to_string(),
                    _ => return None,
                },
                _ => return None,
            };
            text.push_str(&piece);
        }
        Some(text)
    }
}

/// What a template is told besides the messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderOptions<'a> {
    /// Ends the prompt with the words that begin the assistant's answer.
    pub add_generation_prompt: bool,
    /// The text of the token at the beginning; undefined in the template if `None`.
    pub bos_token: Option<&'a str>,
    /// The text of the token at the end; undefined in the template if `None`.
    pub eos_token: Option<&'a str>,
    /// What `strftime_now` says. If `None`, the template has no such function, and most then fall back on a fixed date: the
    /// same conversation gives the same prompt on every day.
    pub date: Option<Date>,
}

/// A compiled chat template. `Send` and `Sync`: share one among sessions.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source`, the `chat_template` of a model.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line of what is not Jinja, or not supported.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| describe(&error))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source).into_owned())
            .map_err(|error| describe(&error))?;
        Ok(Self { environment })
    }

    /// The prompt for `messages`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template refuses the conversation (`raise_exception`), uses a value in a way that
    /// its type does not allow, or takes more work or memory than a template may.
    pub fn render(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())]))
            .collect();
        let mut context = vec![
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            // transformers passes these always, and templates test for none.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        context.extend(options.bos_token.map(|token| ("bos_token", Value::from(token))));
        context.extend(options.eos_token.map(|token| ("eos_token", Value::from(token))));
        if let Some(date) = options.date {
            let strftime_now = move |pattern: &str| {
                date.format(pattern).ok_or_else(|| {
                    let message = format!("strftime_now: {pattern:?} asks for more than a date");
                    minijinja::Error::new(ErrorKind::InvalidOperation, message)
                })
            };
            context.push(("strftime_now", Value::from_function(strftime_now)));
        }
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        let prompt = template.render(Value::from_pairs(context)).map_err(|error| describe(&error))?;
        if prompt.len() > MAX_OUTPUT_BYTES {
            let length = prompt.len();
            return Err(Error::ChatTemplate(format!("prompt of {length} bytes, at most {MAX_OUTPUT_BYTES} expected")));
        }
        Ok(prompt)
    }
}

/// The message of a template error and of what caused it.
fn describe(error: &minijinja::Error) -> Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Error::ChatTemplate(text)
}

/// `{% generation %}` and `{% endgeneration %}` mark the assistant's words for training, and do nothing here: they become a
/// block of the same shape that is known.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        // Behind the beginning: in `{%}` both would share a character.
        let Some(length) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(2 + length + 2);
        let inner = &tag[2..2 + length];
        let known = match inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim() {
            "generation" => Some(("generation", "if true")),
            "endgeneration" => Some(("endgeneration", "endif")),
            _ => None,
        };
        match known {
            Some((name, replacement)) => out.push_str(&tag.replacen(name, replacement, 1)),
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn raise_exception(message: &str) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("the template refuses the conversation: {message}")))
}

/// Python's methods of strings, maps and lists. Those that can make much from little go through the filters of the same
/// name, which count what they make.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    if value.kind() == ValueKind::String {
        match (method, args) {
            ("replace", [..]) if args.len() >= 2 => {
                return state.apply_filter("replace", &[std::slice::from_ref(value), args].concat());
            }
            ("join", [list]) => return state.apply_filter("join", &[list.clone(), value.clone()]),
            ("format", _) => return Err(ErrorKind::UnknownMethod.into()),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: nothing is escaped for HTML, keys keep their order.
#[expect(clippy::needless_pass_by_value, reason = "minijinja takes a filter of this signature")]
fn tojson(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> std::result::Result<String, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(not_json("ensure_ascii=true is not supported"));
    }
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MAX_JSON_INDENT) {
        return Err(not_json(&format!("indent of more than {MAX_JSON_INDENT}")));
    }
    let mut out = String::new();
    write_json(state, value, indent, 0, &mut out)?;
    Ok(out)
}

fn not_json(reason: &str) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"))
}

fn write_json(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> std::result::Result<(), minijinja::Error> {
    // A value may contain another many times over: what is written must be paid for as it grows.
    state.consume_fuel(1 + (indent.unwrap_or(0) * depth) as u64 / 64)?;
    if depth > MAX_JSON_DEPTH {
        return Err(not_json(&format!("more than {MAX_JSON_DEPTH} levels")));
    }
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_json_string(state, value, out)?,
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()?.checked() {
                if !empty {
                    out.push_str(comma);
                }
                empty = false;
                line(depth + 1, out);
                write_json(state, &item?, indent, depth + 1, out)?;
            }
            if !empty {
                line(depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut empty = true;
            for key in value.try_iter()?.checked() {
                let key = key?;
                if !empty {
                    out.push_str(comma);
                }
                empty = false;
                line(depth + 1, out);
                match key.kind() {
                    ValueKind::String => write_json_string(state, &key, out)?,
                    ValueKind::Number => out.extend(["\"", key.to_string().as_str(), "\""]),
                    other => return Err(not_json(&format!("key of type {other}"))),
                }
                out.push_str(": ");
                write_json(state, &value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if !empty {
                line(depth, out);
            }
            out.push('}');
        }
        other => return Err(not_json(&format!("value of type {other}"))),
    }
    Ok(())
}

fn write_json_string(state: &State, value: &Value, out: &mut String) -> std::result::Result<(), minijinja::Error> {
    let text = value.as_str().unwrap_or_default();
    state.consume_fuel(text.len() as u64 / 64)?;
    out.push_str(&serde_json::to_string(text).map_err(|error| not_json(&error.to_string()))?);
    Ok(())
}

#[cfg(test)]
mod tests;
