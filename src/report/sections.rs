//! The parts of the page that need no script.

use super::chart::{Chart, Series, intervals, smoothed};
use super::gallery::{Gallery, resolved};
use super::html::{duration, number, percent, text};
use super::sources::Sources;
use crate::classify::compare::{Comparison, Group};
use crate::classify::metrics::{Confusion, Metrics};
use crate::classify::records::Evaluation;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

/// A part with its heading; `id` is what links name.
pub struct Section {
    pub id: &'static str,
    pub title: &'static str,
    pub body: String,
}

/// All parts that there is something for, in the order of the page.
pub fn sections(found: &Sources, names: &[String], gallery: &Gallery) -> Vec<Section> {
    let parts = [
        ("summary", "Summary", summary(found, names)),
        ("comparison", "Before and after", found.comparison.as_ref().map_or(String::new(), |c| comparison(c, names))),
        ("confusion", "What is taken for what", confusions(found, names)),
        ("classes", "Class by class", classes(found, names)),
        ("training", "Training", training(found)),
        ("curve", "More photos", curve(found)),
        ("leaks", "Near-duplicates", leaks(found, gallery)),
    ];
    parts
        .into_iter()
        .filter(|(_, _, body)| !body.is_empty())
        .map(|(id, title, body)| Section { id, title, body })
        .collect()
}

fn summary(found: &Sources, names: &[String]) -> String {
    if found.evaluations.is_empty() {
        return String::new();
    }
    let mut rows: Vec<(String, f64, Option<[f64; 2]>)> = found
        .evaluations
        .iter()
        .zip(names)
        .map(|(e, name)| (name.clone(), e.metrics.accuracy, Some(e.metrics.interval)))
        .collect();
    if let Some(last) = found.evaluations.last() {
        let b = &last.metrics.baselines;
        rows.push(("commonest class".into(), b.majority.accuracy, None));
        rows.push(("random guess".into(), b.random.accuracy, None));
    }
    let mut html = String::new();
    for note in &found.notes {
        _ = write!(html, "<p class=\"note\">{}</p>", text(note));
    }
    _ = write!(
        html,
        "<figure>{}<figcaption>Accuracy with its 95 % interval, and what one gets without a look at the \
         photos.</figcaption></figure>",
        intervals("accuracy", "Accuracy of each evaluation", &rows)
    );
    let ranked = found.evaluations.iter().any(|e| e.metrics.mean_average_precision.is_some());
    let priced = found.evaluations.iter().any(|e| e.number("dollars").is_some());
    let trained = found.evaluations.iter().any(|e| e.number("training_samples").is_some());
    let mut head = vec!["photos", "right", "accuracy", "95 % interval", "macro F1"];
    if ranked {
        head.push("mAP");
    }
    head.extend(["commonest", "guess", "time", "images/s"]);
    if trained {
        head.push("trained on");
    }
    if priced {
        head.push("dollars");
    }
    let mut rows = Vec::new();
    for (e, name) in found.evaluations.iter().zip(names) {
        let m = &e.metrics;
        let or_dash = |x: Option<f64>, show: &dyn Fn(f64) -> String| x.map_or("–".into(), show);
        let [low, high] = m.interval;
        let mut row = vec![
            m.n.to_string(),
            m.correct.to_string(),
            percent(m.accuracy),
            format!("{:.1} to {}", 100.0 * low, percent(high)),
            percent(m.macro_f1),
        ];
        if ranked {
            row.push(or_dash(m.mean_average_precision, &percent));
        }
        row.extend([
            percent(m.baselines.majority.accuracy),
            percent(m.baselines.random.accuracy),
            or_dash(e.number("seconds"), &duration),
            or_dash(e.number("images_per_second"), &number),
        ]);
        if trained {
            row.push(or_dash(e.number("training_samples"), &number));
        }
        if priced {
            row.push(or_dash(e.number("dollars"), &number));
        }
        rows.push((name.clone(), row));
    }
    html += &table("Scores of each evaluation", "evaluation", &head, &rows);
    html += &who(found, names);
    html
}

