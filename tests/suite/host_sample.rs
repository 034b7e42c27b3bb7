//! `sample`: the probabilities of transformers' logits processors, and what they do not say.

use crate::support::close::assert_close;
use crate::support::golden::Golden;
use vlm::host::sample::{Choice, masses, penalise, sample};

#[test]
fn probabilities_follow_transformers() {
    let golden = Golden::ops();
    for name in ["temperature", "top_k", "top_p", "narrow", "penalty", "all"] {
        let name = format!("sample.{name}");
        let case = golden.case(&name);
        let choice = Choice {
            temperature: Some(case.number("temperature") as f32),
            top_k: case.number("top_k") as usize,
            top_p: case.number("top_p") as f32,
            repetition_penalty: case.number("repetition_penalty") as f32,
            presence_penalty: 0.0,
        };
        let mut logits = case.f32("logits");
        penalise(&mut logits, &case.i32("history"), &[], &choice);
        let mut got = vec![0.0; logits.len()];
        let masses = masses(&logits, &choice);
        let sum: u64 = masses.iter().map(|(_, mass)| mass).sum();
        for (token, mass) in masses {
            got[token] = mass as f64 / sum as f64;
        }
        let want = case.f64("probabilities");
        for (token, (g, w)) in got.iter().zip(&want).enumerate() {
            assert_eq!(*g == 0.0, *w == 0.0, "{name}: token {token} may be chosen in one and not in the other");
        }
        // temperature and penalty are f32 here and f64 there: a logit of 10 moves by 10 * 2 * 2^-24 / 0.7
        assert_close(&name, &got, &want, 3e-6);
    }
}

#[test]
fn a_uniform_number_walks_the_distribution() {
    let choice = Choice { temperature: Some(1.0), ..Choice::GREEDY };
    let logits = [0.5f32.ln(), 0.125f32.ln(), 0.375f32.ln()];
    // largest first: token 0 to 0.5, token 2 to 0.875, token 1 to 1
    for (uniform, want) in [(0.0, 0), (0.49, 0), (0.51, 2), (0.87, 2), (0.88, 1), (0.999_999_9, 1)] {
        assert_eq!(sample(&logits, &choice, uniform), Some(want), "{uniform}");
    }
}

/// Sums of a thousand rounded probabilities would be off by more than the border's width.
#[test]
fn equals_are_counted_to_the_one() {
    let logits = vec![-1.25; 1000];
    let choice = Choice { temperature: Some(0.3), ..Choice::GREEDY };
    for (uniform, want) in [(0.0, 0), (0.125, 125), (0.25, 250), (0.5, 500), (0.875, 875)] {
        assert_eq!(sample(&logits, &choice, uniform), Some(want), "{uniform}");
    }
    for (top_p, want) in [(0.125, 125), (0.25, 250), (0.5, 500), (0.875, 875), (1e-9, 1), (1.0, 1000)] {
        assert_eq!(masses(&logits, &Choice { top_p, ..choice }).len(), want, "{top_p}");
    }
}

/// What is too small for a unit counts as nothing: it is held, and never drawn.
#[test]
fn what_has_no_mass_is_not_drawn() {
    let choice = Choice { temperature: Some(1.0), ..Choice::GREEDY };
    let logits = [0.0, -29.0, -31.0];
    assert_eq!(masses(&logits, &choice), [(0, 1 << 43), (1, 2), (2, 0)]);
    // even at the very end
    assert_eq!(sample(&logits, &choice, 1.0), Some(1));
    assert_eq!(masses(&[], &choice), []);
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let greedy = |logits: &[f32]| sample(logits, &Choice::GREEDY, 0.7);
    assert_eq!(greedy(&[1.0, 3.0, 3.0]), Some(1));
    assert_eq!(greedy(&[f32::NEG_INFINITY, -5.0]), Some(1));
    assert_eq!(greedy(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), None);
    assert_eq!(greedy(&[f32::NAN, f32::NAN]), None);
    assert_eq!(greedy(&[]), None);
    // beside NaN or plus infinity no number says anything
    for choice in [Choice::GREEDY, Choice { temperature: Some(1.0), ..Choice::GREEDY }] {
        assert_eq!(sample(&[f32::NAN, -1.0, 0.0], &choice, 0.7), None);
        assert_eq!(sample(&[3.0, f32::INFINITY], &choice, 0.7), None);
        assert_eq!(sample(&[f32::NEG_INFINITY, 0.0], &choice, 0.7), Some(1));
    }
}

#[test]
fn penalties_take_each_token_once_and_padding_never() {
    let choice = Choice { repetition_penalty: 2.0, presence_penalty: 0.5, ..Choice::GREEDY };
    let mut logits = [4.0, -4.0, 1.0, 1.0];
    penalise(&mut logits, &[0, 0, 1, -1, 4, 99], &[3, 3, -1], &choice);
    assert_eq!(logits, [2.0, -8.0, 1.0, 0.5]);
}
