//! Accuracy over the size of the training set: a power law, what it predicts, and whether the points can carry it.
//!
//! The error of a model trained on n samples is taken as a n^-b + c with a >= 0, 0 <= b <= 5 and 0 <= c <= 1 (J. Hestness
//! et al., "Deep Learning Scaling is Predictable, Empirically", 2017). Least squares over all runs. For a given b the
//! other two are a linear problem, so that only b is searched (variable projection); the standard errors are those of
//! the linearised problem, as `scipy.optimize.curve_fit` gives them. Intervals of predictions are by bootstrap: runs of
//! a size are drawn again, and each run's score as a binomial number.

use crate::base::counted;
use crate::base::rng::Stream;
use serde::Serialize;
use std::collections::BTreeMap;

/// Keeps these random numbers apart from others of the same seed.
const BOOTSTRAP: u64 = 0x626f_6f74;
const DRAWS: u64 = 1000;
const MOST_B: f64 = 5.0;
/// Steps of the first search over b.
const GRID: usize = 200;
/// Above this many samples a binomial number is drawn as a normal one.
const NORMAL: usize = 2000;

/// One run's score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Run {
    /// Of the training set.
    pub samples: usize,
    pub correct: usize,
    /// Of the set it was scored on.
    pub of: usize,
}

impl Run {
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.of.max(1) as f64
    }
}

/// All runs of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Size {
    pub samples: usize,
    pub runs: usize,
    pub mean: f64,
    pub lowest: f64,
    pub highest: f64,
}

/// error = a n^-b + c
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Law {
    pub a: f64,
    pub b: f64,
    pub c: f64,
}

impl Law {
    pub fn error(&self, samples: f64) -> f64 {
        self.a * samples.powf(-self.b) + self.c
    }

    /// The size at which the error falls to `error`; infinite where it never does.
    pub fn samples_for(&self, error: f64) -> f64 {
        if error <= self.c || self.a <= 0.0 || self.b <= 0.0 {
            return if self.error(1.0) <= error { 1.0 } else { f64::INFINITY };
        }
        ((error - self.c) / self.a).powf(-1.0 / self.b).max(1.0)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    pub law: Law,
    /// Of a, b and c; absent where one of them is at its bound, or as many points as numbers.
    pub standard_errors: Option<[f64; 3]>,
    /// Of accuracies around the law.
    pub rmse: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    pub samples: usize,
    pub accuracy: f64,
    /// 95 %, of the law alone: a single run scatters more.
    pub interval: [f64; 2],
}

/// How many samples a wanted accuracy takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    pub accuracy: f64,
    /// Absent where the law never gets there.
    pub samples: Option<f64>,
    /// 95 %; absent where even that end never gets there.
    pub interval: [Option<f64>; 2],
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Ascending; a size of 0 is a model that was not trained, and no part of the fit.
    pub sizes: Vec<Size>,
    /// Absent with fewer than three sizes.
    pub fit: Option<Fit>,
    pub predictions: Vec<Prediction>,
    pub target: Option<Target>,
    /// What the points cannot carry, in sentences.
    pub warnings: Vec<String>,
}

/// The curve of `runs`, with what it takes to be right at `target` (a share).
pub fn curve(runs: &[Run], target: f64, seed: u64) -> Curve {
    let mut by_size: BTreeMap<usize, Vec<Run>> = BTreeMap::new();
    runs.iter().for_each(|run| by_size.entry(run.samples).or_default().push(*run));
    let sizes: Vec<Size> = by_size.iter().map(|(samples, runs)| size(*samples, runs)).collect();
    let trained: Vec<Vec<Run>> =
        by_size.into_iter().filter(|(samples, _)| *samples > 0).map(|(_, runs)| runs).collect();
    let points: Vec<(f64, f64)> = trained.iter().flatten().map(|r| (r.samples as f64, 1.0 - r.accuracy())).collect();
    if trained.len() < 3 {
        let said = format!(
            "{} of training sets: a law with three numbers needs three at least, better five, the largest ten times the \
             smallest; nothing is predicted",
            counted(trained.len(), "size", "sizes")
        );
        return Curve { sizes, fit: None, predictions: Vec::new(), target: None, warnings: vec![said] };
    }
    let fit = fit(&points);
    let draws: Vec<Law> =
        (0..DRAWS).map(|draw| solve(&redrawn(&trained, Stream::new(seed, &[BOOTSTRAP, draw]))).0).collect();
    let largest = trained.last().and_then(|runs| runs.first()).map_or(1, |run| run.samples);
    let predictions = [1, 2, 4, 10].map(|times| {
        let samples = largest.saturating_mul(times);
        let mut drawn: Vec<f64> = draws.iter().map(|law| 1.0 - law.error(samples as f64)).collect();
        Prediction { samples, accuracy: 1.0 - fit.law.error(samples as f64), interval: interval(&mut drawn) }
    });
    let mut drawn: Vec<f64> = draws.iter().map(|law| law.samples_for(1.0 - target)).collect();
    let finite = |x: f64| x.is_finite().then_some(x);
    let target = Target {
        accuracy: target,
        samples: finite(fit.law.samples_for(1.0 - target)),
        interval: interval(&mut drawn).map(finite),
    };
    let warnings = warnings(&trained, &fit, &target, &predictions);
    Curve { sizes, fit: Some(fit), predictions: predictions.into(), target: Some(target), warnings }
}

