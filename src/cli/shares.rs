//! What the time of a run's steps went to, for a person.

use crate::base::counted;
use crate::train::metrics::StepMetrics;
use std::collections::BTreeMap;
use std::fmt;

/// Of the steps whose words were timed.
#[derive(Debug, Default)]
pub struct Shares {
    steps: u64,
    seconds: f64,
    words: BTreeMap<&'static str, f64>,
}

impl Shares {
    pub fn add(&mut self, step: &StepMetrics) {
        if step.word_seconds.is_empty() {
            return;
        }
        self.steps += 1;
        self.seconds += step.seconds;
        for (word, seconds) in &step.word_seconds {
            *self.words.entry(word).or_default() += seconds;
        }
    }
}

/// Words that take less than this part of the time stand in one line.
const SMALL: f64 = 0.01;

/// A line a word, the longest first, and one for what is no word; nothing where nothing was timed.
impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.steps == 0 {
            return Ok(());
        }
        let mut rows: Vec<(&str, f64)> = self.words.iter().map(|(word, seconds)| (*word, *seconds)).collect();
        rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        let in_words: f64 = rows.iter().map(|(_, seconds)| seconds).sum();
        let n_large = rows.partition_point(|(_, seconds)| *seconds >= SMALL * self.seconds);
        let small = rows.split_off(n_large);
        let others = counted(small.len(), "other", "others");
        if !small.is_empty() {
            rows.push((&others, small.iter().map(|(_, seconds)| seconds).sum()));
        }
        rows.push(("between them", self.seconds - in_words));
        writeln!(f, "time of {}, by operation:", counted(self.steps, "step", "steps"))?;
        for (what, seconds) in rows {
            writeln!(f, "{what:<24}{seconds:>10.3} s {:>6.1} %", 100.0 * seconds / self.seconds)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_word_is_first_and_steps_without_times_do_not_count() {
        let step = |words: &[(&'static str, f64)]| StepMetrics {
            step: 1,
            epoch: 1.0,
            loss: 1.0,
            lr: 0.0,
            grad_norm: 1.0,
            label_tokens: 1,
            tokens: 1,
            seconds: 2.0,
            tokens_per_second: 0.5,
            mfu: None,
            word_seconds: words.iter().copied().collect(),
        };
        let mut shares = Shares::default();
        assert_eq!(shares.to_string(), "");
        let first = [("cast", 0.01), ("linear", 0.5), ("norm", 0.96), ("sample", 0.03)];
        for words in [&first[..], &[], &[("linear", 1.5)]] {
            shares.add(&step(words));
        }
        let want = "time of 2 steps, by operation:\n\
                    linear                       2.000 s   50.0 %\n\
                    norm                         0.960 s   24.0 %\n\
                    2 others                     0.040 s    1.0 %\n\
                    between them                 1.000 s   25.0 %\n";
        assert_eq!(shares.to_string(), want);
        let mut one = Shares::default();
        one.add(&step(&first[..3]));
        let said = one.to_string();
        assert!(said.starts_with("time of 1 step, by") && said.contains("\n1 other  "), "{said}");
    }
}
