//! Configurations of the published models' shapes, without their weights.

use crate::base::Result;
use crate::cli::assets;
use crate::io::folder_kind;
use crate::io::{atomic, json};
use serde_json::{Value, json};
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    #[value(name = "8b")]
    B8,
    #[value(name = "4b")]
    B4,
    #[value(name = "2b")]
    B2,
    /// That of assets/base, 1.8 million parameters
    Tiny,
}

/// What differs between config.json of Qwen3-VL-2B, 4B and 8B-Instruct, as published with transformers 4.57.
struct Sizes {
    text: [u64; 4],
    tower: [u64; 4],
    taps: [u64; 3],
    tied: bool,
}

impl Shape {
    pub fn name(self) -> &'static str {
        match self {
            Shape::B8 => "8b",
            Shape::B4 => "4b",
            Shape::B2 => "2b",
            Shape::Tiny => "tiny",
        }
    }

    fn sizes(self) -> Option<Sizes> {
        // width, MLP width, layers, query heads; width, depth, heads, MLP width of the tower
        match self {
            Shape::B8 => Some(Sizes {
                text: [4096, 12_288, 36, 32],
                tower: [1152, 27, 16, 4304],
                taps: [8, 16, 24],
                tied: false,
            }),
            Shape::B4 => {
                Some(Sizes { text: [2560, 9728, 36, 32], tower: [1024, 24, 16, 4096], taps: [5, 11, 17], tied: true })
            }
            Shape::B2 => {
                Some(Sizes { text: [2048, 6144, 28, 16], tower: [1024, 24, 16, 4096], taps: [5, 11, 17], tied: true })
            }
            Shape::Tiny => None,
        }
    }

    /// Writes a folder for `vlm init`: the shape's config.json beside the tokenizer and template of assets/base,
    /// whose ids it names. Pictures keep the size that the published models give them.
    pub fn write(self, dir: &Path) -> Result<()> {
        atomic::write_folder(dir, |dir| {
            assets::write_base(dir)?;
            let processor = dir.join("processor_config.json");
            let mut settings = json::read(&processor)?;
            settings["image_processor"]["size"] = json!({"shortest_edge": 65_536, "longest_edge": 16_777_216});
            json::write(&processor, &settings)?;
            let Some(s) = self.sizes() else { return Ok(()) };
            let path = dir.join(folder_kind::CONFIG);
            let mut config = json::read(&path)?;
            let [hidden, mlp, layers, heads] = s.text;
            let text = json!({
                "vocab_size": 151_936, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
                "max_position_embeddings": 262_144,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 5_000_000.0, "mrope_interleaved": true,
                    "mrope_section": [24, 20, 20],
                },
            });
            let [width, depth, tower_heads, tower_mlp] = s.tower;
            let vision = json!({
                "hidden_size": width, "depth": depth, "num_heads": tower_heads, "intermediate_size": tower_mlp,
                "deepstack_visual_indexes": s.taps, "num_position_embeddings": 2304, "out_hidden_size": hidden,
            });
            config["tie_word_embeddings"] = s.tied.into();
            for (section, values) in [("text_config", text), ("vision_config", vision)] {
                if let (Value::Object(to), Value::Object(from)) = (&mut config[section], values) {
                    to.extend(from);
                }
            }
            json::write(&path, &config)
        })
    }
}
