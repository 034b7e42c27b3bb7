//! Line charts as SVG: axes with round ticks, a legend above, colours from the page's style. Each is drawn twice, for a
//! wide page and for a phone, so that text is never scaled down; the style shows one of them.

use super::axis::{Axis, counts, labels, range, sizes, ticks};
use super::html::{number, percent, text};
use std::fmt::Write;

const TOP: f64 = 32.0;
const BOTTOM: f64 = 44.0;
const RIGHT: f64 = 16.0;
/// Between a tick and its label.
const GAP: f64 = 8.0;
/// A share of an axis stays free on both sides of points.
const PAD: f64 = 0.05;

/// A drawing's own units: pixels of a page that it fills.
pub struct Size {
    pub class: &'static str,
    pub width: f64,
    pub height: f64,
    /// Points of a line that are drawn; more are averaged in groups.
    points: usize,
    /// About so many ticks on the axis of x.
    ticks: usize,
}

pub const SIZES: [Size; 2] = [
    Size { class: "wide", width: 720.0, height: 290.0, points: 600, ticks: 7 },
    Size { class: "narrow", width: 360.0, height: 260.0, points: 300, ticks: 4 },
];

/// What is drawn of one thing.
#[derive(Debug, Default)]
pub struct Series {
    pub name: String,
    /// The line, from left to right.
    pub line: Vec<(f64, f64)>,
    /// The same unsmoothed, drawn faintly.
    pub faint: Vec<(f64, f64)>,
    /// x, y, and the ends of y's interval.
    pub marks: Vec<(f64, f64, Option<[f64; 2]>)>,
    /// Between two curves.
    pub band: Vec<(f64, f64, f64)>,
}

pub struct Chart<'a> {
    /// Unique on the page.
    pub id: &'a str,
    /// What a reader who does not see it is told.
    pub title: &'a str,
    pub description: &'a str,
    /// What is counted to the right.
    pub x: &'a str,
    pub y: &'a str,
    /// y are shares.
    pub shares: bool,
    /// y begins at 0.
    pub from_zero: bool,
    /// x are sizes that double.
    pub log_x: bool,
}

