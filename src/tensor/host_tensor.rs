//! Numbers with a shape, outside any device: what `dump` writes and references hold.

/// The elements of a [`HostTensor`].
#[derive(Debug, Clone, PartialEq)]
pub enum HostData {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

/// A named array's content.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: HostData,
}

impl HostTensor {
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> HostTensor {
        HostTensor { shape: shape.into(), data: HostData::F32(data) }
    }

    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> HostTensor {
        HostTensor { shape: shape.into(), data: HostData::I64(data) }
    }
}
