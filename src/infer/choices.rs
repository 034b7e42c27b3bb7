//! A closed set of answers, scored by the model's own probabilities.
//!
//! A label's score is the sum of log-probabilities of its tokens after the prompt; the scores are normalised over the
//! labels. Where one label's tokens begin another's ("dent", "dented"), the token that closes an answer counts for all
//! of them, so that the shorter one has no unfair advantage. The prompt is computed once: labels are forks of its cache.

use super::cache::{self, BLOCK};
use super::engine::{Engine, Progress, Read};
use crate::base::{Error, Precision, Result};
use crate::qwen3vl::model::{Model, Rows, StepSizes};
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::tape::Tape;

/// For each prompt the probability of each label. `labels[i]` are the tokens of label i, no two the same, `close` the token
/// that ends an answer. Errors: labels that cannot be scored; logits that are no numbers.
pub fn score(
    engine: &mut Engine,
    prompts: &[&Sequence],
    labels: &[Vec<u32>],
    close: u32,
    progress: Progress,
) -> Result<Vec<Vec<f64>>> {
    if let Some(i) = labels.iter().position(Vec::is_empty) {
        return Err(Error::Usage(format!("label {} of the choices is empty", i + 1)));
    }
    let vocabulary = engine.model.config.text.vocab_size;
    if let Some(id) = labels.iter().flatten().chain([&close]).find(|id| **id as usize >= vocabulary) {
        let said =
            format!("the choices have the token {id}, and the model only {vocabulary}: its tokenizer is another's");
        return Err(Error::Unsupported(said));
    }
    let labels = closed(labels, close);
    engine.reserve(lengths(prompts, &labels))?;
    let (cached, first) = engine.prefill(prompts, Read::Logits(Rows::Last), progress)?;
    let first = engine.numbers(first)?;
    let first: Vec<Vec<f64>> = first.iter().map(|row| log_softmax(row)).collect();
    let mut scores: Vec<Vec<f64>> =
        first.iter().map(|row| labels.iter().map(|l| row[l[0] as usize]).collect()).collect();
    let fed = fed(&labels);
    if !fed.is_empty() {
        let (mut forks, mut new, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (p, cached) in cached.iter().enumerate() {
            for (i, tokens) in &fed {
                forks.push(engine.fork(cached)?);
                new.push(*tokens);
                places.push((p, *i));
            }
        }
        let mut sequences: Vec<_> = forks.iter_mut().collect();
        let answer = engine.extend(&mut sequences, &new, Read::Logits(Rows::All))?;
        let rows = engine.numbers(answer)?;
        let mut rows = rows.iter();
        for (p, i) in places {
            for (token, row) in labels[i][1..].iter().zip(&mut rows) {
                scores[p][i] += log_softmax(row)[*token as usize];
            }
        }
        forks.into_iter().for_each(|f| engine.release(f));
    }
    cached.into_iter().for_each(|c| engine.release(c));
    Ok(scores.iter().map(|s| normalise(s)).collect())
}

/// What [`score`] does with these prompts, whose pixels need not be there, without doing it: the bytes of the cache, and the
/// tapes of its passes.
pub fn passes(
    model: &Model,
    precision: Precision,
    prompts: &[&Sequence],
    labels: &[Vec<u32>],
    close: u32,
) -> Result<(usize, Vec<Tape>)> {
    let labels = closed(labels, close);
    let blocks = lengths(prompts, &labels).map(cache::blocks_for).sum();
    let (pools, layout) = cache::pools(&model.config.text, precision, blocks);
    let packed = Packed::new(prompts, model.config.vision.merge_size)?;
    let mut prompt = Tape::new(precision);
    model.prompt(&mut prompt, &packed, Rows::Last, Some(&pools), false)?;
    let mut tapes = vec![prompt];
    let fed = fed(&labels);
    if !fed.is_empty() {
        let longest = lengths(prompts, &labels).max().unwrap_or(0);
        let sizes = StepSizes {
            sequences: prompts.len() * fed.len(),
            tokens: prompts.len() * fed.iter().map(|(_, tokens)| tokens.len()).sum::<usize>(),
            max_blocks: cache::table_width(cache::blocks_for(longest)),
            block: BLOCK,
        };
        let mut step = Tape::new(precision);
        model.step(&mut step, sizes, &pools)?;
        tapes.push(step);
    }
    Ok((layout.bytes, tapes))
}

/// The labels, with the token that closes an answer where one begins another.
fn closed(labels: &[Vec<u32>], close: u32) -> Vec<Vec<u32>> {
    let mut labels = labels.to_vec();
    let nested = |a: &Vec<u32>, b: &Vec<u32>| a.len() < b.len() && b.starts_with(a);
    if labels.iter().any(|a| labels.iter().any(|b| nested(a, b))) {
        labels.iter_mut().for_each(|l| l.push(close));
    }
    labels
}

/// The tokens that the cache needs room for, a number a sequence: each label needs at most the blocks of its own tokens and
/// a copy of the prompt's last block.
fn lengths(prompts: &[&Sequence], labels: &[Vec<u32>]) -> impl Iterator<Item = usize> {
    let longest = labels.iter().map(Vec::len).max().unwrap_or(0);
    let forks = prompts.iter().flat_map(|_| labels.iter().map(|l| l.len() + BLOCK));
    prompts.iter().map(move |p| p.ids.len() + longest).chain(forks)
}

/// The labels of several tokens, with those of them that are fed: the last token is only predicted.
fn fed(labels: &[Vec<u32>]) -> Vec<(usize, &[u32])> {
    labels.iter().enumerate().filter(|(_, l)| l.len() > 1).map(|(i, l)| (i, &l[..l.len() - 1])).collect()
}

/// The likeliest of some probabilities, by its place: the first where several are.
pub fn likeliest(p: &[f64]) -> usize {
    p.iter().enumerate().fold(0, |best, (i, x)| if *x > p[best] { i } else { best })
}

pub(super) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, l| if m.is_nan() || *l <= m { m } else { *l }) as f64;
    let sum: f64 = logits.iter().map(|l| (*l as f64 - max).exp()).sum();
    logits.iter().map(|l| *l as f64 - max - sum.ln()).collect()
}

/// exp of the scores, so that they sum to 1.
pub(super) fn normalise(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}
