"""Single operations at small odd shapes, forward and backward, from PyTorch and transformers' own modules.

Everything is computed in float64. Inputs (and the gradients dY that flow in) are values that float32 holds exactly,
stored as F32; integers as I64; scalars (eps, lr, …), results and gradients as F64; `cast` as BF16. Where transformers'
code drops to float32 by itself (RMS norm, angles, vision rotary), the same formula is computed in float64 here and held
against transformers' function in float32 first.

Names are op.case.tensor. The gradient of T is dT, given for outputs, computed for what stands behind the bar; a loss
has the gradient 1. T tokens, P patches, H query heads, G key heads, E head width.

patch_embed.{small,real}   pixels [P, 3*2*s*s], weight [D,3,2,s,s], bias, table [n*n, D], grid [N,3]
                           -> y [P,D], rows in block order, table sampled bilinearly, corners aligned
                           | weight bias table
layer_norm.{a,b}           x [T,D], weight, bias, eps -> y | x weight bias
rms_norm.{a,b}             x [T,D], weight, eps -> y | x weight
linear.{plain,bias,gelu_tanh,gelu_erf,residual,lora,all}
                           x [T,K], weight [N,K], (bias), (residual [T,N]), (a [r,K], b [N,r], scale)
                           -> y = act(x W' + bias + scale (x A') B') + residual | all; `all` has the tanh form
merger.{final,deepstack}   x [P,D], norm, fc1, erf gelu, fc2, eps -> y [P/4,out]: norm per patch, or over 4D | all
qk_rope.{a,b}              q [T,H,E], k [T,G,E], q_norm, k_norm [E], positions [3,T], sections [3], theta, eps
                           -> q_out, k_out: normed per head, then interleaved M-RoPE | q k q_norm k_norm
vision_rope.{a,b}          q, k [P,H,E], positions [P,2] (row, column), theta -> q_out, k_out | q k
attention.{causal,full,cached}
                           q [T,H,E], k, v [S,G,E], starts [n+1] -> y [T,H,E]; scale E^-0.5 | q k v
                           cached: one sequence, the queries are its last T positions
swiglu.a                   gate, up [T,F] -> y = silu(gate) * up | gate up
embed.a                    ids [T], table [V,D], rows [U] (places of the images), features [U,D] -> y | table features
deepstack_add.a            x [T,D], rows [U], features [U,D] -> y | x features
linear_loss.{mean,shared}  x [T,D], weight [V,D], labels [T] (-100: ignored; row t predicts labels[t]), count
                           -> loss [] = sum of cross-entropies / count | x weight
adamw.{decay,plain}        p, g [3,n] (a row a step), lr [3], betas, eps, weight_decay
                           -> p_out [3,n] after each step, m, v after the third
grad_norm.{clipped,kept}   g0, g1, g2, max_norm -> norm [], g0_out, g1_out, g2_out
sample.*                   logits [V], history [k], temperature, top_k (0: off), top_p (1: off), repetition_penalty
                           -> probabilities [V], in transformers' order: penalty, temperature, top-k (ties of the last
                           one stay), top-p
cast.bf16                  x [n] -> y [n] BF16, round to nearest even
"""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import Qwen3VLConfig
from transformers.generation import logits_process
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

SEED = 20
EPS = 1e-6


