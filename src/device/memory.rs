//! Arenas: one allocation each, laid out before anything runs, and lent out in slices that cannot overlap.

use crate::base::{DType, Error, Precision, Result, dtype};
use crate::tensor::{Arena, Tensor, Weight};
use half::bf16;
use std::borrow::Cow;

/// Where one value lies in its arena. Offsets are multiples of [`ALIGNMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub offset: usize,
    pub bytes: usize,
}

/// Every place begins at a multiple of this: what vector loads and bulk copies of any device ask for.
pub const ALIGNMENT: usize = 256;

/// The places of all values of one generation, by slot, and the bytes that the arena needs.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    pub generation: u32,
    pub places: Vec<Place>,
    pub bytes: usize,
}

impl Layout {
    /// Values side by side, none sharing bytes.
    pub fn sequential(generation: u32, sizes: impl IntoIterator<Item = usize>) -> Layout {
        let mut layout = Layout { generation, ..Layout::default() };
        for bytes in sizes {
            layout.places.push(Place { offset: layout.bytes, bytes });
            layout.bytes += bytes.next_multiple_of(ALIGNMENT);
        }
        layout
    }
}

#[repr(C, align(256))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; ALIGNMENT]);

#[derive(Default)]
struct Region {
    lines: Vec<Line>,
    layout: Layout,
}

/// The arenas of the host.
#[derive(Default)]
pub struct Memory {
    activations: Region,
    cache: Region,
    parameters: Region,
}

impl Memory {
    fn region(&self, arena: Arena) -> &Region {
        match arena {
            Arena::Activations => &self.activations,
            Arena::Cache => &self.cache,
            Arena::Parameters => &self.parameters,
        }
    }

    fn region_mut(&mut self, arena: Arena) -> &mut Region {
        match arena {
            Arena::Activations => &mut self.activations,
            Arena::Cache => &mut self.cache,
            Arena::Parameters => &mut self.parameters,
        }
    }

    /// Lays `arena` out anew: handles of the former generation are stale from here on. Allocates only when the arena
    /// has to grow; what it held is lost.
    pub fn lay_out(&mut self, arena: Arena, layout: Layout) -> Result<()> {
        let region = self.region_mut(arena);
        let lines = layout.bytes.div_ceil(ALIGNMENT);
        if lines > region.lines.len() {
            region.lines = Vec::new();
            region.lines.try_reserve_exact(lines).map_err(|_| {
                Error::Unsupported(format!(
                    "out of memory: the {arena:?} arena needs {} bytes; use a smaller batch, a shorter prompt or smaller pictures",
                    layout.bytes
                ))
            })?;
            region.lines.resize(lines, Line([0; ALIGNMENT]));
        }
        if cfg!(debug_assertions) {
            region.lines.fill(Line([0xff; ALIGNMENT]));
        }
        region.layout = layout;
        Ok(())
    }

