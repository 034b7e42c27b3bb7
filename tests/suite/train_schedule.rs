//! Learning rates against transformers 5.17.0 (torch 2.11.0): `optimizer.param_groups[0]["lr"]` before each step, with
//! `get_{cosine,linear}_schedule_with_warmup(optimizer, warm_up, total)` and `get_constant_schedule_with_warmup`.

use crate::folders::shared;
use serde_json::Value;
use vlm::train::schedule::{Decay, Schedule, WarmUp};

#[track_caller]
fn check(decay: Decay, peak: f64, warm_up: u64, total: u64, want: &[f64]) {
    let schedule = Schedule::new(decay, peak, WarmUp::Steps(warm_up), total);
    for (k, want) in (1..).zip(want) {
        let got = schedule.lr(k);
        // One rounding of the cosine apart, which 1 + cos may carry to a larger part of a small rate.
        assert!((got - want).abs() <= 2e-16 * peak, "{decay:?} {peak} {warm_up} {total}, step {k}: {got} {want}");
    }
}

#[test]
fn rates_are_those_of_transformers() {
    let cosine = |peak, warm_up, total, want: &[f64]| check(Decay::Cosine, peak, warm_up, total, want);
    cosine(
        2e-4,
        0,
        7,
        &[
            0.0002,
            0.0001900968867902419,
            0.00016234898018587337,
            0.00012225209339563145,
            7.774790660436858e-05,
            3.7651019814126654e-05,
            9.903113209758096e-06,
            0.0,
        ],
    );
    cosine(
        1e-3,
        3,
        10,
        &[
            0.0,
            0.0003333333333333333,
            0.0006666666666666666,
            0.001,
            0.0009504844339512095,
            0.0008117449009293668,
            0.0006112604669781572,
            0.00038873953302184284,
            0.00018825509907063325,
            4.9515566048790485e-05,
            0.0,
        ],
    );
    cosine(3e-5, 5, 5, &[0.0, 6e-06, 1.2e-05, 1.8e-05, 2.4e-05, 3e-05]);
    cosine(1.0, 4, 3, &[0.0, 0.25, 0.5, 0.75, 1.0]);
    let linear = |peak, warm_up, total, want: &[f64]| check(Decay::Linear, peak, warm_up, total, want);
    linear(
        2e-4,
        0,
        7,
        &[
            0.0002,
            0.00017142857142857143,
            0.00014285714285714287,
            0.00011428571428571428,
            8.571428571428571e-05,
            5.714285714285714e-05,
            2.857142857142857e-05,
            0.0,
        ],
    );
    linear(1e-3, 3, 10, &[0.0, 0.0003333333333333333, 0.0006666666666666666, 0.001, 0.0008571428571428571]);
    linear(3e-5, 5, 5, &[0.0, 6e-06, 1.2e-05, 1.8e-05, 2.4e-05, 0.0]);
    linear(1.0, 4, 3, &[0.0, 0.25, 0.5, 0.75, 0.0]);
    let constant = |peak, warm_up, total, want: &[f64]| check(Decay::Constant, peak, warm_up, total, want);
    constant(2e-4, 0, 7, &[2e-4; 8]);
    constant(1e-3, 3, 10, &[0.0, 0.0003333333333333333, 0.0006666666666666666, 0.001, 0.001, 0.001]);
    constant(1.0, 4, 3, &[0.0, 0.25, 0.5, 0.75, 1.0]);
}

#[test]
fn a_ratio_is_rounded_up() {
    for (ratio, total, steps) in [(0.0, 10, 0), (0.03, 10, 1), (0.1, 30, 3), (0.1, 31, 4), (1.0, 7, 7), (0.5, 5, 3)] {
        let (ratio, steps) = (WarmUp::Ratio(ratio), WarmUp::Steps(steps));
        let schedule = |warm_up| Schedule::new(Decay::Linear, 1.0, warm_up, total);
        assert_eq!(schedule(ratio), schedule(steps), "{ratio:?} of {total}");
    }
}

#[test]
fn reference_runs_had_these_rates() {
    for (name, decay, peak, warm_up) in
        [("attention_everywhere", Decay::Cosine, 1e-3, 3), ("attention_llm", Decay::Constant, 2e-3, 0)]
    {
        let path = format!("reference/tiny.train.{name}/metrics.jsonl");
        let Some(path) = shared("reference_runs_had_these_rates", &path) else { return };
        let text = std::fs::read_to_string(path).unwrap();
        let want: Vec<f64> =
            text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["lr"].as_f64().unwrap()).collect();
        assert_eq!(want.len(), 16);
        check(decay, peak, warm_up, 16, &want);
    }
}
