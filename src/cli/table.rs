//! Scores as tables for a person.

use super::classes::Classes;
use crate::base::width::{left, right, shortened, width};
use crate::classify::compare::{Comparison, Group};
use crate::classify::metrics::{Baseline, Metrics};
use crate::classify::statistics::p_value;
use std::fmt::Write;

/// Accuracy beside what guessing gets, a row per class, the confusion matrix.
pub fn metrics(m: &Metrics) -> String {
    let mut said = String::new();
    _ = writeln!(said, "accuracy {}\n", accuracy(m));
    said += &baselines(m);
    let classes = m.confusion.as_ref().map_or_else(|| Classes::new(m.per_class.keys()), Classes::of);
    let ranked = m.mean_average_precision.is_some();
    let more = if ranked { format!(" {:>6}", "AP") } else { String::new() };
    _ = writeln!(
        said,
        "\n{} {:>6} {:>8} {:>10} {:>8} {:>6}{more}",
        left("class", classes.width()),
        "photos",
        "correct",
        "precision",
        "recall",
        "F1"
    );
    for (label, c) in &m.per_class {
        let (p, r, f) = (percent(c.precision), percent(c.recall), percent(c.f1));
        let more = if ranked { format!(" {:>6}", percent(c.average_precision)) } else { String::new() };
        _ = writeln!(said, "{} {:>6} {:>8} {p:>10} {r:>8} {f:>6}{more}", classes.cell(label), c.n, c.correct);
    }
    if let Some(confusion) = &m.confusion {
        said.push('\n');
        said += &classes.matrix(confusion);
    }
    said += &classes.legend();
    said
}

/// In one line, with its interval.
pub fn accuracy(m: &Metrics) -> String {
    let [low, high] = m.interval.map(|x| 100.0 * x);
    let (share, right, n) = (100.0 * m.accuracy, m.correct, m.n);
    format!("{share:.1} % ({right} of {n}; 95 % interval {low:.1} to {high:.1} %)")
}

fn percent(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| format!("{:.1}", 100.0 * x))
}

fn baselines(m: &Metrics) -> String {
    let b = &m.baselines;
    let mut said = String::new();
    let mut row = |name: &str, score: Option<f64>, of: &dyn Fn(&Baseline) -> Option<f64>| {
        let [majority, random] = [&b.majority, &b.random].map(|b| percent(of(b)));
        _ = writeln!(said, "{name:<17} {:>7} {majority:>15} {random:>13}", percent(score));
    };
    let answer = b.majority.answer.as_deref().unwrap_or_default();
    row("accuracy", Some(m.accuracy), &|b| Some(b.accuracy));
    row("macro F1", Some(m.macro_f1), &|b| Some(b.macro_f1));
    if let Some(map) = m.mean_average_precision {
        row("mAP", Some(map), &|b| b.mean_average_precision);
    }
    if let Some(micro) = m.micro_f1 {
        row("micro F1", Some(micro), &|_| None);
    }
    let head = format!("{:<17} {:>7} {:>15} {:>13}\n", "", "model", "majority class", "random guess");
    let no_better = m.n > 0 && m.interval[0] <= b.majority.accuracy;
    let verdict = if no_better {
        format!("not shown to be better than always answering {answer:?}: the interval reaches down to that\n")
    } else {
        format!("majority class: always answering {answer:?}\n")
    };
    head + &said + &verdict
}

/// The four groups, the table of both, the test, the classes. `names` are what the two are called.
pub fn comparison(c: &Comparison, names: [&str; 2]) -> String {
    let mut said = String::new();
    let [a, b] = names;
    let widest = width(a).max(width(b));
    _ = writeln!(said, "{}  accuracy {}", left(a, widest), accuracy(&c.before));
    _ = writeln!(said, "{}  accuracy {}\n", left(b, widest), accuracy(&c.after));
    let n = |group| c.counts[&group];
    let lines = [
        (Group::BothRight, "both right"),
        (Group::Fixed, "fixed"),
        (Group::Broken, "broken"),
        (Group::BothWrong, "both wrong"),
    ];
    for (group, name) in lines {
        _ = writeln!(said, "{name:<10} {:>6}", n(group));
    }
    // the folders are named in full above
    let [a, b] = [shortened(a, 24), shortened(b, 24)];
    let widest = width(&a).max(width(&b));
    let (first, cell) = (widest + 6, widest.max(6) + 6);
    let row = |name: &str, hits: String, misses: String| {
        format!("{} {} {}\n", left(name, first), right(&hits, cell), right(&misses, cell))
    };
    said.push('\n');
    said += &row("", format!("{b} right"), format!("{b} wrong"));
    said += &row(&format!("{a} right"), n(Group::BothRight).to_string(), n(Group::Broken).to_string());
    said += &row(&format!("{a} wrong"), n(Group::Fixed).to_string(), n(Group::BothWrong).to_string());
    _ = writeln!(said, "\nMcNemar's exact test: p = {}", p_value(c.p));
    _ = writeln!(said, "{}\n", c.verdict(&b));
    let classes = Classes::new(c.per_class.keys());
    _ = writeln!(
        said,
        "{} {:>6} {:>7} {:>7} {:>6} {:>6} {:>7}",
        left("class", classes.width()),
        "photos",
        "before",
        "after",
        "fixed",
        "broken",
        "change"
    );
    for (label, k) in &c.per_class {
        let change = 100.0 * (k.after as f64 - k.before as f64) / k.n.max(1) as f64;
        _ = writeln!(
            said,
            "{} {:>6} {:>7} {:>7} {:>6} {:>6} {change:>+7.1}",
            classes.cell(label),
            k.n,
            k.before,
            k.after,
            k.fixed,
            k.broken
        );
    }
    said += &classes.legend();
    said
}
