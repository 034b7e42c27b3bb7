//! bf16 shadows of what is trained. The f32 numbers stay the masters; products read the shadow, which is made when it is
//! first wanted, goes stale where the master is written, and is written by the optimiser together with its master.

use super::launcher::{Allocation, Launcher};
use super::layout::Place;
use super::memory::Memory;
use crate::base::Result;
use crate::tensor::{Arena, Tensor};
use std::sync::Arc;

/// The shadow of one flat buffer of masters: bf16 at half the offset.
struct Shadow {
    /// Of the masters, in the parameter arena.
    place: Place,
    bytes: Allocation,
    /// Parts of the masters that were written since they were last rounded.
    stale: Vec<Place>,
}

/// The shadows of the parameter arena.
#[derive(Default)]
pub(super) struct Shadows(Vec<Shadow>);

impl Shadows {
    /// Takes note that masters changed; whether a shadow has gone stale by that.
    pub fn overwritten(&mut self, place: &Place) -> bool {
        let mut went_stale = false;
        for shadow in self.0.iter_mut().filter(|s| s.place.overlaps(place)) {
            if !shadow.stale.iter().any(|s| s.contains(place)) {
                shadow.stale.push(*place);
                went_stale = true;
            }
        }
        went_stale
    }

    fn of(&mut self, place: &Place) -> Option<&mut Shadow> {
        self.0.iter_mut().find(|s| s.place.contains(place))
    }
}

/// Masters to be rounded again: `n` numbers at `from` (f32) to `to` (bf16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refresh {
    pub from: u64,
    pub to: u64,
    pub n: u64,
}

impl Memory {
    /// Where the shadow of `master` lies, where there is one, as it is.
    pub(super) fn shadow(&mut self, master: &Tensor) -> Result<Option<u64>> {
        let place = self.place(master)?;
        let shadow = self.shadows.of(&place).filter(|_| master.arena == Arena::Parameters);
        Ok(shadow.map(|s| s.bytes.address() + (place.offset - s.place.offset) as u64 / 2))
    }

    /// The shadow of `master`, made where there was none, and what has to be rounded before it is read. A shadow covers
    /// the whole buffer that the master is a part of.
    pub(super) fn need_shadow(
        &mut self,
        launcher: &Arc<dyn Launcher>,
        master: &Tensor,
    ) -> Result<(u64, Option<Refresh>)> {
        let place = self.place(master)?;
        if self.shadows.of(&place).is_none() {
            let places = &self.layout(master.arena).places;
            let whole = places.iter().filter(|p| p.contains(&place)).max_by_key(|p| p.bytes).copied().unwrap_or(place);
            let bytes = Allocation::new(launcher, whole.bytes / 2)?;
            self.shadows.0.push(Shadow { place: whole, bytes, stale: vec![whole] });
        }
        let master_address = self.address(master)?;
        let Some(shadow) = self.shadows.of(&place) else { return Ok((0, None)) };
        let to = shadow.bytes.address() + (place.offset - shadow.place.offset) as u64 / 2;
        if !shadow.stale.iter().any(|s| s.overlaps(&place)) {
            return Ok((to, None));
        }
        // one pass over all that is stale: parts are written together
        let from = shadow.stale.iter().map(|s| s.offset.max(shadow.place.offset)).min().unwrap_or(place.offset);
        let end = shadow.stale.iter().map(|s| s.end().min(shadow.place.end())).max().unwrap_or(place.end());
        shadow.stale.clear();
        let refresh = Refresh {
            from: master_address + from as u64 - place.offset as u64,
            to: shadow.bytes.address() + (from - shadow.place.offset) as u64 / 2,
            n: (end - from) as u64 / 4,
        };
        Ok((to, Some(refresh)))
    }

    /// The optimiser wrote this master's shadow together with the master.
    pub(super) fn shadow_written(&mut self, master: &Tensor) -> Result<()> {
        let place = self.place(master)?;
        if let Some(shadow) = self.shadows.of(&place) {
            shadow.stale.retain(|s| !place.contains(s));
        }
        Ok(())
    }

    /// Takes all shadows for stale.
    pub(super) fn distrust_shadows(&mut self) {
        self.shadows.0.iter_mut().for_each(|s| s.stale = vec![s.place]);
        self.moved();
    }

    /// Bytes of all shadows.
    pub(super) fn shadow_bytes(&self) -> usize {
        self.shadows.0.iter().map(|s| s.bytes.bytes()).sum()
    }
}