class Book:
    def __init__(self):
        self.g, self.tensors = torch.Generator().manual_seed(SEED), {}

    def rand(self, *shape, scale=1.0, around=0.0):
        """Float64 values that float32 holds exactly."""
        return (around + scale * torch.randn(shape, generator=self.g)).double()

    def given(self, name, **tensors):
        """Tensors are stored as F32 or I64; Python's numbers and lists of them as F64 or I64."""
        for k, v in tensors.items():
            if isinstance(v, torch.Tensor):
                stored = v.detach().float() if v.is_floating_point() else v
                assert torch.equal(stored.to(v.dtype), v), (name, k)
                v = stored
            else:
                v = torch.from_numpy(np.asarray(v))
            self.tensors[f"{name}.{k}"] = v.clone()

    def result(self, name, **tensors):
        for k, v in tensors.items():
            assert v.dtype == torch.float64 and v.isfinite().all(), (name, k)
            self.tensors[f"{name}.{k}"] = v.detach().clone()

    def through(self, name, leaves, function, constants=None):
        """Runs function(**leaves) -> {output: value}, then backward from random gradients of the outputs."""
        leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
        self.given(name, **leaves, **(constants or {}))
        out = function(**leaves)
        self.result(name, **out)
        inward = {k: self.rand(*v.shape) for k, v in out.items()}
        if set(out) != {"loss"}:
            self.given(name, **{f"d{k}": v for k, v in inward.items()})
        else:
            inward = {"loss": torch.ones((), dtype=torch.float64)}
        grads = torch.autograd.grad(list(out.values()), list(leaves.values()), list(inward.values()))
        self.result(name, **{f"d{k}": v for k, v in zip(leaves, grads)})
        return out


def same(got, want, bound=2e-6):
    error = float((got.double() - want.double()).detach().norm() / want.double().detach().norm())
    assert error < bound, error


def patch_embed(b):
    for case, size, dim, side, grid in (
        ("small", 4, 6, 5, [[1, 4, 6], [1, 2, 2], [1, 2, 8]]),
        ("real", 16, 3, 7, [[1, 2, 4]]),
    ):
        grid = torch.tensor(grid)
        n = int(grid.prod(-1).sum())

        def f(weight, bias, table):
            conv = qwen.Qwen3VLVisionPatchEmbed(
                SimpleNamespace(patch_size=size, temporal_patch_size=2, in_channels=3, hidden_size=dim)
            )
            conv = conv.double()
            y, picture = torch.func.functional_call(conv, {"proj.weight": weight, "proj.bias": bias}, (pixels,)), []
            for _, h, w in grid.tolist():
                at = F.interpolate(table.T.reshape(1, dim, side, side), (h, w), mode="bilinear", align_corners=True)[0]
                picture.append(at.reshape(dim, h // 2, 2, w // 2, 2).permute(1, 3, 2, 4, 0).reshape(-1, dim))
            i, w = get_vision_interpolation_indices_and_weights(grid, side, align_corners=True, spatial_merge_size=2)
            same((table[i] * w[:, :, None]).sum(1), torch.cat(picture))
            return {"y": y + torch.cat(picture)}

        pixels = b.rand(n, 3 * 2 * size * size, scale=0.5)
        b.through(
            f"patch_embed.{case}",
            {
                "weight": b.rand(dim, 3, 2, size, size, scale=0.1),
                "bias": b.rand(dim),
                "table": b.rand(side * side, dim),
            },
            f,
            {"pixels": pixels, "grid": grid},
        )


def norms(b):
    for case, t, d, around in (("a", 5, 24, 3.0), ("b", 3, 77, -0.5)):
        x, w = b.rand(t, d, scale=2.0, around=around), b.rand(d, scale=0.2, around=1.0)
        x[1] *= 2.0**-10  # small enough for eps to matter
        b.through(
            f"layer_norm.{case}",
            {"x": x, "weight": w, "bias": b.rand(d)},
            lambda x, weight, bias: {"y": F.layer_norm(x, (d,), weight, bias, EPS)},
            {"eps": EPS},
        )
        module = qwen.Qwen3VLTextRMSNorm(d)
        module.weight.data = w.float()
        out = b.through(
            f"rms_norm.{case}", {"x": x, "weight": w}, lambda x, weight: {"y": rms(x, weight)}, {"eps": EPS}
        )
        same(out["y"], module(x.float()))


def rms(x, weight):
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))


