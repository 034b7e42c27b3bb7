//! Weights as a checkpoint stores them, and what their elements are worth.

use half::{bf16, f16};
use vlm::base::{DType, Precision};
use vlm::host::linear_tuned::Matrix;

pub struct Stored {
    dtype: DType,
    precision: Precision,
    bytes: Vec<u8>,
    /// Where the elements begin in `bytes`: 1 is aligned to nothing.
    offset: usize,
    columns: usize,
    /// Each element as a computation in `precision` sees it, exactly.
    pub values: Vec<f64>,
}

impl Stored {
    pub fn new(values: &[f32], columns: usize, dtype: DType, precision: Precision, offset: usize) -> Stored {
        let mut bytes = vec![0xff; offset];
        let mut store = |v: f32| -> f32 {
            match dtype {
                DType::Bf16 => {
                    bytes.extend(bf16::from_f32(v).to_le_bytes());
                    bf16::from_f32(v).to_f32()
                }
                DType::F16 => {
                    bytes.extend(f16::from_f32(v).to_le_bytes());
                    f16::from_f32(v).to_f32()
                }
                _ => {
                    bytes.extend(v.to_le_bytes());
                    v
                }
            }
        };
        let seen = |v: f32| if precision == Precision::Bf16 { bf16::from_f32(v).to_f64() } else { v as f64 };
        let values = values.iter().map(|v| seen(store(*v))).collect();
        Stored { dtype, precision, bytes, offset, columns, values }
    }

    pub fn matrix(&self) -> Matrix<'_> {
        Matrix {
            dtype: self.dtype,
            bytes: &self.bytes[self.offset..],
            rows: self.values.len() / self.columns,
            columns: self.columns,
            precision: self.precision,
        }
    }
}
