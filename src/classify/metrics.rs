//! What a list of predictions adds up to: accuracy with its interval, a row per class, the confusion matrix, and what
//! somebody who has not looked at the photos would have got.
//!
//! Counts and scores are scikit-learn's: `precision_recall_fscore_support`, `balanced_accuracy_score`,
//! `average_precision_score`, with `zero_division=0` in means and over the classes that have photos.

use super::records::Record;
use super::statistics::{average_precision, wilson};
use crate::data::label::normalised;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Predictions that are no class: what a generated answer falls under where it names none.
pub const OTHER: &str = "(other)";

/// One class's share of the result. Values that have no meaning (a precision where nothing was predicted) are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    pub n: usize,
    pub correct: usize,
    pub predicted: usize,
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
    /// Where a photo can have several labels, each with a probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_precision: Option<f64>,
}

/// `counts[i][j]`: photos of class `labels[i]` that were called `labels[j]`. [`OTHER`], which no photo is, has no row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    pub labels: Vec<String>,
    pub counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// Whether `labels[i]` has photos, and so a row with its name.
    pub fn has_row(&self, i: usize) -> bool {
        i < self.counts.len()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub n: usize,
    /// With several labels a photo: those whose labels are all named, and no other.
    pub correct: usize,
    pub accuracy: f64,
    /// 95 % Wilson score interval of the accuracy.
    pub interval: [f64; 2],
    /// Means over the classes that have photos. The mean recall is the balanced accuracy.
    pub macro_precision: f64,
    pub macro_recall: f64,
    pub macro_f1: f64,
    /// Over all labels of all photos, where a photo can have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_f1: Option<f64>,
    /// mAP: the mean of the classes' average precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_average_precision: Option<f64>,
    pub per_class: BTreeMap<String, ClassScore>,
    /// Absent where a photo can have several labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Confusion>,
    pub baselines: Baselines,
}

/// Scores without a look at the photos.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baselines {
    /// Always the answer that is most frequent in this set.
    pub majority: Baseline,
    /// The expectation of an answer drawn with equal chances for all classes; with several labels a photo, each named or
    /// not with equal chances. F1 is that of the expected counts.
    pub random: Baseline,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    pub accuracy: f64,
    pub macro_f1: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_average_precision: Option<f64>,
}

