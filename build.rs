//! Compiles `cuda/*.cu` for GPUs with nvcc and for the emulator with g++, and writes the table of both, compressed, that
//! `src/device/images.rs` includes.
//!
//! * nvcc is `VLM_NVCC`, or `.cache/nvcc` (filled by tools/install-nvcc), or the one on PATH. Each file becomes a cubin and
//!   PTX for sm_80 and a cubin for sm_90a; one named `*_sm90.cu` only the latter. Spilled registers and wgmma that ptxas
//!   serialises (its notes C75xx) are errors, unless `cuda/exceptions.txt` lists them with a reason.
//! * g++ is `CXX` or the one on PATH. Three builds of the emulator's library: plain, asan, race; see cuda/emulator/README.md.
//! * A compiler that is missing leaves its part of the table empty, with one warning; `VLM_REQUIRE_KERNELS=1` makes that,
//!   and every warning of a compiler, an error.
//! * Nothing is compiled twice: results lie in `target/kernels` (or `VLM_KERNEL_CACHE`, which several checkouts may share),
//!   named by a hash of their command and of all files that went in. `kernel_report.txt` in OUT_DIR has the registers and
//!   shared memory of every kernel; `VLM_KERNEL_REPORT=1` prints it.

#[path = "tools/build/compile.rs"]
mod compile;
#[path = "tools/build/jobs.rs"]
mod jobs;
#[path = "tools/build/report.rs"]
mod report;

use compile::{Build, Made, in_use, link};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use jobs::GpuJob;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::{env, fs};

type Result<T, E = String> = std::result::Result<T, E>;

fn main() {
    if let Err(why) = run() {
        eprintln!("{why}");
        exit(1);
    }
}

fn run() -> Result<()> {
    for path in ["build.rs", "tools/build", "cuda", ".cache/nvcc/bin/nvcc"] {
        // cargo takes a path that is not there for one that has changed
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for name in ["VLM_NVCC", "CXX", "VLM_REQUIRE_KERNELS", "VLM_KERNEL_REPORT", "VLM_KERNEL_CACHE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let ours = || out.ancestors().nth(4).unwrap_or(&out).join("kernels");
    let cache = env::var_os("VLM_KERNEL_CACHE").map_or_else(ours, PathBuf::from);
    fs::create_dir_all(&cache).map_err(|e| format!("cannot create {}: {e}", cache.display()))?;
    let required = env::var_os("VLM_REQUIRE_KERNELS").is_some_and(|v| v != "0" && !v.is_empty());

    let build = Build { cache, out };
    let nvcc = jobs::nvcc();
    let cxx = jobs::cxx();
    let mut missing = Vec::new();
    if nvcc.is_none() {
        missing.push("no nvcc: this build has no GPU kernels (tools/install-nvcc installs it into .cache/nvcc)");
    }
    if cxx.is_none() {
        missing.push("no g++ for x86-64 Linux: this build has no emulator (Debian: apt-get install g++)");
    }
    for said in &missing {
        println!("cargo::{}={said}", if required { "error" } else { "warning" });
    }
    if required && !missing.is_empty() {
        return Err(missing.join("\n"));
    }

    let gpu = nvcc.as_ref().map_or(Ok(Vec::new()), |nvcc| jobs::gpu_jobs(nvcc))?;
    let emulator = cxx.as_ref().map_or(Ok(Vec::new()), |cxx| jobs::emulator_jobs(cxx))?;
    let made = build.all(gpu.iter().map(|g| &g.job).chain(emulator.iter().map(|e| &e.job)).collect())?;
    let (gpu_made, emulator_made) = made.split_at(gpu.len());
    for said in
        gpu_made.iter().map(|m| report::nvcc_warnings(&m.said)).chain(emulator_made.iter().map(|m| m.said.clone()))
    {
        for line in said.lines() {
            println!("cargo::{}={line}", if required { "error" } else { "warning" });
        }
        if required && !said.is_empty() {
            return Err(said);
        }
    }
    let report = report::report(&gpu, gpu_made)?;
    fs::write(build.out.join("kernel_report.txt"), &report)
        .map_err(|e| format!("cannot write the kernels' report: {e}"))?;
    if env::var_os("VLM_KERNEL_REPORT").is_some_and(|v| v != "0") {
        report.lines().for_each(|line| println!("cargo::warning={line}"));
    }
    let libraries = match &cxx {
        Some(cxx) => link(&build, cxx, &emulator, emulator_made)?,
        None => Vec::new(),
    };
    write_table(&build.out, &gpu, gpu_made, &libraries)?;
    build.prune();
    Ok(())
}

fn write_table(out: &Path, gpu: &[GpuJob], gpu_made: &[Made], libraries: &[(String, PathBuf)]) -> Result<()> {
    let mut text = String::from("pub static EMULATORS: &[(&str, Packed)] = &[\n");
    for (name, path) in libraries.iter().filter(|(name, _)| !name.starts_with("planted")) {
        let _ = writeln!(text, "    ({name:?}, {}),", packed(path, &[])?);
    }
    text += "];\npub static IMAGES: &[Image] = &[\n";
    for (job, made) in gpu.iter().zip(gpu_made) {
        let (kind, end): (_, &[u8]) = match (job.architecture, job.kind) {
            ("sm_80", "cubin") => ("Sm80", &[]),
            ("sm_90a", "cubin") => ("Sm90a", &[]),
            _ => ("Ptx80", &[0]),
        };
        let (word, packed) = (&job.word, packed(&made.path, end)?);
        let _ = writeln!(text, "    Image {{ name: {word:?}, kind: ImageKind::{kind}, packed: {packed} }},");
    }
    text += "];\n";
    let path = out.join("kernels.rs");
    // the crate need not be compiled again for the same table
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// A file of the cache with `end` behind it, compressed beside it where it is not yet: as the table has it.
fn packed(path: &Path, end: &[u8]) -> Result<String> {
    let mut bytes = fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    bytes.extend(end);
    let beside = |end: String| PathBuf::from(format!("{}.{end}", path.display()));
    let to = beside("z".into());
    if to.exists() {
        in_use(&[&to]);
    } else {
        let own = beside(format!("{}.z", std::process::id()));
        let pack = || {
            let mut file = ZlibEncoder::new(fs::File::create(&own)?, Compression::default());
            file.write_all(&bytes)?;
            file.finish()?;
            fs::rename(&own, &to)
        };
        pack().map_err(|e: std::io::Error| format!("cannot write {}: {e}", to.display()))?;
    }
    Ok(format!("Packed {{ bytes: include_bytes!({to:?}), unpacked_bytes: {} }}", bytes.len()))
}