impl Chart<'_> {
    /// The chart as a `figure` element with a caption of HTML; empty where no number is finite.
    pub fn figure(&self, series: &[Series], caption: &str) -> String {
        let Some((x, y)) = self.axes(series) else { return String::new() };
        let mut html = String::from("<figure><ul class=\"legend\">");
        for (i, s) in series.iter().enumerate() {
            let shape = if s.line.is_empty() { "dot" } else { "dash" };
            _ = write!(html, "<li><span class=\"{shape} s{}\"></span>{}</li>", i % 6, text(&s.name));
        }
        html += "</ul>";
        SIZES.iter().for_each(|size| html += &self.svg(size, series, &x, &y));
        let broken = match y.labels.first() {
            Some(first) if !self.reaches_zero(&y) => format!(" The axis of {} begins at {first}, not at 0.", self.y),
            _ => String::new(),
        };
        _ = write!(html, "<figcaption>{caption}{}</figcaption></figure>", text(&broken));
        html
    }

    fn reaches_zero(&self, y: &Axis) -> bool {
        y.low <= 0.0
    }

    /// The axes; that of x without ticks, which hang on the room.
    fn axes(&self, series: &[Series]) -> Option<(Axis, Axis)> {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        for s in series {
            for (x, y) in s.line.iter().chain(&s.faint) {
                xs.push(*x);
                ys.push(*y);
            }
            for (x, low, high) in &s.band {
                xs.push(*x);
                ys.extend([low, high]);
            }
            for (x, y, interval) in &s.marks {
                xs.push(*x);
                ys.push(*y);
                ys.extend(interval.iter().flatten());
            }
        }
        let points = series.iter().any(|s| !s.marks.is_empty());
        let placed: Vec<f64> = xs.iter().map(|x| self.place(*x)).collect();
        let ((x0, x1), (mut y0, mut y1)) = (range(&placed)?, range(&ys)?);
        let pad = match x1 > x0 {
            true => f64::from(u8::from(points)) * PAD * (x1 - x0),
            false => x0.abs().max(1.0) * 0.5,
        };
        if self.from_zero {
            (y0, y1) = (y0.min(0.0), y1.max(0.0));
        }
        if self.shares {
            (y0, y1) = (y0.max(0.0), y1.min(1.0));
        }
        let mut marks = ticks(y0, y1, 5);
        if !self.from_zero {
            let (first, last, step) = (marks[0], marks[marks.len() - 1], marks[1] - marks[0]);
            let near = PAD * (last - first);
            let has = |y: f64| !self.shares || (-1e-9..=1.0 + 1e-9).contains(&y);
            if y1 > last - near && has(last + step) {
                marks.push(last + step);
            }
            if y0 < first + near && has(first - step) {
                marks.insert(0, first - step);
            }
        }
        let (low, high) = (y0.min(marks[0]), y1.max(marks[marks.len() - 1]));
        let y = Axis { low, high, labels: labels(&marks, self.shares), ticks: marks };
        Some((Axis { low: x0 - pad, high: x1 + pad, ticks: Vec::new(), labels: Vec::new() }, y))
    }

    fn place(&self, x: f64) -> f64 {
        if self.log_x { x.max(1e-9).log10() } else { x }
    }

    fn svg(&self, size: &Size, series: &[Series], x_axis: &Axis, y_axis: &Axis) -> String {
        let Size { class, width, height, .. } = *size;
        let left = y_axis.room() + GAP + 2.0;
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        let px = |x: f64| left + x_axis.share(self.place(x)) * (right - left);
        let py = |y: f64| bottom - y_axis.share(y) * (bottom - TOP);
        let id = format!("{}-{class}", self.id);
        let mut svg = format!(
            "<svg class=\"chart {class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc><text class=\"name\" x=\"0\" y=\"12\">{}</text>",
            text(self.title),
            text(self.description),
            text(self.y)
        );
        for (y, label) in y_axis.ticks.iter().zip(&y_axis.labels) {
            let (at, x) = (py(*y), left - GAP);
            _ = write!(svg, "<path class=\"grid\" d=\"M{left:.1} {at:.1}H{right:.1}\"/>");
            _ = write!(
                svg,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                at + 4.0
            );
        }
        let marked = if self.log_x { sizes(series) } else { counts(x_axis, size.ticks) };
        let mut end = f64::NEG_INFINITY;
        for (x, label) in marked.ticks.iter().zip(&marked.labels) {
            let (at, half) = (px(*x), super::axis::length(label) / 2.0);
            // a label that has no room is left out
            if at - half < end || at + half > width {
                continue;
            }
            end = at + half + GAP;
            _ = write!(svg, "<path class=\"axis\" d=\"M{at:.1} {bottom}v5\"/>");
            _ = write!(
                svg,
                "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 19.0
            );
        }
        _ = write!(svg, "<path class=\"axis\" d=\"M{left:.1} {bottom}H{right:.1}\"/>");
        if !self.reaches_zero(y_axis) {
            // the sign of an axis that leaves something out
            _ = write!(svg, "<path class=\"axis broken\" d=\"M{left:.1} {bottom}v-5l-4 -3l8 -4l-4 -3V{TOP}\"/>");
        }
        _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (left + right) / 2.0,
            height - 6.0,
            text(self.x)
        );
        for (i, s) in series.iter().enumerate() {
            let colour = i % 6;
            if !s.band.is_empty() {
                let upper = s.band.iter().map(|(x, _, high)| (*x, *high));
                let lower = s.band.iter().rev().map(|(x, low, _)| (*x, *low));
                let points: Vec<(f64, f64)> = upper.chain(lower).collect();
                _ = write!(svg, "<path class=\"band s{colour}\" d=\"{}Z\"/>", path(&points, &px, &py));
            }
            for (class, points) in [("faint", &s.faint), ("line", &s.line)] {
                if !points.is_empty() {
                    let d = path(&thinned(points, size.points), &px, &py);
                    _ = write!(svg, "<path class=\"{class} s{colour}\" d=\"{d}\"/>");
                }
            }
            for (x, y, interval) in s.marks.iter().filter(|(x, y, _)| x.is_finite() && y.is_finite()) {
                let (cx, cy) = (px(*x), py(*y));
                if let Some([low, high]) = interval {
                    _ = write!(
                        svg,
                        "<path class=\"whisker s{colour}\" d=\"M{cx:.1} {:.1}V{:.1}\"/>",
                        py(*low),
                        py(*high)
                    );
                }
                let value = if self.shares { percent(*y) } else { number(*y) };
                let label = format!("{}: {} {}, {value}", s.name, number(*x), self.x);
                _ = write!(
                    svg,
                    "<circle class=\"mark s{colour}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\"><title>{}</title></circle>",
                    text(&label)
                );
            }
        }
        svg + "</svg>"
    }
}

