//! Numbers to compute with, the same on every machine.

use std::num::Wrapping;

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(Wrapping<u64>);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(Wrapping(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 += 0x9e37_79b9_7f4a_7c15;
        let z = (self.0 ^ (self.0 >> 30)) * Wrapping(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)) * Wrapping(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).0
    }

    /// 0..n, n at most 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }

    /// About normal, with this deviation: the sum of four uniform numbers. The mean is a fifth of the deviation, since
    /// sums of numbers centred on zero hide errors.
    pub fn f32s(&mut self, n: usize, deviation: f64) -> Vec<f32> {
        let mut one = || {
            let sum: f64 = (0..4).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
            (deviation * ((sum - 2.0) * 3.0f64.sqrt() + 0.2)) as f32
        };
        (0..n).map(|_| one()).collect()
    }

    pub fn f64s(&mut self, n: usize, deviation: f64) -> Vec<f64> {
        wide(&self.f32s(n, deviation))
    }
}

/// The same numbers in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| *x as f64).collect()
}
