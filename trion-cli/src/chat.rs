//! `trion chat`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use trion_engine::chat_template::{Date, Message, RenderOptions};
use trion_engine::{GenerateOptions, Model, Session, SessionOptions, StopReason, continue_session};

use crate::common::{ComputeArguments, Failure, ModelArgument, Outcome, input_failure, open, tokenizer};
use crate::generate::SamplerArguments;
use crate::interrupt::Interrupt;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArgument,
    /// What the model is told first
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(short = 'n', long, default_value_t = 512)]
    tokens: usize,
    /// Positions of the conversation [default: the model's context]
    #[arg(long)]
    context: Option<usize>,
    #[command(flatten)]
    constraint: crate::constraint::ConstraintArguments,
    #[command(flatten)]
    sampler: SamplerArguments,
    #[command(flatten)]
    compute: ComputeArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let model = arguments.compute.place(&open(arguments.model.model.as_deref())?)?;
    if model.chat_template().is_none() {
        let help = "continue texts with it by trion generate, or name a model that was trained to talk";
        return Err(Failure::advised(format!("{} has no chat template", model.name()), help));
    }
    let context = arguments.context.unwrap_or(model.config().max_position_embeddings);
    let cache = arguments.compute.cache();
    let options = SessionOptions { max_batch: 64.min(context), cache, ..SessionOptions::new(context) };
    let kernel = arguments.compute.kernel()?;
    let mut session = Session::with_kernel(&model, options, kernel)?;
    let pool = arguments.compute.pool()?;
    let interrupt = Interrupt::listen()?;
    let beginning: Vec<Message> = arguments.system.iter().map(|text| Message::new("system", text.as_str())).collect();
    let mut messages = beginning.clone();
    let options = GenerateOptions {
        max_tokens: arguments.tokens,
        sampler: arguments.sampler.options(),
        constraint: arguments.constraint.constraint(&model)?,
        add_special_tokens: false,
        kernel,
        ..GenerateOptions::default()
    };
    let mut lines = io::stdin().lock().lines();
    let mut out = io::stdout().lock();
    loop {
        if io::stdin().is_terminal() {
            write!(out, "> ")?;
            out.flush()?;
        }
        let Some(line) = lines.next().transpose().map_err(input_failure)? else { break };
        match line.trim() {
            "" => continue,
            "/exit" => break,
            "/reset" => {
                messages.clone_from(&beginning);
                continue;
            }
            text => messages.push(Message::new("user", text)),
        }
        let prompt = prompt(&model, &messages)?;
        // What the session holds already is not computed again; at least one token is, for its logits.
        let kept = session.tokens().iter().zip(&prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        session.rewind(kept)?;
        let mut written = Ok(());
        let answer = continue_session(&mut session, &prompt[kept..], &options, &pool, |piece| {
            interrupt.writing();
            written = write!(out, "{piece}").and_then(|()| out.flush());
            written.is_ok() && !interrupt.asked()
        })?;
        written?;
        // An answer that Ctrl-C cut short is part of the conversation all the same.
        interrupt.ended();
        writeln!(out)?;
        if answer.stop == StopReason::DeadEnd {
            return Err(Failure::dead_end());
        }
        messages.push(Message::new("assistant", answer.text.trim()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The tokens of a conversation; never none.
fn prompt(model: &Model, messages: &[Message]) -> Result<Vec<u32>, Failure> {
    let tokenizer = tokenizer(model)?;
    let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    let (bos, eos) = (text_of(model.bos_token_id()), text_of(model.eos_token_ids().first().copied()));
    let options = RenderOptions {
        add_generation_prompt: true,
        bos_token: bos.as_deref(),
        eos_token: eos.as_deref(),
        date: today(),
    };
    let text =
        model.chat_template().map_or_else(|| Ok(String::new()), |template| template.render(messages, &options))?;
    let ids = tokenizer.encode(&text, false)?;
    if ids.is_empty() { Err(Failure::Argument("the chat template made an empty prompt".to_owned())) } else { Ok(ids) }
}

/// Today's date, in UTC.
fn today() -> Option<Date> {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() / 86_400;
    let (year, month, day) = civil_date(days as i64);
    Date::new(year, month, day)
}

/// The date that is `days` after 1970-01-01, by counting years and months.
fn civil_date(mut days: i64) -> (i32, u32, u32) {
    let leap = |year: i32| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    while days >= if leap(year) { 366 } else { 365 } {
        days -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::civil_date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(11_016), (2000, 2, 29));
        assert_eq!(civil_date(11_017), (2000, 3, 1));
        assert_eq!(civil_date(20_453), (2025, 12, 31));
        assert_eq!(civil_date(20_454), (2026, 1, 1));
    }
}