    /// The bytes that `arena` holds allocated.
    pub fn allocated(&self, arena: Arena) -> usize {
        self.region(arena).lines.len() * ALIGNMENT
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
    /// else is an error; naming an input twice is fine.
    pub fn borrow(&mut self, inputs: &[Tensor], weights: &[&Weight], outputs: &[Tensor]) -> Result<Borrowed<'_>> {
        let trained = weights.iter().filter_map(|w| w.as_trained()).map(|t| t.value);
        let inputs: Vec<Tensor> = inputs.iter().copied().chain(trained).collect();
        let mut wanted = Vec::with_capacity(inputs.len() + outputs.len());
        for (tensor, out) in inputs.iter().map(|t| (t, false)).chain(outputs.iter().map(|t| (t, true))) {
            wanted.push((tensor.arena as u8, self.place(tensor)?, out, *tensor));
        }
        wanted.sort_by_key(|(arena, place, out, _)| (*arena, place.offset, place.bytes, *out));
        let mut lent =
            Borrowed { inputs: Vec::with_capacity(inputs.len()), outputs: Vec::with_capacity(outputs.len()) };
        let regions = [
            (Arena::Activations, &mut self.activations),
            (Arena::Cache, &mut self.cache),
            (Arena::Parameters, &mut self.parameters),
        ];
        for (arena, region) in regions {
            let mut rest: &mut [u8] = bytemuck::cast_slice_mut(&mut region.lines);
            let mut at = 0;
            let mut last: Option<(Place, &[u8])> = None;
            for (_, place, out, tensor) in wanted.iter().filter(|w| w.0 == arena as u8) {
                if let (false, Some((same, bytes))) = (*out, last)
                    && same == *place
                {
                    lent.inputs.push((*tensor, bytes));
                    continue;
                }
                if place.offset < at {
                    return Err(misuse(
                        "overlap",
                        "inputs and outputs apart from each other".into(),
                        format!("{tensor:?} at byte {}, inside its neighbour", place.offset),
                    ));
                }
                let (_, tail) = rest.split_at_mut(place.offset - at);
                let (bytes, tail) = tail.split_at_mut(place.bytes);
                rest = tail;
                at = place.offset + place.bytes;
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

    /// Writes f32 numbers into a floating tensor, rounding to its type.
    pub fn write_f32(&mut self, tensor: Tensor, values: &[f32]) -> Result<()> {
        fits(&tensor, values.len())?;
        let mut lent = self.borrow(&[], &[], &[tensor])?;
        let out = lent.output(tensor)?;
        out.fill(|to| to.copy_from_slice(values))
    }

    /// Writes whole numbers into an i32 tensor.
    pub fn write_i32(&mut self, tensor: Tensor, values: &[i32]) -> Result<()> {
        fits(&tensor, values.len())?;
        let mut lent = self.borrow(&[], &[], &[tensor])?;
        lent.output(tensor)?.i32()?.copy_from_slice(values);
        Ok(())
    }

    /// The numbers of a floating tensor.
    pub fn read_f32(&mut self, tensor: Tensor) -> Result<Vec<f32>> {
        Ok(self.borrow(&[tensor], &[], &[])?.f32(tensor)?.into_owned())
    }

    /// The numbers of an i32 tensor.
    pub fn read_i32(&mut self, tensor: Tensor) -> Result<Vec<i32>> {
        Ok(self.borrow(&[tensor], &[], &[])?.i32(tensor)?.to_vec())
    }

    /// Copies `n` rows of a tensor from row `from` to row `to`.
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
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.region_mut(tensor.arena).lines);
        let at = |r: usize| place.offset + r * row;
        bytes.copy_within(at(from)..at(from + n), at(to));
        Ok(())
    }

    /// Fills a tensor's bytes with NaN (and -1): released memory must not look like numbers.
    pub fn poison(&mut self, place: Place) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.activations.lines);
        bytes[place.offset..place.offset + place.bytes].fill(0xff);
    }
}

/// Slices of one operation's inputs and outputs.
pub struct Borrowed<'a> {
    inputs: Vec<(Tensor, &'a [u8])>,
    outputs: Vec<(Tensor, &'a mut [u8])>,
}

impl<'a> Borrowed<'a> {
    fn input(&self, tensor: Tensor) -> Result<&'a [u8]> {
        self.inputs.iter().find(|(t, _)| t.same_value(&tensor)).map(|(_, b)| *b).ok_or_else(|| not_lent(tensor))
    }

    /// An input's numbers, widened to f32.
    pub fn f32(&self, tensor: Tensor) -> Result<Cow<'a, [f32]>> {
        Ok(dtype::widened(tensor.dtype, self.input(tensor)?, Precision::F32))
    }

    /// An input's whole numbers.
    pub fn i32(&self, tensor: Tensor) -> Result<&'a [i32]> {
        bytemuck::try_cast_slice(self.input(tensor)?).map_err(|_| not_lent(tensor))
    }

    /// A weight's stored elements, wherever it is kept.
    pub fn stored<'w>(&self, weight: &'w Weight) -> Result<&'w [u8]>
    where
        'a: 'w,
    {
        match weight.as_trained() {
            Some(trained) => self.input(trained.value),
            None => Ok(weight.bytes()),
        }
    }

    /// All of a weight in f32 as a computation in `precision` sees it. For norms, biases and the like: small.
    pub fn values<'w>(&self, weight: &'w Weight, precision: Precision) -> Result<Cow<'w, [f32]>>
    where
        'a: 'w,
    {
        Ok(dtype::widened(weight.dtype(), self.stored(weight)?, precision))
    }

    /// An output's bytes: each can be taken once.
    pub fn output(&mut self, tensor: Tensor) -> Result<Output<'a>> {
        let at = self.outputs.iter().position(|(t, _)| t.same_value(&tensor)).ok_or_else(|| not_lent(tensor))?;
        let (tensor, bytes) = self.outputs.swap_remove(at);
        Ok(Output { tensor, bytes })
    }
}

