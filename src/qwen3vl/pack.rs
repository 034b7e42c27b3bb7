//! Several prompts side by side, without padding: what the tape's inputs hold.

use super::positions::{self, Position};
use crate::base::Result;

/// One prompt, ready for the model: ids with image placeholders expanded, and the images' patches.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    pub ids: Vec<u32>,
    /// Which ids are image tokens. An image-token id elsewhere (one that a model emitted) is a plain token.
    pub is_image: Vec<bool>,
    /// [t, h, w] of each image, in patches.
    pub grids: Vec<[usize; 3]>,
    /// [P, 3 * temporal * patch * patch] of all images, one after the other.
    pub pixels: Vec<f32>,
}

impl Sequence {
    /// Patches of all images.
    pub fn patches(&self) -> usize {
        patches(&self.grids)
    }
}

fn patches(grids: &[[usize; 3]]) -> usize {
    grids.iter().map(|g| g.iter().product::<usize>()).sum()
}

/// Packed sequences: token t of sequence b stands at starts[b] + t.
pub struct Packed {
    /// [T]
    pub ids: Vec<i32>,
    /// [B + 1]
    pub starts: Vec<i32>,
    /// [T]
    pub positions: Vec<Position>,
    /// [B]: what to add to a later token's index in its sequence to get its position.
    pub deltas: Vec<i32>,
    pub grids: Vec<[usize; 3]>,
    pub pixels: Vec<f32>,
    /// [T]: the feature row of an image token, -1 elsewhere.
    pub image_rows: Vec<i32>,
    /// [U]: the token of each feature row.
    pub visual_tokens: Vec<i32>,
}

impl Packed {
    /// `merge` x `merge` patches are one token.
    pub fn new(sequences: &[&Sequence], merge: usize) -> Result<Packed> {
        let mut packed = Packed {
            ids: vec![],
            starts: vec![0],
            positions: vec![],
            deltas: vec![],
            grids: vec![],
            pixels: vec![],
            image_rows: vec![],
            visual_tokens: vec![],
        };
        for s in sequences {
            let merged: Vec<_> = s.grids.iter().map(|[_, h, w]| [h / merge, w / merge]).collect();
            let (positions, delta) = positions::text_positions(&s.is_image, &merged)?;
            for (id, is_image) in s.ids.iter().zip(&s.is_image) {
                if *is_image {
                    packed.image_rows.push(packed.visual_tokens.len() as i32);
                    packed.visual_tokens.push(packed.ids.len() as i32);
                } else {
                    packed.image_rows.push(-1);
                }
                packed.ids.push(*id as i32);
            }
            packed.starts.push(packed.ids.len() as i32);
            packed.positions.extend(positions);
            packed.deltas.push(delta);
            packed.grids.extend(&s.grids);
            packed.pixels.extend(&s.pixels);
        }
        Ok(packed)
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Patches in all.
    pub fn patches(&self) -> usize {
        patches(&self.grids)
    }

    /// Image tokens of one sequence.
    pub fn visual_tokens_of(&self, sequence: usize) -> usize {
        let tokens = self.starts[sequence]..self.starts[sequence + 1];
        self.visual_tokens.iter().filter(|t| tokens.contains(t)).count()
    }

    /// Pairs of patches that attend to each other.
    pub fn patch_pairs(&self) -> u64 {
        self.grids.iter().map(|g| (g.iter().product::<usize>() as u64).pow(2)).sum()
    }

    /// Pairs of tokens that attend to each other.
    pub fn causal_pairs(&self) -> u64 {
        self.starts.windows(2).map(|p| (p[1] - p[0]) as u64).map(|s| s * (s + 1) / 2).sum()
    }

    /// The last token of each sequence.
    pub fn last_rows(&self) -> Vec<i32> {
        self.starts[1..].iter().map(|s| s - 1).collect()
    }
}
