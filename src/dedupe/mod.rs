//! Near-duplicates: photos that show the same, found by what the model's own vision tower makes of them.
//!
//! A photo's embedding is the mean of its image features, at length 1 ([`embed`]), kept in a file between runs
//! ([`cache`]). What cosine two photos of the same have depends on the tower, so the threshold is calibrated on changes
//! planted into the user's own photos ([`plant`], [`calibrate`]). [`leaks`] lists the pairs and says which photos have to
//! go, so that nothing is asked that was learnt.
//!
//! Floor 8: uses `infer`, `qwen3vl`, `data`, `io`, `base`. Start at [`leaks`].

pub mod cache;
pub mod calibrate;
pub mod embed;
pub mod leaks;
pub mod plant;
