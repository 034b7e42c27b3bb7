//! What the tower alone makes of images.

use super::engine::Engine;
use crate::base::Result;
use crate::qwen3vl::model::ImageFeatures;
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::tape::Tape;

impl Engine {
    /// The features of a sequence's images, one after the other; None without images.
    pub fn features(&mut self, sequence: &Sequence) -> Result<Option<ImageFeatures>> {
        if sequence.grids.is_empty() {
            return Ok(None);
        }
        let Engine { model, device, precision, clock, .. } = self;
        let packed = Packed::new(&[sequence], model.config.vision.merge_size)?;
        let mut tape = Tape::new(*precision);
        let pass = model.vision(&mut tape, &packed)?;
        tape.begin(device)?;
        model.write_vision(device, &pass, &packed)?;
        tape.run(device, clock, &mut |_, _| ())?;
        let mut read = |t| device.memory().read_f32(t);
        let embeds = read(pass.features.embeds)?;
        let deepstack = pass.features.deepstack.iter().map(|f| read(*f)).collect::<Result<_>>()?;
        Ok(Some(ImageFeatures { embeds, deepstack }))
    }
}
