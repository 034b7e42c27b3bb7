//! Times the operations on a GPU, a row a word and shape: median seconds, FLOP or bytes a second by the operation's own
//! cost, the share of what the card reaches in the same run, and beside each product cuBLASLt.
//!
//! `cargo bench --bench ops [-- FILTER] [--device emulated]`
//!
//! * The roof of bytes is a copy on the device, the roof of FLOP a bf16 product of 8192 x 8192 x 8192 by cuBLASLt on
//!   normal numbers. A row's share is the longer of the two times that its cost takes at the roofs, beside its own.
//! * Numbers are normal, and every row has copies of its tensors and weights that together are far larger than an L2
//!   cache and are used in turn, but no more than 64. The host runs ahead: while it gives the calls to the device, the
//!   device copies.
//! * cuBLASLt takes the first algorithm that it proposes itself, with 32 MiB to work in. Its library is loaded when the
//!   bench runs, as libcublasLt.so or .so.12 (a folder with a link of that name in LD_LIBRARY_PATH will do, as
//!   tools/gpu-check makes one); where it is absent, rows have neither it nor a roof of FLOP.
//! * A row that fails is named, and the others are timed.
//! * Without a GPU the bench says so and is done. `--device emulated` runs tiny shapes in the emulator, for the code's
//!   sake.

mod clock;
pub mod cublaslt;
mod joined;
mod numbers;
mod room;
pub mod rows;
mod shapes;
mod table;

use clock::Clock;
use cublaslt::{CublasLt, Form, Product};
use numbers::Numbers;
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
        let clock = Clock::open(Emulated::open(emulated_capability()?)?, 1 << 12, 1, 0.0)?;
        let bench = Bench { numbers: Numbers::open(clock.launcher())?, clock, peer: None };
        return bench.run(rows::tiny(), options.filter.as_deref(), Table::open(&csv)?);
    }
    if let Some(problem) = probe().cuda_problem(&built()) {
        println!("skipped: no GPU whose operations could be timed: {problem}");
        return Ok(());
    }
    let cuda = Cuda::open(0)?;
    let peer = CublasLt::open(&cuda).inspect_err(|why| println!("skipped: cuBLASLt: {why}")).ok();
    let clock = Clock::open(cuda, 1 << 30, 11, 2e-3)?;
    let bench = Bench { numbers: Numbers::open(clock.launcher())?, clock, peer };
    bench.run(rows::all(), options.filter.as_deref(), Table::open(&csv)?)
}

/// A row's operation in as many copies as are used in turn, two and at most `most`, and what they read and write.
pub fn copies(row: &Row, most: u64) -> (Room, Vec<Box<dyn Op>>) {
    let mut room = Room::new();
    let mut ops = vec![(row.op)(&mut room)];
    // a cost may count less than a copy takes: of a table or a pool the rows that are read or written
    let each = ops[0].cost().bytes.max(room.bytes()).max(1);
    for _ in 1..ROTATED.div_ceil(each).clamp(2, most) {
        room.next_copy();
        ops.push((row.op)(&mut room));
    }
    (room, ops)
}

struct Bench {
    clock: Clock,
    numbers: Numbers,
    peer: Option<CublasLt>,
}

impl Bench {
    fn run(&self, rows: Vec<Row>, filter: Option<&str>, mut table: Table) -> Result<()> {
        let rows: Vec<Row> =
            rows.into_iter().filter(|row| filter.is_none_or(|text| row.name().contains(text))).collect();
        if rows.is_empty() {
            let text = filter.unwrap_or_default();
            return Err(Error::Unsupported(format!(
                "no row holds {text:?}: rows are named as in \"8b article norm forward\""
            )));
        }
        let flops = self.peer(&Product { form: Form::Forward, m: 8192, n: 8192, k: 8192 });
        let roofs =
            Roofs { bytes: self.clock.bytes_per_second, flops: flops.map(|seconds| 2.0 * 8192f64.powi(3) / seconds) };
        let gpu = self.clock.launcher().facts().name.clone();
        table.begin(&gpu, &roofs);
        let mut failed = 0;
        for row in &rows {
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
        let (room, ops) = copies(row, self.clock.most(MOST_COPIES));
        let cost = ops[0].cost();
        let mut device = Device::of(self.clock.launcher().clone())?;
        room.begin(&mut device, &self.numbers)?;
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
        let prepared = peer.prepare(&launcher, &self.numbers, product, copies);
        let timed = prepared.and_then(|p| self.clock.time(copies, &mut |i| p.run(i)));
        timed.inspect_err(|why| println!("skipped: {why}: {product:?}")).ok()
    }
}
