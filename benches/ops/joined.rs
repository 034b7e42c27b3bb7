//! A product and the word that reads it, as a tape runs them: in one launch where the device has a kernel for both.

use vlm::base::Result;
use vlm::device::{Clock, Device, Facts};
use vlm::ops::{Cost, Op};
use vlm::tape::Record;
use vlm::tensor::{Tensor, Weight};

pub struct Joined(Record, Record);

impl Joined {
    pub fn of(product: impl Into<Record>, next: impl Into<Record>) -> Joined {
        Joined(product.into(), next.into())
    }

    fn both(&self) -> [&dyn Op; 2] {
        [self.0.op(), self.1.op()]
    }

    /// What the second reads of what the first writes.
    fn between(&self) -> impl Iterator<Item = Tensor> {
        let read = self.1.op().inputs();
        self.0.op().outputs().into_iter().filter(move |y| read.iter().any(|t| t.same_value(y)))
    }
}

impl Op for Joined {
    fn name(&self) -> &'static str {
        self.0.op().name()
    }
    fn contract(&self) -> Result<()> {
        self.both().iter().try_for_each(|op| op.contract())
    }
    fn inputs(&self) -> Vec<Tensor> {
        let read = self.1.op().inputs().into_iter().filter(|t| !self.between().any(|y| y.same_value(t)));
        self.0.op().inputs().into_iter().chain(read).collect()
    }
    fn outputs(&self) -> Vec<Tensor> {
        self.both().iter().flat_map(|op| op.outputs()).collect()
    }
    fn weights(&self) -> Vec<&Weight> {
        self.0.op().weights().into_iter().chain(self.1.op().weights()).collect()
    }
    fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        match self.0.followed(&self.1) {
            Some(followed) => followed.scratch(facts),
            None => self.0.op().scratch(facts),
        }
    }
    /// Where both may be one the second does not read again what the first writes.
    fn cost(&self) -> Cost {
        let [first, second] = self.both().map(|op| op.cost());
        let between: usize = match self.0.followed(&self.1) {
            Some(_) => self.between().map(|t| t.bytes()).sum(),
            None => 0,
        };
        Cost { bytes: first.bytes + second.bytes - between as u64, flops: first.flops }
    }
    fn forward(&self, device: &mut Device) -> Result<()> {
        let done = match self.0.followed(&self.1) {
            Some(followed) => followed.run(device, &mut Clock::default())?,
            None => self.0.op().forward(device).map(|()| false)?,
        };
        if done { Ok(()) } else { self.1.op().forward(device) }
    }
}
