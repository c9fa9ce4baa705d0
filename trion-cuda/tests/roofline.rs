//! What the model of `src/roofline.rs` predicts, beside what was measured.

use trion_core::{
    CacheType, FloatData, FloatMatrix, Layer, LayerNorm, Linear, Matrix, Model, Projection, Rescale, SessionOptions,
    TernaryMatrix,
};
use trion_cuda::roofline::{Card, Launch, prompt, token, total_ms};
use trion_engine::SHAPE_2B4T;

/// The shape of Microsoft's `BitNet` b1.58 2B4T with an int8 head; every matrix is the same zeros.
fn with_2b4t<T>(look: impl FnOnce(&Model<'_>) -> T) -> T {
    let config = SHAPE_2B4T;
    let packed =
        vec![0b01_01_01_01; TernaryMatrix::packed_bytes(6912, 2560).max(TernaryMatrix::packed_bytes(2560, 6912))];
    let ones = vec![1.0; 6912];
    let projections = Projection::ALL.map(|projection| {
        let [rows, cols] = projection.shape(&config);
        let packed = &packed[..TernaryMatrix::packed_bytes(rows, cols)];
        let matrix = TernaryMatrix::new(rows, cols, packed, Rescale::Multiply(1.0)).unwrap();
        Linear { matrix: Matrix::from(matrix), norm: None }
    });
    let mut norms = [None; LayerNorm::ALL.len()];
    for norm in [LayerNorm::Attention, LayerNorm::AttentionSub, LayerNorm::Mlp] {
        norms[norm as usize] = Some(&ones[..2560]);
    }
    norms[LayerNorm::MlpSub as usize] = Some(&ones[..]);
    let layer = Layer { projections, norms };
    let layers = vec![layer; 30];
    let (values, scales) = (vec![0; 128_256 * 2560], vec![1.0; 128_256]);
    let embedding = FloatMatrix::new(128_256, 2560, FloatData::I8 { values: &values, scales: &scales }).unwrap();
    look(&Model::new(config, Matrix::from(embedding), &layers, &ones[..2560], None).unwrap())
}

const OPTIONS: SessionOptions = SessionOptions { max_batch: 512, cache: CacheType::F16, ..SessionOptions::new(1024) };

fn bytes(launches: &[Launch]) -> usize {
    launches.iter().map(|launch| launch.count * launch.bytes).sum()
}

/// Measured with `trion-gpu-test --speed` on an H100 80GB HBM3: ms of a token at positions 512 to 640 with the kernels
/// of a GTX 1050 and with its own, and of a prompt of 512 with the former.
const MEASURED: [f64; 3] = [1.252, 0.982, 36.3];

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