/// Which model answered which set, and how.
fn who(found: &Sources, names: &[String]) -> String {
    let mut html = String::from("<details><summary>Models, sets and methods</summary><dl class=\"who\">");
    for (e, name) in found.evaluations.iter().zip(names) {
        let mut said = Vec::new();
        for key in ["model", "adapter", "endpoint", "endpoint_model", "data", "method", "device"] {
            if let Some(value) = e.text(key) {
                said.push(format!("{} <code>{}</code>", key.replace('_', " "), text(value)));
            }
        }
        _ = write!(html, "<dt>{}</dt><dd>{}</dd>", text(name), said.join("; "));
    }
    html + "</dl></details>"
}

/// A table of numbers that scrolls sideways where it must.
fn table(caption: &str, corner: &str, head: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr>\
         <th scope=\"col\">{1}</th>",
        text(caption),
        text(corner)
    );
    head.iter().for_each(|h| _ = write!(html, "<th scope=\"col\" class=\"n\">{}</th>", text(h)));
    html += "</tr></thead><tbody>";
    for (name, cells) in rows {
        _ = write!(html, "<tr><th scope=\"row\">{}</th>", text(name));
        cells.iter().for_each(|c| _ = write!(html, "<td class=\"n\">{}</td>", text(c)));
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

fn comparison(c: &Comparison, names: &[String]) -> String {
    let (Some(a), Some(b)) = (names.first(), names.last()) else { return String::new() };
    let n = |group| c.counts.get(&group).copied().unwrap_or(0);
    let mut html = String::from("<ul class=\"groups\">");
    let groups = [
        (Group::Fixed, "fixed", "wrong before, right after"),
        (Group::Broken, "broken", "right before, wrong after"),
        (Group::BothRight, "both right", "easy"),
        (Group::BothWrong, "both wrong", "look at these labels"),
    ];
    for (group, name, meaning) in groups {
        let (count, tag) = (n(group), group.tag());
        _ = write!(
            html,
            "<li><button type=\"button\" class=\"group {tag}\" data-tag=\"{tag}\"><span class=\"count\">{count}</span> \
             <span class=\"name\">{name}</span><span class=\"meaning\">{meaning}</span></button></li>"
        );
    }
    html += "</ul>";
    let [gained, lost] = [n(Group::Fixed), n(Group::Broken)];
    let p = if c.p >= 0.001 { format!("{:.3}", c.p) } else { format!("{:.1e}", c.p) };
    let verdict = match (c.p <= 0.05, gained > lost) {
        (true, true) => "so uneven a split is rare where both are equally good: the second is better",
        (true, false) => "so uneven a split is rare where both are equally good: the second is worse",
        (false, _) => "so uneven a split is common where both are equally good: no difference is shown",
    };
    _ = write!(
        html,
        "<p>From <b>{}</b> to <b>{}</b>: {} to {} on {} photos. McNemar’s exact test on the {gained} fixed and {lost} broken: \
         <i>p</i> = {p}; {verdict}.</p>",
        text(a),
        text(b),
        percent(c.before.accuracy),
        percent(c.after.accuracy),
        c.pairs.len()
    );
    if c.alone != [0, 0] {
        let [only_a, only_b] = c.alone;
        _ = write!(
            html,
            "<p class=\"note\">Left out: {only_a} photos of only the first, {only_b} of only the second.</p>"
        );
    }
    let rows: Vec<(String, Vec<String>)> = c
        .per_class
        .iter()
        .map(|(class, k)| {
            let change = 100.0 * (k.after as f64 - k.before as f64) / k.n.max(1) as f64;
            let cells = [k.n, k.before, k.after, k.fixed, k.broken].map(|x| x.to_string());
            (class.clone(), cells.into_iter().chain([format!("{change:+.1}").replace('-', "−")]).collect())
        })
        .collect();
    let head = ["photos", "right before", "right after", "fixed", "broken", "change in points"];
    html + &table("Change by class", "class", &head, &rows)
}

fn confusions(found: &Sources, names: &[String]) -> String {
    let all: Vec<(usize, &Confusion)> = found
        .evaluations
        .iter()
        .enumerate()
        .filter_map(|(i, e)| e.metrics.confusion.as_ref().map(|c| (i, c)))
        .collect();
    let shown: Vec<_> = match &all[..] {
        // before and after; what lies between is in the summary
        [first, .., last] => vec![*first, *last],
        one => one.to_vec(),
    };
    if shown.is_empty() {
        return String::new();
    }
    let mut html =
        String::from("<p>Rows are labels, columns are predictions. A number shows its photos.</p><div class=\"pair\">");
    for (i, confusion) in shown {
        html += &matrix(i, &names[i], confusion);
    }
    html + "</div>"
}

fn matrix(evaluation: usize, name: &str, confusion: &Confusion) -> String {
    let caption = format!("Confusion matrix of {name}");
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table class=\"matrix\"><caption>{1}</caption>\
         <thead><tr><th scope=\"col\" class=\"corner\">label</th>",
        text(&caption),
        text(name)
    );
    for label in &confusion.labels {
        _ = write!(html, "<th scope=\"col\" class=\"n\">{}</th>", text(label));
    }
    html += "</tr></thead><tbody>";
    for (label, row) in confusion.labels.iter().zip(&confusion.counts) {
        let all: usize = row.iter().sum();
        _ = write!(html, "<tr><th scope=\"row\">{}</th>", text(label));
        for (predicted, count) in confusion.labels.iter().zip(row) {
            let kind = if predicted == label { "hit" } else { "miss" };
            let depth = (100.0 * *count as f64 / all.max(1) as f64).round();
            if *count == 0 {
                html += "<td class=\"n zero\">0</td>";
                continue;
            }
            _ = write!(
                html,
                "<td class=\"n {kind}\" style=\"--d:{depth}%\"><button type=\"button\" data-eval=\"{evaluation}\" \
                 data-label=\"{0}\" data-prediction=\"{1}\" aria-label=\"{count} photos of {0} called {1}: show them\">{count}\
                 </button></td>",
                text(label),
                text(predicted)
            );
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

fn classes(found: &Sources, names: &[String]) -> String {
    let classes: BTreeSet<&String> = found.evaluations.iter().flat_map(|e| e.metrics.per_class.keys()).collect();
    if classes.is_empty() {
        return String::new();
    }
    let mut html = String::new();
    let ends: Vec<(&Evaluation, &String)> = match (&found.evaluations[..], names) {
        ([a, .., b], [name_a, .., name_b]) => vec![(a, name_a), (b, name_b)],
        ([one], [name, ..]) => vec![(one, name)],
        _ => Vec::new(),
    };
    for (e, name) in ends {
        let m: &Metrics = &e.metrics;
        let ranked = m.mean_average_precision.is_some();
        let mut head = vec!["photos", "called so", "right", "precision", "recall", "F1"];
        if ranked {
            head.push("average precision");
        }
        let share = |x: Option<f64>| x.map_or("–".into(), percent);
        let row = |class: &&String| {
            let c = m.per_class.get(*class)?;
            let mut row = vec![c.n.to_string(), c.predicted.to_string(), c.correct.to_string()];
            row.extend([c.precision, c.recall, c.f1].map(share));
            if ranked {
                row.push(share(c.average_precision));
            }
            Some(((*class).clone(), row))
        };
        html += &table(name, "class", &head, &classes.iter().filter_map(row).collect::<Vec<_>>());
    }
    html
}

fn training(found: &Sources) -> String {
    let runs: Vec<_> = found.runs.iter().filter(|r| !r.steps.is_empty()).take(6).collect();
    if runs.is_empty() {
        return String::new();
    }
    let of = |pick: &dyn Fn(&super::sources::Step) -> f64| -> Vec<Vec<(f64, f64)>> {
        runs.iter().map(|r| r.steps.iter().map(|s| (s.step, pick(s))).collect()).collect()
    };
    let (losses, rates) = (of(&|s| s.loss), of(&|s| s.lr));
    let name = |i: usize| runs[i].name.clone();
    let loss: Vec<Series> = losses
        .into_iter()
        .enumerate()
        .map(|(i, points)| Series { name: name(i), line: smoothed(&points), faint: points, ..Series::default() })
        .collect();
    let rate: Vec<Series> =
        rates.into_iter().enumerate().map(|(i, line)| Series { name: name(i), line, ..Series::default() }).collect();
    let said: Vec<String> = runs
        .iter()
        .map(|r| {
            let (first, last) = (r.steps.first().map_or(0.0, |s| s.loss), r.steps.last().map_or(0.0, |s| s.loss));
            let steps = r.steps.len();
            format!(
                "{}: {steps} steps in {}, loss from {} to {}",
                r.name,
                duration(r.seconds),
                number(first),
                number(last)
            )
        })
        .collect();
    let said = said.join("; ");
    let chart = |id, title, y| {
        Chart { id, title, description: &said, x: "step", y, shares: false, from_zero: true, log_x: false }
            .svg(if id == "loss" { &loss } else { &rate })
    };
    let mut html = String::new();
    _ = write!(
        html,
        "<figure>{}<figcaption>Loss of each step (faint) and its running mean. {}.</figcaption></figure>",
        chart("loss", "Training loss by step", "loss"),
        text(&said)
    );
    _ = write!(
        html,
        "<figure>{}<figcaption>Learning rate of each step.</figcaption></figure>",
        chart("rate", "Learning rate by step", "learning rate")
    );
    let scored: Vec<Series> = runs
        .iter()
        .filter(|r| !r.scores.is_empty())
        .map(|r| Series {
            name: r.name.clone(),
            line: r.scores.clone(),
            marks: r.scores.iter().map(|(x, y)| (*x, *y, None)).collect(),
            ..Series::default()
        })
        .collect();
    if !scored.is_empty() {
        let chart = Chart {
            id: "validation",
            title: "Validation accuracy by step",
            description: &said,
            x: "step",
            y: "accuracy",
            shares: true,
            from_zero: false,
            log_x: false,
        };
        _ = write!(
            html,
            "<figure>{}<figcaption>Accuracy on the validation set, on the way.</figcaption></figure>",
            chart.svg(&scored)
        );
    }
    html
}

fn curve(found: &Sources) -> String {
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
    let said: Vec<String> = marks.iter().map(|(x, y)| format!("{} photos {}", number(*x), percent(*y))).collect();
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
    let mut html = format!(
        "<figure>{}<figcaption>Accuracy over the number of photos trained on. Whiskers are {}.</figcaption></figure>",
        chart.svg(&series),
        if found.curve.is_some() { "the lowest and the highest run of a size" } else { "95 % intervals" }
    );
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

fn leaks(found: &Sources, gallery: &Gallery) -> String {
    const MOST: usize = 200;
    let pairs: Vec<_> = found.leaks.iter().flat_map(|(folder, pairs)| pairs.iter().map(move |p| (folder, p))).collect();
    if pairs.is_empty() {
        return String::new();
    }
    let crossing = pairs.iter().filter(|(_, p)| p.crosses()).count();
    // a photo may be in several pairs
    let removed: BTreeSet<_> =
        pairs.iter().filter(|(_, p)| p.removed).map(|(folder, p)| (folder, &p.b.set, p.b.line)).collect();
    let mut html = format!(
        "<p>Pairs of photos that show the same: {}, of these across sets: {crossing}. What one set learns there, the other \
         is asked. Photos removed: {}.</p><ul class=\"leaks\">",
        pairs.len(),
        removed.len()
    );
    let mut sorted = pairs.clone();
    sorted.sort_by(|a, b| b.1.crosses().cmp(&a.1.crosses()).then(b.1.cosine.total_cmp(&a.1.cosine)));
    for (folder, pair) in sorted.iter().take(MOST) {
        html += "<li><div class=\"twins\">";
        for member in [&pair.a, &pair.b] {
            let place = gallery.picture(&resolved(folder, &member.image)).map_or(-1, |i| i as i64);
            let label = member.label.as_deref().unwrap_or("no label");
            _ = write!(
                html,
                "<figure><div class=\"thumb\" data-picture=\"{place}\" role=\"img\" aria-label=\"{0}\"></div>\
                 <figcaption>{1}, line {2}<br>{3}</figcaption></figure>",
                text(&member.image),
                text(&member.set),
                member.line,
                text(label)
            );
        }
        let removed = if pair.removed { ", removed" } else { "" };
        let other = if pair.a.label == pair.b.label { "" } else { ", labels differ" };
        _ = write!(html, "</div><p>cosine {:.3}{removed}{other}</p></li>", pair.cosine);
    }
    html += "</ul>";
    if pairs.len() > MOST {
        _ = write!(html, "<p class=\"note\">The {MOST} closest are shown.</p>");
    }
    html
}
