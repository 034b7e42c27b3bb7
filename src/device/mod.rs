//! Where bytes lie and who computes: the arenas, and the devices that run the words.
//!
//! The host runs the words' loops on slices that [`Memory`] lends. A device that runs kernels ([`Accelerator`]) gives a
//! word addresses and launches what its plan says; underneath it is a [`Launcher`], of which there are two: the GPU
//! ([`cuda`]) and the host with an emulator ([`emulated`]). Floor 3: uses `base` and the handles of `tensor`. Start at
//! [`Device`], then [`memory`] and [`accelerator`].

pub mod accelerator;
mod arguments;
pub mod available;
mod borrowed;
mod cast;
pub mod clock;
pub mod conformance;
pub mod cuda;
pub mod emulated;
mod images;
pub mod launcher;
pub mod layout;
pub mod memory;
mod nvtx;
mod peak;
pub mod probe;
pub mod recording;
mod shadow;
mod weights;

pub use accelerator::{Accelerator, Addresses};
pub use arguments::{Arguments, Field, StructLayout};
pub use borrowed::{Accumulate, Borrowed, Opened};
pub use cast::CastArgs;
pub use clock::{Clock, WordSeconds};
pub use launcher::{Facts, Launch, Launcher};
pub use layout::{Layout, Place};
pub use memory::Memory;
pub use nvtx::Range;
pub use recording::Recording;
pub use weights::weight_bytes;

use crate::base::{Result, counted, env};
use crate::tensor::Weight;
use available::available_memory;
use launcher::Mark;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the words run. Every word has one arm per kind of device in its `forward`; the layers above never ask.
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Device {
    /// The reference loops of `host`, on this machine's cores.
    Host(Memory),
    /// The kernels of `cuda/`, on a GPU or emulated. Computes in bf16 only.
    Launch(Box<Accelerator>),
}

impl Device {
    pub fn host() -> Device {
        Device::Host(Memory::default())
    }

    /// The kernels on the host's cores, as a GPU of this compute capability would run them.
    pub fn emulated(capability: (i32, i32)) -> Result<Device> {
        Device::of(emulated::Emulated::open(capability)?)
    }

    /// The kernels on a GPU.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Device::of(cuda::Cuda::open(ordinal)?)
    }

    /// A device of any launcher.
    pub fn of(launcher: Arc<dyn Launcher>) -> Result<Device> {
        Ok(Device::Launch(Box::new(Accelerator::new(launcher)?)))
    }

    pub fn memory(&mut self) -> &mut Memory {
        match self {
            Device::Host(memory) => memory,
            Device::Launch(gpu) => &mut gpu.memory,
        }
    }

    /// Bytes that arenas can still take; None where nobody says.
    pub fn free_bytes(&self) -> Option<usize> {
        match self {
            Device::Host(_) => available_memory(),
            Device::Launch(gpu) => gpu.free_bytes().or_else(available_memory),
        }
    }

    /// A name for a person: what computes.
    pub fn name(&self) -> String {
        match self {
            Device::Host(_) => format!("cpu ({})", counted(rayon::current_num_threads(), "thread", "threads")),
            Device::Launch(gpu) => gpu.facts().name.clone(),
        }
    }

    /// How often each kernel was launched so far; none on the host.
    pub fn launches(&self) -> BTreeMap<&'static str, u64> {
        match self {
            Device::Host(_) => BTreeMap::new(),
            Device::Launch(gpu) => gpu.launches().clone(),
        }
    }

    /// How often recorded launches happened again; never on the host.
    pub fn replays(&self) -> u64 {
        match self {
            Device::Host(_) => 0,
            Device::Launch(gpu) => gpu.replays,
        }
    }

    /// What plans need to know; None for the host, which has no kernels to plan.
    pub fn facts(&self) -> Option<&Facts> {
        match self {
            Device::Host(_) => None,
            Device::Launch(gpu) => Some(gpu.facts()),
        }
    }

    /// Says before a tape runs whether its activations, the intermediate results of its operations and its weights fit,
    /// and puts the weights where they are needed.
    pub fn reserve(&mut self, activation_bytes: usize, scratch_bytes: usize, weights: &[&Weight]) -> Result<()> {
        match self {
            Device::Host(_) => Ok(()),
            Device::Launch(gpu) => gpu.reserve(activation_bytes, scratch_bytes, weights),
        }
    }

    /// In debug builds: that the last operation kept to the scratch memory it was lent, and left counters at 0.
    pub fn check_after(&mut self) -> Result<()> {
        match self {
            Device::Host(_) => Ok(()),
            Device::Launch(gpu) => gpu.check_after(),
        }
    }

    /// Where the device will be when it has done what it was given so far.
    fn mark(&self) -> Result<Mark> {
        match self {
            Device::Host(_) => Ok(Mark::now()),
            Device::Launch(gpu) => gpu.mark(),
        }
    }

    /// Names what runs until the range is dropped, for a profiler.
    pub fn range(&self, name: &str) -> Option<Range> {
        match self {
            Device::Launch(gpu) if gpu.facts().profiled => Range::begin(name),
            _ => None,
        }
    }
}

/// The compute capability that the emulator claims: what the environment says, or Hopper's.
pub fn emulated_capability() -> Result<(i32, i32)> {
    let Ok(said) = std::env::var(env::EMULATED_CAPABILITY) else { return Ok((9, 0)) };
    let parsed = said.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| {
        crate::base::Error::Unsupported(format!("{} is {said:?}: give a number like 8.6", env::EMULATED_CAPABILITY))
    })
}
