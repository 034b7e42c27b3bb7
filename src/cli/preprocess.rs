//! `vlm preprocess`: one picture as the model sees it.

use super::model::PixelFlags;
use super::output;
use super::values::picture;
use crate::base::{Result, counted};
use crate::data::image::{self, PatchSpec};
use crate::io::{HostTensor, host_tensor};
use crate::qwen3vl::processor::read_patch_spec;
use serde_json::json;
use std::path::PathBuf;

const WRITER: &str = "vlm preprocess";

/// Write a picture's patches (pixel_values, image_grid_thw) to a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm preprocess --image photo.jpg --out photo.safetensors")]
pub struct Preprocess {
    /// The picture
    #[arg(long, value_name = "FILE", value_parser = picture)]
    image: PathBuf,
    /// Take the settings of this checkpoint folder instead of Qwen3-VL's
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelFlags,
    /// Where to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file, whatever it is; one that this command wrote is replaced anyway
    #[arg(long)]
    overwrite: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Preprocess {
    pub fn run(&self) -> Result<()> {
        self.check_output()?;
        let spec = match &self.model {
            Some(dir) => read_patch_spec(dir)?,
            None => PatchSpec::default(),
        };
        let spec = spec.limited(self.pixels.min_pixels, self.pixels.max_pixels)?;
        let picture = image::load(&self.image)?;
        let patches = spec.patches(&picture)?;
        let grid = patches.grid;
        let n = grid.iter().product::<usize>();
        let tensors = [
            ("pixel_values".to_string(), HostTensor::f32([n, patches.values.len() / n.max(1)], patches.values)),
            ("image_grid_thw".to_string(), HostTensor::i64([1, 3], grid.map(|g| g as i64).to_vec())),
        ];
        host_tensor::write(&self.out, WRITER, &tensors)?;
        let (from, to) = ((picture.width, picture.height), (grid[2] * spec.patch, grid[1] * spec.patch));
        let tokens = n / (spec.merge * spec.merge);
        if self.json {
            return super::print_json(&json!({
                "width": from.0, "height": from.1, "resized_width": to.0, "resized_height": to.1,
                "image_grid_thw": grid, "patches": n, "tokens": tokens,
            }));
        }
        let (patches, tokens) = (counted(n, "patch", "patches"), counted(tokens, "token", "tokens"));
        super::print(&format!("{} x {} pixels to {} x {}: {patches}, {tokens}\n", from.0, from.1, to.0, to.1))
    }

    fn check_output(&self) -> Result<()> {
        output::not_an_input(
            &self.out,
            [Some(&self.image), self.model.as_ref()].into_iter().flatten().map(|p| p.as_path()),
        )?;
        output::free_or_own(&self.out, self.overwrite, WRITER)
    }
}
