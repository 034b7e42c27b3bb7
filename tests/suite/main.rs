//! Everything that is tested from outside, as one program.

mod dataset;
mod prompt;
