//! The rows: an operation each, at the shapes of a model and a step.

use super::cublaslt::{Form, Product};
use super::joined::Joined;
use super::room::Room;
use super::shapes::{DECODES, Decode, MODELS, Model, STEPS, Step, TINY, TINY_DECODE, TINY_STEP};
use vlm::base::{DType, Precision};
use vlm::device::Accumulate;
use vlm::host::attention::{Heads, Mask};
use vlm::ops::adamw::AdamW;
use vlm::ops::attention::{Attention, AttentionBackward};
use vlm::ops::attention_cached::AttentionCached;
use vlm::ops::deepstack_add::DeepstackAdd;
use vlm::ops::embed::Embed;
use vlm::ops::grad_norm::GradNorm;
use vlm::ops::linear::{Activation, Adapter, Linear, LinearBackward, Segment};
use vlm::ops::linear_loss::LinearLoss;
use vlm::ops::norm::{Kind, Norm, NormBackward};
use vlm::ops::patch_embed::PatchEmbed;
use vlm::ops::qk_rope::{Append, HeadNorms, QkRope, QkRopeBackward};
use vlm::ops::sample::{Choice, Sample};
use vlm::ops::swiglu::{Swiglu, SwigluBackward};
use vlm::ops::{Gradient, Op};
use vlm::tensor::Tensor;

/// Makes a copy of a row's operation.
type Make = Box<dyn Fn(&mut Room) -> Box<dyn Op>>;

pub struct Row {
    pub model: &'static str,
    pub step: &'static str,
    pub operation: String,
    pub shape: String,
    pub op: Make,
    /// The product that cuBLASLt computes beside it: that of the weight, without adapters and what follows.
    pub product: Option<Product>,
}

impl Row {
    pub fn name(&self) -> String {
        format!("{} {} {}", self.model, self.step, self.operation)
    }
}

/// The article's step of every model first, then the other step, then decoding.
pub fn all() -> Vec<Row> {
    let training = STEPS.iter().flat_map(|step| MODELS.iter().flat_map(move |model| of_step(model, step)));
    let decoding = MODELS.iter().flat_map(|model| DECODES.iter().flat_map(move |decode| of_decode(model, decode)));
    training.chain(decoding).collect()
}

/// Every kind of row, as small as reaches the same code.
pub fn tiny() -> Vec<Row> {
    of_step(&TINY, &TINY_STEP).into_iter().chain(of_decode(&TINY, &TINY_DECODE)).collect()
}

struct Rows {
    model: &'static str,
    step: &'static str,
    rows: Vec<Row>,
}

impl Rows {
    fn push<O: Op + 'static>(&mut self, operation: &str, shape: String, make: impl Fn(&mut Room) -> O + 'static) {
        let op: Make = Box::new(move |room| Box::new(make(room)));
        let (model, step) = (self.model, self.step);
        self.rows.push(Row { model, step, operation: operation.into(), shape, op, product: None });
    }

    /// Says which product the last row is.
    fn beside(&mut self, form: Form, m: usize, n: usize, k: usize) {
        if let Some(row) = self.rows.last_mut() {
            row.product = Some(Product { form, m, n, k });
        }
    }
}

/// A linear layer: its weights' output widths, and the rank of an adapter on each.
#[derive(Clone)]
struct Layer {
    m: usize,
    k: usize,
    widths: Vec<usize>,
    rank: Option<usize>,
    trained: bool,
    bias: bool,
    activation: Activation,
}

impl Layer {
    fn frozen(m: usize, k: usize, widths: &[usize]) -> Layer {
        let (rank, activation) = (None, Activation::None);
        Layer { m, k, widths: widths.to_vec(), rank, trained: false, bias: false, activation }
    }

    fn n(&self) -> usize {
        self.widths.iter().sum()
    }

    fn shape(&self) -> String {
        format!("{}x{}x{}", self.m, self.n(), self.k)
    }

