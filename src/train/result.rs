//! What a run leaves: the trained adapter or model, and the gradients of its first step under the same names.

use super::inputs::Kind;
use super::run_folder::model_folder;
use super::session::Session;
use crate::base::Result;
use crate::io::{HostData, HostTensor};
use crate::qwen3vl::adapter_write::{Pair, write_adapter};
use crate::qwen3vl::save::save_trained;

impl Session<'_> {
    /// Every trained tensor's gradient under the name that files give it.
    pub fn named_gradients(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let prefix = match self.kind {
            Kind::Lora(_) => "base_model.model.",
            Kind::Full => "",
        };
        let gradients = self.trainer.gradients()?;
        Ok(gradients.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect())
    }

    /// Writes the trained adapter, or the trained model, into the run's folder.
    pub fn write_result(&mut self) -> Result<()> {
        let dir = self.folder.dir().to_path_buf();
        let tensors = self.trainer.values()?;
        match &self.kind {
            Kind::Lora(lora) => {
                let values = |name: String| {
                    tensors.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, t)| match &t.data {
                        HostData::F32(values) => values,
                        HostData::I64(_) => &[],
                    })
                };
                let pairs: Vec<Pair> = lora
                    .modules
                    .iter()
                    .map(|m| Pair {
                        path: &m.path,
                        rank: lora.config.rank,
                        inputs: m.inputs,
                        outputs: m.outputs,
                        a: values(format!("{}.lora_A.weight", m.path)),
                        b: values(format!("{}.lora_B.weight", m.path)),
                    })
                    .collect();
                write_adapter(&dir, &lora.config, &self.settings.model.display().to_string(), &pairs)
            }
            Kind::Full => save_trained(self.checkpoint, &model_folder(&dir), &|name| {
                tensors.iter().find(|(n, _)| n == name).and_then(|(_, t)| match &t.data {
                    HostData::F32(values) => Some(&values[..]),
                    HostData::I64(_) => None,
                })
            }),
        }
    }
}
