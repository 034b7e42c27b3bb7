//! The learning rate of a step.
//!
//! The formulas are those of transformers 5.17's `get_cosine_schedule_with_warmup` (half a cosine, to 0),
//! `get_linear_schedule_with_warmup` and `get_constant_schedule_with_warmup` (`optimization.py`), in f64 and in their
//! order of operations. They count from 0 the steps that are done; this program counts from 1 the step at hand.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Cosine,
    Linear,
    Constant,
}

/// How long the rate rises from 0 to its peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WarmUp {
    Steps(u64),
    /// Of all steps, rounded up.
    Ratio(f64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    decay: Decay,
    peak: f64,
    warm_up: u64,
    total: u64,
}

impl Schedule {
    /// `total` counts the steps of the whole run, warm-up included.
    pub fn new(decay: Decay, peak: f64, warm_up: WarmUp, total: u64) -> Schedule {
        let warm_up = match warm_up {
            WarmUp::Steps(steps) => steps,
            WarmUp::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
        };
        Schedule { decay, peak, warm_up, total }
    }

    /// The rate that step `k`, counted from 1, is taken with. With a warm-up that of the first step is 0.
    pub fn lr(&self, k: u64) -> f64 {
        self.peak * self.factor(k.saturating_sub(1))
    }

    fn factor(&self, done: u64) -> f64 {
        if done < self.warm_up {
            return done as f64 / self.warm_up as f64;
        }
        let decaying = self.total.saturating_sub(self.warm_up).max(1) as f64;
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => self.total.saturating_sub(done) as f64 / decaying,
            Decay::Cosine => {
                let progress = (done - self.warm_up) as f64 / decaying;
                // libm's and not the system's: the same bits on every machine.
                (0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress))).max(0.0)
            }
        }
    }
}
