//! Near-duplicates: photos that show the same, found by their pixels (`data::alike`: saved again, brighter, a crop) or by
//! what the model's own vision tower makes of them (another photo of the same thing).
//!
//! A photo's image features, a mean in each of nine cells ([`embed`]), are kept in a file between runs ([`cache`]); what
//! the photos have in common is taken out, and what they differ in evened out ([`space`]). What cosine two photos of the
//! same then have depends on the tower and on the photos, so the threshold is calibrated on changes planted into the user's
//! own ([`plant`], [`calibrate`]). [`leaks`] lists the pairs and says which photos have to go, so that nothing is asked
//! that was learnt.
//!
//! Floor 8: uses `infer`, `qwen3vl`, `data`, `io`, `base`. Start at [`leaks`].

pub mod cache;
pub mod calibrate;
pub mod embed;
pub mod leaks;
pub mod plant;
pub mod space;