/// Of records that all have one label, or all several. `classes`: what could have been answered; labels of the records
/// that are not among them are added. Predictions outside are counted as [`OTHER`].
pub fn metrics(classes: &[String], records: &[Record]) -> Metrics {
    let multi = records.iter().any(|r| r.labels.is_some());
    let labels = |r: &Record| r.labels.clone().unwrap_or_else(|| vec![r.label.clone()]);
    let predictions = |r: &Record| r.predictions.clone().unwrap_or_else(|| vec![r.prediction.clone()]);
    let mut classes = classes.to_vec();
    classes.extend(records.iter().flat_map(labels));
    classes.sort();
    classes.dedup();
    let place = |name: &String| classes.binary_search(name).unwrap_or(classes.len());
    let places = |names: Vec<String>| {
        let mut places: Vec<usize> = names.iter().map(place).collect();
        places.sort_unstable();
        places.dedup();
        places
    };
    let truth: Vec<Vec<usize>> = records.iter().map(|r| places(labels(r))).collect();
    let said: Vec<Vec<usize>> = records.iter().map(|r| places(predictions(r))).collect();
    let (n, correct) = (records.len(), records.iter().filter(|r| r.right).count());
    let mut scores = Vec::with_capacity(classes.len());
    for (c, class) in classes.iter().enumerate() {
        let count = |sets: &[Vec<usize>]| sets.iter().filter(|s| s.contains(&c)).count();
        let right = truth.iter().zip(&said).filter(|(t, s)| t.contains(&c) && s.contains(&c)).count();
        let (n, predicted) = (count(&truth), count(&said));
        let probability = |r: &Record| r.probabilities.as_ref().and_then(|p| p.get(class)).copied();
        let scored: Option<Vec<(f64, bool)>> =
            records.iter().zip(&truth).map(|(r, t)| Some((probability(r)?, t.contains(&c)))).collect();
        scores.push(ClassScore {
            n,
            correct: right,
            predicted,
            precision: share(right, predicted),
            recall: share(right, n),
            f1: share(2 * right, n + predicted),
            average_precision: scored.filter(|_| multi).and_then(|s| average_precision(&s)),
        });
    }
    let mean = |of: &dyn Fn(&ClassScore) -> f64| {
        let present: Vec<f64> = scores.iter().filter(|s| s.n > 0).map(of).collect();
        if present.is_empty() { 0.0 } else { present.iter().sum::<f64>() / present.len() as f64 }
    };
    let precise: Vec<f64> = scores.iter().filter_map(|s| s.average_precision).collect();
    let mean_average_precision = (!precise.is_empty()).then(|| precise.iter().sum::<f64>() / precise.len() as f64);
    let named = said.iter().map(Vec::len).sum::<usize>() + truth.iter().map(Vec::len).sum::<usize>();
    let hits: usize = scores.iter().map(|s| s.correct).sum();
    Metrics {
        n,
        correct,
        accuracy: share(correct, n).unwrap_or(0.0),
        interval: wilson(correct, n),
        macro_precision: mean(&|s| s.precision.unwrap_or(0.0)),
        macro_recall: mean(&|s| s.recall.unwrap_or(0.0)),
        macro_f1: mean(&|s| s.f1.unwrap_or(0.0)),
        micro_f1: if multi { share(2 * hits, named) } else { None },
        mean_average_precision,
        confusion: (!multi).then(|| confusion(&classes, &truth, &said)),
        baselines: baselines(&classes, &truth, multi),
        per_class: classes.into_iter().zip(scores).collect(),
    }
}

/// Every photo has one label and one prediction.
fn confusion(classes: &[String], truth: &[Vec<usize>], said: &[Vec<usize>]) -> Confusion {
    let mut labels = classes.to_vec();
    let mut counts = vec![vec![0; labels.len() + 1]; labels.len()];
    for (label, prediction) in truth.iter().flatten().zip(said.iter().flatten()) {
        counts[*label][*prediction] += 1;
    }
    if counts.iter().any(|row| row[labels.len()] > 0) {
        labels.push(OTHER.to_string());
    } else {
        counts.iter_mut().for_each(|row| row.truncate(labels.len()));
    }
    Confusion { labels, counts }
}

fn baselines(classes: &[String], truth: &[Vec<usize>], multi: bool) -> Baselines {
    let mut answers: BTreeMap<&[usize], usize> = BTreeMap::new();
    truth.iter().for_each(|t| *answers.entry(t).or_default() += 1);
    // the first of equally frequent ones
    let best = answers.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0))).map(|(answer, n)| (answer.to_vec(), *n));
    let (answer, most) = best.unwrap_or_default();
    let n = truth.len().max(1) as f64;
    // shares of the classes that have photos
    let shares: Vec<(usize, f64)> = (0..classes.len())
        .map(|c| (c, truth.iter().filter(|t| t.contains(&c)).count() as f64 / n))
        .filter(|(_, share)| *share > 0.0)
        .collect();
    let mean = |of: &dyn Fn(usize, f64) -> f64| {
        shares.iter().map(|(c, share)| of(*c, *share)).sum::<f64>() / shares.len().max(1) as f64
    };
    let f1 = |precision: f64, recall: f64| 2.0 * precision * recall / (precision + recall);
    let k = classes.len().max(1) as f64;
    let chance = if multi { 0.5 } else { 1.0 / k };
    // photos of equal score enter together: precision is the class's share at the only threshold
    let ranked = multi.then(|| mean(&|_, share| share));
    let names: Vec<&str> = answer.iter().map(|c| classes[*c].as_str()).collect();
    Baselines {
        majority: Baseline {
            answer: Some(names.join(", ")),
            accuracy: most as f64 / n,
            macro_f1: mean(&|c, share| if answer.contains(&c) { f1(share, 1.0) } else { 0.0 }),
            mean_average_precision: ranked,
        },
        random: Baseline {
            answer: None,
            accuracy: if multi { 0.5f64.powf(k) } else { 1.0 / k },
            macro_f1: mean(&|_, share| f1(share, chance)),
            mean_average_precision: ranked,
        },
    }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The names that differ once they are [`normalised`], sorted; of several spellings the commonest, and of equally common
