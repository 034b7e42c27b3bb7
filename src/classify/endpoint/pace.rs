//! When the next request may go out.

use crate::base::rng;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const LONGEST_WAIT: f64 = 60.0;
/// How soon a wait notices that it is to end.
const SLICE: Duration = Duration::from_millis(50);
/// The stream of random numbers that spread repeated requests ("back").
const BACK: u64 = 0x6261_636b;

/// Shared by all workers.
pub struct Pace {
    between: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    pub fn new(requests_per_minute: Option<f64>) -> Pace {
        let between = requests_per_minute.map_or(Duration::ZERO, |n| Duration::from_secs_f64(60.0 / n));
        Pace { between, next: Mutex::new(Instant::now()) }
    }

    /// Waits for the caller's turn; false where it is to stop.
    pub fn turn(&self, stop: &(dyn Fn() -> bool + Sync)) -> bool {
        loop {
            if stop() {
                return false;
            }
            let now = Instant::now();
            let wait = match self.next.lock() {
                Ok(mut next) if *next <= now => {
                    *next = now + self.between;
                    return true;
                }
                Ok(next) => *next - now,
                Err(_) => return false,
            };
            std::thread::sleep(wait.min(SLICE));
        }
    }

    /// Nobody sends anything for so long: the server asked for it.
    pub fn pause(&self, wait: Duration) {
        if let Ok(mut next) = self.next.lock() {
            *next = (*next).max(Instant::now() + wait);
        }
    }
}

/// The wait before try `tried` + 1 of a line: doubled each time, up to a minute, less a random part of at most half, so
/// that workers that failed together do not come back together.
pub fn back_off(first: Duration, line: usize, tried: u32) -> Duration {
    let longest = (first.as_secs_f64() * 2f64.powi(tried.min(20) as i32)).min(LONGEST_WAIT);
    let part = rng::Stream::new(0, &[BACK, line as u64]).uniform(u64::from(tried));
    Duration::from_secs_f64(longest * (1.0 - 0.5 * f64::from(part)))
}

/// False where it is to stop.
pub fn sleep(wait: Duration, stop: &(dyn Fn() -> bool + Sync)) -> bool {
    let end = Instant::now() + wait;
    loop {
        if stop() {
            return false;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_differ_between_lines() {
        let back_off = |line, tried| back_off(Duration::from_millis(500), line, tried);
        let waits: Vec<f64> = (0..10).map(|tried| back_off(3, tried).as_secs_f64()).collect();
        for (tried, wait) in waits.iter().enumerate() {
            let longest = (0.5 * 2f64.powi(tried as i32)).min(60.0);
            assert!(*wait >= longest / 2.0 && *wait <= longest, "{waits:?}");
        }
        assert_ne!(back_off(3, 2), back_off(4, 2));
        assert!(back_off(1, u32::MAX) <= Duration::from_secs(60));
    }

    #[test]
    fn a_wait_ends_when_it_is_to_stop() {
        let start = Instant::now();
        assert!(!sleep(Duration::from_secs(600), &|| true));
        let pace = Pace::new(None);
        pace.pause(Duration::from_secs(600));
        assert!(!pace.turn(&|| start.elapsed() > Duration::from_millis(20)));
        assert!(start.elapsed() < Duration::from_secs(300));
    }
}
