//! What every room may use: the error, shapes, element types, environment variables, files that are read, random numbers,
//! the date, text in a terminal, numbers in a sentence.
//!
//! Floor 0: uses nothing of this crate. Start at [`error`].

pub mod counted;
pub mod date;
pub mod dtype;
pub mod env;
pub mod error;
pub mod input;
pub mod rng;
pub mod shape;
pub mod width;

pub use counted::counted;
pub use dtype::{DType, Precision};
pub use error::{Error, Result};
pub use shape::Shape;