    fn forward(&self, room: &mut Room) -> Linear {
        let segment = |n: &usize| Segment {
            weight: if self.trained { room.trained([*n, self.k]) } else { room.weight([*n, self.k]) },
            bias: self.bias.then(|| room.weight([*n])),
            adapter: self.rank.map(|rank| {
                let (a, b) = (room.trained([rank, self.k]), room.trained([*n, rank]));
                Adapter { a, b, scale: 1.0, dropout: None }
            }),
        };
        let segments: Vec<Segment> = self.widths.iter().map(segment).collect();
        let rank = Linear::rank(&segments);
        let s = (rank > 0).then(|| room.bf16([self.m, rank]));
        Linear {
            x: room.bf16([self.m, self.k]),
            rows: None,
            segments,
            activation: self.activation,
            residual: None,
            noise: None,
            s,
            z: None,
            precision: Precision::Bf16,
            y: room.output(DType::Bf16, [self.m, self.n()]),
        }
    }

    fn backward(&self, room: &mut Room, dx: bool) -> LinearBackward {
        let forward = self.forward(room);
        let dx = dx.then(|| gradient(room, forward.x));
        LinearBackward { dy: room.bf16(forward.y.shape), forward, dx, dresidual: None }
    }
}

/// A gradient that is overwritten.
fn gradient(room: &mut Room, of: Tensor) -> Gradient {
    Gradient { tensor: room.output(DType::Bf16, of.shape), accumulate: Accumulate::Overwrite }
}

fn starts(room: &mut Room, lengths: &[usize]) -> Tensor {
    let ends = lengths.iter().scan(0, |end, n| {
        *end += *n as i32;
        Some(*end)
    });
    room.whole([lengths.len() + 1], std::iter::once(0).chain(ends).collect())
}

fn attention(room: &mut Room, lengths: &[usize], heads: Heads, mask: Mask) -> Attention {
    let t = lengths.iter().sum();
    let pairs = lengths.iter().map(|n| (if mask == Mask::Full { n * n } else { n * (n + 1) / 2 }) as u64).sum();
    let (queries, keys) = (heads.queries * heads.width, heads.keys * heads.width);
    Attention {
        q: room.bf16([t, queries]),
        k: room.bf16([t, keys]),
        v: room.bf16([t, queries + 2 * keys]),
        v_column: queries + keys,
        starts: starts(room, lengths),
        heads,
        mask,
        scale: (heads.width as f32).powf(-0.5),
        pairs,
        y: room.output(DType::Bf16, [t, queries]),
        lse: None,
    }
}

fn attention_backward(room: &mut Room, lengths: &[usize], heads: Heads, mask: Mask) -> AttentionBackward {
    let mut forward = attention(room, lengths, heads, mask);
    let (t, width) = (forward.y.shape.rows(), forward.y.shape.width());
    forward.y = room.bf16([t, width]);
    forward.lse = Some(room.f32([heads.queries, t]));
    let dy = room.bf16(forward.y.shape);
    let [dq, dk, dv] = [forward.q, forward.k, forward.v].map(|tensor| gradient(room, tensor));
    AttentionBackward { forward, dy, dq, dk, dv }
}

fn qk_rope(room: &mut Room, t: usize, heads: Heads, pool_rows: Option<usize>) -> QkRope {
    let keys = heads.keys * heads.width;
    let append = pool_rows.map(|rows| {
        let (keys, values) = (room.pool([rows, keys]), room.pool([rows, keys]));
        Append { keys, values, slots: room.whole([t], (0..t as i32).map(|i| i * (rows / t) as i32).collect()) }
    });
    QkRope {
        qkv: room.bf16([t, (heads.queries + 2 * heads.keys) * heads.width]),
        angles: room.f32([t, heads.width]),
        norms: Some(HeadNorms { query: room.weight([heads.width]), key: room.weight([heads.width]), eps: 1e-6 }),
        heads,
        append,
        precision: Precision::Bf16,
        q: room.output(DType::Bf16, [t, heads.queries * heads.width]),
        k: room.output(DType::Bf16, [t, keys]),
    }
}

fn norm(room: &mut Room, t: usize, d: usize) -> Norm {
    let kind = Kind::Rms { weight: room.weight([d]) };
    let (x, y) = (room.bf16([t, d]), room.output(DType::Bf16, [t, d]));
    Norm { x, rows: None, kind, eps: 1e-6, precision: Precision::Bf16, y }
}