def linears(b):
    t, k, n, r = 5, 37, 19, 3
    for case, wants, act in (
        ("plain", "", None),
        ("bias", "c", None),
        ("gelu_tanh", "c", "tanh"),
        ("gelu_erf", "c", "none"),
        ("residual", "cr", None),
        ("lora", "l", None),
        ("all", "crl", "tanh"),
    ):
        leaves = {"x": b.rand(t, k), "weight": b.rand(n, k, scale=0.3)}
        if "c" in wants:
            leaves["bias"] = b.rand(n)
        if "r" in wants:
            leaves["residual"] = b.rand(t, n)
        if "l" in wants:
            leaves |= {"a": b.rand(r, k, scale=0.3), "b": b.rand(n, r, scale=0.3)}

        def f(x, weight, bias=None, residual=None, a=None, b=None):
            y = F.linear(x, weight, bias)
            y = y if a is None else y + 1.5 * (x @ a.T) @ b.T
            y = y if act is None else F.gelu(y, approximate=act)
            return {"y": y if residual is None else y + residual}

        b.through(f"linear.{case}", leaves, f, {"scale": 1.5} if "l" in wants else None)


def mergers(b):
    d, out = 6, 11
    for case, post in (("final", False), ("deepstack", True)):
        module = qwen.Qwen3VLVisionPatchMerger(
            SimpleNamespace(hidden_size=d, spatial_merge_size=2, out_hidden_size=out), post
        ).double()
        shapes = {k.replace(".", "_"): p.shape for k, p in module.named_parameters()}
        names = {k.replace(".", "_"): k for k, _ in module.named_parameters()}
        leaves = {"x": b.rand(12, d, scale=2.0)} | {
            k: b.rand(*s, scale=0.3, around=1.0 if k == "norm_weight" else 0.0) for k, s in shapes.items()
        }
        b.through(
            f"merger.{case}",
            leaves,
            lambda x, **w: {"y": torch.func.functional_call(module, {names[k]: v for k, v in w.items()}, (x,))},
            {"eps": EPS},
        )


