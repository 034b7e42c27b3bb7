//! Products by cuBLASLt, on the stream of the kernels. The library is loaded here alone.

use super::numbers::Numbers;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::ffi::c_void;
use std::ptr::from_ref;
use std::sync::Arc;
use vlm::base::{Error, Result};
use vlm::device::Launcher;
use vlm::device::cuda::Cuda;
use vlm::device::launcher::Allocation;

/// Bytes that an algorithm may work in: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Which product of a linear layer with x [m, k] and a weight [n, k].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// y [m, n] = x W^T, bf16.
    Forward,
    /// dx [m, k] = dy W, bf16.
    Dx,
    /// dW [n, k] += dy^T x, f32.
    Dw,
}

#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub form: Form,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Operands as the library has them, columns contiguous: D [rows, columns] = op(A) op(B), summed over `depth`.
pub struct Call {
    pub transposed: [bool; 2],
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

impl Product {
    /// Of A, B and D.
    pub fn elements(&self) -> [usize; 3] {
        let (x, w, y) = (self.m * self.k, self.n * self.k, self.m * self.n);
        match self.form {
            Form::Forward => [w, x, y],
            Form::Dx => [w, y, x],
            Form::Dw => [x, y, w],
        }
    }

    fn wide(&self) -> bool {
        self.form == Form::Dw
    }

    fn result_bytes(&self) -> usize {
        self.elements()[2] * if self.wide() { 4 } else { 2 }
    }

    pub fn bytes(&self) -> u64 {
        let [a, b, _] = self.elements();
        (2 * (a + b) + self.result_bytes()) as u64
    }

    pub fn call(&self) -> Call {
        let (m, n, k) = (self.m, self.n, self.k);
        match self.form {
            Form::Forward => Call { transposed: [true, false], rows: n, columns: m, depth: k },
            Form::Dx => Call { transposed: [false, false], rows: k, columns: m, depth: n },
            Form::Dw => Call { transposed: [false, true], rows: k, columns: n, depth: m },
        }
    }
}

pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    cuda: Arc<Cuda>,
}

fn failed(e: CublasError) -> Error {
    Error::Unsupported(format!("cuBLASLt: {e:?}"))
}

impl CublasLt {
    /// On the stream of `cuda`, or why not.
    pub fn open(cuda: &Arc<Cuda>) -> Result<CublasLt, String> {
        // SAFETY: only asks the dynamic linker whether a library of that name loads.
        if !unsafe { sys::is_culib_present() } {
            return Err("the library is absent".into());
        }
        let handle = result::create_handle().map_err(|e| format!("{e:?}"))?;
        Ok(CublasLt { handle, cuda: cuda.clone() })
    }

    /// The product with `copies` copies of its operands.
    pub fn prepare(
        &self,
        launcher: &Arc<dyn Launcher>,
        numbers: &Numbers,
        product: &Product,
        copies: usize,
    ) -> Result<Prepared<'_>> {
        let (call, [a, b, _]) = (product.call(), product.elements());
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        let stored = if product.wide() { sys::cudaDataType::CUDA_R_32F } else { bf16 };
        let layout = |dtype, rows: usize, columns: usize| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64).map_err(failed)
        };
        let operand = |transposed: bool, outer: usize, inner: usize| match transposed {
            true => layout(bf16, inner, outer),
            false => layout(bf16, outer, inner),
        };
        let sum = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(sum, sys::cudaDataType::CUDA_R_32F).map_err(failed)?;
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        for (which, transposed) in
            [CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB].into_iter().zip(call.transposed)
        {
            let value = i32::from(transposed);
            // SAFETY: the description was just made; the attribute is 32 bits that are read before the call returns.
            unsafe { result::set_matmul_desc_attribute(description, which, from_ref(&value).cast(), 4) }
                .map_err(failed)?;
        }
        let layouts = [
            operand(call.transposed[0], call.rows, call.depth)?,
            operand(!call.transposed[1], call.columns, call.depth)?,
            layout(stored, call.rows, call.columns)?,
        ];
        let preference = result::create_matmul_pref().map_err(failed)?;
        let room = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: all descriptors were just made; the attribute is 64 bits that are read before the call returns.
        let algorithm = unsafe {
            result::set_matmul_pref_attribute(preference, room, from_ref(&WORKSPACE).cast(), 8).map_err(failed)?;
            let [a, b, d] = layouts;
            let found = result::get_matmul_algo_heuristic(self.handle, description, a, b, d, d, preference);
            result::destroy_matmul_pref(preference).map_err(failed)?;
            found.map_err(failed)?.algo
        };
        let copy = |i: usize| {
            let result = Allocation::new(launcher, product.result_bytes())?;
            result.fill(0, product.result_bytes(), 0)?;
            Ok([numbers.filled(2 * i, a)?, numbers.filled(2 * i + 1, b)?, result])
        };
        let copies = (0..copies).map(copy).collect::<Result<_>>()?;
        let workspace = Allocation::new(launcher, WORKSPACE)?;
        Ok(Prepared { owner: self, description, layouts, algorithm, copies, workspace, add: product.wide() })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made in `open`; every `Prepared` borrows this and is gone.
        _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product that is ready to run.
pub struct Prepared<'a> {
    owner: &'a CublasLt,
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    copies: Vec<[Allocation; 3]>,
    workspace: Allocation,
    /// To what is there, instead of overwriting it.
    add: bool,
}

impl Prepared<'_> {
    /// Gives the device the product of copy `i`.
    pub fn run(&self, i: usize) -> Result<()> {
        let [a, b, d] = self.copies[i].each_ref().map(|memory| memory.address() as *mut c_void);
        let [of_a, of_b, of_d] = self.layouts;
        let (alpha, beta) = (1f32, f32::from(u8::from(self.add)));
        // SAFETY: the descriptors live as long as this; the layouts are those of the allocations.
        unsafe {
            result::matmul(
                self.owner.handle,
                self.description,
                from_ref(&alpha).cast(),
                from_ref(&beta).cast(),
                a,
                of_a,
                b,
                of_b,
                d,
                of_d,
                d,
                of_d,
                &self.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE,
                self.owner.cuda.stream().cu_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `prepare`; freeing the allocations waits for what reads them.
        unsafe {
            self.layouts.into_iter().for_each(|layout| _ = result::destroy_matrix_layout(layout));
            _ = result::destroy_matmul_desc(self.description);
        }
    }
}
