//! Rotary position embedding (Su et al. 2021), half-split as Hugging Face computes it.

/// theta^(-2i / `head_dim`), computed in double precision and rounded once.
pub(crate) fn inverse_frequency(theta: f32, i: usize, head_dim: usize) -> f32 {
    libm::pow(f64::from(theta), -((2 * i) as f64) / head_dim as f64) as f32
}

/// Fills `cos` and `sin` `[head_dim / 2]` for one position: the angle is the rounded product position * frequency.
pub(crate) fn tables(position: usize, frequency: impl Fn(usize) -> f32, cos: &mut [f32], sin: &mut [f32]) {
    for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
        let angle = position as f32 * frequency(i);
        *cos = libm::cosf(angle);
        *sin = libm::sinf(angle);
    }
}

/// Rotates one head `[head_dim]` in place: (a, b) becomes (a cos - b sin, b cos + a sin), a from the first half and b
/// from the second.
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * cos - y * sin;
        *b = y * cos + x * sin;
    }
}
