//! What training did and what more photos bring, as charts.

use super::chart::{Chart, Series, smoothed};
use super::html::{duration, number, percent, text};
use super::sources::{Sources, Step};
use crate::base::counted;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

/// As many lines can be told from each other.
const DRAWN: usize = 6;

/// Which runs failed; losses, learning rates and scores of the first of those that took a step.
pub fn training(found: &Sources) -> String {
    let names = found.run_names();
    let mut html = String::new();
    for (run, name) in found.runs.iter().zip(&names) {
        if let Some(failure) = &run.failure {
            _ = write!(html, "<p class=\"note\">{} {}.</p>", text(name), text(failure));
        }
    }
    let runs = found.runs.iter().zip(names).filter(|(r, _)| !r.steps.is_empty());
    let all = runs.clone().count();
    let (runs, names): (Vec<_>, Vec<String>) = runs.take(DRAWN).unzip();
    if runs.is_empty() {
        return html;
    }
    if all > DRAWN {
        _ = write!(html, "<p class=\"note\">Drawn are the first {DRAWN} of {all} runs; name others for theirs.</p>");
    }
    let of = |pick: &dyn Fn(&Step) -> f64| -> Vec<Vec<(f64, f64)>> {
        runs.iter().map(|r| r.steps.iter().map(|s| (s.step, pick(s))).collect()).collect()
    };
    let (losses, rates) = (of(&|s| s.loss), of(&|s| s.lr));
    let loss: Vec<Series> = losses
        .into_iter()
        .enumerate()
        .map(|(i, points)| Series {
            name: names[i].clone(),
            line: smoothed(&points),
            faint: points,
            ..Series::default()
        })
        .collect();
    let rate: Vec<Series> = rates
        .into_iter()
        .enumerate()
        .map(|(i, line)| Series { name: names[i].clone(), line, ..Series::default() })
        .collect();
    let said: Vec<String> = runs
        .iter()
        .zip(&names)
        .map(|(r, name)| {
            let (first, last) = (r.steps.first().map_or(0.0, |s| s.loss), r.steps.last().map_or(0.0, |s| s.loss));
            let steps = counted(r.steps.len(), "step", "steps");
            format!("{name}: {steps} in {}, loss from {} to {}", duration(r.seconds), number(first), number(last))
        })
        .collect();
    let said = said.join("; ");
    let chart = |id, title, y| Chart {
        id,
        title,
        description: &said,
        x: "step",
        y,
        shares: false,
        from_zero: true,
        log_x: false,
    };
    let about = format!("Loss of each step (faint) and its running mean. {}.", text(&said));
    html += &chart("loss", "Training loss by step", "loss").figure(&loss, &about);
    html += &chart("rate", "Learning rate by step", "learning rate").figure(&rate, "Learning rate of each step.");
    let scored: Vec<Series> = runs
        .iter()
        .zip(&names)
        .filter(|(r, _)| !r.scores.is_empty())
        .map(|(r, name)| Series {
            name: name.clone(),
            line: r.scores.clone(),
            marks: r.scores.iter().map(|(x, y)| (*x, *y, None)).collect(),
            ..Series::default()
        })
        .collect();
    let validation =
        Chart { shares: true, from_zero: false, ..chart("validation", "Validation accuracy by step", "accuracy") };
    html + &validation.figure(&scored, "Accuracy on the validation set, on the way.")
}

/// Accuracy over the number of photos.
pub fn curve(found: &Sources) -> String {
    let (mut series, mut words) = (Vec::new(), Vec::new());
    if let Some(curve) = &found.curve {
        (series, words) = fitted(curve);
    } else {
        let mut scored = Series { name: "scored".into(), ..Series::default() };
        for e in &found.evaluations {
            if let Some(n) = e.number("training_samples") {
                scored.marks.push((n, e.metrics.accuracy, Some(e.metrics.interval)));
            }
        }
        scored.marks.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(scored);
    }
    let marks: Vec<(f64, f64)> = series.iter().flat_map(|s| &s.marks).map(|(x, y, _)| (*x, *y)).collect();
    let sizes: BTreeSet<u64> = marks.iter().map(|(x, _)| *x as u64).collect();
    if sizes.len() < 2 {
        return String::new();
    }
    let said: Vec<String> =
        marks.iter().map(|(x, y)| format!("{} {}", counted(*x as u64, "photo", "photos"), percent(*y))).collect();
    let chart = Chart {
        id: "learning",
        title: "Accuracy by number of training photos",
        description: &said.join(", "),
        x: "training photos",
        y: "accuracy",
        shares: true,
        from_zero: false,
        log_x: true,
    };
    let whiskers = match found.curve {
        Some(_) => "the lowest and the highest run of a size",
        None => "95 % intervals",
    };
    let about = format!("Accuracy over the number of photos trained on. Whiskers are {whiskers}.");
    let mut html = chart.figure(&series, &about);
    words.iter().for_each(|w| _ = write!(html, "<p>{}</p>", text(w)));
    html
}

/// What `vlm curve --json` says: the scored sizes, the law with what it predicts, and sentences.
fn fitted(curve: &Value) -> (Vec<Series>, Vec<String>) {
    let of = |value: &Value, key: &str| value[key].as_f64();
    let mut scored = Series { name: "scored".into(), ..Series::default() };
    for s in curve["sizes"].as_array().into_iter().flatten() {
        // a model that was not trained has no place on an axis of sizes that double
        if let (Some(x), Some(y)) = (of(s, "samples").filter(|x| *x > 0.0), of(s, "mean")) {
            let ends = of(s, "lowest").zip(of(s, "highest"));
            scored.marks.push((x, y, ends.map(|(low, high)| [low, high])));
        }
    }
    let mut words: Vec<String> = curve["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|w| w.as_str())
        .map(|w| format!("Careful: {w}."))
        .collect();
    let mut series = vec![scored];
    let law = &curve["fit"]["law"];
    if let (Some(a), Some(b), Some(c)) = (of(law, "a"), of(law, "b"), of(law, "c")) {
        let first = series[0].marks.first().map_or(1.0, |m| m.0);
        let predictions: Vec<&Value> = curve["predictions"].as_array().into_iter().flatten().collect();
        let last = predictions.iter().filter_map(|p| of(p, "samples")).fold(first, f64::max);
        let at = |i: i32| first * (last / first).powf(f64::from(i) / 60.0);
        let line = (0..=60).map(|i| (at(i), 1.0 - (a * at(i).powf(-b) + c))).collect();
        let band = predictions
            .iter()
            .filter_map(|p| Some((of(p, "samples")?, p["interval"][0].as_f64()?, p["interval"][1].as_f64()?)))
            .collect();
        series.push(Series { name: "power law".into(), line, band, ..Series::default() });
    }
    let target = &curve["target"];
    if let Some(accuracy) = of(target, "accuracy") {
        words.insert(
            0,
            match of(target, "samples") {
                Some(n) => {
                    format!("{} takes about {} training photos, says the law.", percent(accuracy), number(n.ceil()))
                }
                None => format!("{} is not reached by more photos like these, says the law.", percent(accuracy)),
            },
        );
    }
    (series, words)
}