def ropes(b):
    places = torch.tensor([[0, 1, 2, 2, 2, 2, 4, 5, 300], [0, 1, 2, 2, 3, 3, 4, 5, 300], [0, 1, 2, 3, 2, 3, 4, 5, 300]])
    for case, heads, keys, width, sections in (("a", 3, 1, 48, [10, 8, 6]), ("b", 2, 2, 16, [4, 2, 2])):
        cfg = Qwen3VLConfig(
            text_config={
                "head_dim": width,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": sections,
                    "mrope_interleaved": True,
                },
            }
        ).text_config
        module = qwen.Qwen3VLTextRotaryEmbedding(cfg)
        inverse = 5e6 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = module.recomposition_frequencies((places[:, :, None] * inverse)[:, None].clone())
        cos, sin = angle.cos(), angle.sin()
        for ours, theirs in zip((cos, sin), module(torch.zeros(1), places[:, None])):
            same(ours, theirs, 2e-5)  # float32 angles up to 300

        def f(q, k, q_norm, k_norm):
            q, k = rms(q, q_norm).transpose(0, 1)[None], rms(k, k_norm).transpose(0, 1)[None]
            q, k = qwen.apply_rotary_pos_emb(q, k, cos, sin)
            return {"q_out": q[0].transpose(0, 1), "k_out": k[0].transpose(0, 1)}

        t = places.shape[1]
        b.through(
            f"qk_rope.{case}",
            {
                "q": b.rand(t, heads, width),
                "k": b.rand(t, keys, width),
                "q_norm": b.rand(width, scale=0.2, around=1.0),
                "k_norm": b.rand(width, scale=0.2, around=1.0),
            },
            f,
            {"positions": places, "sections": sections, "theta": 5e6, "eps": EPS},
        )
    for case, heads, width in (("a", 2, 24), ("b", 1, 72)):
        cfg = Qwen3VLConfig(vision_config={"hidden_size": heads * width, "num_heads": heads}).vision_config
        module = qwen.Qwen3VLVisionRotaryEmbedding(cfg)
        where = get_vision_position_ids(torch.tensor([[1, 4, 2], [1, 2, 2]]), 2)
        inverse = 10000.0 ** (-torch.arange(0, width // 2, 2, dtype=torch.float64) / (width // 2))
        angle = module.recomposition_frequencies(where[..., None] * inverse)

        def turn(x):
            return x * angle.cos()[:, None] + qwen.rotate_half(x) * angle.sin()[:, None]

        leaves = {"q": b.rand(len(where), heads, width), "k": b.rand(len(where), heads, width)}
        out = b.through(
            f"vision_rope.{case}",
            leaves,
            lambda q, k: {"q_out": turn(q), "k_out": turn(k)},
            {"positions": where, "theta": 1e4},
        )
        theirs = qwen.apply_rotary_pos_emb_vision(
            leaves["q"].float(), leaves["k"].float(), *module(torch.zeros(1), where)
        )
        for ours, t in zip(out.values(), theirs):
            same(ours, t)


def attention(b):
    def over(starts, group, causal):
        def f(q, k, v):
            parts = []
            for s, e in zip(starts, starts[1:]):
                cut = [x[s:e].transpose(0, 1)[None] for x in (q, k, v)]
                keys, values = qwen.repeat_kv(cut[1], group), qwen.repeat_kv(cut[2], group)
                parts.append(F.scaled_dot_product_attention(cut[0], keys, values, is_causal=causal)[0].transpose(0, 1))
            return {"y": torch.cat(parts)}

        return f

    def sets(t, s, h, g, e):
        return {"q": b.rand(t, h, e, scale=1.5), "k": b.rand(s, g, e), "v": b.rand(s, g, e)}

    starts = [0, 5, 6, 13]
    b.through("attention.causal", sets(13, 13, 6, 2, 16), over(starts, 3, True), {"starts": starts})
    starts = [0, 4, 12]
    b.through("attention.full", sets(12, 12, 2, 2, 72), over(starts, 1, False), {"starts": starts})

    def cached(q, k, v):
        t, s = len(q), len(k)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        mask = torch.arange(s) <= torch.arange(s - t, s)[:, None]
        return {
            "y": F.scaled_dot_product_attention(q, qwen.repeat_kv(k, 2), qwen.repeat_kv(v, 2), mask)[0].transpose(0, 1)
        }

    b.through("attention.cached", sets(2, 9, 4, 2, 10), cached, {"starts": [0, 9]})


def rows(b):
    b.through(
        "swiglu.a", {"gate": b.rand(4, 23, scale=3.0), "up": b.rand(4, 23)}, lambda gate, up: {"y": F.silu(gate) * up}
    )
    where = torch.tensor([1, 2, 5])
    ids = torch.tensor([3, 9, 9, 0, 3, 9, 10])
    b.through(
        "embed.a",
        {"table": b.rand(11, 10), "features": b.rand(3, 10)},
        lambda table, features: {"y": F.embedding(ids, table).masked_scatter((ids == 9)[:, None], features)},
        {"ids": ids, "rows": where},
    )
    b.through(
        "deepstack_add.a",
        {"x": b.rand(7, 10), "features": b.rand(3, 10)},
        lambda x, features: {"y": x.index_add(0, where, features)},
        {"rows": where},
    )
    labels = torch.tensor([-100, 4, 30, -100, 0, 4, -100, 17])
    for case, count in (("mean", 5), ("shared", 12)):
        b.through(
            f"linear_loss.{case}",
            {"x": b.rand(8, 13), "weight": b.rand(31, 13)},
            lambda x, weight: {
                "loss": F.cross_entropy(x @ weight.T, labels, ignore_index=-100, reduction="sum") / count
            },
            {"labels": labels, "count": count},
        )


def optimizer(b):
    for case, decay in (("decay", 0.1), ("plain", 0.0)):
        p, g, lr = b.rand(17), b.rand(3, 17), [1e-3, 5e-4, 2e-3]
        g[:, 3] = 0.0
        g[:, 4] *= 2.0**-23  # where eps matters
        b.given(f"adamw.{case}", p=p, g=g, lr=lr, betas=[0.9, 0.999], eps=1e-8, weight_decay=decay)
        w, kept = torch.nn.Parameter(p.clone()), []
        step = torch.optim.AdamW([w], betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
        for i in range(3):
            step.param_groups[0]["lr"], w.grad = lr[i], g[i].clone()
            step.step()
            kept.append(w.detach().clone())
        state = step.state[w]
        b.result(f"adamw.{case}", p_out=torch.stack(kept), m=state["exp_avg"], v=state["exp_avg_sq"])
    for case, most in (("clipped", 1.0), ("kept", 100.0)):
        parts = [torch.nn.Parameter(b.rand(*s)) for s in ((5, 3), (7,), (2, 2, 3))]
        b.given(f"grad_norm.{case}", max_norm=most, **{f"g{i}": p for i, p in enumerate(parts)})
        for p in parts:
            p.grad = p.detach().clone()
        norm = torch.nn.utils.clip_grad_norm_(parts, most)
        b.result(f"grad_norm.{case}", norm=norm, **{f"g{i}_out": p.grad for i, p in enumerate(parts)})


def sampling(b):
    logits, history = b.rand(29, scale=2.5), torch.tensor([3, 3, 7, 28, 11])
    tied = logits.clone()
    tied[[5, 9, 12]] = float(logits.sort(descending=True).values[3])  # across the edge of top-k
    cases = {
        "temperature": dict(temperature=0.7),
        "top_k": dict(top_k=5),
        "top_p": dict(top_p=0.6),
        "narrow": dict(top_p=1e-4),
        "penalty": dict(repetition_penalty=1.3),
        "all": dict(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.1),
    }
    for case, given in cases.items():
        s = dict(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0) | given
        row = tied if case == "top_k" else logits
        scores = row[None].clone()
        if s["repetition_penalty"] != 1.0:
            scores = logits_process.RepetitionPenaltyLogitsProcessor(s["repetition_penalty"])(history[None], scores)
        if s["temperature"] != 1.0:
            scores = logits_process.TemperatureLogitsWarper(s["temperature"])(None, scores)
        if s["top_k"]:
            scores = logits_process.TopKLogitsWarper(s["top_k"])(None, scores)
        if s["top_p"] != 1.0:
            scores = logits_process.TopPLogitsWarper(s["top_p"])(None, scores)
        b.given(f"sample.{case}", logits=row, history=history, **s)
        b.result(f"sample.{case}", probabilities=scores[0].softmax(-1))


def cast(b):
    big = torch.finfo(torch.float32).max
    odd = [
        0.0,
        -0.0,
        1.0,
        1 + 2**-8,
        1 + 3 * 2**-8,
        1 + 2**-8 + 2**-20,
        1 + 2**-9,
        -1 - 2**-8,
        2.0**-126,
        2.0**-133,
        2.0**-134,
        2.0**-140,
        big,
        -big,
        3.3895e38,
        float("inf"),
        float("-inf"),
        0.1,
        1 / 3,
    ]
    x = torch.cat([torch.tensor(odd), b.rand(40, scale=100.0).float()])
    b.tensors |= {"cast.bf16.x": x, "cast.bf16.y": x.to(torch.bfloat16)}


def write(out):
    b = Book()
    for part in (patch_embed, norms, linears, mergers, ropes, attention, rows, optimizer, sampling, cast):
        part(b)
    made = f"torch {torch.__version__}, transformers {transformers.__version__}, seed {SEED}, computed in float64"
    save_file({k: v.contiguous() for k, v in sorted(b.tensors.items())}, out, {"made": made})
    print(f"{out}: {len(b.tensors)} tensors, {sum(v.nbytes for v in b.tensors.values())} bytes")
