//! Line charts and intervals as SVG: axes with round ticks, series named at their ends, colours from the page's style.

use super::html::{number, percent, text};
use std::fmt::Write;

/// The drawing's own units; the page scales it.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 118.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Points of a series that are drawn; more are averaged in groups.
const MOST_POINTS: usize = 600;
/// Names at the ends of lines stay so far apart.
const APART: f64 = 15.0;

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
    /// The chart as an `svg` element; empty where no number is finite.
    pub fn svg(&self, series: &[Series]) -> String {
        let place = |x: f64| if self.log_x { x.max(1e-9).log10() } else { x };
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        for s in series {
            for (x, y) in s.line.iter().chain(&s.faint) {
                xs.push(place(*x));
                ys.push(*y);
            }
            for (x, low, high) in &s.band {
                xs.push(place(*x));
                ys.extend([low, high]);
            }
            for (x, y, interval) in &s.marks {
                xs.push(place(*x));
                ys.push(*y);
                ys.extend(interval.iter().flatten());
            }
        }
        let (Some((x0, x1)), Some((mut y0, mut y1))) = (range(&xs), range(&ys)) else { return String::new() };
        if self.from_zero {
            (y0, y1) = (y0.min(0.0), y1.max(0.0));
        }
        if self.shares {
            (y0, y1) = (y0.max(0.0), y1.min(1.0));
        }
        let x_pad = if x1 > x0 { 0.0 } else { x0.abs().max(1.0) * 0.5 };
        let (x0, x1) = (x0 - x_pad, x1 + x_pad);
        let y_ticks = ticks(y0, y1, 5);
        let (y0, y1) = (y0.min(y_ticks[0]), y1.max(y_ticks[y_ticks.len() - 1]));
        let (inner_w, inner_h) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let px = |x: f64| LEFT + (place(x) - x0) / (x1 - x0) * inner_w;
        let py = |y: f64| TOP + (y1 - y.clamp(y0, y1)) / (y1 - y0) * inner_h;
        let (id, bottom) = (self.id, HEIGHT - BOTTOM);
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            text(self.title),
            text(self.description)
        );
        let digits = usize::from(y_ticks[1] - y_ticks[0] < 0.0099);
        for y in &y_ticks {
            let (at, label) = (py(*y), if self.shares { format!("{:.digits$} %", 100.0 * y) } else { number(*y) });
            _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/>", WIDTH - RIGHT);
            _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                at + 4.0
            );
        }
        for x in self.x_ticks(x0, x1) {
            let at = px(x);
            _ = write!(svg, "<path class=\"axis\" d=\"M{at:.1} {bottom}v5\"/>");
            let label = number(x);
            _ = write!(
                svg,
                "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 19.0
            );
        }
        _ = write!(svg, "<path class=\"axis\" d=\"M{LEFT} {bottom}H{:.1}\"/>", WIDTH - RIGHT);
        let middle = LEFT + inner_w / 2.0;
        _ = write!(
            svg,
            "<text class=\"name\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 6.0,
            text(self.x)
        );
        let half = TOP + inner_h / 2.0;
        _ = write!(
            svg,
            "<text class=\"name\" x=\"13\" y=\"{half:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 13 {half:.1})\">{}</text>",
            text(self.y)
        );
        let mut ends = Vec::new();
        for (i, s) in series.iter().enumerate() {
            let colour = i % 6;
            if !s.band.is_empty() {
                let upper = s.band.iter().map(|(x, _, high)| (*x, *high));
                let lower = s.band.iter().rev().map(|(x, low, _)| (*x, *low));
                let points: Vec<(f64, f64)> = upper.chain(lower).collect();
                _ = write!(svg, "<path class=\"band s{colour}\" d=\"{}Z\"/>", path(&points, &px, &py));
            }
            if !s.faint.is_empty() {
                _ = write!(svg, "<path class=\"faint s{colour}\" d=\"{}\"/>", path(&thinned(&s.faint), &px, &py));
            }
            if !s.line.is_empty() {
                _ = write!(svg, "<path class=\"line s{colour}\" d=\"{}\"/>", path(&thinned(&s.line), &px, &py));
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
            let end = s.line.iter().rev().find(|(_, y)| y.is_finite()).copied();
            let end = end.or_else(|| s.marks.last().map(|(x, y, _)| (*x, *y)));
            if let Some((x, y)) = end {
                ends.push((px(x), py(y), colour, s.name.as_str()));
            }
        }
        ends.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut above = f64::NEG_INFINITY;
        for (x, y, colour, name) in ends {
            let at = y.max(above + APART);
            above = at;
            let name = shortened(name, 15);
            _ = write!(
                svg,
                "<text class=\"end s{colour}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 8.0,
                at + 4.0,
                text(&name)
            );
        }
        svg + "</svg>"
    }

    fn x_ticks(&self, x0: f64, x1: f64) -> Vec<f64> {
        if !self.log_x {
            return ticks(x0, x1, 7).into_iter().filter(|x| (x0..=x1).contains(x)).collect();
        }
        let steps = (x0.floor() as i32..=x1.ceil() as i32).flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(e)));
        steps.filter(|x| (x0 - 1e-9..=x1 + 1e-9).contains(&x.log10())).collect()
    }
}

