//! Two evaluations of the same photos, head to head.

use super::metrics::Metrics;
use super::records::{Evaluation, Record};
use super::statistics::mcnemar_exact;
use crate::base::{Error, Result, error::first_of};
use crate::data::label::normalised;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Where a comparison's folder has all but its records.
pub const COMPARISON: &str = "comparison.json";

/// What happened to a photo from the first evaluation to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    BothRight,
    Fixed,
    Broken,
    BothWrong,
}

impl Group {
    pub const ALL: [Group; 4] = [Group::BothRight, Group::Fixed, Group::Broken, Group::BothWrong];

    pub fn of(before: bool, after: bool) -> Group {
        match (before, after) {
            (true, true) => Group::BothRight,
            (false, true) => Group::Fixed,
            (true, false) => Group::Broken,
            (false, false) => Group::BothWrong,
        }
    }

    /// As tags and JSON spell it.
    pub fn tag(self) -> &'static str {
        match self {
            Group::BothRight => "both_right",
            Group::Fixed => "fixed",
            Group::Broken => "broken",
            Group::BothWrong => "both_wrong",
        }
    }
}

/// A photo in both evaluations.
#[derive(Debug, Clone)]
pub struct Pair {
    pub group: Group,
    pub before: Record,
    /// With the group among its tags.
    pub after: Record,
}

#[derive(Debug, Clone)]
pub struct Comparison {
    /// In the order of the second evaluation.
    pub pairs: Vec<Pair>,
    /// Photos of only the first, and of only the second, that are left out.
    pub alone: [usize; 2],
    pub counts: BTreeMap<Group, usize>,
    /// McNemar's exact test of fixed against broken.
    pub p: f64,
    pub before: Metrics,
    pub after: Metrics,
    pub per_class: BTreeMap<String, ClassChange>,
}

impl Comparison {
    /// What the test shows of the second model, which `second` names.
    pub fn verdict(&self, second: &str) -> String {
        let often = |how| format!("so uneven a split is {how} where both are equally good");
        match (self.p <= 0.05, self.counts[&Group::Fixed] > self.counts[&Group::Broken]) {
            (true, true) => format!("{second} is better: {}", often("rare")),
            (true, false) => format!("{second} is worse: {}", often("rare")),
            (false, _) => format!("no difference is shown: {}", often("common")),
        }
    }
}

/// Of a class's photos.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ClassChange {
    pub n: usize,
    pub before: usize,
    pub after: usize,
    pub fixed: usize,
    pub broken: usize,
}

/// What to do with photos that only one of the two has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDifferent {
    Fail,
    Intersect,
}

/// `record` with other names of classes: `of` gives each its own.
fn respelled(record: &Record, of: &dyn Fn(&String) -> String) -> Record {
    let all = |names: &Vec<String>| {
        let mut names: Vec<String> = names.iter().map(of).collect();
        names.sort();
        names
    };
    let (labels, predictions) = (record.labels.as_ref().map(all), record.predictions.as_ref().map(all));
    let one = |name, list: &Option<Vec<String>>| list.as_ref().map_or_else(|| of(name), |list| list.join(", "));
    Record {
        label: one(&record.label, &labels),
        prediction: one(&record.prediction, &predictions),
        probabilities: record.probabilities.as_ref().map(|all| all.iter().map(|(name, p)| (of(name), *p)).collect()),
        labels,
        predictions,
        ..record.clone()
    }
}

