//! What a run leaves: the trained adapter or model, and the gradients of its first step under the same names.

use super::inputs::Kind;
use super::session::{Best, Said, Session, Watch};
use super::{fingerprint, run_folder};
use crate::base::{Error, Result};
use crate::io::{HostData, HostTensor};
use crate::qwen3vl::adapter;
use crate::qwen3vl::adapter_write::{Base, Pair, write_adapter};
use crate::qwen3vl::save::save_trained;

impl Session<'_> {
    /// Every trained tensor's gradient under the name that files give it.
    pub fn named_gradients(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let prefix = match self.kind {
            Kind::Lora(_) => adapter::PREFIX,
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
                let name = self.settings.model.display().to_string();
                let base =
                    Base { name: &name, fingerprint: self.folder.model_fingerprint(), limits: Some(self.limits) };
                write_adapter(&dir, &lora.config, base, &pairs)
            }
            Kind::Full => save_trained(self.checkpoint, &run_folder::model_folder(&dir), self.limits, &|name| {
                tensors.iter().find(|(n, _)| n == name).and_then(|(_, t)| match &t.data {
                    HostData::F32(values) => Some(&values[..]),
                    HostData::I64(_) => None,
                })
            }),
        }
    }

    /// Of what lies in the run's folder as its result: of an adapter all of it, of a model what [`fingerprint::of_model`]
    /// looks at. Errors: it is not there, or cannot be read.
    pub fn result_fingerprint(&self) -> Result<String> {
        match self.kind {
            Kind::Lora(_) => fingerprint::of_adapter(self.folder.dir()),
            Kind::Full => fingerprint::of_model(&run_folder::model_folder(self.folder.dir())),
        }
    }

    /// Whether a run that goes on still has what its best evaluation left. That of the last step is written again. An
    /// older one is gone, and the run goes on without: a process that was killed after a better evaluation and before the
    /// checkpoint after it leaves that evaluation's result, and what follows comes to it again. [`Session::check_best`] has
    /// the last word.
    pub fn look_for_best(&mut self, watch: &mut Watch) -> Result<()> {
        let Some(best) = self.state.best.clone() else { return Ok(()) };
        if self.holds(&best) {
            return Ok(());
        }
        let (result, step) = (self.result_place(), best.step);
        if step == self.done {
            self.write_result()?;
            self.state.best = Some(Best { result: self.result_fingerprint()?, ..best });
            let said = format!("{result} was not that of step {step}, the best evaluation; it is written again");
            (watch.said)(Said::Note(said));
        } else if self.state.ended.is_none() {
            (watch.said)(Said::Note(format!(
                "{result} is not that of step {step}, the best evaluation so far: unless a later one is better, put it \
                 back before the run ends"
            )));
        }
        Ok(())
    }

    /// Errors: what the `best` evaluation left was removed or changed since.
    pub fn check_best(&self, best: &Best) -> Result<()> {
        if self.holds(best) {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "{} was removed or changed since it was written at step {}, the best evaluation; put it back and give \
             --resume, or --overwrite to run again",
            self.result_place(),
            best.step
        )))
    }

    fn holds(&self, best: &Best) -> bool {
        self.result_fingerprint().is_ok_and(|result| result == best.result)
    }

    fn result_place(&self) -> String {
        let dir = self.folder.dir();
        match self.kind {
            Kind::Lora(_) => format!("the adapter in {}", dir.display()),
            Kind::Full => format!("the model in {}", run_folder::model_folder(dir).display()),
        }
    }
}