/// Accuracies as dots on one axis, each with its interval: (name, value, interval, class of the colour).
pub fn intervals(id: &str, title: &str, rows: &[(String, f64, Option<[f64; 2]>)]) -> String {
    const ROW: f64 = 30.0;
    const NAMES: f64 = 190.0;
    let height = rows.len() as f64 * ROW + 34.0;
    let px = |x: f64| NAMES + x.clamp(0.0, 1.0) * (WIDTH - NAMES - 90.0);
    let said: Vec<String> = rows.iter().map(|(name, x, _)| format!("{name} {}", percent(*x))).collect();
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
        text(title),
        text(&said.join(", "))
    );
    let bottom = height - 26.0;
    for i in 0..=4 {
        let x = f64::from(i) / 4.0;
        let at = px(x);
        _ = write!(svg, "<path class=\"grid\" d=\"M{at:.1} 4V{bottom:.1}\"/>");
        _ = write!(
            svg,
            "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} %</text>",
            height - 8.0,
            100.0 * x
        );
    }
    for (i, (name, x, interval)) in rows.iter().enumerate() {
        let y = (i as f64 + 0.5) * ROW + 2.0;
        // a score has an interval, a baseline has none
        let class = if interval.is_some() { "s0" } else { "base" };
        _ = write!(
            svg,
            "<text class=\"row\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 12.0,
            y + 4.0,
            text(&shortened(name, 20))
        );
        if let Some([low, high]) = interval {
            _ = write!(svg, "<path class=\"whisker {class}\" d=\"M{:.1} {y:.1}H{:.1}\"/>", px(*low), px(*high));
        }
        _ = write!(svg, "<circle class=\"mark {class}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\"/>", px(*x));
        let right = interval.map_or(*x, |[_, high]| high);
        _ = write!(
            svg,
            "<text class=\"end {class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            px(right) + 10.0,
            y + 4.0,
            percent(*x)
        );
    }
    svg + "</svg>"
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

/// The smallest and the largest finite number, where there is one; a little apart where they are equal.
fn range(values: &[f64]) -> Option<(f64, f64)> {
    let finite = values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    (low <= high).then_some((low, high))
}

/// About `n` round numbers that enclose both ends; at least two.
fn ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    let high = if high > low { high } else { low + low.abs().max(1e-3) * 0.1 };
    let rough = (high - low) / n as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

/// Groups of neighbours as their means, where there are more points than can be seen.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
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

/// At most so many characters.
pub fn shortened(name: &str, most: usize) -> String {
    match name.char_indices().nth(most) {
        Some(_) => name.chars().take(most - 1).chain(['…']).collect(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let t = ticks(0.31, 2.9, 5);
        assert_eq!((t[0], t[t.len() - 1]), (0.0, 3.0));
        for (low, high) in [(5.0, 5.0), (0.0, 0.0), (-3.0, 1e6), (1e-9, 2e-9)] {
            let t = ticks(low, high, 5);
            assert!(t.len() >= 2 && t.len() < 12 && t[0] <= low && t[t.len() - 1] >= high, "{low} {high} {t:?}");
        }
    }

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
        assert_eq!(chart.svg(&[]), "");
        let bad = Series { line: vec![(1.0, f64::NAN)], ..Series::default() };
        assert_eq!(chart.svg(&[bad]), "");
        let one = Series {
            name: "<i>".into(),
            line: vec![(1.0, 2.0), (2.0, f64::INFINITY), (3.0, 2.0)],
            ..Series::default()
        };
        let svg = chart.svg(&[one]);
        assert!(svg.contains("&lt;i&gt;") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_smoothed_constant_is_that_constant() {
        let points: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smoothed(&points).iter().all(|(_, y)| (y - 3.0).abs() <= 1e-12));
    }
}
