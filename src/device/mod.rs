//! Where bytes lie and who computes: the arenas, and the devices that run the words.
//!
//! Floor 3: uses `base` and the handles of `tensor`. Start at [`Device`], then [`memory`].

pub mod memory;
mod probe;

pub use memory::{Accumulate, Borrowed, Layout, Memory, Opened, Place};
pub use probe::{Gpu, Probe, probe};

/// Where the words run. Every word has one arm per kind of device in its `forward`; the layers above never ask.
pub enum Device {
    /// The reference loops of `host`, on this machine's cores.
    Host(Memory),
}

impl Device {
    pub fn host() -> Device {
        Device::Host(Memory::default())
    }

    pub fn memory(&mut self) -> &mut Memory {
        match self {
            Device::Host(memory) => memory,
        }
    }

    /// A name for a person: what computes.
    pub fn name(&self) -> String {
        match self {
            Device::Host(_) => format!("cpu ({} threads)", rayon::current_num_threads()),
        }
    }
}
