//! The lines: for a person on stdout, and in a CSV file.

use super::rows::Row;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use vlm::base::{Error, Result, date::today};
use vlm::ops::Cost;

/// What the card reaches in this run, a second.
pub struct Roofs {
    pub bytes: f64,
    pub flops: Option<f64>,
}

pub struct Line<'a> {
    pub gpu: &'a str,
    pub row: &'a Row,
    pub cost: Cost,
    pub seconds: f64,
    /// Seconds of cuBLASLt.
    pub peer: Option<f64>,
    pub kernels: Vec<&'static str>,
}

impl Line<'_> {
    /// The share of the roof that is nearer, and which it is; None where a roof is not known.
    fn share(&self, roofs: &Roofs) -> Option<(f64, &'static str)> {
        let bytes = self.cost.bytes as f64 / roofs.bytes;
        if self.cost.flops == 0 {
            return Some((bytes / self.seconds, "bytes"));
        }
        let flops = self.cost.flops as f64 / roofs.flops?;
        Some(if flops > bytes { (flops / self.seconds, "flop") } else { (bytes / self.seconds, "bytes") })
    }
}

pub struct Table {
    file: File,
    path: std::path::PathBuf,
}

impl Table {
    /// Lines are added to what the file holds.
    pub fn open(path: &Path) -> Result<Table> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let fresh = !path.exists();
        let file = File::options().create(true).append(true).open(path).map_err(|e| Error::io("write", path, e))?;
        let mut table = Table { file, path: path.to_owned() };
        if fresh {
            table.write(
                "date,gpu,model,step,operation,shape,median_us,tflops,tb_per_s,roof,share_of_roof,cublaslt_us,\
                 times_cublaslt,copy_tb_per_s,cublaslt_8192_tflops,kernels",
            )?;
        }
        Ok(table)
    }

    fn write(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|e| Error::io("write", &self.path, e))
    }

    pub fn begin(&self, gpu: &str, roofs: &Roofs) {
        println!("{gpu}: {:.2} TB/s copied, read and written", roofs.bytes / 1e12);
        if let Some(flops) = roofs.flops {
            println!("{gpu}: {:.0} TFLOP/s in cuBLASLt's bf16 product of 8192 x 8192 x 8192", flops / 1e12);
        }
    }

    pub fn add(&mut self, line: &Line, roofs: &Roofs) -> Result<()> {
        let Line { gpu, row, cost, seconds, peer, kernels } = line;
        let share = line.share(roofs);
        let (tflops, tbs) = (cost.flops as f64 / seconds / 1e12, cost.bytes as f64 / seconds / 1e12);
        let rate = if cost.flops > 0 { format!("{tflops:8.1} TFLOP/s") } else { format!("{tbs:8.3} TB/s   ") };
        let of = share.map_or(String::new(), |(share, roof)| format!("{:3.0} % of {roof}", 100.0 * share));
        let beside = peer.map_or(String::new(), |p| format!("{:6.1} % of cuBLASLt's time", 100.0 * seconds / p));
        println!("{:<58} {:<22} {:10.1} us {rate} {of:<14} {beside}", row.name(), row.shape, seconds * 1e6);
        let optional = |x: Option<f64>, digits: usize| x.map_or(String::new(), |x| format!("{x:.digits$}"));
        let text = format!(
            "{},\"{gpu}\",{},{},{},{},{:.2},{tflops:.2},{tbs:.4},{},{},{},{},{:.4},{},{}",
            today(),
            row.model,
            row.step,
            row.operation,
            row.shape,
            seconds * 1e6,
            share.map_or("", |(_, roof)| roof),
            optional(share.map(|(share, _)| share), 4),
            optional(peer.map(|p| p * 1e6), 2),
            optional(peer.map(|p| seconds / p), 4),
            roofs.bytes / 1e12,
            optional(roofs.flops.map(|f| f / 1e12), 1),
            kernels.join(" "),
        );
        self.write(&text)
    }
}
