//! Sampling: from logits to the next token, the specification.
//!
//! Order as transformers 5.x applies its processors: repetition penalty, then (vLLM's) presence penalty, temperature,
//! top-k, top-p (`generation/logits_process.py`).

/// How to choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// None: the largest logit, after the penalties.
    pub temperature: Option<f32>,
    /// Keep the k largest (ties with the last kept too); 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of largest probabilities that reaches this sum; 1 keeps all.
    pub top_p: f32,
    /// Logits of tokens seen, in prompt or answer, are divided (positive) or multiplied (negative) by this; 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens that the answer already has.
    pub presence_penalty: f32,
}

impl Choice {
    pub const GREEDY: Choice =
        Choice { temperature: None, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, presence_penalty: 0.0 };
}

/// Changes the logits by what was seen: `seen` in prompt and answer, `generated` in the answer alone. Ids that are
/// negative or outside the logits are padding.
pub fn penalise(logits: &mut [f32], seen: &[i32], generated: &[i32], choice: &Choice) {
    let unique = |ids: &[i32]| {
        let mut ids: Vec<usize> = ids.iter().filter_map(|i| usize::try_from(*i).ok()).collect();
        ids.retain(|i| *i < logits.len());
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let (seen, generated) = (unique(seen), unique(generated));
    if choice.repetition_penalty != 1.0 {
        for i in seen {
            let penalty = choice.repetition_penalty;
            logits[i] = if logits[i] < 0.0 { logits[i] * penalty } else { logits[i] / penalty };
        }
    }
    for i in generated {
        logits[i] -= choice.presence_penalty;
    }
}

/// Logits that [`masses`] takes at most: so many masses of 1 have a sum below 2^64.
pub const MOST_TOKENS: usize = 1 << 20;
/// Units in a mass of 1.
const UNIT: f64 = (1u64 << 43) as f64;

/// The mass of each token that may be chosen, largest first: (token, mass). Its probability is its mass over the sum of
/// all. The largest has a mass of 1, in units of 2^-43, cut off: sums of whole numbers are the same in any order.
pub fn masses(logits: &[f32], choice: &Choice) -> Vec<(usize, u64)> {
    let temperature = choice.temperature.unwrap_or(1.0) as f64;
    // both zeros are one score: equals stand in the order of their ids
    let score = |l: &f32| *l as f64 / temperature + 0.0;
    let mut scores: Vec<(usize, f64)> =
        logits.iter().map(score).enumerate().filter(|(_, score)| score.is_finite()).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if choice.top_k > 0 && choice.top_k < scores.len() {
        let last = scores[choice.top_k - 1].1;
        scores.retain(|(_, s)| *s >= last);
    }
    let max = scores.first().map_or(0.0, |(_, s)| *s);
    let mut masses: Vec<(usize, u64)> =
        scores.into_iter().map(|(token, s)| (token, ((s - max).exp() * UNIT) as u64)).collect();
    if choice.top_p < 1.0 {
        // a token goes where it and all smaller ones together have at most 1 - top_p; the largest always stays
        let last = reach(&masses, |sum| sum - share(1.0 - choice.top_p as f64, sum));
        masses.truncate(last.map_or(0, |last| last + 1));
    }
    masses
}

/// Of a sum of masses, less than all.
fn share(of: f64, sum: u64) -> u64 {
    ((of * sum as f64) as u64).min(sum - 1)
}

/// Where the sum of masses, from the first on, reaches what `wanted` makes of the sum of all, 1 to that. None of none.
fn reach(masses: &[(usize, u64)], wanted: impl Fn(u64) -> u64) -> Option<usize> {
    let all = masses.iter().map(|(_, mass)| mass).sum();
    let mut sum = 0;
    masses.iter().position(|(_, mass)| {
        sum += mass;
        sum >= wanted(all)
    })
}

/// The next token. `uniform` in [0, 1) decides among the distribution; the first of equals wins when greedy. Those at
/// minus infinity are never chosen. None where no logit is a number, or one is NaN or plus infinity: nothing can be said
/// of the others then.
pub fn sample(logits: &[f32], choice: &Choice, uniform: f32) -> Option<usize> {
    if logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY) {
        return None;
    }
    if choice.temperature.is_none() {
        let best = logits.iter().enumerate().fold(None, |best: Option<(usize, f32)>, (i, l)| match best {
            Some((_, max)) if max >= *l => best,
            _ if *l == f32::NEG_INFINITY => best,
            _ => Some((i, *l)),
        });
        return best.map(|(i, _)| i);
    }
    let masses = masses(logits, choice);
    // from the largest down, the first at which the sum of probabilities exceeds `uniform`
    reach(&masses, |sum| share(uniform as f64, sum) + 1).map(|at| masses[at].0)
}
