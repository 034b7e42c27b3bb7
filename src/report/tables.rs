//! Tables of numbers. A long name breaks into lines, so that the numbers keep their room; over a matrix of long names or
//! many classes stand the classes' numbers.

use super::html::{breakable, percent, text};
use super::sources::Sources;
use crate::base::counted;
use crate::base::width::width;
use crate::classify::metrics::{Confusion, Metrics};
use crate::classify::records::Evaluation;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Names so wide, and so many, stand over a matrix.
const NAME: usize = 14;
const MOST: usize = 8;

/// A table of numbers that scrolls sideways where it must.
pub fn table(caption: &str, corner: &str, head: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr>\
         <th scope=\"col\">{1}</th>",
        text(caption),
        text(corner)
    );
    head.iter().for_each(|h| _ = write!(html, "<th scope=\"col\" class=\"n\">{}</th>", text(h)));
    html += "</tr></thead><tbody>";
    for (name, cells) in rows {
        _ = write!(html, "<tr><th scope=\"row\"><span>{}</span></th>", breakable(name));
        cells.iter().for_each(|c| _ = write!(html, "<td class=\"n\">{}</td>", text(c)));
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

/// Confusion matrices of the first and of the last evaluation.
pub fn confusions(found: &Sources, names: &[String]) -> String {
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
    let columns = match shown.iter().any(|(_, c)| numbered(c)) {
        true => "columns are predictions, by the numbers of the rows",
        false => "columns are predictions",
    };
    let mut html = format!("<p>Rows are labels, {columns}. A count shows its photos.</p><div class=\"pair\">");
    for (i, confusion) in shown {
        html += &matrix(i, &names[i], confusion);
    }
    html + "</div>"
}

/// Whether names have no room over the columns.
fn numbered(confusion: &Confusion) -> bool {
    confusion.labels.len() > MOST || confusion.labels.iter().any(|l| width(l) > NAME)
}

fn matrix(evaluation: usize, name: &str, confusion: &Confusion) -> String {
    let caption = format!("Confusion matrix of {name}");
    let numbered = numbered(confusion);
    let mut html = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table class=\"matrix{2}\"><caption>{1}</caption>\
         <thead><tr><th scope=\"col\">label</th>",
        text(&caption),
        text(name),
        if numbered { " numbered" } else { "" }
    );
    for (i, label) in confusion.labels.iter().enumerate() {
        let label = text(label);
        _ = match numbered && confusion.has_row(i) {
            true => {
                write!(html, "<th scope=\"col\" class=\"n\" title=\"{label}\" aria-label=\"{label}\">{}</th>", i + 1)
            }
            false => write!(html, "<th scope=\"col\" class=\"n\">{label}</th>"),
        };
    }
    html += "</tr></thead><tbody>";
    for (i, (label, row)) in confusion.labels.iter().zip(&confusion.counts).enumerate() {
        let all: usize = row.iter().sum();
        let number = if numbered { format!("<i>{}</i>", i + 1) } else { String::new() };
        _ = write!(html, "<tr><th scope=\"row\"><span>{number}<span>{}</span></span></th>", breakable(label));
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
                 data-label=\"{0}\" data-prediction=\"{1}\" aria-label=\"{2} of {0} called {1}: show them\">{count}\
                 </button></td>",
                text(label),
                text(predicted),
                counted(*count, "photo", "photos")
            );
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

/// Scores of each class, before and after.
pub fn classes(found: &Sources, names: &[String]) -> String {
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