/// One output on loan.
pub struct Output<'a> {
    tensor: Tensor,
    bytes: &'a mut [u8],
}

impl<'a> Output<'a> {
    /// Hands out the numbers to be written; every one of them has to be. Rounds to the tensor's type afterwards.
    pub fn fill(self, write: impl FnOnce(&mut [f32])) -> Result<()> {
        match self.tensor.dtype {
            DType::F32 => write(bytemuck::cast_slice_mut(self.bytes)),
            DType::Bf16 => {
                let mut wide = vec![f32::NAN; self.tensor.shape.elements()];
                write(&mut wide);
                narrow(&wide, self.bytes);
            }
            _ => return Err(not_lent(self.tensor)),
        }
        Ok(())
    }

    /// Hands out the numbers as they stand, to be changed in place.
    pub fn update(self, change: impl FnOnce(&mut [f32])) -> Result<()> {
        match self.tensor.dtype {
            DType::F32 => change(bytemuck::cast_slice_mut(self.bytes)),
            DType::Bf16 => {
                let mut wide = dtype::widened(DType::Bf16, self.bytes, Precision::F32).into_owned();
                change(&mut wide);
                narrow(&wide, self.bytes);
            }
            _ => return Err(not_lent(self.tensor)),
        }
        Ok(())
    }

    /// Opens a gradient to be added to: from zero, or from what it holds.
    pub fn open(self, accumulate: Accumulate) -> Result<Opened<'a>> {
        let Output { tensor, bytes } = self;
        let mut opened = match tensor.dtype {
            DType::F32 => Opened::F32(bytemuck::cast_slice_mut(bytes)),
            DType::Bf16 => {
                let wide = match accumulate {
                    Accumulate::Overwrite => vec![0.0; tensor.shape.elements()],
                    Accumulate::Add => dtype::widened(DType::Bf16, bytes, Precision::F32).into_owned(),
                };
                Opened::Bf16(wide, bytes)
            }
            _ => return Err(not_lent(tensor)),
        };
        if accumulate == Accumulate::Overwrite {
            opened.values().fill(0.0);
        }
        Ok(opened)
    }

    /// Replaces some rows, and leaves the others as they are: row `rows[i]` becomes the i-th of `values`.
    pub fn write_rows<'v>(self, rows: &[i32], values: impl Iterator<Item = &'v [f32]>) -> Result<()> {
        let row = self.tensor.shape.width() * self.tensor.dtype.bytes();
        for (at, values) in rows.iter().zip(values) {
            let bytes = &mut self.bytes[*at as usize * row..][..row];
            match self.tensor.dtype {
                DType::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
                DType::Bf16 => narrow(values, bytes),
                _ => return Err(not_lent(self.tensor)),
            }
        }
        Ok(())
    }

    pub fn i32(self) -> Result<&'a mut [i32]> {
        let tensor = self.tensor;
        match tensor.dtype {
            DType::I32 => Ok(bytemuck::cast_slice_mut(self.bytes)),
            _ => Err(not_lent(tensor)),
        }
    }
}

/// Whether a result replaces what is there or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    Overwrite,
    Add,
}

/// A gradient open for adding. [`Opened::close`] stores it in its type.
pub enum Opened<'a> {
    F32(&'a mut [f32]),
    Bf16(Vec<f32>, &'a mut [u8]),
}

impl Opened<'_> {
    pub fn values(&mut self) -> &mut [f32] {
        match self {
            Opened::F32(values) => values,
            Opened::Bf16(values, _) => values,
        }
    }

    pub fn close(self) {
        if let Opened::Bf16(values, bytes) = self {
            narrow(&values, bytes);
        }
    }
}

fn narrow(wide: &[f32], bytes: &mut [u8]) {
    for (o, x) in bytemuck::cast_slice_mut::<u8, bf16>(bytes).iter_mut().zip(wide) {
        *o = bf16::from_f32(*x);
    }
}

fn fits(tensor: &Tensor, n: usize) -> Result<()> {
    if tensor.shape.elements() == n {
        return Ok(());
    }
    Err(misuse("values", format!("{} for {tensor:?}", tensor.shape.elements()), n.to_string()))
}

fn not_lent(tensor: Tensor) -> Error {
    misuse("tensor", "one of the operation's own, of its type".into(), format!("{tensor:?}"))
}

fn misuse(argument: &'static str, wanted: String, got: String) -> Error {
    Error::Contract { op: "memory", argument, wanted, got }
}