fn size(samples: usize, runs: &[Run]) -> Size {
    let accuracies = || runs.iter().map(Run::accuracy);
    Size {
        samples,
        runs: runs.len(),
        mean: accuracies().sum::<f64>() / runs.len() as f64,
        lowest: accuracies().fold(f64::INFINITY, f64::min),
        highest: accuracies().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// The law of points (samples, error), of which there are three sizes or more.
pub fn fit(points: &[(f64, f64)]) -> Fit {
    let (law, sum) = solve(points);
    let inside = law.a > 0.0 && law.b > 1e-6 && law.b < MOST_B - 1e-6 && law.c > 0.0 && law.c < 1.0;
    let standard_errors = if inside && points.len() > 3 { standard_errors(points, &law, sum) } else { None };
    Fit { law, standard_errors, rmse: (sum / points.len() as f64).sqrt() }
}

/// The law with the least sum of squares, and the sum.
fn solve(points: &[(f64, f64)]) -> (Law, f64) {
    let at = |i: usize| MOST_B * (i as f64 / GRID as f64).powi(2);
    let cost = |b: f64| linear(points, b).1;
    // a coarse search first: the sum over b may have more than one valley
    let best = (0..=GRID).min_by(|i, j| cost(at(*i)).total_cmp(&cost(at(*j)))).unwrap_or(0);
    let (mut low, mut high) = (at(best.saturating_sub(1)), at((best + 1).min(GRID)));
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let (mut left, mut right) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut f_left, mut f_right) = (cost(left), cost(right));
    for _ in 0..60 {
        if f_left <= f_right {
            (high, right, f_right) = (right, left, f_left);
            left = high - GOLDEN * (high - low);
            f_left = cost(left);
        } else {
            (low, left, f_left) = (left, right, f_right);
            right = low + GOLDEN * (high - low);
            f_right = cost(right);
        }
    }
    let middle = (low + high) / 2.0;
    // the ends of the range are never inside a bracket
    let b = [middle, at(best)].into_iter().min_by(|x, y| cost(*x).total_cmp(&cost(*y))).unwrap_or(middle);
    let ((a, c), sum) = linear(points, b);
    (Law { a, b, c }, sum)
}

/// a >= 0 and 0 <= c <= 1 of the least sum of squares for a given b, and the sum.
fn linear(points: &[(f64, f64)], b: f64) -> ((f64, f64), f64) {
    // sizes as multiples of the first, so that powers stay near 1
    let unit = points.first().map_or(1.0, |(x, _)| *x);
    let n = points.len() as f64;
    let powers: Vec<f64> = points.iter().map(|(x, _)| (x / unit).powf(-b)).collect();
    let (mut u, mut uu, mut e, mut ue) = (0.0, 0.0, 0.0, 0.0);
    for (power, (_, error)) in powers.iter().zip(points) {
        (u, uu, e, ue) = (u + power, uu + power * power, e + error, ue + power * error);
    }
    let off = |a: f64, c: f64, power: &f64, error: &f64| (a * power + c - error).powi(2);
    let cost = |a, c| powers.iter().zip(points).map(|(power, (_, error))| off(a, c, power, error)).sum::<f64>();
    let spread = n * uu - u * u;
    let mut options = vec![(0.0, (e / n).clamp(0.0, 1.0)), ((ue / uu).max(0.0), 0.0), (((ue - u) / uu).max(0.0), 1.0)];
    if spread > 1e-12 * n * uu {
        let a = (n * ue - u * e) / spread;
        let c = (e - a * u) / n;
        if a >= 0.0 && (0.0..=1.0).contains(&c) {
            options.push((a, c));
        }
    }
    let scored = options.into_iter().map(|(a, c)| ((a, c), cost(a, c)));
    let ((a, c), sum) = scored.min_by(|x, y| x.1.total_cmp(&y.1)).unwrap_or(((0.0, 0.0), f64::INFINITY));
    ((a * unit.powf(b), c), sum)
}

/// sqrt of the diagonal of s^2 (J'J)^-1 with s^2 = sum / (n - 3); None where J'J is singular.
fn standard_errors(points: &[(f64, f64)], law: &Law, sum: f64) -> Option<[f64; 3]> {
    let mut m = [[0.0; 3]; 3];
    for (x, _) in points {
        let power = x.powf(-law.b);
        let j = [power, -law.a * power * x.ln(), 1.0];
        (0..9).for_each(|k| m[k / 3][k % 3] += j[k / 3] * j[k % 3]);
    }
    let minor = |i: usize, k: usize| {
        let at = |r: usize, c: usize| m[(i + r) % 3][(k + c) % 3];
        at(1, 1) * at(2, 2) - at(1, 2) * at(2, 1)
    };
    let determinant: f64 = (0..3).map(|k| m[0][k] * minor(0, k)).sum();
    let variance = sum / (points.len() - 3) as f64;
    let errors = [0, 1, 2].map(|i| (variance * minor(i, i) / determinant).sqrt());
    errors.iter().all(|e| e.is_finite()).then_some(errors)
}

/// Runs of each size drawn again, each scored anew.
fn redrawn(sizes: &[Vec<Run>], random: Stream) -> Vec<(f64, f64)> {
    let mut at = 0;
    let mut next = || {
        at += 1;
        f64::from(random.uniform(at - 1))
    };
    let mut points = Vec::new();
    for runs in sizes {
        for _ in runs {
            let run = runs[(next() * runs.len() as f64) as usize % runs.len()];
            let (p, n) = (run.accuracy(), run.of);
            let correct = if n > NORMAL {
                // the sum of twelve uniform numbers, less 6, is normal enough
                let normal: f64 = (0..12).map(|_| next()).sum::<f64>() - 6.0;
                (n as f64 * p + normal * (n as f64 * p * (1.0 - p)).sqrt()).clamp(0.0, n as f64)
            } else {
                (0..n).filter(|_| next() < p).count() as f64
            };
            points.push((run.samples as f64, 1.0 - correct / n.max(1) as f64));
        }
    }
    points
}

/// The middle 95 % of drawn values.
fn interval(drawn: &mut [f64]) -> [f64; 2] {
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[((drawn.len() - 1) as f64 * share).round() as usize];
    [at(0.025), at(0.975)]
}

fn warnings(trained: &[Vec<Run>], fit: &Fit, target: &Target, predictions: &[Prediction]) -> Vec<String> {
    let mut said = Vec::new();
    let samples = |runs: Option<&Vec<Run>>| runs.and_then(|r| r.first()).map_or(0, |r| r.samples);
    let (smallest, largest) = (samples(trained.first()), samples(trained.last()));
    if trained.len() == 3 {
        said.push("three sizes: a law with three numbers goes through any three means, so nothing tests it".into());
    }
    if largest < smallest.saturating_mul(4) {
        said.push(format!("the sizes go from {smallest} to {largest} only: too narrow to say how the curve bends"));
    }
    if trained.iter().all(|runs| runs.len() == 1) {
        said.push("one run of each size: how far runs scatter is not known; train with several seeds".into());
    }
    let (first, last) = (fit.law.error(smallest as f64), fit.law.error(largest as f64));
    if first - last <= 1e-9 {
        said.push("accuracy does not rise with the size of the training set: nothing can be predicted".into());
    } else if fit.rmse > (first - last) / 2.0 {
        said.push(format!(
            "the runs scatter by {:.1} points around a curve that rises by {:.1}: the rise may be chance",
            100.0 * fit.rmse,
            100.0 * (first - last)
        ));
    }
    if fit.standard_errors.is_none() {
        said.push(
            "the law is at the edge of what it may be (or has no point to spare): its numbers have no errors".into(),
        );
    }
    if let [_, _, _, far] = predictions
        && far.interval[1] - far.interval[0] > 0.1
    {
        let width = 100.0 * (far.interval[1] - far.interval[0]);
        said.push(format!("at {} samples the prediction is uncertain by {width:.0} points", far.samples));
    }
    match (target.samples, target.interval) {
        (Some(needed), _) if needed > 10.0 * largest as f64 => said.push(format!(
            "{:.0} samples are more than ten times the largest set: a curve says little so far out",
            needed
        )),
        (Some(_), [_, None]) => {
            said.push("the points do not exclude that the wanted accuracy is never reached".into());
        }
        (Some(_), [Some(low), Some(high)]) if high > 4.0 * low => {
            said.push("the number of samples that are needed is uncertain by more than a factor of four".into());
        }
        _ => (),
    }
    said
}
