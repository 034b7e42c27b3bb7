//! PyTorch's values of every word and its gradients: `tests/golden/ops.safetensors`, whose names and formulas head
//! `tools/peer/ops.py`.

use safetensors::{Dtype, SafeTensors};

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn ops() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ops.safetensors");
        Golden(std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    /// Linears with LoRA behind a dropout whose mask is given: `tools/peer/dropout.py`.
    pub fn dropout() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/dropout.safetensors");
        Golden(std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }

    /// One operation's case, such as `linear.all`.
    pub fn case<'a>(&'a self, name: &'a str) -> Case<'a> {
        Case { tensors: SafeTensors::deserialize(&self.0).expect("a safetensors file"), name }
    }
}

pub struct Case<'a> {
    tensors: SafeTensors<'a>,
    name: &'a str,
}

impl Case<'_> {
    fn read<T>(&self, tensor: &str, convert: impl Fn(Dtype, &[u8]) -> Option<T>) -> Vec<T> {
        let name = format!("{}.{tensor}", self.name);
        let view = self.tensors.tensor(&name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let size = view.data().len() / view.shape().iter().product::<usize>();
        let element =
            |bytes: &[u8]| convert(view.dtype(), bytes).unwrap_or_else(|| panic!("{name}: {:?}", view.dtype()));
        view.data().chunks_exact(size).map(element).collect()
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.tensors.tensor(&format!("{}.{tensor}", self.name)).is_ok()
    }

    pub fn shape(&self, tensor: &str) -> Vec<usize> {
        self.tensors.tensor(&format!("{}.{tensor}", self.name)).expect("a tensor of the case").shape().to_vec()
    }

    pub fn f64(&self, tensor: &str) -> Vec<f64> {
        self.read(tensor, |dtype, bytes| match dtype {
            Dtype::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?) as f64),
            Dtype::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            Dtype::BF16 => Some(half::bf16::from_le_bytes(bytes.try_into().ok()?).to_f64()),
            _ => None,
        })
    }

    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        self.f64(tensor).iter().map(|v| *v as f32).collect()
    }

    pub fn i32(&self, tensor: &str) -> Vec<i32> {
        self.read(tensor, |dtype, bytes| match dtype {
            Dtype::I64 => i32::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok(),
            _ => None,
        })
    }

    /// A tensor of one number, of either kind.
    pub fn number(&self, tensor: &str) -> f64 {
        self.read(tensor, |dtype, bytes| match dtype {
            Dtype::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            Dtype::I64 => Some(i64::from_le_bytes(bytes.try_into().ok()?) as f64),
            _ => None,
        })[0]
    }
}
