//! Photos and text to arrays.
//!
//! Owns what a user's files hold, before any model: conversations ([`messages`]) and labelled sets of them
//! ([`dataset`]). Uses `base` alone. Start at [`dataset::read_dataset`].

pub mod dataset;
pub mod messages;
