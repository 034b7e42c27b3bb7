//! Normal numbers that operands begin with: made once on the host, and copied from there on by the device, which has the
//! bandwidth.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use vlm::base::{DType, Result, dtype};
use vlm::device::launcher::Allocation;
use vlm::device::{Device, Launcher};
use vlm::tensor::Tensor;

/// So many different ones there are; who needs more has them again. No power of two, so that no row of a matrix repeats
/// another, and a multiple of 8, so that copies begin at 16 bytes.
const COUNT: usize = (1 << 22) + 8;

/// Numbers from one operand's first to the next one's.
const APART: usize = 77_776;

static NORMAL: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut numbers = vec![0.0; COUNT];
    vlm::base::rng::Stream::new(0, &[]).fill_normal(0, &mut numbers);
    numbers
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Deviation 1, as activations have about.
    Unit,
    /// Deviation 1/32, as weights have about.
    Small,
    /// Squares of the latter, for what must not be negative.
    Square,
}

const KINDS: [Kind; 3] = [Kind::Unit, Kind::Small, Kind::Square];

fn bf16(kind: Kind) -> Vec<u8> {
    let mut bytes = vec![0; 2 * COUNT];
    dtype::narrow_bf16(&f32(kind), &mut bytes);
    bytes
}

fn f32(kind: Kind) -> Vec<f32> {
    let of = |x: f32| match kind {
        Kind::Unit => x,
        Kind::Small => x / 32.0,
        Kind::Square => x / 32.0 * (x / 32.0),
    };
    NORMAL.iter().map(|x| of(*x)).collect()
}

/// How `bytes` bytes are copied from a pool of `pool` bytes: where in it a piece begins, where it goes to, and its length.
fn pieces(pool: usize, from: usize, bytes: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (at, to) = ((from + done) % pool, done);
        let n = (pool - at).min(bytes - done);
        done += n;
        (n > 0).then_some((at, to, n))
    })
}

/// The numbers on a device, a pool for each kind in bf16 and in f32.
pub struct Numbers {
    launcher: Arc<dyn Launcher>,
    pools: Vec<[Allocation; 2]>,
}

impl Numbers {
    pub fn open(launcher: &Arc<dyn Launcher>) -> Result<Numbers> {
        let pool = |bytes: &[u8]| {
            let memory = Allocation::new(launcher, bytes.len())?;
            memory.write(0, bytes)?;
            Ok(memory)
        };
        let both = |kind: &Kind| Ok([pool(&bf16(*kind))?, pool(bytemuck::cast_slice(&f32(*kind)))?]);
        Ok(Numbers { launcher: launcher.clone(), pools: KINDS.iter().map(both).collect::<Result<_>>()? })
    }

    fn pool(&self, kind: Kind, dtype: DType) -> &Allocation {
        let [narrow, wide] = &self.pools[kind as usize];
        if dtype == DType::Bf16 { narrow } else { wide }
    }

    /// New memory with `elements` bf16 numbers of [`Kind::Small`], others for every `which`.
    pub fn filled(&self, which: usize, elements: usize) -> Result<Allocation> {
        let (pool, mut memory) = (self.pool(Kind::Small, DType::Bf16), Allocation::new(&self.launcher, 2 * elements)?);
        for (from, to, n) in pieces(pool.bytes(), 2 * APART * which, 2 * elements) {
            pool.copy_to(from, &mut memory, to, n)?;
        }
        Ok(memory)
    }

    /// Numbers for a tensor of bf16 or f32 that lies on this device, others for every `which`.
    pub fn fill(&self, device: &mut Device, tensor: Tensor, kind: Kind, which: usize) -> Result<()> {
        let Device::Launch(gpu) = device else { return Ok(()) };
        let (pool, address) = (self.pool(kind, tensor.dtype), gpu.addresses(&[], &[], &[tensor])?.of(&tensor)?);
        for (from, to, n) in pieces(pool.bytes(), tensor.dtype.bytes() * APART * which, tensor.bytes()) {
            // SAFETY: the piece lies in the pool's allocation, and behind the tensor's address there are as many bytes of
            // its arena, which is another.
            unsafe { self.launcher.copy(pool.address() + from as u64, address + to as u64, n)? }
        }
        Ok(())
    }
}

/// The bytes of all frozen weights on the host: each begins a little further on, so that a device holds it beside the others.
static WEIGHTS: Mutex<Option<Arc<Vec<u8>>>> = Mutex::new(None);

/// At least `bytes` of them, in bf16 of [`Kind::Small`].
pub fn weight_bytes(bytes: usize) -> Arc<Vec<u8>> {
    /// For the weights that begin further on: else all would be made again for each of them.
    const MORE: usize = 1 << 20;
    let mut held = WEIGHTS.lock().unwrap_or_else(PoisonError::into_inner);
    match &*held {
        Some(all) if all.len() >= bytes => all.clone(),
        _ => {
            let (pool, mut all) = (bf16(Kind::Small), Vec::with_capacity(bytes + MORE));
            pieces(pool.len(), 0, bytes + MORE).for_each(|(from, _, n)| all.extend_from_slice(&pool[from..from + n]));
            held.insert(Arc::new(all)).clone()
        }
    }
}
