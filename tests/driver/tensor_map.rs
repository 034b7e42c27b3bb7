//! What cuTensorMapEncodeTiled asks of its arguments, as its documentation has it, and the emulator's map.

use crate::device::Driver;
use crate::{Done, refused};
use cudarc::driver::sys::CUresult;
use vlm::device::Launcher;
use vlm::device::launcher::{MapType, Swizzle, TensorMap, TensorMapShape};

/// Bytes of an element.
fn width(dtype: MapType) -> u64 {
    match dtype {
        MapType::F32 => 4,
        MapType::Bf16 => 2,
    }
}

/// What is wrong with a shape.
fn wrong(shape: &TensorMapShape) -> Option<String> {
    let bytes = width(shape.dtype);
    let inner = shape.box_sizes.first().map_or(0, |n| u64::from(*n) * bytes);
    let span = match shape.swizzle {
        Swizzle::None => u64::MAX,
        Swizzle::Bytes32 => 32,
        Swizzle::Bytes64 => 64,
        Swizzle::Bytes128 => 128,
    };
    // each stride holds the dimensions below it
    let mut below = shape.sizes.first().map_or(0, |n| n * bytes);
    let mut overlap = false;
    for (stride, size) in shape.strides_bytes.iter().zip(&shape.sizes[1..]) {
        overlap |= *stride < below;
        below = stride * size;
    }
    match () {
        () if !shape.address.is_multiple_of(16) => Some(format!("an address of {:#x}", shape.address)),
        () if shape.sizes.iter().any(|n| *n == 0 || *n > 1 << 32) => Some(format!("sizes of {:?}", shape.sizes)),
        () if shape.strides_bytes.iter().any(|n| !n.is_multiple_of(16) || *n >= 1 << 40) => {
            Some(format!("strides of {:?} bytes", shape.strides_bytes))
        }
        () if overlap => Some(format!("sizes {:?} within strides of {:?}", shape.sizes, shape.strides_bytes)),
        () if shape.box_sizes.iter().any(|n| !(1..=256).contains(n)) => Some(format!("boxes of {:?}", shape.box_sizes)),
        () if !inner.is_multiple_of(16) => Some(format!("a box of {inner} bytes")),
        () if inner > span => Some(format!("a box of {inner} bytes, swizzled by {span}")),
        () => None,
    }
}

impl Driver {
    /// Needs no context, as the driver needs none.
    pub fn encode(&self, shape: &TensorMapShape) -> Done<TensorMap> {
        if let Some(why) = wrong(shape) {
            return refused(CUresult::CUDA_ERROR_INVALID_VALUE, format!("a tensor map with {why}"));
        }
        match self.emulator()?.tensor_map(shape) {
            Ok(map) => Ok(map),
            Err(e) => refused(CUresult::CUDA_ERROR_INVALID_VALUE, e.to_string()),
        }
    }
}
