//! Numbers with a shape, outside any device: what `vlm dump` writes and references hold.

use super::safetensors::{self, SafetensorsFile, TensorSpec};
use crate::base::{DType, Error, Precision, Result, dtype};
use std::path::Path;

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

    /// Reads one tensor of a file: floating types as f32, i64 and i32 as i64. Errors: no such tensor, another type.
    pub fn read(file: &SafetensorsFile, name: &str) -> Result<HostTensor> {
        let error = |reason: String| Error::tensor(&file.path, name, reason);
        let (Some(entry), Some(bytes)) = (file.entry(name), file.bytes(name)) else {
            return Err(error("the file has none of this name".into()));
        };
        let shape = entry.shape.clone();
        Ok(match entry.dtype {
            DType::F64 | DType::F32 | DType::Bf16 | DType::F16 => {
                HostTensor::f32(shape, dtype::widened(entry.dtype, bytes, Precision::F32).into_owned())
            }
            DType::I64 => {
                HostTensor::i64(shape, bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
            }
            DType::I32 => {
                HostTensor::i64(shape, bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as i64).collect())
            }
            other => return Err(error(format!("is of type {other}; wanted a floating type, i64 or i32"))),
        })
    }
}

/// The key of a file's metadata that names the command which wrote it.
const WRITER: &str = "written_by";

/// Whether `writer` wrote this file. What is no safetensors file, or not there, nobody here wrote.
pub fn is_written_by(path: &Path, writer: &str) -> bool {
    SafetensorsFile::open(path).is_ok_and(|file| file.metadata.get(WRITER).is_some_and(|w| w == writer))
}

/// Writes named arrays to one safetensors file, at once or not at all; its metadata names the `writer`.
pub fn write(path: &Path, writer: &str, tensors: &[(String, HostTensor)]) -> Result<()> {
    let spec = |(name, tensor): &(String, HostTensor)| TensorSpec {
        name: name.clone(),
        dtype: match tensor.data {
            HostData::F32(_) => DType::F32,
            HostData::I64(_) => DType::I64,
        },
        shape: tensor.shape.clone(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    safetensors::write(path, &specs, &[(WRITER, writer)], |spec, out| {
        let data = tensors.iter().find(|(name, _)| *name == spec.name).map(|(_, t)| &t.data);
        match data {
            Some(HostData::F32(values)) => out.write(bytemuck::cast_slice(values)),
            Some(HostData::I64(values)) => out.write(bytemuck::cast_slice(values)),
            None => Ok(()),
        }
    })
}
