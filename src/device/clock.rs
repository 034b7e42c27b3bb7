//! What the time of a pass goes to: seconds by word, between marks in the order of what the device was given to do. On the
//! host and emulated a mark is this machine's clock; on a GPU it is an event of its stream, so that nobody waits for it.

use super::Device;
use super::launcher::Mark;
use crate::base::Result;
use std::collections::BTreeMap;

/// Seconds by word.
pub type WordSeconds = BTreeMap<&'static str, f64>;

/// Off until started; then it marks where each word begins and ends.
#[derive(Default)]
pub struct Clock {
    /// None while off.
    spans: Option<Vec<(&'static str, Mark, Mark)>>,
}

impl Clock {
    /// Begins with nothing counted.
    pub fn start(&mut self) {
        self.spans = Some(Vec::new());
    }

    pub fn is_on(&self) -> bool {
        self.spans.is_some()
    }

    /// Runs `run`, as the word's where the clock is on.
    pub fn time(
        &mut self,
        device: &mut Device,
        word: &'static str,
        run: impl FnOnce(&mut Device) -> Result<()>,
    ) -> Result<()> {
        let Some(spans) = &mut self.spans else { return run(device) };
        let begin = device.mark()?;
        run(device)?;
        spans.push((word, begin, device.mark()?));
        Ok(())
    }

    /// What each word took since the start; empty where the clock was off. It is off afterwards. Waits for the device.
    pub fn stop(&mut self) -> Result<WordSeconds> {
        let mut seconds = WordSeconds::new();
        for (word, begin, end) in self.spans.take().unwrap_or_default() {
            *seconds.entry(word).or_default() += begin.seconds_until(&end)?;
        }
        Ok(seconds)
    }
}
