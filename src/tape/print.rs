//! A tape as text: a line a record with shapes, cost and the memory alive while it runs.

use super::{Tape, plan};
use std::fmt;

impl fmt::Display for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alive = plan::alive(self);
        let mut scope = usize::MAX;
        for ((record, at), alive) in self.records.iter().zip(&self.scopes).zip(alive) {
            if *at != scope {
                scope = *at;
                writeln!(f, "{}", self.scope_names[scope])?;
            }
            let op = record.op();
            let shapes = |tensors: Vec<crate::tensor::Tensor>| {
                tensors.iter().map(|t| format!("{}{}", t.dtype, t.shape)).collect::<Vec<_>>().join(" ")
            };
            let cost = op.cost();
            writeln!(
                f,
                "  {:<16} {} -> {}   {:.2} MB moved, {:.2} GFLOP, {:.2} MB alive",
                op.name(),
                shapes(op.inputs()),
                shapes(op.outputs()),
                cost.bytes as f64 / 1e6,
                cost.flops as f64 / 1e9,
                alive as f64 / 1e6
            )?;
        }
        let layout = self.plan();
        let cost = self.cost();
        write!(
            f,
            "{} records, {:.2} GFLOP, {:.2} MB moved, activation arena {:.2} MB",
            self.records.len(),
            cost.flops as f64 / 1e9,
            cost.bytes as f64 / 1e6,
            layout.bytes as f64 / 1e6
        )
    }
}
