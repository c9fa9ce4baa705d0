//! `trion inspect --device cuda`: what a model and a session would take of a GPU's memory, and how long a token would
//! take on a GTX 1050. No GPU is needed.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use trion_engine::roofline::{Card, token, total_ms};
use trion_engine::{KernelSet, MemoryPlan, Model, SessionOptions};

use crate::common::{CacheName, Failure, Outcome, print_line};

/// The smallest card that Trion is for; larger ones take more scratch memory.
const CARD: Card = Card::GTX_1050;

#[derive(Args)]
pub(crate) struct PlanArguments {
    /// Print what the model would take of a GPU's memory, and how fast a GTX 1050 ought to be, instead
    #[arg(long, value_parser = ["cuda"])]
    device: Option<String>,
    /// Memory of the GPU that the model has to fit into, less what its driver takes: 2GB, 1800MB
    #[arg(long, value_parser = bytes, requires = "device")]
    memory: Option<u64>,
    /// Positions of a session [default: as many as the model was made for]
    #[arg(long, requires = "device")]
    context: Option<usize>,
    /// Number format of keys and values
    #[arg(long, value_enum, default_value_t = CacheName::F32, requires = "device")]
    cache: CacheName,
}

impl PlanArguments {
    pub(crate) fn is_asked_for(&self) -> bool {
        self.device.is_some()
    }
}

/// A number of bytes with a unit of 1000 or 1024 of the one below.
fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "B" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("{unit:?} is no unit; expected B, MB, GB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number of bytes, such as 2GB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "more bytes than there are".to_owned())
}

pub(crate) fn run(model: &Model, arguments: &PlanArguments, as_json: bool) -> Outcome {
    let longest = model.config().max_position_embeddings;
    let context = arguments.context.unwrap_or(longest);
    if context == 0 || context > longest {
        return Err(Failure::Argument(format!("--context {context}, expected 1 to {longest}")));
    }
    let options =
        SessionOptions { max_batch: 64.min(context), cache: arguments.cache.into(), ..SessionOptions::new(context) };
    let plan = MemoryPlan::new(model.core(), &options, CARD.multiprocessors, KernelSet::Sm61);
    let position = context - 1;
    let ms = total_ms(&token(model.core(), &options, position, &CARD));
    let fits = arguments.memory.is_none_or(|memory| plan.total() as u64 <= memory);
    if as_json {
        print_line(json!({
            "weights": plan.weights,
            "embedding": plan.embedding,
            "cache": plan.cache,
            "scratch": plan.scratch,
            "total": plan.total(),
            "context": context,
            "memory": arguments.memory,
            "fits": fits,
            "gtx_1050_prediction": {
                "position": position,
                "ms_per_token": ms,
                "tokens_per_second": 1e3 / ms,
            },
        }))?;
    } else {
        for (what, bytes) in [
            ("weights of the blocks", plan.weights),
            ("embedding and head", plan.embedding),
            ("keys and values", plan.cache),
            ("activations and logits", plan.scratch),
            ("together", plan.total()),
        ] {
            print_line(format_args!("{what:24} {:>10.1} MB", bytes as f64 / 1e6))?;
        }
        let rate = 1e3 / ms;
        print_line(format_args!(
            "prediction, not measured: {ms:.1} ms a token on a GTX 1050 at position {position}, {rate:.0} tokens/s"
        ))?;
    }
    if fits {
        return Ok(ExitCode::SUCCESS);
    }
    let message = format!("{} bytes do not fit into {}", plan.total(), arguments.memory.unwrap_or(0));
    let help = "lower --context, take --cache f16, or quantise the embedding: trion quantize --embedding int8";
    Err(Failure::advised(message, help))
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        let sizes = ["5", "7B", "2GB", "1800MB", "3GiB", "1MiB"].map(|text| bytes(text).unwrap());
        assert_eq!(sizes, [5, 7, 2_000_000_000, 1_800_000_000, 3 << 30, 1 << 20]);
        for text in ["", "GB", "2 GB", "2gb", "-1GB", "1.5GB", "99999999999999GB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
