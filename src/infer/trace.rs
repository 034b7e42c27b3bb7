//! Everything a prompt pass computes, to be held against another implementation.

use super::engine::{Answer, Engine, Progress, Read};
use crate::base::Result;
use crate::io::HostTensor;
use crate::qwen3vl::model::Rows;
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::tape::Tape;
use crate::tensor::Tensor;

/// The tensors of one prompt by name: input_ids [T], position_ids [3, T], pixel_values [P, 3 * temporal * patch * patch],
/// image_grid_thw [N, 3], image_embeds and deepstack.I [U, D], hidden.I [T, D] (0: embeddings with image rows in place; I:
/// output of layer I before its deepstack add, the last one after the final norm), logits [T, V].
pub fn trace(engine: &mut Engine, sequence: &Sequence, progress: Progress) -> Result<Vec<(String, HostTensor)>> {
    let packed = Packed::new(&[sequence], engine.model.config.vision.merge_size)?;
    let mut tape = Tape::new(engine.precision);
    let pass = engine.model.prompt(&mut tape, &packed, Rows::All, None, true)?;
    tape.begin(&mut engine.device)?;
    engine.model.write_prompt(&mut engine.device, &pass, &packed, &[])?;
    tape.run(&mut engine.device, &mut engine.clock, progress)?;
    let mut tensors = inputs(&packed);
    let mut read = |name: String, tensor: Tensor| -> Result<()> {
        let values = engine.device.memory().read_f32(tensor)?;
        tensors.push((name, HostTensor::f32(tensor.shape.sizes(), values)));
        Ok(())
    };
    if let Some(pixels) = pass.pixels {
        read("pixel_values".into(), pixels)?;
    }
    if let Some((embeds, deepstack)) = pass.features {
        read("image_embeds".into(), embeds)?;
        for (i, features) in deepstack.into_iter().enumerate() {
            read(format!("deepstack.{i}"), features)?;
        }
    }
    for (i, hidden) in pass.hidden.iter().enumerate() {
        read(format!("hidden.{i}"), *hidden)?;
    }
    read("logits".into(), pass.logits)?;
    Ok(tensors)
}

fn inputs(packed: &Packed) -> Vec<(String, HostTensor)> {
    let t = packed.tokens();
    let ids = packed.ids.iter().map(|id| *id as i64).collect();
    let axis = |a: usize| packed.positions.iter().map(move |p| p[a] as i64);
    let positions = axis(0).chain(axis(1)).chain(axis(2)).collect();
    let mut tensors = vec![
        ("input_ids".into(), HostTensor::i64([t], ids)),
        ("position_ids".into(), HostTensor::i64([3, t], positions)),
    ];
    if !packed.grids.is_empty() {
        let grids = packed.grids.iter().flatten().map(|g| *g as i64).collect();
        tensors.push(("image_grid_thw".into(), HostTensor::i64([packed.grids.len(), 3], grids)));
    }
    tensors
}

/// The same logits [T, V] through the cache: the prompt up to the end of its last image (or its first token) in one
/// pass, every token after it alone.
pub fn through_cache(
    engine: &mut Engine,
    sequence: &Sequence,
    progress: Progress,
) -> Result<Vec<(String, HostTensor)>> {
    let t = sequence.ids.len();
    let first = sequence.is_image.iter().rposition(|i| *i).map_or(1, |last| last + 1).min(t);
    let head = Sequence {
        ids: sequence.ids[..first].to_vec(),
        is_image: sequence.is_image[..first].to_vec(),
        ..sequence.clone()
    };
    engine.reserve([t])?;
    let (mut cached, answer) = engine.prefill(&[&head], Read::Logits(Rows::All), &mut |_, _| ())?;
    let mut rows = Vec::new();
    let mut keep = |answer: Answer| match answer {
        Answer::Logits(new) => rows.extend(new.into_iter().flatten()),
        Answer::Tokens(_) => (),
    };
    keep(answer);
    for at in first..t {
        progress(at, t);
        let mut sequences: Vec<_> = cached.iter_mut().collect();
        keep(engine.extend(&mut sequences, &[&sequence.ids[at..at + 1]], Read::Logits(Rows::All))?);
    }
    let vocabulary = engine.model.config.text.vocab_size;
    Ok(vec![("logits".into(), HostTensor::f32([t, vocabulary], rows))])
}