fn swiglu(room: &mut Room, t: usize, f: usize) -> Swiglu {
    Swiglu { gate_up: room.bf16([t, 2 * f]), y: room.output(DType::Bf16, [t, f]) }
}

fn gated(room: &mut Room, t: usize, d: usize, f: usize) -> Joined {
    let product = Layer::frozen(t, d, &[f, f]).forward(room);
    let next = Swiglu { gate_up: product.y, y: room.output(DType::Bf16, [t, f]) };
    Joined::of(product, next)
}

/// The layers of a block of the language model: name, inputs, outputs, and whether adapters are on them.
fn layers(model: &Model) -> [(&'static str, usize, Vec<usize>, bool); 4] {
    let Heads { queries, keys, width } = model.heads;
    [
        ("qkv", model.hidden, vec![queries * width, keys * width, keys * width], true),
        ("o", queries * width, vec![model.hidden], true),
        ("gate_up", model.hidden, vec![model.mlp; 2], false),
        ("down", model.mlp, vec![model.hidden], false),
    ]
}

fn of_step(model: &'static Model, step: &'static Step) -> Vec<Row> {
    let mut rows = Rows { model: model.name, step: step.name, rows: Vec::new() };
    let (t, d, heads) = (step.tokens(), model.hidden, model.heads);
    for (name, k, widths, adapted) in layers(model) {
        let layer = Layer::frozen(t, k, &widths);
        let (n, shape) = (layer.n(), layer.shape());
        let of = layer.clone();
        rows.push(&format!("linear {name} forward"), shape.clone(), move |room| of.forward(room));
        rows.beside(Form::Forward, t, n, k);
        let of = layer.clone();
        rows.push(&format!("linear {name} dx"), shape.clone(), move |room| of.backward(room, true));
        rows.beside(Form::Dx, t, n, k);
        let of = Layer { trained: true, ..layer.clone() };
        rows.push(&format!("linear {name} dw"), shape.clone(), move |room| of.backward(room, false));
        rows.beside(Form::Dw, t, n, k);
        if adapted {
            let of = Layer { rank: Some(step.rank), ..layer };
            let (of, again) = (of.clone(), of);
            let name = format!("linear {name} LoRA {}", step.rank);
            rows.push(&format!("{name} forward"), shape.clone(), move |room| of.forward(room));
            rows.beside(Form::Forward, t, n, k);
            rows.push(&format!("{name} dx dA dB"), shape, move |room| again.backward(room, true));
            rows.beside(Form::Dx, t, n, k);
        }
    }
    let shape = format!("{}x{}x{} of {t}", heads.queries, heads.keys, heads.width);
    let lengths = step.sequences;
    rows.push("attention causal forward", shape.clone(), move |room| attention(room, lengths, heads, Mask::Causal));
    rows.push("attention causal backward", shape.clone(), move |room| {
        attention_backward(room, lengths, heads, Mask::Causal)
    });
    rows.push("qk_rope forward", shape.clone(), move |room| qk_rope(room, t, heads, None));
    rows.push("qk_rope backward", shape, move |room| {
        let forward = qk_rope(room, t, heads, None);
        let (dq, dk) = (room.bf16(forward.q.shape), room.bf16(forward.k.shape));
        let tensor = room.bf16(forward.qkv.shape);
        QkRopeBackward { forward, dq, dk, dqkv: Gradient { tensor, accumulate: Accumulate::Add } }
    });
    rows.push("norm forward", format!("{t}x{d}"), move |room| norm(room, t, d));
    rows.push("norm backward", format!("{t}x{d}"), move |room| {
        let forward = norm(room, t, d);
        let (dy, dx) = (room.bf16(forward.y.shape), room.bf16(forward.x.shape));
        NormBackward { forward, dy, dx: Some(Gradient { tensor: dx, accumulate: Accumulate::Add }) }
    });
    let f = model.mlp;
    rows.push("swiglu forward", format!("{t}x{f}"), move |room| swiglu(room, t, f));
    rows.push("linear gate_up with swiglu", format!("{t}x{}x{d}", 2 * f), move |room| gated(room, t, d, f));
    rows.beside(Form::Forward, t, 2 * f, d);
    rows.push("swiglu backward", format!("{t}x{f}"), move |room| {
        let forward = swiglu(room, t, f);
        let (dy, dgate_up) = (room.bf16(forward.y.shape), gradient(room, forward.gate_up));
        SwigluBackward { forward, dy, dgate_up }
    });
    let (r, v) = (step.labels, model.vocabulary);
    rows.push("linear_loss with dx", format!("{r}x{v}x{d}"), move |room| LinearLoss {
        x: room.bf16([r, d]),
        head: room.weight([v, d]),
        labels: room.whole([r], (0..r).map(|i| (i * 7919 % v) as i32).collect()),
        scale: room.f32([1]),
        precision: Precision::Bf16,
        losses: room.output(DType::F32, [r]),
        dx: Some(room.output(DType::Bf16, [r, d])),
    });
    let u = step.patches() / 4;
    rows.push("embed", format!("{t}x{d}"), move |room| {
        // every copy reads other rows of the table
        let before = room.copies_before() * t;
        let ids = room.whole([t], (before..before + t).map(|i| (i * 7919 % v) as i32).collect());
        let of_token = (0..t).map(|i| if i < u { i as i32 } else { -1 }).collect();
        let image = (u > 0).then(|| (room.bf16([u, d]), room.whole([t], of_token)));
        let (table, y) = (room.table([v, d]), room.output(DType::Bf16, [t, d]));
        Embed { ids, table, image, precision: Precision::Bf16, y }
    });
    if u > 0 {
        rows.push("deepstack_add", format!("{u}x{d} to {t}"), move |room| {
            let x = room.bf16([t, d]);
            let rows = room.whole([u], (0..u as i32).collect());
            DeepstackAdd { x, features: room.bf16([u, d]), rows, y: x }
        });
        tower(&mut rows, model, step);
    }
    let adapter = |(_, k, widths, adapted): &(_, usize, Vec<usize>, bool)| match adapted {
        true => step.rank * widths.iter().map(|n| n + k).sum::<usize>(),
        false => 0,
    };
    let n = model.layers * layers(model).iter().map(adapter).sum::<usize>();
    rows.push("grad_norm", format!("{n}"), move |room| {
        let gradients = room.parameter([n]);
        GradNorm { gradients, norm: room.output(DType::F32, [1]) }
    });
    rows.push("adamw", format!("{n}"), move |room| AdamW {
        value: room.parameter([n]),
        gradient: room.parameter([n]),
        first: room.parameter([n]),
        second: room.second_moment([n]),
        norm: room.f32([1]),
        max_norm: Some(1.0),
        step: vlm::host::adamw::Step {
            number: 3,
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            gradient_scale: 1.0,
        },
    });
    rows.rows
}

/// The words of the tower, which is frozen: but for attention's, forward alone.
fn tower(rows: &mut Rows, model: &'static Model, step: &'static Step) {
    let (p, c, heads, pictures) = (step.patches(), model.tower, model.tower_heads, step.pictures);
    for (name, k, n, activation) in [
        ("qkv", c, 3 * c, Activation::None),
        ("proj", c, c, Activation::None),
        ("fc1", c, model.tower_mlp, Activation::GeluTanh),
        ("fc2", model.tower_mlp, c, Activation::None),
    ] {
        let layer = Layer { bias: true, activation, ..Layer::frozen(p, k, &[n]) };
        rows.push(&format!("tower linear {name} forward"), layer.shape(), move |room| layer.forward(room));
        rows.beside(Form::Forward, p, n, k);
    }
    let shape = format!("{}x{} of {p}", heads.queries, heads.width);
    rows.push("tower attention full forward", shape.clone(), move |room| attention(room, pictures, heads, Mask::Full));
    rows.push("tower attention full backward", shape, move |room| {
        attention_backward(room, pictures, heads, Mask::Full)
    });
    let (k, n) = (model.patch, model.positions);
    rows.push("patch_embed", format!("{p}x{c}x{k}"), move |room| PatchEmbed {
        pixels: room.bf16([p, k]),
        weight: room.weight([c, k]),
        bias: room.weight([c]),
        table: room.weight([n, c]),
        corners: room.whole([p, 4], (0..4 * p).map(|i| (i % n) as i32).collect()),
        shares: room.f32([p, 4]),
        precision: Precision::Bf16,
        y: room.output(DType::Bf16, [p, c]),
    });
    rows.beside(Form::Forward, p, c, k);
}

/// Tokens of a block of the cache.
const BLOCK: usize = vlm::infer::cache::BLOCK;

fn of_decode(model: &'static Model, decode: &'static Decode) -> Vec<Row> {
    let mut rows = Rows { model: model.name, step: decode.name, rows: Vec::new() };
    let (b, d, heads, v) = (decode.sequences, model.hidden, model.heads, model.vocabulary);
    let head = ("head", d, vec![v], false);
    for (name, k, widths, _) in layers(model).into_iter().chain([head]) {
        let layer = Layer::frozen(b, k, &widths);
        let (n, shape) = (layer.n(), layer.shape());
        rows.push(&format!("linear {name} forward"), shape, move |room| layer.forward(room));
        rows.beside(Form::Forward, b, n, k);
    }
    let (max_blocks, held) = (decode.held.div_ceil(BLOCK), decode.held);
    let pool = b * max_blocks * BLOCK;
    let shape = format!("{b}x{held} {}x{}x{}", heads.queries, heads.keys, heads.width);
    rows.push("attention_cached", shape, move |room| {
        let queries = heads.queries * heads.width;
        AttentionCached {
            q: room.bf16([b, queries]),
            keys: room.pool([pool, heads.keys * heads.width]),
            values: room.pool([pool, heads.keys * heads.width]),
            starts: starts(room, &vec![1; b]),
            lengths: room.whole([b], vec![held as i32; b]),
            blocks: room.whole([b, max_blocks], (0..(b * max_blocks) as i32).rev().collect()),
            block: BLOCK,
            heads,
            scale: (heads.width as f32).powf(-0.5),
            y: room.output(DType::Bf16, [b, queries]),
        }
    });
    // each sequence appends a row: apart from each other, as in the cache, in pools that leave room for many copies
    let appended = b * 8;
    rows.push("qk_rope with append", format!("{b}"), move |room| qk_rope(room, b, heads, Some(appended)));
    let (f, [(_, k, widths, _), (_, o, ..), ..]) = (model.mlp, layers(model));
    let n = widths.iter().sum();
    rows.push("linear qkv with qk_rope", format!("{b}x{n}x{k}"), move |room| {
        let product = Layer::frozen(b, k, &widths).forward(room);
        let next = QkRope { qkv: product.y, ..qk_rope(room, b, heads, Some(appended)) };
        Joined::of(product, next)
    });
    rows.beside(Form::Forward, b, n, k);
    rows.push("linear gate_up with swiglu", format!("{b}x{}x{d}", 2 * f), move |room| gated(room, b, d, f));
    rows.beside(Form::Forward, b, 2 * f, d);
    rows.push("linear o with norm", format!("{b}x{d}x{o}"), move |room| {
        let product = Linear { residual: Some(room.bf16([b, d])), ..Layer::frozen(b, o, &[d]).forward(room) };
        let next = Norm { x: product.y, ..norm(room, b, d) };
        Joined::of(product, next)
    });
    rows.beside(Form::Forward, b, d, o);
    let free = Choice { temperature: Some(0.7), top_k: 20, top_p: 0.8, ..Choice::GREEDY };
    let of_all = Choice { top_k: 0, ..free };
    let choices = [("sample greedy", Choice::GREEDY), ("sample top-k top-p", free), ("sample top-p", of_all)];
    for (name, choice) in choices {
        rows.push(name, format!("{b}x{v}"), move |room| Sample {
            logits: room.f32([b, v]),
            seen: room.whole([b, 1], vec![-1; b]),
            generated: room.whole([b, 1], vec![-1; b]),
            uniform: room.uniform([b]),
            choice,
            n_valid: v,
            y: room.output(DType::I32, [b]),
        });
    }
    rows.rows
}
