//! What the tests share: the one comparison ([`close`]), a device that counts its bytes ([`counted`]), reference values
//! ([`golden`]), central differences ([`differences`]), kernels against the host ([`kernels`]), those with planted bugs
//! ([`planted`]), numbers to compute with ([`random`]), whole training runs ([`run`]), an HTTP server that misbehaves
//! ([`server`]), weights as files hold them ([`stored`]) and a small model in training ([`tiny`]).

pub mod close;
pub mod counted;
pub mod differences;
pub mod golden;
pub mod kernels;
pub mod planted;
pub mod random;
pub mod run;
pub mod server;
pub mod stored;
pub mod tiny;

use proptest::prelude::ProptestConfig;
use std::path::PathBuf;

/// So many shapes; a failing one is printed, and kept in no file.
pub fn shapes(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// The folder with `tests/golden`: this repository, or where tools/gpu-check was packed to.
pub fn repository() -> PathBuf {
    std::env::var_os("VLM_TEST_REPOSITORY").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The program: cargo's, or what was packed.
pub fn program() -> PathBuf {
    std::env::var_os("VLM_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_vlm").into(), PathBuf::from)
}

/// The objects of a JSONL file.
pub fn json_lines(path: &std::path::Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// The result of `f` on one thread and on three.
pub fn threads<T: Send>(f: impl Fn() -> T + Sync) -> [T; 2] {
    [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads").install(&f))
}
