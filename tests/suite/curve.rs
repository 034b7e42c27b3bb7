//! Power laws against scipy's (`tools/reference_curve.py`), and what the command says of them.

use crate::support::close::{assert_within, compare};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use vlm::classify::curve::{Law, Run, curve, fit};

fn reference() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/curve.json");
    let all: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    all["cases"].as_array().unwrap().clone()
}

fn runs(case: &Value) -> Vec<Run> {
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let one = |r: &Value| Run { samples: number(&r[0]), correct: number(&r[1]), of: number(&r[2]) };
    case["runs"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn the_fit_is_that_of_scipy() {
    let cases = reference();
    assert!(cases.len() >= 7);
    for case in &cases {
        let points: Vec<(f64, f64)> =
            runs(case).iter().map(|r| (r.samples as f64, 1.0 - r.correct as f64 / r.of as f64)).collect();
        let (name, want) = (case["name"].as_str().unwrap(), &case["fit"]);
        let got = fit(&points);
        let sum = got.rmse.powi(2) * points.len() as f64;
        let least = want["sum_of_squares"].as_f64().unwrap();
        assert!(sum <= least * (1.0 + 1e-9), "{name}: {sum:e} and scipy has {least:e}");
        let errors = want["standard_errors"].as_array();
        assert_eq!(got.standard_errors.is_some(), errors.is_some(), "{name}: {got:?}");
        let (Some(errors), Some(got_errors)) = (errors, got.standard_errors) else { continue };
        let number = |key: &str| want[key].as_f64().unwrap();
        let law = [number("a"), number("b"), number("c")];
        // the valley is flat: where the sums agree to 1e-9 the numbers do to its root, against their errors
        let errors: Vec<f64> = errors.iter().map(|e| e.as_f64().unwrap()).collect();
        assert_within(name, &[got.law.a, got.law.b, got.law.c], &law, |i| 1e-4 * errors[i]);
        assert_within(name, &got_errors, &errors, |i| 1e-3 * errors[i]);
    }
}

#[test]
fn exact_points_give_their_law_back() {
    let law = Law { a: 2.0, b: 0.5, c: 0.04 };
    let points: Vec<(f64, f64)> = [25.0, 100.0, 400.0, 1600.0].map(|n: f64| (n, 2.0 / n.sqrt() + 0.04)).into();
    let got = fit(&points).law;
    compare(&[got.a, got.b, got.c], &[2.0, 0.5, 0.04], |_| 1e-6).unwrap();
    // 0.05 = 2 / sqrt(n) + 0.04: n = 200^2
    assert!((law.samples_for(0.05) - 40_000.0).abs() < 1e-6);
    assert_eq!(law.samples_for(0.04), f64::INFINITY);
    assert_eq!(law.samples_for(3.0), 1.0);
}

#[test]
fn predictions_have_intervals_that_hold_the_law() {
    let case = &reference()[0];
    let got = curve(&runs(case), 0.9, 7);
    assert_eq!(got.sizes.len(), 5);
    assert_eq!((got.sizes[0].samples, got.sizes[0].runs), (20, 3));
    assert_eq!(got.predictions.iter().map(|p| p.samples).collect::<Vec<_>>(), [319, 638, 1276, 3190]);
    for p in &got.predictions {
        // the law that the runs were drawn from
        let truth = 1.0 - (2.5 * (p.samples as f64).powf(-0.6) + 0.03);
        assert!(p.interval[0] <= truth && truth <= p.interval[1], "{p:?} {truth}");
        assert!(p.interval[0] <= p.accuracy && p.accuracy <= p.interval[1], "{p:?}");
    }
    let target = got.target.clone().unwrap();
    let [low, high] = target.interval.map(|x| x.unwrap_or(f64::INFINITY));
    // 0.1 = 2.5 n^-0.6 + 0.03
    let truth = (0.07f64 / 2.5).powf(-1.0 / 0.6);
    assert!(low <= truth && truth <= high, "{target:?} {truth}");
    assert_eq!(got, curve(&runs(case), 0.9, 7), "the same seed gives the same intervals");
}

/// Runs of an exact law, rounded to whole numbers of a large test set.
fn exact(sizes: &[usize], law: impl Fn(f64) -> f64) -> Vec<Run> {
    let of = 100_000;
    sizes
        .iter()
        .map(|n| Run { samples: *n, correct: ((1.0 - law(*n as f64)) * of as f64).round() as usize, of })
        .collect()
}

#[track_caller]
fn warns(runs: &[Run], target: f64, wanted: &str) {
    let got = curve(runs, target, 0);
    assert!(got.warnings.iter().any(|w| w.contains(wanted)), "{wanted}\n{:#?}", got.warnings);
}

#[test]
fn what_the_points_cannot_carry_is_said() {
    let law = |n: f64| 2.0 * n.powf(-0.5) + 0.1;
    let two = curve(&exact(&[50, 100, 0], law), 0.95, 0);
    assert!(two.fit.is_none() && two.predictions.is_empty() && two.target.is_none());
    warns(&exact(&[50, 100], law), 0.95, "2 sizes of training sets");
    warns(&exact(&[50, 100, 200], law), 0.95, "three sizes: a law with three numbers goes through any three means");
    warns(&exact(&[50, 100, 150, 180], law), 0.95, "the sizes go from 50 to 180 only");
    warns(&exact(&[50, 100, 200, 400], law), 0.95, "one run of each size");
    warns(&exact(&[50, 100, 200, 400], |_| 0.3), 0.95, "accuracy does not rise");
    warns(&exact(&[50, 100, 200, 400], |n| n / 1000.0), 0.95, "accuracy does not rise");
    warns(&exact(&[50, 100, 200, 400], law), 0.88, "more than ten times the largest set");
    let noisy: Vec<Run> = [(50, 70), (50, 40), (100, 45), (100, 75), (400, 74), (400, 47)]
        .map(|(samples, correct)| Run { samples, correct, of: 100 })
        .into();
    warns(&noisy, 0.95, "the rise may be chance");
    let good = curve(&[exact(&[50, 100, 200, 400, 800], law), exact(&[50, 800], law)].concat(), 0.85, 0);
    assert_eq!(good.warnings, Vec::<String>::new());
    // sizes that nobody has
    let most = usize::MAX;
    let huge = curve(&exact(&[most / 3, most / 3 + 1, most / 2], |_| 0.3), 0.95, 0);
    assert_eq!(huge.predictions.iter().map(|p| p.samples).collect::<Vec<_>>(), [most / 2, most - 1, most, most]);
    let never = curve(&exact(&[50, 100, 200, 400, 800], law), 0.95, 0).target.unwrap();
    assert_eq!((never.samples, never.interval), (None, [None, None]));
}

fn eval(dir: &Path, name: &str, summary: Value) -> String {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("summary.json"), summary.to_string()).unwrap();
    folder.to_str().unwrap().to_string()
}

fn vlm(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_vlm")).arg("curve").args(arguments).output().unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn folders_of_eval_make_a_curve() {
    let dir = tempfile::tempdir().unwrap();
    let summary = |samples: Option<usize>, correct: usize, data: &str| json!({"training_samples": samples, "data": data, "metrics": {"n": 98, "correct": correct, "accuracy": 0.0}});
    let all = [(39, 55), (78, 66), (156, 76), (319, 84), (319, 86)];
    let mut folders: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(i, (n, correct))| eval(dir.path(), &format!("e{i}"), summary(Some(*n), *correct, "test.jsonl")))
        .collect();
    let base = eval(dir.path(), "base", summary(None, 33, "test.jsonl"));
    folders.push(format!("0={base}"));
    let mut arguments: Vec<&str> = folders.iter().map(String::as_str).collect();
    let (code, said, stderr) = vlm(&arguments);
    assert_eq!(code, Some(0), "{stderr}");
    for wanted in ["       0     1      33.7", "     319     2      86.7", "error = ", "% takes about", "careful: "] {
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
    arguments.extend(["--json", "--target", "0.9"]);
    let said: Value = serde_json::from_str(&vlm(&arguments).1).unwrap();
    assert_eq!(said["sizes"].as_array().unwrap().len(), 5);
    assert!(said["fit"]["law"]["b"].as_f64().unwrap() > 0.0);
    assert_eq!(said["target"]["accuracy"], 0.9);

    let (code, _, said) = vlm(&[&base]);
    assert!(code == Some(1) && said.contains("base/summary.json: does not say on how many samples"), "{said}");
    let (code, _, said) = vlm(&[&folders[0], "--target", "95"]);
    assert!(code == Some(2) && said.contains("--target 95"), "{said}");
    let (code, _, said) = vlm(&["nowhere"]);
    assert!(code == Some(1) && said.contains("nowhere: there is no such folder"), "{said}");
    let broken = eval(dir.path(), "broken", json!({"training_samples": 5, "metrics": {"n": 3}}));
    let (code, _, said) = vlm(&[&broken]);
    assert!(code == Some(1) && said.contains("holds no accuracy of single labels"), "{said}");
    let other = eval(dir.path(), "other", summary(Some(500), 90, "other.jsonl"));
    let (_, said, _) = vlm(&[&folders[0], &other]);
    assert!(said.contains("careful: the scores are of different sets (other.jsonl, test.jsonl)"), "{said}");
}
