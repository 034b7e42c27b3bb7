//! What every room may use: the error, shapes, element types, environment variables, random numbers.
//!
//! Floor 0: uses nothing of this crate. Start at [`error`].

pub mod dtype;
pub mod error;
pub mod rng;

pub use dtype::{DType, Precision};
pub use error::{Error, Result};
