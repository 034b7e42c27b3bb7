//! What a list of predictions adds up to: accuracy with its interval, a row per class, the confusion matrix.

use serde::Serialize;
use std::collections::BTreeMap;

/// Predictions that are no class: what a generated answer falls under where it names none.
pub const OTHER: &str = "(other)";

/// One class's share of the result. Values that have no meaning (a precision where nothing was predicted) are absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassScore {
    pub n: usize,
    pub correct: usize,
    pub predicted: usize,
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
}

/// `counts[i][j]`: photos of class `labels[i]` that were called `labels[j]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Confusion {
    pub labels: Vec<String>,
    pub counts: Vec<Vec<usize>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    pub n: usize,
    pub correct: usize,
    pub accuracy: f64,
    /// 95 % Wilson score interval of the accuracy.
    pub interval: [f64; 2],
    pub per_class: BTreeMap<String, ClassScore>,
    pub confusion: Confusion,
}

/// From (label, prediction) pairs. Predictions outside the labels' own set are counted as [`OTHER`].
pub fn metrics<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Metrics {
    let mut labels: Vec<String> = pairs.clone().map(|(label, _)| label.to_string()).collect();
    labels.sort();
    labels.dedup();
    let place = |name: &str| labels.binary_search_by(|l| l.as_str().cmp(name)).unwrap_or(labels.len());
    let mut counts = vec![vec![0; labels.len() + 1]; labels.len() + 1];
    for (label, prediction) in pairs {
        counts[place(label)][place(prediction)] += 1;
    }
    let column = |j: usize| counts.iter().map(|row| row[j]).sum::<usize>();
    let (n, correct) = (counts.iter().flatten().sum(), (0..labels.len()).map(|i| counts[i][i]).sum());
    let mut per_class = BTreeMap::new();
    for (i, label) in labels.iter().enumerate() {
        let (n, right, predicted) = (counts[i].iter().sum(), counts[i][i], column(i));
        per_class.insert(
            label.clone(),
            ClassScore {
                n,
                correct: right,
                predicted,
                precision: share(right, predicted),
                recall: share(right, n),
                f1: share(2 * right, n + predicted),
            },
        );
    }
    let others = column(labels.len()) > 0;
    counts.truncate(labels.len());
    if others {
        labels.push(OTHER.to_string());
    } else {
        counts.iter_mut().for_each(|row| row.truncate(labels.len()));
    }
    Metrics {
        n,
        correct,
        accuracy: share(correct, n).unwrap_or(0.0),
        interval: wilson(correct, n),
        per_class,
        confusion: Confusion { labels, counts },
    }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The 95 % score interval of Wilson (1927) for `correct` of `n`; all of [0, 1] where n is 0.
pub fn wilson(correct: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    const Z: f64 = 1.959_963_984_540_054;
    let (n, p) = (n as f64, correct as f64 / n as f64);
    let centre = p + Z * Z / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    [((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0)]
}

/// An answer as it is compared: trimmed, case folded, a final full stop dropped.
pub fn normalised(answer: &str) -> String {
    let answer = answer.trim();
    answer.strip_suffix('.').unwrap_or(answer).trim_end().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_table_by_hand() {
        let pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("c", "what?")];
        let m = metrics(pairs.into_iter());
        assert_eq!((m.n, m.correct, m.accuracy), (5, 3, 0.6));
        assert_eq!(m.confusion.labels, ["a", "b", "c", OTHER]);
        assert_eq!(m.confusion.counts, [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]);
        let b = &m.per_class["b"];
        assert_eq!((b.n, b.correct, b.predicted), (2, 2, 3));
        assert_eq!((b.precision, b.recall, b.f1), (Some(2.0 / 3.0), Some(1.0), Some(0.8)));
        assert_eq!(m.per_class["c"].precision, None);
    }

    #[test]
    fn no_column_for_other_where_there_is_none() {
        let m = metrics([("a", "a"), ("b", "a")].into_iter());
        assert_eq!(m.confusion.labels, ["a", "b"]);
        assert_eq!(m.confusion.counts, [[1, 0], [1, 0]]);
        assert_eq!(metrics(std::iter::empty()).n, 0);
    }

    #[test]
    fn wilson_as_published() {
        // statsmodels 0.14 proportion_confint(87, 98, method="wilson"), (0, 10) and (10, 10)
        let close = |got: [f64; 2], want: [f64; 2]| {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}, wanted {want:?}");
        };
        close(wilson(0, 10), [0.0, 0.277_532_8]);
        close(wilson(10, 10), [0.722_467_2, 1.0]);
        // Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662
        let got = wilson(81, 263);
        assert!((got[0] - 0.2553).abs() < 5e-5 && (got[1] - 0.3662).abs() < 5e-5, "{got:?}");
    }

    #[test]
    fn answers_are_compared_without_their_dress() {
        assert_eq!(normalised("  Dent.\n"), "dent");
        assert_eq!(normalised("ÉRAFLURE"), "éraflure");
        assert_eq!(normalised("a.b"), "a.b");
        assert_eq!(normalised("."), "");
    }
}
