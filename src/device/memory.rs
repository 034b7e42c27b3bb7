//! Arenas: one allocation each, laid out before anything runs, on the host or on a device that runs kernels. The host
//! lends slices out that cannot overlap; a device gives addresses, checked in the same way.

use super::borrowed::Borrowed;
use super::launcher::{Allocation, Launcher};
use super::layout::{ALIGNMENT, Layout, Place};
use super::shadow::Shadows;
use crate::base::{DType, Error, Precision, Result, dtype};
use crate::tensor::{Arena, Tensor, Weight};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[repr(C, align(256))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; ALIGNMENT]);

/// The bytes of an arena.
enum Storage {
    Host(Vec<Line>),
    Device(Allocation),
}

impl Storage {
    fn bytes(&self) -> usize {
        match self {
            Storage::Host(lines) => lines.len() * ALIGNMENT,
            Storage::Device(allocation) => allocation.bytes(),
        }
    }
}

struct Region {
    storage: Storage,
    layout: Layout,
}

/// The arenas, of the host or of one device.
pub struct Memory {
    launcher: Option<Arc<dyn Launcher>>,
    activations: Region,
    cache: Region,
    parameters: Region,
    features: Region,
    /// Whole numbers that were written to a device, by slot: what a kernel takes as an index can be checked here.
    written: HashMap<(Arena, u32), Vec<i32>>,
    pub(super) shadows: Shadows,
    stamp: u64,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(None)
    }
}

impl Memory {
    /// On the device of a launcher, or on the host; empty.
    pub(super) fn new(launcher: Option<Arc<dyn Launcher>>) -> Memory {
        let region = || Region { storage: Storage::Host(Vec::new()), layout: Layout::default() };
        Memory {
            launcher,
            activations: region(),
            cache: region(),
            parameters: region(),
            features: region(),
            written: HashMap::new(),
            shadows: Shadows::default(),
            stamp: new_stamp(),
        }
    }

    /// A number that no other memory has, and this one no longer once an arena was laid out again, scratch memory moved, or
    /// a shadow went stale: whether launches that were given addresses may happen again.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Takes note that addresses, or what has to be launched for them to hold what is wanted, are no longer what they were.
    pub(super) fn moved(&mut self) {
        self.stamp = new_stamp();
    }

    fn region(&self, arena: Arena) -> &Region {
        match arena {
            Arena::Activations => &self.activations,
            Arena::Cache => &self.cache,
            Arena::Parameters => &self.parameters,
            Arena::Features => &self.features,
        }
    }

    fn region_mut(&mut self, arena: Arena) -> &mut Region {
        match arena {
            Arena::Activations => &mut self.activations,
            Arena::Cache => &mut self.cache,
            Arena::Parameters => &mut self.parameters,
            Arena::Features => &mut self.features,
        }
    }

    /// Lays `arena` out anew: handles of the former generation are stale from here on. Allocates only when the arena
    /// has to grow; what it held is lost.
    pub fn lay_out(&mut self, arena: Arena, layout: Layout) -> Result<()> {
        self.moved();
        self.written.retain(|(of, _), _| *of != arena);
        if arena == Arena::Parameters {
            self.shadows = Shadows::default();
        }
        let launcher = self.launcher.clone();
        let region = self.region_mut(arena);
        if layout.bytes > region.storage.bytes() {
            // what is there goes before the new comes
            region.storage = Storage::Host(Vec::new());
            region.storage = match launcher {
                Some(launcher) => {
                    let allocation = Allocation::new(&launcher, layout.bytes);
                    Storage::Device(allocation.map_err(|e| match e {
                        Error::OutOfMemory(why) => out_of_memory(arena, layout.bytes, Some(why)),
                        other => other,
                    })?)
                }
                None => {
                    let (mut lines, n) = (Vec::new(), layout.bytes.div_ceil(ALIGNMENT));
                    lines.try_reserve_exact(n).map_err(|_| out_of_memory(arena, layout.bytes, None))?;
                    lines.resize(n, Line([0; ALIGNMENT]));
                    Storage::Host(lines)
                }
            };
        }
        if cfg!(debug_assertions) {
            match &mut region.storage {
                Storage::Host(lines) => lines.fill(Line([0xff; ALIGNMENT])),
                Storage::Device(allocation) => allocation.fill(0, allocation.bytes(), 0xff)?,
            }
        }
        region.layout = layout;
        Ok(())
    }

    /// The bytes that `arena` holds allocated.
    pub fn allocated(&self, arena: Arena) -> usize {
        self.region(arena).storage.bytes()
    }

    /// The places of an arena.
    pub(super) fn layout(&self, arena: Arena) -> &Layout {
        &self.region(arena).layout
    }

