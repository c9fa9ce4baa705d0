//! What the model of `src/roofline.rs` predicts, beside what was measured.

use trion_core::{
    CacheType, Config, FloatData, FloatMatrix, Layer, LayerNorm, Linear, Matrix, Model, Packing, Projection, Rescale,
    SessionOptions, TernaryMatrix,
};
use trion_cuda::roofline::{Card, Launch, prompt, token, total_ms};
use trion_cuda::{KernelSet, MemoryPlan};
use trion_engine::SHAPE_2B4T;

/// A model of a shape, with an int8 head; every matrix is the same zeros.
fn with<T>(config: Config, look: impl FnOnce(&Model<'_>) -> T) -> T {
    let shapes = Projection::ALL.map(|projection| projection.shape(&config));
    let most = shapes.iter().map(|[rows, cols]| Packing::Twos.bytes(*rows, *cols)).max().unwrap();
    let mut packed = vec![0; most];
    Packing::Twos.clear(&mut packed);
    let ones = vec![1.0; config.widest_input()];
    let projections = shapes.map(|[rows, cols]| {
        let packed = &packed[..Packing::Twos.bytes(rows, cols)];
        let matrix = TernaryMatrix::new(rows, cols, Packing::Twos, packed, Rescale::Multiply(1.0)).unwrap();
        Linear { matrix: Matrix::from(matrix), norm: None }
    });
    let hidden = &ones[..config.hidden_size];
    let mut norms = [None; LayerNorm::ALL.len()];
    for norm in [LayerNorm::Attention, LayerNorm::AttentionSub, LayerNorm::Mlp] {
        norms[norm as usize] = Some(hidden);
    }
    norms[LayerNorm::MlpSub as usize] = Some(&ones[..config.intermediate_size]);
    let layers = vec![Layer { projections, norms }; config.num_hidden_layers];
    let (values, scales) = (vec![0; config.vocab_size * config.hidden_size], vec![1.0; config.vocab_size]);
    let embedding = FloatData::I8 { values: &values, scales: &scales };
    let embedding = FloatMatrix::new(config.vocab_size, config.hidden_size, embedding).unwrap();
    look(&Model::new(config, Matrix::from(embedding), &layers, hidden, None).unwrap())
}

/// The shape of Microsoft's `BitNet` b1.58 2B4T.
fn with_2b4t<T>(look: impl FnOnce(&Model<'_>) -> T) -> T {
    with(SHAPE_2B4T, look)
}

const OPTIONS: SessionOptions = SessionOptions { max_batch: 512, cache: CacheType::F16, ..SessionOptions::new(1024) };

fn bytes(launches: &[Launch]) -> usize {
    launches.iter().map(|launch| launch.count * launch.bytes).sum()
}

/// Measured with `trion-gpu-test --speed` on an H100 80GB HBM3: ms of a token at positions 512 to 640 with the kernels
/// of a GTX 1050 and with its own, and of a prompt of 512 with the former.
const MEASURED: [f64; 3] = [1.249, 0.977, 36.2];

#[test]
fn an_h100_is_predicted_within_a_quarter() {
    with_2b4t(|model| {
        let predicted = [
            token(model, &OPTIONS, 576, &Card::H100),
            token(model, &OPTIONS, 576, &Card::H100_OVERLAPPING),
            prompt(model, &OPTIONS, 512, &Card::H100),
        ];
        for (launches, measured) in predicted.iter().zip(MEASURED) {
            let ratio = total_ms(launches) / measured;
            assert!((0.75..=1.25).contains(&ratio), "{measured} ms, ratio {ratio:.2}: {launches:#?}");
        }
    });
}

#[test]
fn large_launches_have_five_trits_in_a_byte_where_there_are_tensor_cores() {
    // Of a model of 8 billion parameters gate and up.
    let config = Config {
        vocab_size: 1000,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 2,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        ..SHAPE_2B4T
    };
    with(config, |model| {
        let plan = |set| MemoryPlan::new(model, &OPTIONS, 132, set).weights;
        // 13 columns of 320 rather than 16 of 256.
        let [twos, fives] = [16, 13].map(|tiles| 2 * 2 * 14_336 / 8 * tiles * 512);
        assert_eq!(plan(KernelSet::Sm61) - plan(KernelSet::Sm90), twos - fives);
        let token_of = |card: &Card| token(model, &OPTIONS, 576, card);
        let [older, newer] = [Card::H100, Card::H100_OVERLAPPING].map(|card| token_of(&card));
        assert_eq!(bytes(&older) - bytes(&newer), twos - fives);
        // Their input is prepared by a kernel of its own.
        let count = |launches: &[Launch]| launches.iter().map(|launch| launch.count).sum::<usize>();
        assert_eq!(count(&newer), count(&older) + 2);
    });
    with_2b4t(|model| {
        let plan = |set| MemoryPlan::new(model, &OPTIONS, 132, set).weights;
        assert_eq!(plan(KernelSet::Sm61), plan(KernelSet::Sm90));
    });
}

#[test]
fn a_token_is_every_kernel_and_every_byte() {
    with_2b4t(|model| {
        let card = Card::GTX_1050;
        let launches = token(model, &OPTIONS, 576, &card);
        // The embedding, six of a layer, norm and head, two that choose.
        assert_eq!(launches.iter().map(|launch| launch.count).sum::<usize>(), 1 + 30 * 6 + 2 + 2);
        // Two bits a weight and the head's bytes and scales; a row of the embedding; keys and values.
        let weights = 30 * (2560 * (2560 + 640 + 640 + 2560) + 3 * 2560 * 6912) / 4 + 128_256 * (2560 + 4);
        assert_eq!(bytes(&launches), weights + 2564 + 30 * 577 * 2 * 640 * 2);
        let dp4a: usize = launches.iter().map(|launch| launch.count * launch.dp4a).sum();
        assert_eq!(dp4a, 30 * (2560 * (2560 + 640 + 640 + 2560) + 3 * 2560 * 6912) / 4);
        // Never faster than its bytes, and what is more costs more.
        let ms = total_ms(&launches);
        assert!(ms > bytes(&launches) as f64 / card.bandwidth / 1e6, "{ms}");
        let slower = Card { gap: card.gap + 1.0, ..card };
        let of = |options: &SessionOptions, position, card: &Card| total_ms(&token(model, options, position, card));
        assert!((of(&OPTIONS, 576, &slower) - ms - 0.185).abs() < 1e-9);
        assert!(of(&OPTIONS, 1000, &card) > ms);
        assert!(of(&SessionOptions { cache: CacheType::F32, ..OPTIONS }, 576, &card) > ms);
        let long = prompt(model, &OPTIONS, 512, &card);
        assert!(total_ms(&long) > 1.9 * total_ms(&prompt(model, &OPTIONS, 256, &card)));
    });
}
