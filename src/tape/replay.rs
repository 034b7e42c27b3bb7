//! A tape that runs again and again, with other numbers in its inputs: its launches are recorded once, and happen as one.
//!
//! The first run puts weights where they belong, loads kernels and, in debug builds, looks at what each operation left
//! around its scratch memory. The second is recorded, and each later one checks what kernels follow and replays. After an
//! error, or where anything has moved, a tape begins anew.

use super::Tape;
use crate::base::Result;
use crate::device::{Clock, Device, Recording};

/// A tape, and what its runs left for the next.
pub struct Repeated {
    tape: Tape,
    runs: Runs,
}

#[derive(Default)]
enum Runs {
    /// None yet.
    #[default]
    None,
    /// One, after which memory had this stamp.
    One(u64),
    Recorded(Recording),
    /// Not all that the tape does can be recorded, or the device records nothing.
    OneByOne,
}

impl Repeated {
    pub fn new(tape: Tape) -> Repeated {
        Repeated { tape, runs: Runs::None }
    }

    /// Runs the records as [`Tape::run`] does; one by one where the clock times them.
    pub fn run(&mut self, device: &mut Device, clock: &mut Clock) -> Result<()> {
        if clock.is_on() {
            return self.tape.run(device, clock, &mut |_, _| ());
        }
        let recorded = match std::mem::take(&mut self.runs) {
            Runs::Recorded(recording) if device.is_current(&recording) => {
                self.tape.check(device)?;
                Some(recording)
            }
            Runs::One(stamp) if stamp == device.memory().stamp() => {
                device.record(&mut |device| self.tape.forward(device, &mut Clock::default(), &mut |_, _| ()))?
            }
            before => {
                self.tape.run(device, clock, &mut |_, _| ())?;
                self.runs = match before {
                    Runs::OneByOne => Runs::OneByOne,
                    _ => Runs::One(device.memory().stamp()),
                };
                return Ok(());
            }
        };
        let Some(recording) = recorded else {
            self.tape.run(device, clock, &mut |_, _| ())?;
            self.runs = Runs::OneByOne;
            return Ok(());
        };
        // SAFETY: the recording is of this tape's operations, and each has checked its indices: in `check`, or in `forward`
        // while it was recorded; nothing was written since.
        unsafe { device.replay(&recording)? }
        device.memory().forget_indices();
        self.runs = Runs::Recorded(recording);
        Ok(())
    }
}

impl Tape {
    /// That the whole numbers which the kernels follow lie within what they read and write.
    fn check(&self, device: &mut Device) -> Result<()> {
        let memory = device.memory();
        self.records.iter().enumerate().try_for_each(|(i, r)| r.op().check(memory).map_err(|e| self.located(i, e)))
    }
}
