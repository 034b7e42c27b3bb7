//! The parts of the page that need no script.

use super::curves::{curve, training};
use super::gallery::{Gallery, resolved};
use super::html::{duration, number, percent, text};
use super::intervals::intervals;
use super::sources::Sources;
use super::tables::{classes, confusions, table};
use crate::base::counted;
use crate::classify::compare::{Comparison, Group};
use crate::classify::metrics::Baselines;
use crate::classify::records::dollars;
use crate::classify::statistics::p_value;
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
    // of other sets they are others, and stand in the table alone
    let mut without = "";
    let mut guess = |name: &str, of: &dyn Fn(&Baselines) -> f64| {
        let mut all = found.evaluations.iter().map(|e| of(&e.metrics.baselines));
        if let Some(one) = all.next()
            && all.all(|other| other == one)
        {
            rows.push((name.into(), one, None));
            without = ", and what one gets without a look at the photos";
        }
    };
    guess("majority class", &|b| b.majority.accuracy);
    guess("random guess", &|b| b.random.accuracy);
    let mut html = String::new();
    for note in &found.notes {
        _ = write!(html, "<p class=\"note\">{}</p>", text(note));
    }
    _ = write!(
        html,
        "<figure>{}<figcaption>Accuracy with its 95 % interval{without}.</figcaption></figure>",
        intervals("accuracy", "Accuracy of each evaluation", &rows)
    );
    let ranked = found.evaluations.iter().any(|e| e.metrics.mean_average_precision.is_some());
    let priced = found.evaluations.iter().any(|e| e.number("dollars").is_some());
    let trained = found.evaluations.iter().any(|e| e.number("training_samples").is_some());
    let mut head = vec!["photos", "right", "accuracy", "95 % interval", "macro F1"];
    if ranked {
        head.push("mAP");
    }
    head.extend(["majority class", "random guess", "time", "images/s"]);
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
            row.push(dollars(&e.summary, number).unwrap_or("–".into()));
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
    let (p, verdict) = (p_value(c.p), c.verdict("the second"));
    _ = write!(
        html,
        "<p>From <b>{}</b> to <b>{}</b>: {} to {} on {}. McNemar’s exact test on the {gained} fixed and {lost} broken: \
         <i>p</i> = {p}; {verdict}.</p>",
        text(a),
        text(b),
        percent(c.before.accuracy),
        percent(c.after.accuracy),
        counted(c.pairs.len(), "photo", "photos")
    );
    if c.alone != [0, 0] {
        let [only_a, only_b] = c.alone;
        let only_a = counted(only_a, "photo", "photos");
        _ = write!(html, "<p class=\"note\">Left out: {only_a} of only the first, {only_b} of only the second.</p>");
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
    sorted.sort_by(|a, b| b.1.crosses().cmp(&a.1.crosses()).then_with(|| b.1.nearer(a.1)));
    for (folder, pair) in sorted.iter().take(MOST) {
        html += "<li><div class=\"twins\">";
        for member in [&pair.a, &pair.b] {
            let image = resolved(folder, &member.image);
            let place = gallery.picture(&image).map_or(-1, |i| i as i64);
            let label = member.label.as_deref().unwrap_or("no label");
            _ = write!(
                html,
                "<figure><div class=\"thumb\" data-picture=\"{place}\" role=\"img\" aria-label=\"{0}\"></div>\
                 <figcaption><b>{0}</b><br>{1}, line {2}<br>{3}</figcaption></figure>",
                text(&gallery.shown(&image)),
                text(&member.set),
                member.line,
                text(label)
            );
        }
        let removed = if pair.removed { ", removed" } else { "" };
        let other = if pair.a.label == pair.b.label { "" } else { ", labels differ" };
        let how = if pair.by_pixels { "one picture, or a part of it; " } else { "" };
        _ = write!(html, "</div><p>{how}cosine {:.3}{removed}{other}</p></li>", pair.cosine);
    }
    html += "</ul>";
    if pairs.len() > MOST {
        _ = write!(html, "<p class=\"note\">The {MOST} closest are shown.</p>");
    }
    html
}
