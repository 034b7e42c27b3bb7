//! Accuracies as dots on one axis, each with its interval.

use super::axis::length;
use super::chart::SIZES;
use super::html::{percent, text};
use std::fmt::Write;

/// Names are written larger than a chart's other text.
const LARGER: f64 = 13.5 / 12.0;
/// For a value.
const VALUE: f64 = 68.0;
/// Half of the longest tick's label.
const HALF: f64 = 22.0;

/// A row each: name, value, interval. On a phone a name stands over its line.
pub fn intervals(id: &str, title: &str, rows: &[(String, f64, Option<[f64; 2]>)]) -> String {
    let said: Vec<String> = rows.iter().map(|(name, x, _)| format!("{name} {}", percent(*x))).collect();
    let longest = rows.iter().map(|(name, ..)| LARGER * length(name)).fold(0.0, f64::max);
    let mut html = String::new();
    for size in &SIZES {
        let (class, width, over) = (size.class, size.width, size.class == "narrow");
        let row_height = if over { 48.0 } else { 30.0 };
        let names = if over { width - VALUE } else { longest.clamp(60.0, 280.0) };
        let (left, right) = if over { (HALF, width - HALF) } else { (names + 14.0, width - VALUE - HALF) };
        let px = |x: f64| left + x.clamp(0.0, 1.0) * (right - left);
        let bottom = rows.len() as f64 * row_height + 4.0;
        let height = bottom + 26.0;
        let id = format!("{id}-{class}");
        _ = write!(
            html,
            "<svg class=\"chart {class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            text(title),
            text(&said.join(", "))
        );
        for i in 0..=4 {
            let at = px(f64::from(i) / 4.0);
            // no line through a name that stands over its row
            let mut d = format!("M{at:.1} 4V{bottom:.1}");
            if over {
                let line = |row: usize| format!("M{at:.1} {:.1}v16", (row as f64 + 1.0) * row_height - 20.0);
                d = (0..rows.len()).map(line).collect();
            }
            _ = write!(
                html,
                "<path class=\"grid\" d=\"{d}\"/>\
                 <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} %</text>",
                height - 8.0,
                25 * i
            );
        }
        for (i, (name, x, interval)) in rows.iter().enumerate() {
            let top = i as f64 * row_height;
            let (y, line) = if over { (top + row_height - 12.0, top + 22.0) } else { (top + 17.0, top + 21.0) };
            // a score has an interval, a baseline has none
            let class = if interval.is_some() { "s0" } else { "base" };
            let (at, anchor) = if over { (0.0, "start") } else { (names, "end") };
            _ = write!(
                html,
                "<text class=\"row\" x=\"{at:.1}\" y=\"{line:.1}\" text-anchor=\"{anchor}\">{}<title>{}</title></text>",
                text(&fitting(name, names)),
                text(name)
            );
            if let Some([low, high]) = interval {
                _ = write!(html, "<path class=\"whisker {class}\" d=\"M{:.1} {y:.1}H{:.1}\"/>", px(*low), px(*high));
            }
            _ = write!(html, "<circle class=\"mark {class}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\"/>", px(*x));
            _ = write!(
                html,
                "<text class=\"end {class}\" x=\"{width}\" y=\"{line:.1}\" text-anchor=\"end\">{}</text>",
                percent(*x)
            );
        }
        html += "</svg>";
    }
    html
}

/// The name, shortened until it has room in so many pixels.
fn fitting(name: &str, room: f64) -> String {
    let mut columns = crate::base::width::width(name);
    let mut short = name.to_owned();
    while LARGER * length(&short) > room && columns > 1 {
        columns -= 1;
        short = crate::base::width::shortened(name, columns);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_room() {
        assert_eq!(fitting("base", 100.0), "base");
        let short = fitting(&"W".repeat(80), 200.0);
        assert!(short.contains('…') && LARGER * length(&short) <= 200.0, "{short}");
        let rows = [("猫".repeat(90), 0.5, Some([0.4, 0.6])), ("random guess".to_owned(), 0.5, None)];
        let html = intervals("a", "t", &rows);
        assert_eq!(html.matches("</svg>").count(), 2);
        assert!(html.contains(&format!("<title>{}</title>", "猫".repeat(90))));
    }
}
