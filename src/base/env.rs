//! The environment variables that the program reads, and nobody else does.

/// What to log to stderr, in the syntax of tracing's `EnvFilter` (e.g. `debug`); default `warn`.
pub const LOG: &str = "VLM_LOG";
