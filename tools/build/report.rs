//! What nvcc and ptxas say of each kernel: warnings, registers, memory, and what must not be.

use super::Result;
use super::compile::Made;
use super::jobs::GpuJob;
use std::fmt::Write as _;
use std::fs;

struct Resources<'a> {
    kernel: &'a str,
    architecture: &'a str,
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

/// Lines that are neither ptxas's report nor nvcc's chatter.
pub fn nvcc_warnings(said: &str) -> String {
    let known = |line: &str| {
        line.trim().is_empty()
            || line.starts_with("ptxas info")
            || line.contains("bytes stack frame")
            || line.contains("(C75")
    };
    said.lines().filter(|line| !known(line)).map(|line| format!("{line}\n")).collect()
}

fn number_before(line: &str, unit: &str) -> u32 {
    let end = line.find(unit).unwrap_or(0);
    line[..end].rsplit([' ', ',']).find(|w| !w.is_empty()).and_then(|w| w.parse().ok()).unwrap_or(0)
}

/// A table of every kernel's registers and memory; an error where one spills or ptxas serialises its wgmma.
pub fn report(jobs: &[GpuJob], made: &[Made]) -> Result<String> {
    let listed = fs::read_to_string("cuda/exceptions.txt").unwrap_or_default();
    let excused = |kernel: &str, architecture: &str, what: &str| {
        listed.lines().filter(|l| !l.starts_with('#')).any(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            words.len() > 3 && words[..3] == [kernel, architecture, what]
        })
    };
    let mut table = format!(
        "{:44} {:7} {:>9} {:>12} {:>12} {:>12}\n",
        "kernel", "target", "registers", "shared bytes", "stack bytes", "spill bytes"
    );
    let mut wrong = String::new();
    for (job, made) in jobs.iter().zip(made).filter(|(j, _)| j.kind == "cubin") {
        let mut rows: Vec<Resources> = Vec::new();
        for line in made.said.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let kernel = rest.split('\'').next().unwrap_or_default();
                rows.push(Resources {
                    kernel,
                    architecture: job.architecture,
                    registers: 0,
                    shared_bytes: 0,
                    stack_bytes: 0,
                    spill_bytes: 0,
                });
            }
            let Some(row) = rows.last_mut() else { continue };
            if line.contains("bytes stack frame") {
                row.stack_bytes = number_before(line, " bytes stack frame");
                row.spill_bytes =
                    number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            }
            if line.contains("Used ") {
                row.registers = number_before(line, " registers");
                row.shared_bytes = number_before(line, " bytes smem");
            }
        }
        for r in &rows {
            let _ = writeln!(
                table,
                "{:44} {:7} {:9} {:12} {:12} {:12}",
                r.kernel, r.architecture, r.registers, r.shared_bytes, r.stack_bytes, r.spill_bytes
            );
            if r.spill_bytes > 0 && !excused(r.kernel, r.architecture, "spills") {
                let _ = writeln!(
                    wrong,
                    "{}: {} spills {} bytes of registers on {}",
                    job.job.source.display(),
                    r.kernel,
                    r.spill_bytes,
                    r.architecture
                );
            }
        }
        for line in made.said.lines().filter(|l| l.contains("(C75")) {
            let named = |kernel: &str| line.contains(&format!("'{kernel}'"));
            if !rows.iter().any(|r| named(r.kernel) && excused(r.kernel, r.architecture, "C75xx")) {
                let _ = writeln!(wrong, "{}: {line}", job.job.source.display());
            }
        }
    }
    if wrong.is_empty() {
        return Ok(table);
    }
    Err(format!("{wrong}Mend the kernel, or list it in cuda/exceptions.txt as: KERNEL TARGET spills|C75xx REASON"))
}
