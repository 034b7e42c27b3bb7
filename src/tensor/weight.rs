//! A weight is not a tensor: it has a storage format and a place, and is read as the products need it.

use super::Tensor;
use crate::base::{DType, Result, Shape};
use std::ops::Range;
use std::sync::Arc;

/// A parameter. On the host its bytes stay where they are (a mapped file, or memory for an adapter) in the format of
/// the checkpoint; whoever multiplies with it widens a panel at a time. A trained one lives in the device's memory.
#[derive(Clone)]
pub struct Weight {
    name: Arc<str>,
    dtype: DType,
    shape: Shape,
    location: Location,
}

#[derive(Clone)]
enum Location {
    /// A dry run has only shapes.
    Nowhere,
    Bytes(Arc<dyn AsRef<[u8]> + Send + Sync>, Range<usize>),
    Trained(Trained),
}

/// Where a trained weight's f32 numbers lie, and where its gradient is added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trained {
    pub value: Tensor,
    pub gradient: Tensor,
}

impl Weight {
    /// A weight to plan with: it has no bytes, and an operation that reads them fails.
    pub fn shape_only(name: &str, dtype: DType, shape: impl Into<Shape>) -> Weight {
        Weight { name: name.into(), dtype, shape: shape.into(), location: Location::Nowhere }
    }

    /// A weight whose numbers an optimiser changes.
    pub fn trained(name: &str, trained: Trained) -> Weight {
        let Tensor { dtype, shape, .. } = trained.value;
        Weight { name: name.into(), dtype, shape, location: Location::Trained(trained) }
    }

    /// Where the device holds it, where it is trained.
    pub fn as_trained(&self) -> Option<Trained> {
        match self.location {
            Location::Trained(trained) => Some(trained),
            Location::Nowhere | Location::Bytes(..) => None,
        }
    }

    /// `range` of `bytes` holds exactly the elements of `shape` in a floating `dtype`.
    pub fn new(
        name: &str,
        dtype: DType,
        shape: impl Into<Shape>,
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Result<Weight> {
        let shape = shape.into();
        let wanted = shape.elements() * dtype.bytes();
        let held = (*bytes).as_ref().get(range.clone()).map(<[u8]>::len);
        if held != Some(wanted) || !matches!(dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(crate::base::Error::Contract {
                op: "weight",
                argument: "bytes",
                wanted: format!("{wanted} bytes of f32, bf16 or f16 for {name} {shape}"),
                got: format!("{held:?} bytes of {dtype}"),
            });
        }
        Ok(Weight { name: name.into(), dtype, shape, location: Location::Bytes(bytes, range) })
    }

    /// A weight that holds its own f32 numbers.
    pub fn from_f32(name: &str, shape: impl Into<Shape>, values: &[f32]) -> Result<Weight> {
        let bytes: Vec<u8> = bytemuck::cast_slice(values).to_vec();
        let range = 0..bytes.len();
        Weight::new(name, DType::F32, shape, Arc::new(bytes), range)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The stored elements of a frozen weight; none where it is trained (they are in the device's memory) or in a dry
    /// run.
    pub fn bytes(&self) -> &[u8] {
        match &self.location {
            Location::Bytes(bytes, range) => &(**bytes).as_ref()[range.clone()],
            Location::Nowhere | Location::Trained(_) => &[],
        }
    }

    /// How many bytes it is stored in.
    pub fn stored_bytes(&self) -> usize {
        self.shape.elements() * self.dtype.bytes()
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.name, self.dtype, self.shape)
    }
}
