//! What the tower alone makes of images.

use super::engine::Engine;
use crate::base::Result;
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::qwen3vl::vision::Features;
use crate::tape::Tape;

impl Engine {
    /// The features of a sequence's images, one after the other; None without images. They are activations: the next pass
    /// takes their place.
    pub fn features(&mut self, sequence: &Sequence) -> Result<Option<Features>> {
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
        Ok(Some(pass.features))
    }
}