/// ones the first.
pub fn distinct(names: Vec<String>) -> Vec<String> {
    let mut spellings: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for name in names {
        *spellings.entry(normalised(&name)).or_default().entry(name).or_default() += 1;
    }
    // of equal ones max_by_key takes the last
    let commonest = |s: BTreeMap<String, usize>| s.into_iter().rev().max_by_key(|(_, n)| *n).map(|(name, _)| name);
    let mut names: Vec<String> = spellings.into_values().filter_map(commonest).collect();
    names.sort();
    names
}

/// The labels of an answer that names several: parts between commas, semicolons or line breaks, trimmed, without empty
/// ones, each once.
pub fn parts(answer: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in answer.split([',', ';', '\n']).map(str::trim).filter(|p| !p.is_empty()) {
        if !parts.iter().any(|p| normalised(p) == normalised(part)) {
            parts.push(part.to_owned());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Vec<Record> {
        let record = |(label, prediction): &(&str, &str)| Record {
            label: label.to_string(),
            prediction: prediction.to_string(),
            right: label == prediction,
            ..Record::default()
        };
        pairs.iter().map(record).collect()
    }

    #[test]
    fn a_small_table_by_hand() {
        let m = metrics(&[], &records(&[("a", "a"), ("a", "b"), ("b", "b"), ("b", "b"), ("c", "what?")]));
        assert_eq!((m.n, m.correct, m.accuracy), (5, 3, 0.6));
        let confusion = m.confusion.unwrap();
        assert_eq!(confusion.labels, ["a", "b", "c", OTHER]);
        assert_eq!(confusion.counts, [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]);
        let b = &m.per_class["b"];
        assert_eq!((b.n, b.correct, b.predicted), (2, 2, 3));
        assert_eq!((b.precision, b.recall, b.f1), (Some(2.0 / 3.0), Some(1.0), Some(0.8)));
        assert_eq!(m.per_class["c"].precision, None);
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-15, "{a} {b}");
        close(m.macro_f1, (2.0 / 3.0 + 0.8 + 0.0) / 3.0);
        assert_eq!(m.baselines.majority.answer.as_deref(), Some("a"));
        close(m.baselines.majority.accuracy, 0.4);
        close(m.baselines.majority.macro_f1, 2.0 * 0.4 / 1.4 / 3.0);
        close(m.baselines.random.accuracy, 1.0 / 3.0);
    }

    #[test]
    fn no_column_for_other_where_there_is_none() {
        let m = metrics(&["rust".into()], &records(&[("a", "a"), ("b", "rust")]));
        let confusion = m.confusion.unwrap();
        assert_eq!(confusion.labels, ["a", "b", "rust"]);
        assert_eq!(confusion.counts, [[1, 0, 0], [0, 0, 1], [0, 0, 0]]);
        // a class without photos is in no mean
        assert_eq!(m.macro_f1, 0.5);
        assert_eq!(metrics(&[], &[]).n, 0);
    }

    #[test]
    fn several_labels_are_told_apart_as_answers_are_compared() {
        assert_eq!(parts(" dent, Scratch;\nDENT.,, crack "), ["dent", "Scratch", "crack"]);
        assert!(parts(" , ").is_empty());
        let names = |names: &[&str]| distinct(names.iter().map(|n| n.to_string()).collect());
        assert_eq!(names(&["b", "a", " a", "B", "a.", "A", "b", "a"]), ["a", "b"]);
        assert_eq!(names(&["b", "B", "a.b", "ab"]), ["B", "a.b", "ab"]);
    }
}
