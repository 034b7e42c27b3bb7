//! What the tests share: the one comparison ([`close`]), reference values ([`golden`]), central differences
//! ([`differences`]) and numbers to compute with ([`random`]).

pub mod close;
pub mod differences;
pub mod golden;
pub mod random;
