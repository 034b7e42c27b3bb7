//! What the host's words compute with: the bytes of one operation's inputs and outputs, lent out.

use super::memory::misuse;
use crate::base::{DType, Error, Precision, Result, dtype};
use crate::tensor::{Tensor, Weight};
use std::borrow::Cow;

/// Slices of one operation's inputs and outputs.
pub struct Borrowed<'a> {
    pub(super) inputs: Vec<(Tensor, &'a [u8])>,
    pub(super) outputs: Vec<(Tensor, &'a mut [u8])>,
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
                dtype::narrow_bf16(&wide, self.bytes);
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
                dtype::narrow_bf16(&wide, self.bytes);
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
                DType::Bf16 => dtype::narrow_bf16(values, bytes),
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
            dtype::narrow_bf16(&values, bytes);
        }
    }
}

fn not_lent(tensor: Tensor) -> Error {
    misuse("tensor", "one of the operation's own, of its type".into(), format!("{tensor:?}"))
}