    /// Where `tensor` lies; an error for a stale handle.
    pub fn place(&self, tensor: &Tensor) -> Result<Place> {
        let layout = &self.region(tensor.arena).layout;
        let place = layout.places.get(tensor.slot as usize).copied();
        match place {
            Some(place) if layout.generation == tensor.generation => {
                if tensor.bytes() > place.bytes {
                    return Err(misuse("handle", format!("at most {} bytes", place.bytes), format!("{tensor:?}")));
                }
                Ok(Place { offset: place.offset, bytes: tensor.bytes() })
            }
            _ => Err(misuse(
                "handle",
                format!("a tensor of generation {} of {:?}", layout.generation, tensor.arena),
                format!("a stale handle: slot {}, generation {}", tensor.slot, tensor.generation),
            )),
        }
    }

    /// Whether the planner put both in the same bytes (an output written over an input that nobody needs any more).
    pub fn same_place(&self, a: &Tensor, b: &Tensor) -> Result<bool> {
        Ok(a.arena == b.arena && self.place(a)? == self.place(b)?)
    }

    /// Lends out the bytes of inputs, trained weights and outputs of one operation. An output that overlaps anything
    /// else is an error; naming an input twice is fine. Only on the host: a device has addresses.
    pub fn borrow(&mut self, inputs: &[Tensor], weights: &[&Weight], outputs: &[Tensor]) -> Result<Borrowed<'_>> {
        let trained = weights.iter().filter_map(|w| w.as_trained()).map(|t| t.value);
        let inputs: Vec<Tensor> = inputs.iter().copied().chain(trained).collect();
        let wanted = self.apart(&inputs, outputs)?;
        let mut lent =
            Borrowed { inputs: Vec::with_capacity(inputs.len()), outputs: Vec::with_capacity(outputs.len()) };
        let regions = [
            (Arena::Activations, &mut self.activations),
            (Arena::Cache, &mut self.cache),
            (Arena::Parameters, &mut self.parameters),
            (Arena::Features, &mut self.features),
        ];
        for (arena, region) in regions {
            let Storage::Host(lines) = &mut region.storage else {
                return Err(misuse("borrow", "an arena of the host".into(), format!("{arena:?} of a device")));
            };
            let mut rest: &mut [u8] = bytemuck::cast_slice_mut(lines);
            let mut at = 0;
            let mut last: Option<(Place, &[u8])> = None;
            for Wanted { place, out, tensor } in wanted.iter().filter(|w| w.tensor.arena == arena) {
                if let (false, Some((same, bytes))) = (*out, last)
                    && same == *place
                {
                    lent.inputs.push((*tensor, bytes));
                    continue;
                }
                let (_, tail) = rest.split_at_mut(place.offset - at);
                let (bytes, tail) = tail.split_at_mut(place.bytes);
                rest = tail;
                at = place.end();
                if *out {
                    lent.outputs.push((*tensor, bytes));
                    last = None;
                } else {
                    lent.inputs.push((*tensor, bytes));
                    last = Some((*place, bytes));
                }
            }
        }
        Ok(lent)
    }

    /// The places of inputs and outputs in the order of their bytes; an error where an output overlaps anything else.
    pub(super) fn apart(&self, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Vec<Wanted>> {
        let mut wanted = Vec::with_capacity(inputs.len() + outputs.len());
        for (tensor, out) in inputs.iter().map(|t| (t, false)).chain(outputs.iter().map(|t| (t, true))) {
            wanted.push(Wanted { place: self.place(tensor)?, out, tensor: *tensor });
        }
        wanted.sort_by_key(|w| (w.tensor.arena as u8, w.place.offset, w.place.bytes, w.out));
        let mut last: Option<&Wanted> = None;
        for w in &wanted {
            if let Some(before) = last.filter(|before| before.tensor.arena == w.tensor.arena) {
                let twice = !w.out && !before.out && w.place == before.place;
                if !twice && w.place.offset < before.place.end() {
                    return Err(misuse(
                        "overlap",
                        "inputs and outputs apart from each other".into(),
                        format!("{:?} at byte {}, inside its neighbour", w.tensor, w.place.offset),
                    ));
                }
            }
            last = Some(w);
        }
        Ok(wanted)
    }

    /// Where `tensor` lies in a device's memory.
    pub(super) fn address(&self, tensor: &Tensor) -> Result<u64> {
        let place = self.place(tensor)?;
        match &self.region(tensor.arena).storage {
            Storage::Device(allocation) => Ok(allocation.address() + place.offset as u64),
            Storage::Host(_) if place.bytes == 0 => Ok(0),
            Storage::Host(_) => Err(misuse("address", "an arena of a device".into(), format!("{tensor:?}"))),
        }
    }

    /// Takes note that a kernel writes to a tensor: what was known of its numbers is so no more.
    pub(super) fn overwritten(&mut self, tensor: &Tensor) -> Result<()> {
        self.written.remove(&(tensor.arena, tensor.slot));
        if tensor.arena == Arena::Parameters {
            let place = self.place(tensor)?;
            if self.shadows.overwritten(&place) {
                self.moved();
            }
        }
        Ok(())
    }

    /// The whole numbers that a tensor holds: on a device those that [`Memory::write_i32`] last wrote, where no kernel
    /// changed them and no tape ran since.
    pub fn indices(&self, tensor: &Tensor) -> Result<&[i32]> {
        let place = self.place(tensor)?;
        if let Storage::Host(lines) = &self.region(tensor.arena).storage
            && tensor.dtype == DType::I32
        {
            return Ok(bytemuck::cast_slice(&bytemuck::cast_slice::<Line, u8>(lines)[place.offset..place.end()]));
        }
        let values = self.written.get(&(tensor.arena, tensor.slot));
        values
            .map(Vec::as_slice)
            .ok_or_else(|| misuse("indices", "whole numbers that were written".into(), format!("{tensor:?}")))
    }

    /// Forgets which whole numbers were written: a tape ran, and its inputs' bytes may hold something else now.
    pub fn forget_indices(&mut self) {
        self.written.clear();
    }

    /// Replaces a tensor's bytes. `bytes` are as many.
    fn write_bytes(&mut self, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        let place = self.place(tensor)?;
        self.overwritten(tensor)?;
        match &mut self.region_mut(tensor.arena).storage {
            Storage::Host(lines) => {
                let all: &mut [u8] = bytemuck::cast_slice_mut(lines);
                all[place.offset..place.end()].copy_from_slice(bytes);
                Ok(())
            }
            Storage::Device(allocation) => allocation.write(place.offset, bytes),
        }
    }

    fn read_bytes(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let place = self.place(tensor)?;
        match &self.region(tensor.arena).storage {
            Storage::Host(lines) => {
                let all: &[u8] = bytemuck::cast_slice(lines);
                Ok(all[place.offset..place.end()].to_vec())
            }
            Storage::Device(allocation) => {
                let mut bytes = vec![0; place.bytes];
                allocation.read(place.offset, &mut bytes)?;
                Ok(bytes)
            }
        }
    }

    /// Writes f32 numbers into a floating tensor, rounding to its type.
    pub fn write_f32(&mut self, tensor: Tensor, values: &[f32]) -> Result<()> {
        fits(&tensor, values.len())?;
        match tensor.dtype {
            DType::F32 => self.write_bytes(&tensor, bytemuck::cast_slice(values)),
            DType::Bf16 => {
                let mut bytes = vec![0; tensor.bytes()];
                dtype::narrow_bf16(values, &mut bytes);
                self.write_bytes(&tensor, &bytes)
            }
            _ => Err(misuse("tensor", "f32 or bf16".into(), format!("{tensor:?}"))),
        }
    }

    /// Writes whole numbers into an i32 tensor.
    pub fn write_i32(&mut self, tensor: Tensor, values: &[i32]) -> Result<()> {
        fits(&tensor, values.len())?;
        if tensor.dtype != DType::I32 {
            return Err(misuse("tensor", "i32".into(), format!("{tensor:?}")));
        }
        self.write_bytes(&tensor, bytemuck::cast_slice(values))?;
        if self.launcher.is_some() {
            self.written.insert((tensor.arena, tensor.slot), values.to_vec());
        }
        Ok(())
    }

    /// The numbers of a floating tensor.
    pub fn read_f32(&mut self, tensor: Tensor) -> Result<Vec<f32>> {
        if !matches!(tensor.dtype, DType::F32 | DType::Bf16) {
            return Err(misuse("tensor", "f32 or bf16".into(), format!("{tensor:?}")));
        }
        Ok(dtype::widened(tensor.dtype, &self.read_bytes(&tensor)?, Precision::F32).into_owned())
    }

    /// The numbers of an i32 tensor.
    pub fn read_i32(&mut self, tensor: Tensor) -> Result<Vec<i32>> {
        if tensor.dtype != DType::I32 {
            return Err(misuse("tensor", "i32".into(), format!("{tensor:?}")));
        }
        Ok(bytemuck::pod_collect_to_vec(&self.read_bytes(&tensor)?))
    }

    /// Sets all of a tensor's bytes to zero.
    pub fn zero(&mut self, tensor: Tensor) -> Result<()> {
        let place = self.place(&tensor)?;
        self.overwritten(&tensor)?;
        match &mut self.region_mut(tensor.arena).storage {
            Storage::Host(lines) => {
                bytemuck::cast_slice_mut::<Line, u8>(lines)[place.offset..place.end()].fill(0);
                Ok(())
            }
            Storage::Device(allocation) => allocation.fill(place.offset, place.bytes, 0),
        }
    }

    /// Copies the rows of a tensor to those of another of the same type and width, from row `row` on. They are both
    /// activations, or one of them features.
    pub fn copy(&mut self, from: Tensor, to: Tensor, row: usize) -> Result<()> {
        let (source, mut target) = (self.place(&from)?, self.place(&to)?);
        let alike = (from.dtype, from.shape.width()) == (to.dtype, to.shape.width());
        if !alike || row + from.shape.rows() > to.shape.rows() {
            return Err(misuse("copy", format!("room for {from:?}"), format!("{to:?} from row {row} on")));
        }
        target.offset += row * to.shape.width() * to.dtype.bytes();
        self.overwritten(&to)?;
        let (all, into) = (source.offset..source.end(), target.offset);
        let Memory { activations, features, .. } = self;
        let (from, to) = match (from.arena, to.arena) {
            (Arena::Activations, Arena::Activations) => {
                return match &mut activations.storage {
                    Storage::Host(lines) => {
                        bytemuck::cast_slice_mut::<Line, u8>(lines).copy_within(all, into);
                        Ok(())
                    }
                    Storage::Device(allocation) => allocation.copy_within(source.offset, into, source.bytes),
                };
            }
            (Arena::Activations, Arena::Features) => (&activations.storage, &mut features.storage),
            (Arena::Features, Arena::Activations) => (&features.storage, &mut activations.storage),
            (from, to) => {
                return Err(misuse(
                    "copy",
                    "activations, or features and activations".into(),
                    format!("{from:?} to {to:?}"),
                ));
            }
        };
        match (from, to) {
            (Storage::Host(from), Storage::Host(to)) => {
                let (from, to): (&[u8], &mut [u8]) = (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
                to[into..into + source.bytes].copy_from_slice(&from[all]);
                Ok(())
            }
            (Storage::Device(from), Storage::Device(to)) => from.copy_to(source.offset, to, into, source.bytes),
            _ => Err(misuse("copy", "arenas of one device".into(), "one of the host".into())),
        }
    }

    /// Copies `n` rows of a tensor from row `from` to row `to`, which they do not overlap.
    pub fn copy_rows(&mut self, tensor: Tensor, from: usize, to: usize, n: usize) -> Result<()> {
        let place = self.place(&tensor)?;
        let row = tensor.shape.width() * tensor.dtype.bytes();
        if from.max(to) + n > tensor.shape.rows() {
            return Err(misuse(
                "rows",
                format!("at most {}", tensor.shape.rows()),
                format!("{n} rows at {from} and {to}"),
            ));
        }
        self.overwritten(&tensor)?;
        let at = |r: usize| place.offset + r * row;
        match &mut self.region_mut(tensor.arena).storage {
            Storage::Host(lines) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(lines);
                bytes.copy_within(at(from)..at(from + n), at(to));
                Ok(())
            }
            Storage::Device(allocation) => allocation.copy_within(at(from), at(to), n * row),
        }
    }

    /// Fills a place of the activations with NaN (and -1): released memory must not look like numbers.
    pub fn poison(&mut self, place: Place) -> Result<()> {
        match &mut self.activations.storage {
            Storage::Host(lines) => {
                bytemuck::cast_slice_mut::<Line, u8>(lines)[place.offset..place.end()].fill(0xff);
                Ok(())
            }
            Storage::Device(allocation) => allocation.fill(place.offset, place.bytes, 0xff),
        }
    }
}

/// A tensor of one operation, and where it lies.
pub(super) struct Wanted {
    pub place: Place,
    pub out: bool,
    pub tensor: Tensor,
}

fn new_stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn out_of_memory(arena: Arena, bytes: usize, why: Option<String>) -> Error {
    let why = why.map_or(String::new(), |why| format!(" ({why})"));
    Error::OutOfMemory(format!(
        "out of memory: the {arena:?} arena needs {bytes} bytes{why}; use a smaller batch, a shorter prompt or smaller \
         pictures"
    ))
}

fn fits(tensor: &Tensor, n: usize) -> Result<()> {
    if tensor.shape.elements() == n {
        return Ok(());
    }
    Err(misuse("values", format!("{} for {tensor:?}", tensor.shape.elements()), n.to_string()))
}

pub(super) fn misuse(argument: &'static str, wanted: String, got: String) -> Error {
    Error::Contract { op: "memory", argument, wanted, got }
}
