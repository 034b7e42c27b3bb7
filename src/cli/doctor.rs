//! `vlm doctor`: what this machine has, and what is missing.

use crate::base::{Result, counted};
use crate::device::available::{available_memory, machine_memory};
use crate::device::emulated::builds as emulators;
use crate::device::probe::{built, probe};
use std::fmt::Write;

/// Say what was found for computing: driver, GPU, kernels, compiler, memory, CPU
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm doctor")]
pub struct Doctor {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(&self) -> Result<()> {
        let (found, built) = (probe(), built());
        let features = cpu_features();
        let (total, available) = (machine_memory(), available_memory());
        let nvcc = on_path("nvcc");
        if self.json {
            let gpus: Vec<_> = found
                .gpus
                .iter()
                .map(|g| {
                    let (major, minor) = g.capability;
                    serde_json::json!({"name": g.name, "memory_bytes": g.memory_bytes, "capability": [major, minor]})
                })
                .collect();
            return super::print_json(&serde_json::json!({
                "cpu": {"threads": rayon::current_num_threads(), "features": features},
                "memory": {"total_bytes": total, "available_bytes": available},
                "driver_cuda_version": found.driver_cuda_version,
                "driver_error": found.driver_error,
                "gpus": gpus,
                "cuda_problem": found.cuda_problem(&built),
                "kernels": built.describe(),
                "emulator": emulators(),
                "nvcc": nvcc,
            }));
        }
        let gib =
            |b: Option<usize>| b.map_or("unknown".into(), |b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64));
        let mut text = String::new();
        let mut line = |name: &str, said: String| _ = writeln!(text, "{name:<12}{said}");
        line("cpu", format!("{}, {}", counted(rayon::current_num_threads(), "thread", "threads"), features.join(" ")));
        line("memory", format!("{}, {} available", gib(total), gib(available)));
        line(
            "driver",
            match (&found.driver_error, found.driver_cuda_version) {
                (Some(e), _) => format!("the CUDA driver is installed but fails: {e}"),
                (None, Some(v)) => format!("CUDA {}.{}", v / 1000, v % 1000 / 10),
                (None, None) => "none (libcuda.so not found): install NVIDIA's driver to use a GPU".into(),
            },
        );
        if found.gpus.is_empty() {
            line("gpu", "none".into());
        }
        for gpu in &found.gpus {
            let (major, minor) = gpu.capability;
            line("gpu", format!("{}, {}, sm_{major}{minor}", gpu.name, gib(Some(gpu.memory_bytes))));
        }
        let names = built.describe();
        let version = built.cuda_version.map_or(String::new(), |v| format!(" (CUDA {v})"));
        line("kernels", if names.is_empty() { "none in this build".into() } else { names.join(", ") + &version });
        let builds = emulators();
        let none = "none in this build: build it where g++ is".to_string();
        line("emulator", if builds.is_empty() { none } else { builds.join(", ") });
        line("cuda", found.cuda_problem(&built).unwrap_or_else(|| "works: --device auto takes it".into()));
        line("nvcc", nvcc.map_or("not on the PATH".into(), |p| p.display().to_string()));
        super::print(&text)
    }
}

fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let mut note = |name, has: bool| {
            if has {
                found.push(name);
            }
        };
        note("avx2", std::arch::is_x86_feature_detected!("avx2"));
        note("fma", std::arch::is_x86_feature_detected!("fma"));
        note("avx512f", std::arch::is_x86_feature_detected!("avx512f"));
        note("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16"));
    }
    found
}

fn on_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}
