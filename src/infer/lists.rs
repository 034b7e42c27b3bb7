//! Several answers from a closed set: the list that the model would write of labels alone.
//!
//! At each place of the list the model chooses among the labels that it has not named yet and, from the second place on,
//! the end. A label's score is the log-probability of its tokens and of what may follow a label (the separator or the
//! end), so that "dent" has no advantage over "dented". The scores of a place are normalised to probabilities p_k, and
//! the likeliest choice is taken. A label is in the list with probability 1 - prod_k (1 - p_k), along the list written.
//! The prompt is computed once: choices are forks of its cache.

use super::choices::{likeliest, log_softmax, normalise};
use super::engine::{Engine, Read};
use crate::base::{Error, Result};
use crate::qwen3vl::model::Rows;
use crate::qwen3vl::pack::Sequence;

/// The labels as tokens.
pub struct Labels {
    /// As the first of a list.
    pub first: Vec<Vec<u32>>,
    /// As a later one: with the separator before it.
    pub later: Vec<Vec<u32>>,
    /// What ends an answer.
    pub close: u32,
}

/// One prompt's list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Labels in the order in which they were named; at least one.
    pub named: Vec<usize>,
    /// For each label that of being in the list.
    pub probabilities: Vec<f64>,
}

/// The list of each prompt. Errors: a label without tokens, or with one that the model does not have; logits that are no
/// numbers.
pub fn list(engine: &mut Engine, prompts: &[&Sequence], labels: &Labels) -> Result<Vec<Listed>> {
    let all = || labels.first.iter().chain(&labels.later);
    let vocabulary = engine.model.config.text.vocab_size;
    if all().any(Vec::is_empty) || all().flatten().chain([&labels.close]).any(|id| *id as usize >= vocabulary) {
        let said = "a label has no token, or one that the model does not have: its tokenizer is another's";
        return Err(Error::Unsupported(said.into()));
    }
    let longest = all().map(Vec::len).max().unwrap_or(0);
    let whole: usize = labels.later.iter().map(|l| l.len() + 1).sum::<usize>() + longest;
    // forks of one prompt at a time: each needs the blocks of its tokens and a copy of the block that they begin in
    let forks = labels.first.iter().map(|_| longest + 2 * super::cache::BLOCK);
    engine.reserve(prompts.iter().map(|p| p.ids.len() + whole).chain(forks))?;
    let (cached, answer) = engine.prefill(prompts, Read::Logits(Rows::Last), &mut |_, _| ())?;
    let rows = engine.numbers(answer)?;
    let mut lists = Vec::new();
    for (mut at, row) in cached.into_iter().zip(rows) {
        let mut row = log_softmax(&row);
        let mut absent = vec![1.0; labels.first.len()];
        let mut named: Vec<usize> = Vec::new();
        while named.len() < labels.first.len() {
            let tokens = if named.is_empty() { &labels.first } else { &labels.later };
            let left: Vec<usize> = (0..tokens.len()).filter(|i| !named.contains(i)).collect();
            let mut forks = left.iter().map(|_| engine.fork(&at)).collect::<Result<Vec<_>>>()?;
            let new: Vec<&[u32]> = left.iter().map(|i| &tokens[*i][..]).collect();
            let mut running: Vec<_> = forks.iter_mut().collect();
            let answer = engine.extend(&mut running, &new, Read::Logits(Rows::All))?;
            let rows = engine.numbers(answer)?;
            let (mut rows, mut scores, mut ends) = (rows.iter(), Vec::new(), Vec::new());
            for new in &new {
                let (mut score, mut before) = (0.0, row.clone());
                for token in *new {
                    score += before[*token as usize];
                    before = rows.next().map(|r| log_softmax(r)).unwrap_or_default();
                }
                scores.push(score + labels.may_follow(&before));
                ends.push(before);
            }
            if !named.is_empty() {
                scores.push(row[labels.close as usize]);
            }
            let p = normalise(&scores);
            let best = likeliest(&p);
            left.iter().zip(&p).for_each(|(i, p)| absent[*i] *= 1.0 - p);
            let chosen = left.get(best).copied();
            for (i, fork) in left.iter().zip(forks) {
                let out = if Some(*i) == chosen { std::mem::replace(&mut at, fork) } else { fork };
                engine.release(out);
            }
            match chosen {
                Some(i) => {
                    named.push(i);
                    row = std::mem::take(&mut ends[best]);
                }
                None => break,
            }
        }
        engine.release(at);
        lists.push(Listed { named, probabilities: absent.iter().map(|a| 1.0 - a).collect() });
    }
    Ok(lists)
}

impl Labels {
    /// Log-probability that a label ends here: the answer's end or a separator comes next.
    fn may_follow(&self, row: &[f64]) -> f64 {
        let mut next: Vec<u32> = self.later.iter().map(|l| l[0]).chain([self.close]).collect();
        next.sort_unstable();
        next.dedup();
        let scores = || next.iter().map(|t| row[*t as usize]);
        // less the largest, so that what is unlikely beyond f64's exponents is no 0
        let max = scores().fold(f64::NEG_INFINITY, f64::max);
        max + scores().map(|s| (s - max).exp()).sum::<f64>().ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_nothing_likely_follows_has_a_score() {
        let labels = Labels { first: vec![vec![0]], later: vec![vec![1, 0], vec![1, 2]], close: 2 };
        let got = labels.may_follow(&[0.0, -1000.0, -1001.0]);
        let want = -1000.0 + (1.0 + (-1.0f64).exp()).ln();
        assert!((got - want).abs() <= 1e-9, "{got}");
        assert!((labels.may_follow(&[0.0, -2.0, -1.0]) - ((-2.0f64).exp() + (-1.0f64).exp()).ln()).abs() <= 1e-12);
    }
}
