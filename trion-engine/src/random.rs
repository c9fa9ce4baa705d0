//! Models of random weights, for measuring speed at shapes whose checkpoints are not at hand.

use std::borrow::Cow;
use std::path::Path;

use trion_core::{Activation, Config, LayerNorm, Projection};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::pack::{PackOptions, pack};
use crate::source::{Checkpoint, FloatType, MatrixId, Settings, SourceMatrix, TritScale, VectorId};

/// The shape of Microsoft's `BitNet` b1.58 2B4T, which speed is measured at.
pub const SHAPE_2B4T: Config = Config {
    vocab_size: 128_256,
    hidden_size: 2560,
    intermediate_size: 6912,
    num_hidden_layers: 30,
    num_attention_heads: 20,
    num_key_value_heads: 5,
    head_dim: 128,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    projection_norm_eps: 1e-6,
    rope_theta: 500_000.0,
    hidden_act: Activation::Relu2,
    activation_group: 0,
};

/// A model with random trits, sub-norms and a tied bfloat16 embedding, packed as `options` say. The same seed gives the same
/// model everywhere.
///
/// # Errors
/// [`Error::Core`] if the configuration is not valid, [`Error::Memory`] if there is not enough memory.
pub fn random_model(config: &Config, options: &PackOptions, seed: u64) -> Result<Model> {
    config.validate()?;
    let settings = Settings {
        config: *config,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        tokenizer_json: None,
        chat_template: None,
        name: "random".to_owned(),
        norms: &[],
        projection_norms: false,
    };
    let image = pack(Path::new("memory"), &RandomCheckpoint { settings, seed }, options, &mut |_, _| {})?;
    Model::from_image(image)
}

struct RandomCheckpoint {
    settings: Settings,
    seed: u64,
}

/// A stream of numbers for one row of one matrix.
fn mix(seed: u64, stream: u64) -> impl FnMut() -> u64 {
    let mut state = seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        // xorshift64 (Marsaglia 2003): fast, and good enough for weights.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Trits that one number holds, in base 3.
const TRITS_PER_NUMBER: usize = 40;

impl Checkpoint for RandomCheckpoint {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn matrix(&self, id: MatrixId) -> Result<Option<SourceMatrix<'_>>> {
        let config = &self.settings.config;
        let seed = self.seed;
        match id {
            MatrixId::Head => Ok(None),
            MatrixId::Embedding => {
                let count = config.vocab_size * config.hidden_size;
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(2 * count).map_err(|e| Error::Memory { bytes: 2 * count, source: e.into() })?;
                let mut next = mix(seed, u64::MAX);
                while bytes.len() < 2 * count {
                    // Eight random bits of mantissa and sign under an exponent of 2^-6: embeddings of about 0.02.
                    for byte in next().to_le_bytes().into_iter().take((2 * count - bytes.len()) / 2) {
                        let bits = 0x3c80_u16 | u16::from(byte & 0x7f) | (u16::from(byte & 0x80) << 8);
                        bytes.extend(bits.to_le_bytes());
                    }
                }
                Ok(Some(SourceMatrix::Float { dtype: FloatType::Bf16, bytes: Cow::Owned(bytes) }))
            }
            MatrixId::Layer(layer, projection) => {
                let [_, cols] = projection.shape(config);
                let matrix = (layer * Projection::ALL.len() + projection as usize) as u64;
                let rows = move |row: usize, out: &mut [i8]| {
                    let mut next = mix(seed, (matrix << 32) + row as u64);
                    for chunk in out.chunks_mut(TRITS_PER_NUMBER) {
                        let mut number = next();
                        for trit in chunk {
                            *trit = (number % 3) as i8 - 1;
                            number /= 3;
                        }
                    }
                    Ok(())
                };
                // Keeps outputs of about the size of inputs: two thirds of the trits are not zero.
                let scale = 1.2 / (cols as f32).sqrt();
                Ok(Some(SourceMatrix::Trits { scale: TritScale::Multiply(scale), rows: Box::new(rows) }))
            }
        }
    }

    fn vector(&self, id: VectorId) -> Result<Option<Vec<f32>>> {
        let config = &self.settings.config;
        Ok(match id {
            VectorId::FinalNorm => Some(vec![1.0; config.hidden_size]),
            VectorId::Layer(_, LayerNorm::Query | LayerNorm::Key) | VectorId::Projection(..) => None,
            VectorId::Layer(_, norm) => Some(vec![1.0; norm.length(config)]),
        })
    }
}
