//! Rotary position embedding (Su et al. 2021), half-split as Hugging Face computes it.

/// Fills `cos` and `sin` `[head_dim / 2]`, the tables of one position: element i belongs to the angle
/// `position * theta^(-2i / head_dim)`. The frequency is computed in double precision and rounded once, and so is the product.
///
/// Lengths are not checked: as many elements are written as the shorter slice has.
pub fn rotary_tables(theta: f32, head_dim: usize, position: usize, cos: &mut [f32], sin: &mut [f32]) {
    for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
        let frequency = libm::pow(f64::from(theta), -((2 * i) as f64) / head_dim as f64) as f32;
        let angle = position as f32 * frequency;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_angle_is_the_position_times_a_rounded_frequency() {
        let (mut cos, mut sin) = ([0.0; 3], [0.0; 3]);
        rotary_tables(10_000.0, 6, 0, &mut cos, &mut sin);
        assert_eq!((cos, sin), ([1.0; 3], [0.0; 3]));
        rotary_tables(10_000.0, 6, 70, &mut cos, &mut sin);
        for i in 0..3 {
            let angle = 70.0 * f64::from(libm::pow(10_000.0, -2.0 * i as f64 / 6.0) as f32);
            assert!((f64::from(cos[i]) - libm::cos(angle)).abs() < 1e-5, "cosine {i}: {}", cos[i]);
            assert!((f64::from(sin[i]) - libm::sin(angle)).abs() < 1e-5, "sine {i}: {}", sin[i]);
        }
        // A slice that is too short takes what fits.
        rotary_tables(10_000.0, 6, 1, &mut [], &mut sin);
    }
}
