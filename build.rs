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
//!   named by a hash of their command and of all files that went in. `kernel_report.txt` in OUT_DIR has the registers and shared memory of every kernel; `VLM_KERNEL_REPORT=1` prints it.

use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use std::{env, fs, thread};

type Result<T, E = String> = std::result::Result<T, E>;

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

fn main() {
    if let Err(why) = run() {
        eprintln!("{why}");
        exit(1);
    }
}

fn run() -> Result<()> {
    for path in ["build.rs", "cuda", ".cache/nvcc/bin/nvcc"] {
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
    let nvcc = nvcc();
    let cxx = cxx();
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

    let gpu = nvcc.as_ref().map_or(Ok(Vec::new()), |nvcc| gpu_jobs(nvcc))?;
    let emulator = cxx.as_ref().map_or(Ok(Vec::new()), |cxx| emulator_jobs(cxx))?;
    let made = build.all(gpu.iter().map(|g| &g.job).chain(emulator.iter().map(|e| &e.job)).collect())?;
    let (gpu_made, emulator_made) = made.split_at(gpu.len());
    for said in gpu_made.iter().map(|m| nvcc_warnings(&m.said)).chain(emulator_made.iter().map(|m| m.said.clone())) {
        for line in said.lines() {
            println!("cargo::{}={line}", if required { "error" } else { "warning" });
        }
        if required && !said.is_empty() {
            return Err(said);
        }
    }
    let report = report(&gpu, gpu_made)?;
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

// ---- what is compiled ----

/// One run of a compiler: `command` with `-o` and the output's path added makes it from `source` and what that includes.
#[derive(Clone)]
struct Job {
    name: String,
    source: PathBuf,
    command: Vec<String>,
    extension: &'static str,
}

/// What a job left: its file, and what the compiler said.
#[derive(Clone)]
struct Made {
    path: PathBuf,
    said: String,
}

struct GpuJob {
    job: Job,
    word: String,
    architecture: &'static str,
    kind: &'static str,
}

struct EmulatorJob {
    job: Job,
    libraries: &'static [&'static str],
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

fn gpu_jobs(nvcc: &str) -> Result<Vec<GpuJob>> {
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

fn emulator_jobs(cxx: &str) -> Result<Vec<EmulatorJob>> {
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

fn nvcc() -> Option<String> {
    let works = |path: &str| Command::new(path).arg("--version").output().is_ok_and(|o| o.status.success());
    let ours = env::current_dir().ok()?.join(".cache/nvcc/bin/nvcc").display().to_string();
    env::var("VLM_NVCC").ok().into_iter().chain([ours, "nvcc".into()]).find(|path| works(path))
}

fn cxx() -> Option<String> {
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

// ---- running compilers ----

struct Build {
    cache: PathBuf,
    out: PathBuf,
}

impl Build {
    /// Runs the jobs whose results are not there yet, as many at a time as there are cores; results in the order of jobs.
    fn all(&self, jobs: Vec<&Job>) -> Result<Vec<Made>> {
        let mut contents = HashMap::new();
        let mut planned = Vec::new();
        for job in &jobs {
            let mut hasher = DefaultHasher::new();
            (&job.command, version(&job.command[0], &mut contents)).hash(&mut hasher);
            let mut seen = BTreeSet::new();
            include(&job.source, &mut seen, &mut contents)?;
            for file in &seen {
                (file, &contents[file]).hash(&mut hasher);
            }
            planned.push(self.cache.join(format!("{}-{:016x}.{}", job.name, hasher.finish(), job.extension)));
        }
        let next = AtomicUsize::new(0);
        let results: Vec<_> = thread::scope(|scope| {
            let work = || {
                let mut done = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(i) else { return done };
                    done.push((i, make(job, &planned[i])));
                }
            };
            let cores = thread::available_parallelism().map_or(1, |n| n.get());
            let threads: Vec<_> = (0..cores.min(jobs.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
        });
        let mut made: Vec<Option<Made>> = vec![None; jobs.len()];
        let mut failures = String::new();
        for (i, result) in results {
            match result {
                Ok(m) => made[i] = Some(m),
                Err(why) => failures += &format!("{why}\n"),
            }
        }
        if !failures.is_empty() {
            return Err(failures);
        }
        made.into_iter().collect::<Option<_>>().ok_or_else(|| "a compiler's thread died".into())
    }

    /// Removes what no build has used for three days.
    fn prune(&self) {
        let old = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            if entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < old) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn version(compiler: &str, known: &mut HashMap<PathBuf, String>) -> String {
    let key = PathBuf::from(format!("{compiler} --version"));
    known
        .entry(key)
        .or_insert_with(|| {
            let said = Command::new(compiler).arg("--version").output();
            said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
        })
        .clone()
}

/// `file` and all files that it includes by `#include "…"`, beside itself or from `cuda/`.
fn include(file: &Path, seen: &mut BTreeSet<PathBuf>, contents: &mut HashMap<PathBuf, String>) -> Result<()> {
    if !seen.insert(file.into()) {
        return Ok(());
    }
    if !contents.contains_key(file) {
        let text = fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        contents.insert(file.into(), text);
    }
    let names: Vec<String> = contents[file]
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.split('"').nth(1))
        .map(str::to_string)
        .collect();
    for name in names {
        let beside = file.parent().unwrap_or(Path::new("")).join(&name);
        let found = if beside.exists() { beside } else { Path::new("cuda").join(&name) };
        include(&found, seen, contents)?;
    }
    Ok(())
}

/// Keeps files of the cache from [`Build::prune`].
fn in_use(files: &[&Path]) {
    for used in files {
        let _ = fs::File::open(used).and_then(|f| f.set_modified(SystemTime::now()));
    }
}

fn make(job: &Job, path: &Path) -> Result<Made> {
    let log = path.with_extension(format!("{}.txt", job.extension));
    if let (true, Ok(said)) = (path.exists(), fs::read_to_string(&log)) {
        in_use(&[path, &log]);
        return Ok(Made { path: path.into(), said });
    }
    // another cargo may do the same at the same time: each writes a file of its own and moves it into place
    let own = path.with_extension(format!("{}.{}", std::process::id(), job.extension));
    let output = Command::new(&job.command[0])
        .args(&job.command[1..])
        .arg("-o")
        .arg(&own)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", job.command[0]))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let _ = fs::remove_file(&own);
        return Err(format!("{} failed:\n{said}", job.command.join(" ")));
    }
    fs::write(&log, &said).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
    fs::rename(&own, path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(Made { path: path.into(), said })
}

/// Links each library from the objects that belong to it; (name, path) of each.
fn link(build: &Build, cxx: &str, jobs: &[EmulatorJob], made: &[Made]) -> Result<Vec<(String, PathBuf)>> {
    let names: BTreeSet<&str> = jobs
        .iter()
        .filter(|j| j.job.source.extension().is_some_and(|e| e == "cu"))
        .flat_map(|j| j.libraries)
        .copied()
        .collect();
    let mut recipes = String::new();
    let mut libraries = Vec::new();
    for name in names {
        let objects: Vec<&PathBuf> =
            jobs.iter().zip(made).filter(|(j, _)| j.libraries.contains(&name)).map(|(_, m)| &m.path).collect();
        let mut command: Vec<String> = vec![cxx.into(), "-shared".into(), "-pthread".into()];
        if name.ends_with("asan") {
            command.push("-fsanitize=address".into());
        } else {
            command.extend(
                ["-static-libstdc++", "-static-libgcc", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL"].map(Into::into),
            );
        }
        let mut hasher = DefaultHasher::new();
        (&command, &objects).hash(&mut hasher);
        let path = build.cache.join(format!("libvlm_emu-{name}-{:016x}.so", hasher.finish()));
        command.extend(objects.iter().map(|o| o.display().to_string()));
        let job = Job { name: name.into(), source: PathBuf::new(), command, extension: "so" };
        make(&job, &path)?;
        // where tests and tools look for it; a process that has the former one loaded keeps that
        let plain = build.out.join(format!("libvlm_emu-{name}.so"));
        let own = plain.with_extension("new");
        let placed = fs::copy(&path, &own).and_then(|_| fs::rename(&own, &plain));
        placed.map_err(|e| format!("cannot write {}: {e}", plain.display()))?;
        libraries.push((name.to_string(), path));
        let _ = writeln!(recipes, "link {name}\t{}", job.command.join("\t"));
    }
    // for tools/mutate-kernels, which compiles single files anew
    for (j, m) in jobs.iter().zip(made) {
        let _ =
            writeln!(recipes, "compile {}\t{}\t{}", m.path.display(), j.job.source.display(), j.job.command.join("\t"));
    }
    fs::write(build.out.join("recipes.txt"), recipes).map_err(|e| format!("cannot write the recipes: {e}"))?;
    Ok(libraries)
}

// ---- what ptxas says ----

struct Resources<'a> {
    kernel: &'a str,
    architecture: &'a str,
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

/// Lines that are neither ptxas's report nor nvcc's chatter.
fn nvcc_warnings(said: &str) -> String {
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
fn report(jobs: &[GpuJob], made: &[Made]) -> Result<String> {
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

// ---- the table ----

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
