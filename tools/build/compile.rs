//! Runs compilers and linkers whose results are not in the cache yet.

use super::Result;
use super::jobs::{EmulatorJob, Job};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use std::{fs, thread};

/// What a job left: its file, and what the compiler said.
#[derive(Clone)]
pub struct Made {
    pub path: PathBuf,
    pub said: String,
}

pub struct Build {
    pub cache: PathBuf,
    pub out: PathBuf,
}

impl Build {
    /// Runs the jobs whose results are not there yet, as many at a time as there are cores; results in the order of jobs.
    pub fn all(&self, jobs: Vec<&Job>) -> Result<Vec<Made>> {
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
    pub fn prune(&self) {
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
pub fn in_use(files: &[&Path]) {
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
pub fn link(build: &Build, cxx: &str, jobs: &[EmulatorJob], made: &[Made]) -> Result<Vec<(String, PathBuf)>> {
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
