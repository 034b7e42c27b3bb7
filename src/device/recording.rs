//! Launches that are noted once and happen again as one. A tape whose sizes stay the same launches the same kernels with the
//! same arguments at the same addresses each time; what lies there changes. On a GPU they become a graph, in the emulator a
//! list.
//!
//! While something is recorded nothing happens. A recording is good for as long as nothing that it was given has moved: the
//! memory's stamp ([`super::Memory::stamp`]) tells.

use super::Device;
use super::launcher::Launcher;
use crate::base::{Error, Result, env};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Launches, fills and copies that a launcher noted, with all that they were given.
pub trait Recorded: Send {
    /// Has all of them happen, in their order.
    ///
    /// # Safety
    /// The launcher is alive, and what each of them promised of its addresses holds still.
    unsafe fn replay(&self) -> Result<()>;
}

/// What a launcher knows of the recording that is under way.
pub(super) enum Noting<T> {
    Off,
    On(T),
    /// Something came that cannot be recorded: up to the end of the recording nothing happens and nothing is noted.
    Failed,
}

impl<T> Noting<T> {
    /// Before what cannot be recorded. Errors: a recording is under way, and has failed now.
    pub fn refuse(&mut self, what: &str) -> Result<()> {
        if matches!(self, Noting::Off) {
            return Ok(());
        }
        *self = Noting::Failed;
        Err(no_launch(what))
    }

    /// Where to note what comes; None where nothing is recorded and it shall happen.
    pub fn noting(&mut self) -> Result<Option<&mut T>> {
        match self {
            Noting::Off => Ok(None),
            Noting::On(noted) => Ok(Some(noted)),
            Noting::Failed => Err(no_launch("more after that")),
        }
    }
}

fn no_launch(got: &str) -> Error {
    let wanted = "launches, fills and copies on the device alone".into();
    Error::Contract { op: "recording", argument: "launches", wanted, got: got.into() }
}

/// What a device recorded.
pub struct Recording {
    recorded: Box<dyn Recorded>,
    /// How often each kernel is launched.
    launches: BTreeMap<&'static str, u64>,
    /// The memory's, when it began.
    stamp: u64,
    /// Outlives what was recorded.
    _launcher: Arc<dyn Launcher>,
}

impl Device {
    /// Records what `run` launches, of which nothing happens before it is replayed: as the next thing, since memory takes
    /// its writes for done. None: this device records nothing, or `run` did what cannot be recorded, or moved what it was
    /// given. Errors: those of `run`.
    pub fn record(&mut self, run: &mut dyn FnMut(&mut Device) -> Result<()>) -> Result<Option<Recording>> {
        let Device::Launch(gpu) = self else { return Ok(None) };
        if std::env::var_os(env::REPLAY).is_some_and(|v| v == "0") || !gpu.launcher.begin_recording()? {
            return Ok(None);
        }
        let stamp = gpu.memory.stamp();
        gpu.recording = Some(BTreeMap::new());
        let done = run(self);
        let Device::Launch(gpu) = self else { return Ok(None) };
        let launches = gpu.recording.take().unwrap_or_default();
        let recorded = gpu.launcher.end_recording()?;
        let moved = stamp != gpu.memory.stamp();
        match (recorded, done) {
            (Some(recorded), Ok(())) if !moved => {
                tracing::debug!("{} launches are recorded", launches.values().sum::<u64>());
                Ok(Some(Recording { recorded, launches, stamp, _launcher: gpu.launcher.clone() }))
            }
            (recorded, done) => {
                // the casts and updates that were to write them will not happen, nor what was to clear counters
                gpu.memory.distrust_shadows();
                gpu.miscounted = true;
                recorded.map_or(Ok(()), |_| done).map(|()| None)
            }
        }
    }

    /// Whether `recording` is of this device, and nothing has moved since it began.
    pub fn is_current(&mut self, recording: &Recording) -> bool {
        recording.stamp == self.memory().stamp()
    }

    /// Has recorded launches happen again. Errors: something has moved since, or they are another device's.
    ///
    /// # Safety
    /// The whole numbers that the recorded kernels take as indices lie within what they read and write: `Op::check` of each
    /// operation, after its inputs were written.
    pub unsafe fn replay(&mut self, recording: &Recording) -> Result<()> {
        let _range = self.range("replay");
        match self {
            Device::Launch(gpu) if gpu.memory.stamp() == recording.stamp => {
                gpu.counters()?;
                // SAFETY: the recording holds its launcher. Its addresses are those of the memory of the same stamp, which no
                // other device and no other state of this one has; the caller promises the indices.
                let replayed = unsafe { recording.recorded.replay() };
                gpu.miscounted |= replayed.is_err();
                replayed?;
                gpu.replays += 1;
                recording.launches.iter().for_each(|(kernel, n)| *gpu.launches.entry(kernel).or_default() += n);
                Ok(())
            }
            _ => {
                let (wanted, got) = (format!("one of stamp {}", self.memory().stamp()), recording.stamp.to_string());
                Err(Error::Contract { op: "replay", argument: "recording", wanted, got })
            }
        }
    }
}