/// Pairs the photos of two evaluations: by their files, where there are pictures, else by line of the data; photos that
/// come several times by their order. Errors: other photos (unless told to leave them out), none in common, a photo
/// with another label.
pub fn compare(a: &Evaluation, b: &Evaluation, on_different: OnDifferent) -> Result<Comparison> {
    let (first, second) = (keyed(a), keyed(b));
    let mine: BTreeMap<&Key, &Record> = first.iter().map(|(key, r)| (key, *r)).collect();
    let theirs: BTreeSet<&Key> = second.iter().map(|(key, _)| key).collect();
    let only_a: Vec<&Key> = first.iter().map(|(key, _)| key).filter(|k| !theirs.contains(k)).collect();
    let only_b: Vec<&Key> = second.iter().map(|(key, _)| key).filter(|k| !mine.contains_key(k)).collect();
    let (name_a, name_b) = (a.dir.display(), b.dir.display());
    if only_a.len() == first.len() {
        let said = format!("{name_a} and {name_b} have no photo in common; evaluate both models on the same set");
        return Err(Error::Unsupported(said));
    }
    if on_different == OnDifferent::Fail && !(only_a.is_empty() && only_b.is_empty()) {
        let names = |keys: &[&Key]| first_of(&keys.iter().take(9).map(|k| k.shown()).collect::<Vec<_>>());
        let side = |name: &dyn std::fmt::Display, keys: &[&Key]| match keys {
            [] => None,
            keys => Some(format!("{} only in {name} ({})", keys.len(), names(&keys[..keys.len().min(3)]))),
        };
        let sides: Vec<String> = [side(&name_a, &only_a), side(&name_b, &only_b)].into_iter().flatten().collect();
        return Err(Error::Unsupported(format!(
            "the two evaluations are not of the same photos: {}; evaluate both on one set, or give --common to compare \
             the photos that both have",
            sides.join(", ")
        )));
    }
    let classes = |e: &Evaluation| -> Vec<String> { e.metrics.per_class.keys().cloned().collect() };
    let (classes_a, classes_b) = (classes(a), classes(b));
    // a class is one however it is spelt; the second evaluation's spelling is shown
    let spelling: BTreeMap<String, &String> = classes_b.iter().map(|name| (normalised(name), name)).collect();
    let of = |name: &String| spelling.get(&normalised(name)).map_or_else(|| name.clone(), |known| (*known).clone());
    let mut pairs = Vec::new();
    for (key, after) in &second {
        let Some(before) = mine.get(key).map(|before| respelled(before, &of)) else { continue };
        if before.label != after.label {
            return Err(Error::Unsupported(format!(
                "{} is labelled {:?} in {name_a} and {:?} in {name_b}; evaluate both on one set",
                key.shown(),
                before.label,
                after.label
            )));
        }
        let group = Group::of(before.right, after.right);
        let mut after = (*after).clone();
        after.tags.retain(|t| Group::ALL.iter().all(|g| g.tag() != t));
        after.tags.push(group.tag().into());
        after.before = Some(before.prediction.clone());
        pairs.push(Pair { group, before, after });
    }
    let count = |group| pairs.iter().filter(|p| p.group == group).count();
    let counts: BTreeMap<Group, usize> = Group::ALL.into_iter().map(|g| (g, count(g))).collect();
    let classes_a: Vec<String> = classes_a.iter().map(of).collect();
    let scored = |classes: &[String], of: &dyn Fn(&Pair) -> Record| {
        super::metrics::metrics(classes, &pairs.iter().map(of).collect::<Vec<_>>())
    };
    Ok(Comparison {
        alone: [only_a.len(), only_b.len()],
        p: mcnemar_exact(counts[&Group::Fixed], counts[&Group::Broken]),
        before: scored(&classes_a, &|p| p.before.clone()),
        after: scored(&classes_b, &|p| p.after.clone()),
        per_class: per_class(&pairs),
        counts,
        pairs,
    })
}

fn per_class(pairs: &[Pair]) -> BTreeMap<String, ClassChange> {
    let mut classes: BTreeMap<String, ClassChange> = BTreeMap::new();
    for pair in pairs {
        let one = [pair.after.label.clone()];
        for label in pair.after.labels.as_deref().unwrap_or(&one) {
            // of several labels on a photo: whether this one was named
            let named = |r: &Record| r.predictions.as_ref().map_or(r.right, |said| said.contains(label));
            let change = classes.entry(label.clone()).or_default();
            change.n += 1;
            change.before += usize::from(named(&pair.before));
            change.after += usize::from(named(&pair.after));
            change.fixed += usize::from(!named(&pair.before) && named(&pair.after));
            change.broken += usize::from(named(&pair.before) && !named(&pair.after));
        }
    }
    classes
}

/// What makes a photo the same in two evaluations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Empty: no pictures, and the line counts.
    pub images: Vec<PathBuf>,
    pub line: usize,
    /// Among equal ones.
    pub nth: usize,
}

impl Key {
    /// For a person.
    pub fn shown(&self) -> String {
        match self.images.first() {
            Some(image) => image.display().to_string(),
            None => format!("line {}", self.line),
        }
    }
}

/// The records of an evaluation, each with what tells its photo from others.
pub fn keyed(e: &Evaluation) -> Vec<(Key, &Record)> {
    let mut seen: BTreeMap<(Vec<PathBuf>, usize), usize> = BTreeMap::new();
    let key = |r| {
        let images: Vec<PathBuf> =
            Record::images(r).into_iter().map(|i| e.path(i).unwrap_or_else(|| i.into())).collect();
        let line = if images.is_empty() { r.line } else { 0 };
        let nth = seen.entry((images.clone(), line)).or_default();
        *nth += 1;
        (Key { images, line, nth: *nth }, r)
    };
    e.records.iter().map(key).collect()
}