/// The mean of what came before, weighted down exponentially: what a noisy loss does on the whole.
pub fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    // about a twentieth of the run counts
    let keep = 1.0 - 1.0 / (1.0 + points.len() as f64 / 40.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut smooth = Vec::with_capacity(points.len());
    for (x, y) in points.iter().filter(|(_, y)| y.is_finite()) {
        sum = sum * keep + y;
        weight = weight * keep + 1.0;
        smooth.push((*x, sum / weight));
    }
    smooth
}

/// Groups of neighbours as their means, where there are more points than can be seen.
fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(most).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(group).map(mean).collect()
}

fn path(points: &[(f64, f64)], px: &dyn Fn(f64) -> f64, py: &dyn Fn(f64) -> f64) -> String {
    let mut d = String::new();
    let mut pen_down = false;
    for (x, y) in points {
        if !(x.is_finite() && y.is_finite()) {
            pen_down = false;
            continue;
        }
        _ = write!(d, "{}{:.1} {:.1}", if pen_down { "L" } else { "M" }, px(*x), py(*y));
        pen_down = true;
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_of_nothing_is_empty_and_one_of_a_point_is_not() {
        let chart = Chart {
            id: "c",
            title: "t",
            description: "d",
            x: "x",
            y: "y",
            shares: false,
            from_zero: false,
            log_x: false,
        };
        assert_eq!(chart.figure(&[], ""), "");
        let bad = Series { line: vec![(1.0, f64::NAN)], ..Series::default() };
        assert_eq!(chart.figure(&[bad], ""), "");
        let one = Series {
            name: "<i>".into(),
            line: vec![(1.0, 2.0), (2.0, f64::INFINITY), (3.0, 2.0)],
            ..Series::default()
        };
        let svg = chart.figure(&[one], "");
        assert!(svg.contains("&lt;i&gt;") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    /// What an axis leaves out is said, by a sign in the drawing and in words.
    #[test]
    fn an_axis_that_does_not_begin_at_0_is_marked() {
        let chart = |shares, from_zero| {
            let points = vec![(50.0, 0.80, None), (100.0, 0.90, None)];
            Chart { id: "c", title: "t", description: "d", x: "photos", y: "accuracy", shares, from_zero, log_x: true }
                .figure(&[Series { marks: points, ..Series::default() }], "Caption.")
        };
        let broken = chart(true, false);
        assert!(broken.contains("Caption. The axis of accuracy begins at 78 %, not at 0.<"), "{broken}");
        assert_eq!(broken.matches("axis broken").count(), 2);
        assert!(!chart(true, true).contains("broken") && chart(true, true).contains("<figcaption>Caption.<"));
        // points are not on the edges of the plot; their sizes are the ticks
        let cx: Vec<f64> =
            broken.split(" cx=\"").skip(1).map(|c| c.split('"').next().unwrap().parse().unwrap()).collect();
        let edge = |d: &str| {
            d.split("class=\"grid\" d=\"M").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(cx[0] > edge(&broken) + 20.0 && cx[1] < 720.0 - RIGHT - 20.0, "{cx:?}");
        assert!(broken.contains(">50</text>") && broken.contains(">100</text>"));
    }

    #[test]
    fn a_smoothed_constant_is_that_constant() {
        let points: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smoothed(&points).iter().all(|(_, y)| (y - 3.0).abs() <= 1e-12));
    }
}
