//! Times the operations on a GPU, a row a word and shape: median seconds, FLOP or bytes a second by the operation's own
//! cost, the share of what the card reaches in the same run, and beside each product cuBLASLt.
//!
//! `cargo bench --bench ops [-- FILTER] [--device emulated]`
//!
//! * The roof of bytes is a copy on the device, the roof of FLOP a bf16 product of 8192 x 8192 x 8192 by cuBLASLt on
//!   normal numbers. A row's share is the longer of the two times that its cost takes at the roofs, beside its own.
//! * Numbers are normal, and every row has copies of its tensors and weights that together are far larger than an L2
//!   cache and are used in turn. The host runs ahead: while it gives the calls to the device, the device copies.
//! * cuBLASLt takes the first algorithm that it proposes itself, with 32 MiB to work in. Its library is loaded when the
//!   bench runs, as libcublasLt.so or .so.12 (a folder with a link of that name in LD_LIBRARY_PATH will do, as
//!   tools/gpu-check makes one); where it is absent, rows have neither it nor a roof of FLOP.
//! * A row that fails is named, and the others are timed.
//! * Without a GPU the bench says so and is done. `--device emulated` runs tiny shapes in the emulator, for the code's
//!   sake.

mod clock;
pub mod cublaslt;
mod joined;
mod room;
mod rows;
mod shapes;
mod table;

use clock::Clock;
use cublaslt::{CublasLt, Form, Product};
use room::Room;
use rows::Row;
use std::path::PathBuf;
use std::sync::Arc;
use table::{Line, Roofs, Table};
use vlm::base::{Error, Result, date::today};
use vlm::device::accelerator::scratch_bytes;
use vlm::device::cuda::Cuda;
use vlm::device::emulated::Emulated;
use vlm::device::probe::{built, probe};
use vlm::device::{Device, Launcher, emulated_capability};
use vlm::ops::Op;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Where {
    Cuda,
    Emulated,
}

#[derive(Debug, clap::Parser)]
pub struct Options {
    /// Rows whose line holds this text alone
    pub filter: Option<String>,
    #[arg(long, value_enum, default_value = "cuda")]
    pub device: Where,
    /// Where lines are added [default: report/ops-DATE.csv]
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// What cargo bench says to every bench
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Bytes of a row's copies together, and how many there are at the most.
const ROTATED: u64 = 512 << 20;
const MOST_COPIES: u64 = 64;

pub fn run(options: &Options) -> Result<()> {
    let csv = options.csv.clone().unwrap_or_else(|| format!("report/ops-{}.csv", today()).into());
    if options.device == Where::Emulated {
        let bench = Bench { clock: Clock::open(Emulated::open(emulated_capability()?)?, 1 << 12, 1, 0.0)?, peer: None };
        return bench.run(rows::tiny(), options.filter.as_deref(), Table::open(&csv)?);
    }
    if let Some(problem) = probe().cuda_problem(&built()) {
        println!("skipped: no GPU whose operations could be timed: {problem}");
        return Ok(());
    }
    let cuda = Cuda::open(0)?;
    let peer = CublasLt::open(&cuda).inspect_err(|why| println!("skipped: cuBLASLt: {why}")).ok();
    let bench = Bench { clock: Clock::open(cuda, 1 << 30, 11, 2e-3)?, peer };
    bench.run(rows::all(), options.filter.as_deref(), Table::open(&csv)?)
}

struct Bench {
    clock: Clock,
    peer: Option<CublasLt>,
}

impl Bench {
    fn run(&self, rows: Vec<Row>, filter: Option<&str>, mut table: Table) -> Result<()> {
        let flops = self.peer(&Product { form: Form::Forward, m: 8192, n: 8192, k: 8192 });
        let roofs =
            Roofs { bytes: self.clock.bytes_per_second, flops: flops.map(|seconds| 2.0 * 8192f64.powi(3) / seconds) };
        let gpu = self.clock.launcher().facts().name.clone();
        table.begin(&gpu, &roofs);
        let mut failed = 0;
        for row in rows.iter().filter(|row| filter.is_none_or(|text| row.name().contains(text))) {
            match self.row(row) {
                Ok((cost, seconds, kernels)) => {
                    let peer = row.product.as_ref().and_then(|product| self.peer(product));
                    table.add(&Line { gpu: &gpu, row, cost, seconds, peer, kernels }, &roofs)?;
                }
                // others may fit, or have a kernel
                Err(why) => {
                    println!("failed: {}: {why}", row.name());
                    failed += 1;
                    self.clock.launcher().synchronise()?;
                }
            }
        }
        match failed {
            0 => Ok(()),
            1 => Err(Error::Unsupported("1 row failed".into())),
            n => Err(Error::Unsupported(format!("{n} rows failed"))),
        }
    }

    /// Cost and median seconds of a row's operation, and the kernels that it runs.
    fn row(&self, row: &Row) -> Result<(vlm::ops::Cost, f64, Vec<&'static str>)> {
        let mut room = Room::new();
        let first = (row.op)(&mut room);
        let cost = first.cost();
        let copies = ROTATED.div_ceil(cost.bytes.max(1)).clamp(2, self.clock.most(MOST_COPIES));
        let rest = (1..copies).map(|_| (row.op)(&mut room));
        let ops: Vec<Box<dyn Op>> = std::iter::once(first).chain(rest.collect::<Vec<_>>()).collect();
        let mut device = Device::of(self.clock.launcher().clone())?;
        room.begin(&mut device)?;
        ops.iter().try_for_each(|op| op.contract())?;
        let weights: Vec<_> = ops.iter().flat_map(|op| op.weights()).collect();
        let scratch = ops[0].scratch(self.clock.launcher().facts())?;
        device.reserve(0, scratch_bytes(&scratch), &weights)?;
        let seconds = self.clock.time(ops.len(), &mut |i| ops[i].forward(&mut device))?;
        Ok((cost, seconds, device.launches().into_keys().collect()))
    }

    /// Median seconds of cuBLASLt, where there is one and it does the product.
    fn peer(&self, product: &Product) -> Option<f64> {
        let peer = self.peer.as_ref()?;
        let launcher: Arc<dyn Launcher> = self.clock.launcher().clone();
        let copies = ROTATED.div_ceil(product.bytes()).clamp(2, MOST_COPIES) as usize;
        let timed = peer.prepare(&launcher, product, copies).and_then(|p| self.clock.time(copies, &mut |i| p.run(i)));
        timed.inspect_err(|why| println!("skipped: {why}: {product:?}")).ok()
    }
}
