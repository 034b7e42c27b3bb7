//! How sure a count is: intervals of shares, and whether two models differ on the same photos.

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % score interval of Wilson (1927) for `correct` of `n`; all of [0, 1] where n is 0.
pub fn wilson(correct: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (n, p) = (n as f64, correct as f64 / n as f64);
    let centre = p + Z * Z / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    [((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0)]
}

/// McNemar's exact test (two-sided) on photos that only one of two models got right: the probability that a fair coin
/// splits `fixed + broken` tosses at least so unevenly. 1 where there are none.
pub fn mcnemar_exact(fixed: usize, broken: usize) -> f64 {
    let (fewer, n) = (fixed.min(broken), fixed + broken);
    // log of C(n, k) / 2^n, from one k to the next: no power underflows
    let mut log = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log.exp();
    for k in 1..=fewer {
        log += ((n - k + 1) as f64 / k as f64).ln();
        tail += log.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Average precision: the area under precision over recall as steps, sum of (R_i - R_(i-1)) P_i over the distinct scores
/// from the highest down; photos of equal score enter together. This is scikit-learn's `average_precision_score`. None
/// where no photo has the class.
pub fn average_precision(scored: &[(f64, bool)]) -> Option<f64> {
    let positives = scored.iter().filter(|(_, is)| *is).count();
    if positives == 0 {
        return None;
    }
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut hits, mut area) = (0, 0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let new = tied.iter().filter(|(_, is)| *is).count();
        seen += tied.len();
        hits += new;
        area += new as f64 / positives as f64 * (hits as f64 / seen as f64);
    }
    Some(area)
}

/// A probability with as many digits as say something.
pub fn p_value(p: f64) -> String {
    if p >= 0.001 { format!("{p:.3}") } else { format!("{p:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_as_published() {
        // statsmodels 0.14 proportion_confint(87, 98, method="wilson"), (0, 10) and (10, 10)
        let close = |got: [f64; 2], want: [f64; 2]| {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}, wanted {want:?}");
        };
        close(wilson(0, 10), [0.0, 0.277_532_8]);
        close(wilson(10, 10), [0.722_467_2, 1.0]);
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
        // Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662
        let got = wilson(81, 263);
        assert!((got[0] - 0.2553).abs() < 5e-5 && (got[1] - 0.3662).abs() < 5e-5, "{got:?}");
    }

    #[test]
    fn mcnemar_by_hand() {
        // 2 (1 + 5) / 2^5
        assert!((mcnemar_exact(4, 1) - 0.375).abs() <= 1e-15);
        assert_eq!((mcnemar_exact(0, 0), mcnemar_exact(3, 3)), (1.0, 1.0));
        assert_eq!(mcnemar_exact(9, 2), mcnemar_exact(2, 9));
        // far beyond what a plain power of a half holds
        assert!(mcnemar_exact(2000, 1900) > 0.05 && mcnemar_exact(5000, 0) >= 0.0);
    }
}
