//! A weight is not a tensor: it has a storage format and a place, and is read as the products need it.

use crate::base::{DType, Precision, Result, Shape, dtype};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A parameter. A dry run has only its shape. On the host its bytes stay where they are (a mapped file, or memory for an adapter) in the format of
/// the checkpoint; whoever multiplies with it widens a panel at a time.
#[derive(Clone)]
pub struct Weight {
    name: Arc<str>,
    dtype: DType,
    shape: Shape,
    /// None in a dry run.
    bytes: Option<(Arc<dyn AsRef<[u8]> + Send + Sync>, Range<usize>)>,
}

impl Weight {
    /// A weight to plan with: it has no bytes, and an operation that reads them fails.
    pub fn shape_only(name: &str, dtype: DType, shape: impl Into<Shape>) -> Weight {
        Weight { name: name.into(), dtype, shape: shape.into(), bytes: None }
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
        Ok(Weight { name: name.into(), dtype, shape, bytes: Some((bytes, range)) })
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

    /// The stored elements; none in a dry run.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref().map_or(&[], |(bytes, range)| &(**bytes).as_ref()[range.clone()])
    }

    /// How many bytes it is stored in.
    pub fn stored_bytes(&self) -> usize {
        self.shape.elements() * self.dtype.bytes()
    }

    /// All elements in f32 as a computation in `precision` sees them. For norms, biases and the like: small.
    pub fn values(&self, precision: Precision) -> Cow<'_, [f32]> {
        dtype::widened(self.dtype, self.bytes(), precision)
    }

    /// The same bytes under another shape (a convolution's kernel as a matrix).
    pub fn reshaped(mut self, shape: impl Into<Shape>) -> Weight {
        let shape = shape.into();
        assert_eq!(shape.elements(), self.shape.elements(), "reshape {} {} to {shape}", self.name, self.shape);
        self.shape = shape;
        self
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.name, self.dtype, self.shape)
    }
}
