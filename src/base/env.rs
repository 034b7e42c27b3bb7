//! The environment variables that the program reads, and nobody else does.

/// What to log to stderr, in the syntax of tracing's `EnvFilter` (e.g. `debug`); default `warn,tokenizers=off`.
pub const LOG: &str = "VLM_LOG";

/// Which build of the emulator computes for `--device emulated`: `plain` (default), `asan`, `race`, or a library's path.
pub const EMULATOR: &str = "VLM_EMULATOR";

/// The compute capability that the emulator claims, e.g. `8.6`; default `9.0`.
pub const EMULATED_CAPABILITY: &str = "VLM_EMULATED_CAPABILITY";

/// `1`: wait after each launch on a GPU, so that an error names the word that made it.
pub const SYNC_LAUNCHES: &str = "VLM_SYNC_LAUNCHES";

/// `0`: no launches are recorded and replayed as one; every step of generation launches its kernels one by one, so that a
/// profiler shows them under the names of their words, and times can be compared.
pub const REPLAY: &str = "VLM_REPLAY";

/// The key that is sent to `--endpoint`, and nowhere else.
pub const API_KEY: &str = "VLM_API_KEY";

/// A PEM file of the certificates to trust where `--endpoint` is https, in the place of Mozilla's list: as OpenSSL has it.
pub const CERTIFICATES: &str = "SSL_CERT_FILE";

/// [`CERTIFICATES`], where it is set to something.
pub fn certificates() -> Option<std::path::PathBuf> {
    std::env::var_os(CERTIFICATES).filter(|file| !file.is_empty()).map(Into::into)
}

/// [`API_KEY`], where it is set to something.
pub fn api_key() -> Option<String> {
    std::env::var(API_KEY).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty())
}
