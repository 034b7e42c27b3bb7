//! Answers, token by token.

use super::engine::{Answer, Engine, Progress, Read};
use crate::base::{Result, rng};
use crate::ops::sample::Choice;
use crate::qwen3vl::model::Sampling;
use crate::qwen3vl::pack::Sequence;
use std::time::Instant;

/// The stream of random numbers that choose tokens ("samp").
const SAMPLING: u64 = 0x7361_6d70;

/// When to stop and how to choose.
#[derive(Debug, Clone)]
pub struct Settings {
    pub choice: Choice,
    pub seed: u64,
    pub max_new_tokens: usize,
    /// Any of these ends the answer, and is its last token.
    pub stop: Vec<u32>,
    /// Ids from here on are never chosen: the tokenizer has no text for them.
    pub n_valid: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Generated {
    /// New tokens only; the stop token included where one came.
    pub tokens: Vec<u32>,
    pub finish: Finish,
}

/// Of all answers of a batch together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
}

/// Answers several prompts side by side; one that has stopped leaves the batch. `each` is told (sequence, token) as
/// they come and may end all by returning false; `progress` follows the prompts' pass.
pub fn generate(
    engine: &mut Engine,
    prompts: &[&Sequence],
    settings: &Settings,
    progress: Progress,
    each: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<(Vec<Generated>, Timings)> {
    let mut timings = Timings::default();
    let mut answers = vec![Generated { tokens: Vec::new(), finish: Finish::Length }; prompts.len()];
    if settings.max_new_tokens == 0 || prompts.is_empty() {
        return Ok((answers, timings));
    }
    engine.reserve(prompts.iter().map(|p| p.ids.len() + settings.max_new_tokens))?;
    let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let mut sampling = Sampling {
        choice: settings.choice,
        n_valid: settings.n_valid,
        seen: prompts.iter().map(|p| p.ids.clone()).collect(),
        answers: prompts.iter().map(|p| p.ids.len()).collect(),
        uniform: (0..prompts.len()).map(|b| uniform(settings.seed, b, 0)).collect(),
        capacity: longest + settings.max_new_tokens,
    };
    let start = Instant::now();
    let (cached, first) = engine.prefill(prompts, Read::Tokens(&sampling), progress)?;
    timings.prefill_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    // (place in `prompts`, cache) of the sequences still running
    let mut running: Vec<_> = cached.into_iter().enumerate().collect();
    let mut answer = first;
    for step in 1.. {
        let Answer::Tokens(tokens) = &answer else { break };
        let (mut still, mut seen) = (Vec::new(), Vec::new());
        let mut told_to_end = false;
        for (((at, cached), token), mut history) in running.into_iter().zip(tokens).zip(sampling.seen) {
            answers[at].tokens.push(*token);
            history.push(*token);
            told_to_end |= !each(at, *token);
            if settings.stop.contains(token) {
                answers[at].finish = Finish::Stop;
            }
            if answers[at].finish == Finish::Stop || answers[at].tokens.len() == settings.max_new_tokens {
                engine.release(cached);
            } else {
                still.push((at, cached));
                seen.push(history);
            }
        }
        running = still;
        if running.is_empty() || told_to_end {
            break;
        }
        sampling.seen = seen;
        sampling.answers = running.iter().map(|(at, _)| prompts[*at].ids.len()).collect();
        sampling.uniform = running.iter().map(|(at, _)| uniform(settings.seed, *at, step)).collect();
        let last: Vec<[u32; 1]> = sampling.seen.iter().filter_map(|s| s.last().map(|t| [*t])).collect();
        let new: Vec<&[u32]> = last.iter().map(|t| t.as_slice()).collect();
        let mut sequences: Vec<_> = running.iter_mut().map(|(_, cached)| cached).collect();
        answer = engine.extend(&mut sequences, &new, Read::Tokens(&sampling))?;
    }
    timings.decode_seconds = start.elapsed().as_secs_f64();
    Ok((answers, timings))
}

/// The random number that decides one token: a function of seed, sequence and step alone.
fn uniform(seed: u64, sequence: usize, step: u64) -> f32 {
    rng::Stream::new(seed, &[SAMPLING, sequence as u64]).uniform(step)
}
