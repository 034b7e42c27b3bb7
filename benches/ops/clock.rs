//! Median seconds of what a device does, without what the host does for it.

use std::sync::Arc;
use std::time::Instant;
use vlm::base::Result;
use vlm::device::Launcher;
use vlm::device::launcher::Allocation;

/// Calls of one measurement at the most: a launch must not wait for room in the driver's queue.
const MOST_CALLS: f64 = 50.0;

pub struct Clock {
    launcher: Arc<dyn Launcher>,
    /// Two halves, copied from one to the other.
    spare: Allocation,
    /// Measurements of which the median counts.
    repeats: usize,
    /// Seconds of calls in one measurement, about.
    wanted: f64,
    /// Read and written by a copy, together.
    pub bytes_per_second: f64,
}

impl Clock {
    /// Measures what a copy of half of `bytes` reaches.
    pub fn open(launcher: Arc<dyn Launcher>, bytes: usize, repeats: usize, wanted: f64) -> Result<Clock> {
        let spare = Allocation::new(&launcher, bytes)?;
        spare.fill(0, bytes, 0x3f)?;
        let mut clock = Clock { launcher, spare, repeats, wanted, bytes_per_second: f64::INFINITY };
        clock.bytes_per_second = bytes as f64 / clock.time(1, &mut |_| clock.copy())?;
        Ok(clock)
    }

    pub fn launcher(&self) -> &Arc<dyn Launcher> {
        &self.launcher
    }

    /// So many, or two where only the code is tried.
    pub fn most(&self, copies: u64) -> u64 {
        if self.wanted > 0.0 { copies } else { 2 }
    }

    fn copy(&self) -> Result<()> {
        let half = self.spare.bytes() / 2;
        self.spare.copy_within(0, half, half)
    }

    /// Median seconds of one call of `run`, which is given 0..copies in turn.
    pub fn time(&self, copies: usize, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<f64> {
        (0..copies).try_for_each(&mut *run)?;
        self.launcher.synchronise()?;
        let start = Instant::now();
        run(0)?;
        let host = start.elapsed().as_secs_f64();
        let once = self.launcher.elapsed(&mut || run(1 % copies))?;
        let calls = (self.wanted / once.max(1e-9)).clamp(1.0, MOST_CALLS) as usize;
        let (mut next, mut seconds) = (0, Vec::new());
        for _ in 0..self.repeats {
            // twice the time that the host took, so that it is done before the device begins
            let ahead = 2.0 * host * calls as f64 * self.bytes_per_second / self.spare.bytes() as f64;
            if ahead.is_finite() {
                (0..=ahead as usize).try_for_each(|_| self.copy())?;
            }
            let all = self.launcher.elapsed(&mut || {
                (0..calls).try_for_each(|_| {
                    next = (next + 1) % copies;
                    run(next)
                })
            })?;
            seconds.push(all / calls as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }
}
