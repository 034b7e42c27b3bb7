//! Where the frozen tower's results stay on the device: of the first samples from epoch to epoch, of others for a step.

use crate::base::{DType, Error, Result};
use crate::device::layout::ALIGNMENT;
use crate::device::{Device, Layout};
use crate::qwen3vl::vision::Features;
use crate::tensor::{Arena, Tensor, new_generation};

/// How much room there is. A sample has `tensors` of [rows, width], its embeddings and its deepstack features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub dtype: DType,
    pub width: usize,
    pub tensors: usize,
    /// Rows of each sample that is kept from its first step on, in the order of the samples.
    pub kept: Vec<usize>,
    /// So many samples more of at most `spare_rows`, while they are needed.
    pub spare: usize,
    pub spare_rows: usize,
}

impl Room {
    pub fn bytes(&self) -> usize {
        self.samples().map(|rows| self.sample_bytes(rows)).sum()
    }

    /// What a sample of so many rows takes.
    pub fn sample_bytes(&self, rows: usize) -> usize {
        self.tensors * self.tensor_bytes(rows).next_multiple_of(ALIGNMENT)
    }

    fn tensor_bytes(&self, rows: usize) -> usize {
        rows * self.width * self.dtype.bytes()
    }

    /// Rows of all that there is room for.
    fn samples(&self) -> impl Iterator<Item = usize> {
        self.kept.iter().copied().chain(std::iter::repeat_n(self.spare_rows, self.spare))
    }

    fn layout(&self) -> Layout {
        let sizes = self.samples().flat_map(|rows| std::iter::repeat_n(self.tensor_bytes(rows), self.tensors));
        Layout::sequential(new_generation(), sizes)
    }
}

/// The features that are at hand.
pub struct Store {
    room: Room,
    generation: u32,
    /// The sample that each spare place is taken by.
    spare: Vec<Option<usize>>,
}

impl Store {
    /// Makes room on the device.
    pub fn new(device: &mut Device, room: Room) -> Result<Store> {
        let layout = room.layout();
        let generation = layout.generation;
        device.memory().lay_out(Arena::Features, layout)?;
        Ok(Store { spare: vec![None; room.spare], room, generation })
    }

    /// Of how many samples, from the first, features stay.
    pub fn keeps(&self) -> usize {
        self.room.kept.len()
    }

    /// Copies what a pass of the tower made of a sample's pictures to where it stays. Samples that are not kept take a
    /// spare place until [`Store::release`].
    pub fn take(&mut self, device: &mut Device, sample: usize, made: &Features) -> Result<Features> {
        let place = match sample < self.keeps() {
            true => sample,
            false => {
                let free = self.spare.iter().position(|by| by.is_none_or(|by| by == sample));
                let free = free.ok_or_else(|| too_many(self.spare.len()))?;
                self.spare[free] = Some(sample);
                self.keeps() + free
            }
        };
        let mut keep = |made: &Tensor, i: usize| {
            let slot = (place * self.room.tensors + i) as u32;
            let kept = Tensor { arena: Arena::Features, slot, generation: self.generation, ..*made };
            device.memory().copy(*made, kept, 0)?;
            Ok(kept)
        };
        let embeds = keep(&made.embeds, 0)?;
        let deepstack = made.deepstack.iter().enumerate().map(|(i, made)| keep(made, i + 1)).collect::<Result<_>>()?;
        Ok(Features { embeds, deepstack })
    }

    /// Lets go of a sample that has a spare place.
    pub fn release(&mut self, sample: usize) {
        self.spare.iter_mut().filter(|by| **by == Some(sample)).for_each(|by| *by = None);
    }
}

fn too_many(spare: usize) -> Error {
    Error::Contract {
        op: "features",
        argument: "samples",
        wanted: format!("at most {spare} that are not kept at a time"),
        got: "one more".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Precision;
    use crate::tape::Tape;

    /// What a tower might have made of a picture.
    fn made(device: &mut Device, rows: usize, number: f32) -> Features {
        let mut tape = Tape::new(Precision::F32);
        let tensors = [(); 3].map(|_| tape.input(DType::F32, [rows, 4]));
        tape.begin(device).expect("room");
        for (i, tensor) in tensors.iter().enumerate() {
            device.memory().write_f32(*tensor, &vec![number + i as f32; rows * 4]).expect("numbers");
        }
        Features { embeds: tensors[0], deepstack: tensors[1..].to_vec() }
    }

    #[test]
    fn kept_samples_stay_and_others_share_the_spare_places() {
        for mut device in [Device::host(), Device::emulated((8, 6)).expect("an emulator")] {
            let device = &mut device;
            let room = Room { dtype: DType::F32, width: 4, tensors: 3, kept: vec![3, 2], spare: 1, spare_rows: 5 };
            // of 16 bytes a row, each tensor rounded up to 256
            assert_eq!(room.bytes(), 3 * 3 * 256);
            assert_eq!(room.bytes(), room.layout().bytes);
            let mut store = Store::new(device, room).expect("room");
            let mut take = |device: &mut Device, sample, rows, number| {
                let made = made(device, rows, number);
                store.take(device, sample, &made)
            };
            let first = take(device, 0, 3, 10.0).expect("a place");
            let other = take(device, 7, 5, 30.0).expect("the spare place");
            let second = take(device, 1, 2, 20.0).expect("a place");
            let said = take(device, 8, 1, 40.0).expect_err("the spare place is taken").to_string();
            assert!(said.contains("at most 1 that are not kept"), "{said}");
            for (features, rows, number) in [(&first, 3, 10.0), (&second, 2, 20.0), (&other, 5, 30.0)] {
                for (i, tensor) in std::iter::once(&features.embeds).chain(&features.deepstack).enumerate() {
                    let got = device.memory().read_f32(*tensor).expect("numbers");
                    assert_eq!(got, vec![number + i as f32; rows * 4]);
                }
            }
            store.release(7);
            let made = made(device, 1, 40.0);
            let next = store.take(device, 8, &made).expect("the spare place");
            assert_eq!(device.memory().read_f32(next.deepstack[1]).expect("numbers"), [42.0; 4]);
            // the tensors of one sample, in the rows of a batch
            let mut tape = Tape::new(Precision::F32);
            let batch = tape.input(DType::F32, [5, 4]);
            tape.begin(device).expect("room");
            device.memory().write_f32(batch, &[0.0; 20]).expect("numbers");
            device.memory().copy(second.embeds, batch, 3).expect("rows");
            assert_eq!(device.memory().read_f32(batch).expect("numbers"), [[0.0; 12].as_slice(), &[20.0; 8]].concat());
            assert!(device.memory().copy(second.embeds, batch, 4).is_err());
        }
    }
}
