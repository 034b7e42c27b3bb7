//! Photos that this program draws itself, seeded: car panels with damage ([`damage`]), and marks on panels with
//! questions about them ([`marks`]), which a base model can learn to see from.
//!
//! Owns: surfaces and their light ([`surface`]), lines ([`strokes`]), panels ([`panel`]). Start at [`damage::photo`];
//! [`photos`] writes whole sets.

pub mod damage;
pub mod marks;
pub mod panel;
pub mod photos;
pub mod strokes;
pub mod surface;
