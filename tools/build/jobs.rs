//! What is compiled, by which compiler and with which options.

use super::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Checks that cost little: they are on in every build, with the handlers of cuda/emulator/undefined.cpp. `bounds-strict`,
/// because `bounds` takes an array at the end of a struct for one without a length.
const UNDEFINED: &str =
    "-fsanitize=alignment,bounds-strict,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow";
const CXX_FLAGS: [&str; 12] = [
    "-std=c++20",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-ftls-model=initial-exec",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Icuda",
    "-c",
];
/// `-fmad=false`: a product and a sum are rounded each, as in the emulator and on the host, and `fmaf` stands where one
/// rounding is meant. Else kernels that compute the same, joined or apart, could differ in their last bits.
const NVCC_FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-lineinfo",
    "-Icuda",
    "-Xptxas=-v,-warn-spills",
    "-Xcudafe=--display_error_number",
    "-diag-suppress=177",
    "-c",
];

/// One run of a compiler: `command` with `-o` and the output's path added makes it from `source` and what that includes.
#[derive(Clone)]
pub struct Job {
    pub name: String,
    pub source: PathBuf,
    pub command: Vec<String>,
    pub extension: &'static str,
}

pub struct GpuJob {
    pub job: Job,
    pub word: String,
    pub architecture: &'static str,
    pub kind: &'static str,
}

pub struct EmulatorJob {
    pub job: Job,
    pub libraries: &'static [&'static str],
}

fn files(folder: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| format!("cannot read {folder}: {e}"))? {
        let path = entry.map_err(|e| format!("cannot read {folder}: {e}"))?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

pub fn gpu_jobs(nvcc: &str) -> Result<Vec<GpuJob>> {
    let mut jobs = Vec::new();
    for source in files("cuda", "cu")? {
        let name = stem(&source);
        let targets: &[(&str, &str, &str)] = &[
            ("sm_90a", "cubin", "-gencode=arch=compute_90a,code=sm_90a"),
            ("sm_80", "cubin", "-gencode=arch=compute_80,code=sm_80"),
            ("sm_80", "ptx", "-gencode=arch=compute_80,code=compute_80"),
        ];
        let targets = if name.ends_with("_sm90") { &targets[..1] } else { targets };
        for &(architecture, kind, target) in targets {
            let mut command = vec![nvcc.to_string()];
            command.extend(NVCC_FLAGS[..NVCC_FLAGS.len() - 1].iter().map(|f| f.to_string()));
            command.extend([target.to_string(), format!("-{kind}"), source.display().to_string()]);
            let job = Job { name: format!("{architecture}-{name}"), source: source.clone(), command, extension: kind };
            jobs.push(GpuJob { job, word: name.clone(), architecture, kind });
        }
    }
    Ok(jobs)
}

pub fn emulator_jobs(cxx: &str) -> Result<Vec<EmulatorJob>> {
    let mut jobs = Vec::new();
    let mut add = |build: &str, source: &Path, extra: &[&str], libraries| {
        let mut command = vec![cxx.to_string()];
        command.extend(CXX_FLAGS.iter().chain(extra).map(|f| f.to_string()));
        command.push(source.display().to_string());
        let job = Job { name: format!("{build}-{}", stem(source)), source: source.into(), command, extension: "o" };
        jobs.push(EmulatorJob { job, libraries });
    };
    for source in files("cuda/emulator", "cpp")? {
        match stem(&source).as_str() {
            "race" | "race_device" => add("runtime", &source, &["-O2"], &["race", "planted-race"]),
            "no_race" => {
                add("runtime", &source, &["-O2"], &["plain", "planted"]);
                add("asan", &source, &["-O2", "-fsanitize=address"], &["asan"]);
            }
            _ => {
                add("runtime", &source, &["-O2"], &["plain", "race", "planted", "planted-race"]);
                add("asan", &source, &["-O2", "-fsanitize=address"], &["asan"]);
            }
        }
    }
    let base = ["-x", "c++", UNDEFINED, "-fno-sanitize-recover=all", "-fstack-clash-protection"];
    // Most of the time goes into the runtime: at -O1 a kernel runs nearly as fast, and compiles in two thirds of the time.
    let plain = [&base[..], &["-O1"]].concat();
    let asan = [&base[..], &["-O0", "-fsanitize=address"]].concat();
    let race = [&base[..], &["-O1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]].concat();
    for source in files("cuda", "cu")? {
        add("plain", &source, &plain, &["plain"]);
        add("asan", &source, &asan, &["asan"]);
        add("race", &source, &race, &["race"]);
    }
    // Kernels with planted bugs, for the emulator's own tests.
    if env::var("PROFILE").is_ok_and(|p| p == "debug") {
        for source in files("cuda/emulator/planted", "cu")? {
            add("planted", &source, &plain, &["planted"]);
            add("planted-race", &source, &race, &["planted-race"]);
        }
    }
    Ok(jobs)
}

pub fn nvcc() -> Option<String> {
    let works = |path: &str| Command::new(path).arg("--version").output().is_ok_and(|o| o.status.success());
    let ours = env::current_dir().ok()?.join(".cache/nvcc/bin/nvcc").display().to_string();
    env::var("VLM_NVCC").ok().into_iter().chain([ours, "nvcc".into()]).find(|path| works(path))
}

pub fn cxx() -> Option<String> {
    let target = env::var("TARGET").unwrap_or_default();
    if !(target.starts_with("x86_64") && target.contains("linux")) {
        return None;
    }
    // clang has neither -fsanitize's handlers nor the options used here in the same form
    let is_gcc = |path: &str| {
        Command::new(path).arg("-dumpfullversion").output().is_ok_and(|o| o.status.success() && !o.stdout.is_empty())
    };
    env::var("CXX").ok().into_iter().chain(["g++".into()]).find(|path| is_gcc(path))
}
