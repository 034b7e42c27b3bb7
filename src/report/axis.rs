//! What stands along an axis: its ends, round ticks, their labels, and the room that these take.

use super::chart::Series;
use super::html::number;

/// Pixels of the charts' text.
const FONT: f64 = 12.0;

pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<f64>,
    /// Of each tick.
    pub labels: Vec<String>,
}

impl Axis {
    /// Where x lies between the ends.
    pub fn share(&self, x: f64) -> f64 {
        (x.clamp(self.low, self.high) - self.low) / (self.high - self.low)
    }

    /// Pixels of the longest label.
    pub fn room(&self) -> f64 {
        self.labels.iter().map(|l| length(l)).fold(0.0, f64::max)
    }
}

/// Pixels that text takes in a chart, rather too many: the reader's font is not known here, and Verdana is a wide one.
pub fn length(text: &str) -> f64 {
    let share = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | ' ' | '.' | ',' | ':' | ';' | '\'' | '|' | '\u{2009}' => 0.40,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 1.0,
        c if c.is_ascii_uppercase() => 0.78,
        c if c.is_ascii() => 0.65,
        c => 0.7 * crate::base::width::width(c.encode_utf8(&mut [0; 4])) as f64,
    };
    FONT * text.chars().map(share).sum::<f64>()
}

/// Whole numbers, about `n`.
pub fn counts(axis: &Axis, n: usize) -> Axis {
    let within = |x: &f64| (axis.low..=axis.high).contains(x) && x.fract() == 0.0;
    let ticks: Vec<f64> = ticks(axis.low, axis.high, n).into_iter().filter(within).collect();
    Axis { low: axis.low, high: axis.high, labels: labels(&ticks, false), ticks }
}

/// Sizes that are drawn: on an axis of sizes that double there may be no round number between them.
pub fn sizes(series: &[Series]) -> Axis {
    let marks = series.iter().flat_map(|s| s.marks.iter().map(|m| m.0).chain(s.band.iter().map(|b| b.0)));
    let mut ticks: Vec<f64> = marks.filter(|x| x.is_finite()).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let ends = range(&ticks).unwrap_or_default();
    Axis { low: ends.0, high: ends.1, labels: ticks.iter().map(|x| number(*x)).collect(), ticks }
}

/// Labels of ticks at equal steps, all in one notation and with as many digits.
pub fn labels(ticks: &[f64], shares: bool) -> Vec<String> {
    let step = ticks.windows(2).map(|t| t[1] - t[0]).fold(f64::INFINITY, f64::min);
    let most = ticks.iter().fold(0.0, |most: f64, t| most.max(t.abs()));
    // the power of ten of a positive number
    let power = |x: f64| if x.is_finite() && x > 0.0 { (x.log10() + 1e-9).floor() as i32 } else { 0 };
    let digits = |unit: i32| usize::try_from(unit - power(step)).unwrap_or(0);
    let label = |x: &f64| match x {
        // what was added up may be a little more or less than 0
        x if x.abs() <= most * 1e-12 => String::from(if shares { "0 %" } else { "0" }),
        x if shares => format!("{:.1$} %", 100.0 * x, digits(-2)),
        x if power(step) < -4 || most >= 1e6 => {
            format!("{:.2$}e{}", x / 10f64.powi(power(most)), power(most), digits(power(most)))
        }
        x if digits(0) > 0 => format!("{x:.0$}", digits(0)),
        x => number(x.round()),
    };
    ticks.iter().map(label).collect()
}

/// The smallest and the largest finite number, where there is one.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let finite = values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    (low <= high).then_some((low, high))
}

/// About `n` round numbers that enclose both ends; at least two.
pub fn ticks(low: f64, high: f64, n: usize) -> Vec<f64> {
    let high = if high > low { high } else { low + low.abs().max(1e-3) * 0.1 };
    let rough = (high - low) / n as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
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
    fn labels_of_an_axis_are_alike() {
        let said = |low, high| labels(&ticks(low, high, 5), false).join(" ");
        assert_eq!(said(0.0, 0.0015), "0 0.0005 0.0010 0.0015");
        assert_eq!(said(0.0, 2e-4), "0 0.5e-4 1.0e-4 1.5e-4 2.0e-4");
        assert_eq!(said(0.0, 1.2), "0 0.5 1.0 1.5");
        assert_eq!(said(0.0, 4000.0), "0 1\u{2009}000 2\u{2009}000 3\u{2009}000 4\u{2009}000");
        assert_eq!(said(0.0, 4e6), "0 1e6 2e6 3e6 4e6");
        assert_eq!(labels(&ticks(0.75, 0.85, 5), true).join(" "), "74 % 76 % 78 % 80 % 82 % 84 % 86 %");
        assert_eq!(labels(&ticks(0.990, 1.0, 5), true)[0], "99.0 %");
    }
}
