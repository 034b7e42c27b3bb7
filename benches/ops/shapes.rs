//! Sizes of the models and of the steps.

use vlm::host::attention::Heads;

/// What differs between config.json of Qwen3-VL-2B, 4B and 8B-Instruct, as published with transformers 4.57.
pub struct Model {
    pub name: &'static str,
    pub layers: usize,
    pub hidden: usize,
    pub heads: Heads,
    pub mlp: usize,
    pub vocabulary: usize,
    pub tower: usize,
    pub tower_heads: Heads,
    pub tower_mlp: usize,
    /// Numbers of a patch, and positions of the tower.
    pub patch: usize,
    pub positions: usize,
}

const fn heads(queries: usize, keys: usize, width: usize) -> Heads {
    Heads { queries, keys, width }
}

const B8: Model = Model {
    name: "8b",
    layers: 36,
    hidden: 4096,
    heads: heads(32, 8, 128),
    mlp: 12_288,
    vocabulary: 151_936,
    tower: 1152,
    tower_heads: heads(16, 16, 72),
    tower_mlp: 4304,
    patch: 1536,
    positions: 2304,
};

const SMALLER: Model = Model { tower: 1024, tower_heads: heads(16, 16, 64), tower_mlp: 4096, ..B8 };

pub const MODELS: [Model; 3] = [
    B8,
    Model { name: "4b", hidden: 2560, mlp: 9728, ..SMALLER },
    Model { name: "2b", layers: 28, hidden: 2048, heads: heads(16, 8, 128), mlp: 6144, ..SMALLER },
];

/// As small as reaches the kernels that the models do.
pub const TINY: Model = Model {
    name: "tiny",
    layers: 1,
    hidden: 64,
    heads: heads(2, 1, 128),
    mlp: 72,
    vocabulary: 136,
    tower: 144,
    tower_heads: heads(2, 2, 72),
    tower_mlp: 80,
    patch: 24,
    positions: 9,
};

/// One optimiser step's sizes.
pub struct Step {
    pub name: &'static str,
    /// Tokens of each sequence.
    pub sequences: &'static [usize],
    /// Patches of each picture; four of them become a token.
    pub pictures: &'static [usize],
    /// Rows that have a label.
    pub labels: usize,
    pub rank: usize,
}

impl Step {
    pub fn tokens(&self) -> usize {
        self.sequences.iter().sum()
    }

    pub fn patches(&self) -> usize {
        self.pictures.iter().sum()
    }
}

pub const STEPS: [Step; 2] = [
    // four photos of 1000 x 667 pixels with a question and a short answer each
    Step { name: "article", sequences: &[691; 4], pictures: &[2604; 4], labels: 32, rank: 64 },
    // two long texts and the rest of 33 tiles of 256 rows
    Step { name: "packed", sequences: &[4096, 4096, 256], pictures: &[], labels: 8192, rank: 16 },
];

pub const TINY_STEP: Step = Step { name: "tiny", sequences: &[41, 29], pictures: &[20, 12], labels: 5, rank: 8 };

/// Sequences that get a token each, and the tokens that each holds.
pub struct Decode {
    pub name: &'static str,
    pub sequences: usize,
    pub held: usize,
}

pub const DECODES: [Decode; 5] = [
    Decode { name: "decode 1", sequences: 1, held: 2048 },
    Decode { name: "decode 16", sequences: 16, held: 2048 },
    Decode { name: "decode 32", sequences: 32, held: 2048 },
    Decode { name: "decode 64", sequences: 64, held: 2048 },
    Decode { name: "decode 128", sequences: 128, held: 2048 },
];

pub const TINY_DECODE: Decode = Decode { name: "decode tiny", sequences: 2, held: 70 };
