//! Qwen3-VL: photos and text in, answers and scores out.
//!
//! The map, in the order that things flow. A row names the file and the function to read next.
//!
//! # An image becomes tokens
//!
//! | what happens | file | function |
//! |---|---|---|
//! | a conversation is read, its pictures found | `src/data/messages/mod.rs` | `read_messages` |
//! | photos of other shapes become a labelled set | `src/data/import/mod.rs` | `import` |
//! | or a labelled set, line by line | `src/data/dataset.rs` | `read_dataset` |
//! | whose photos are whole | `src/data/whole.rs` | `whole` |
//! | or photos are drawn, with what is on them | `src/data/drawn/photos.rs` | `write_set` |
//! | a file becomes upright RGB on white | `src/data/image/decode.rs` | `load` |
//! | JPEG as libjpeg-turbo decodes it | `src/data/image/jpeg/mod.rs` | `decode` |
//! | the size that fits patches and pixel limits | `src/data/image/patches.rs` | `target_size` |
//! | bicubic, antialiased, in 8 bits | `src/data/image/resize.rs` | `resize` |
//! | patches in the order in which they merge | `src/data/image/patches.rs` | `patches` |
//! | the checkpoint's own template makes text of turns | `src/qwen3vl/template.rs` | `render_with_answers` |
//! | text becomes ids | `src/qwen3vl/tokenizer.rs` | `encode_with_offsets` |
//! | placeholders get a token for every square of patches that merges | `src/qwen3vl/prompt.rs` | `build` |
//! | ids and pixels together: a `Sequence` | `src/qwen3vl/prepare.rs` | `prepare` |
//!
//! # A token becomes logits
//!
//! | what happens | file | function |
//! |---|---|---|
//! | a folder's tensors, mapped, every one accounted for | `src/qwen3vl/checkpoint.rs` | `open` |
//! | an adapter's pairs, each with its module | `src/qwen3vl/adapter.rs` | `open` |
//! | weights find their layers | `src/qwen3vl/model.rs` | `load` |
//! | prompts side by side, without padding | `src/qwen3vl/pack.rs` | `new` |
//! | time, height and width of every token | `src/qwen3vl/positions.rs` | `text_positions` |
//! | the pass is written onto a tape | `src/qwen3vl/model.rs` | `prompt` |
//! | the tower: patches to features and deepstack | `src/qwen3vl/vision.rs` | `forward` |
//! | the layers: ids and features to logits | `src/qwen3vl/text.rs` | `forward` |
//! | each value gets its life and its bytes | `src/tape/plan.rs` | `layout` |
//! | the records run in order | `src/tape/mod.rs` | `run` |
//! | or again, as one launch | `src/tape/replay.rs` | `run` |
//! | a prompt fills the cache, a step extends it | `src/infer/engine.rs` | `prefill` |
//! | blocks of the cache, shared until written | `src/infer/cache.rs` | `grow` |
//! | logits become the next token | `src/host/sample.rs` | `sample` |
//! | answers, token by token | `src/infer/generate.rs` | `generate` |
//! | or probabilities of a closed set of answers | `src/infer/choices.rs` | `score` |
//! | photos that leak from one part of a set into another | `src/dedupe/leaks.rs` | `find` |
//! | a labelled set's predictions | `src/classify/evaluate.rs` | `evaluate` |
//! | or those of a model that is served elsewhere | `src/classify/endpoint/mod.rs` | `ask` |
//! | what predictions add up to, beside what guessing gets | `src/classify/metrics.rs` | `metrics` |
//! | two evaluations, photo by photo | `src/classify/compare.rs` | `compare` |
//! | a page to look at | `src/report/mod.rs` | `write` |
//!
//! # A loss becomes gradients, gradients an adapter
//!
//! | what happens | file | function |
//! |---|---|---|
//! | what a run will need, before it begins | `src/train/plan.rs` | `plan` |
//! | what is trained: numbers, gradients and moments, side by side | `src/qwen3vl/trainable.rs` | `lora` |
//! | what the frozen tower made of a photo stays on the device | `src/train/features.rs` | `take` |
//! | the label tokens' loss at the end of a pass | `src/ops/linear_loss.rs` | `forward` |
//! | the tape walks its records backward | `src/tape/rules.rs` | `backward` |
//! | what is computed twice, so that activations fit | `src/tape/recompute.rs` | `fit` |
//! | what drops out before an adapter | `src/host/dropout.rs` | `factors` |
//! | gradients of a micro-batch are added | `src/train/step.rs` | `micro_batch` |
//! | their norm, clipping, AdamW | `src/train/step.rs` | `update` |
//! | what each word took of a step's time | `src/device/clock.rs` | `time` |
//! | which part of the device's peak that is | `src/train/mfu.rs` | `mfu` |
//!
//! # A word's life
//!
//! A word is one operation with one name in every room. `norm` is the plainest; `CONTRIBUTING.md` tells how to add one.
//!
//! | what happens | file | function |
//! |---|---|---|
//! | the formula as the shortest correct loop | `src/host/norm.rs` | `row` |
//! | arguments, contract, cost, a way to run per device | `src/ops/norm.rs` | `contract` |
//! | a variant of the tape's record | `src/tape/record.rs` | `op` |
//! | a layer makes the output value and pushes the record | `src/nn/mod.rs` | `apply` |
//! | bytes of inputs and outputs are lent, never overlapping | `src/device/memory.rs` | `borrow` |
//! | or, for a kernel, their addresses | `src/device/accelerator.rs` | `addresses` |
//! | the numbers | `src/ops/norm.rs` | `forward` |
//! | or, on a device, which kernel a product takes | `src/ops/linear/plan.rs` | `product` |
//! | or a product and the word after it together, in one launch | `src/ops/linear/following.rs` | `run` |
//! | which operation makes its gradients | `src/tape/rules.rs` | `rule` |
//! | the same on a GPU, or emulated | `cuda/norm.cu` | `norm_fwd_bf16` |
//! | held against the host's, row by row | `tests/suite/kernel_norm.rs` | `forward_agrees_with_the_host` |
//! | PyTorch's values and gradients, central differences | `tests/suite/host_norm.rs` | `follows_pytorch` |
//! | time at the real models' shapes | `benches/words.rs` | `linear` |
//!
//! # Rooms
//!
//! A room uses rooms on lower floors only, and on its own floor those that its row names. A test reads this table.
//!
//! | floor | room | owns | may use |
//! |---|---|---|---|
//! | 9 | `cli` | arguments, printing, progress, exit codes; a file per command | everything |
//! | 8 | `report` | the page of runs and evaluations | `train`, `classify`, `data`, `io`, `base` |
//! | 8 | `train` | the training step and loop, the run's folder | `infer`, `classify`, `qwen3vl`, `tape`, `ops`, `device`, `tensor`, `io`, `data`, `host`, `base` |
//! | 8 | `classify` | scoring of labelled sets | `infer`, `qwen3vl`, `data`, `io`, `base` |
//! | 8 | `dedupe` | near-duplicates by pixels and the tower's embeddings | `infer`, `qwen3vl`, `data`, `io`, `base` |
//! | 8 | `infer` | prefill, decode, cache, sampling, closed sets | `qwen3vl`, `tape`, `ops`, `device`, `tensor`, `io`, `base` |
//! | 7 | `qwen3vl` | architecture, configuration, folders, positions, prompts | `nn`, `tape`, `ops`, `device`, `tensor`, `io`, `data`, `base` |
//! | 6 | `nn` | layers: parameters, and the records they append | `tape`, `ops`, `tensor`, `base` |
//! | 5 | `tape` | the record of what runs, the memory plan | `ops`, `device`, `tensor`, `base` |
//! | 4 | `ops` | a word's contract, cost and way to run | `device`, `tensor`, `host`, `base` |
//! | 3 | `device` | arenas, launchers, what machine there is | `tensor`, `base` |
//! | 2 | `tensor` | handles of values and weights | `base` |
//! | 1 | `host` | the words' loops: the specification | `base` |
//! | 1 | `data` | photos and text to arrays, datasets | `base` |
//! | 1 | `io` | memory maps, safetensors, JSON, atomic files, locks, kinds of folders | `base` |
//! | 0 | `base` | errors, shapes, element types, environment, files that are read, random numbers, the date | nothing |

// stdout and stderr are src/cli's: a write that fails must not end the program, as these macros do
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod base;
pub mod classify;
pub mod cli;
pub mod data;
pub mod dedupe;
pub mod device;
pub mod host;
pub mod infer;
pub mod io;
pub mod nn;
pub mod ops;
pub mod qwen3vl;
pub mod report;
pub mod tape;
pub mod tensor;
pub mod train;
