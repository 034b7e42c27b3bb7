"""LoRA runs with PEFT over a JSONL file in file order: spec.json, init_adapter/, metrics.jsonl, final_adapter/,
first_gradients.safetensors and merged.one_image.safetensors of a MODEL.train.NAME folder.

The recipe: base and adapter in one precision (float32; float64 to see how far rounding goes); a batch's loss is the sum
of the cross-entropies of its label tokens over their number; the gradient's norm is taken before clipping;
torch.optim.AdamW with betas 0.9, 0.999, eps 1e-8; transformers' schedules; step k (from 1) runs at the rate that the
log gives for it.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import get_scheduler

from . import forward


def labels(m, conversation, ids):
    """For each token of the expanded prompt: is it a label? Labels are the tokens that lie within an answer or the
    <|im_end|> that closes it; a token that straddles the border to the header is none."""
    p, end = m.processor, "<|im_end|>\n"

    def render(messages, reply):
        return p.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)

    text, spans = render(conversation, False), []
    for i, turn in enumerate(conversation):
        if turn["role"] == "assistant":
            head, whole = render(conversation[:i], True), render(conversation[: i + 1], False)
            if not (text.startswith(head) and text.startswith(whole) and whole.endswith(end)):
                raise SystemExit("the template does not render turn by turn")
            spans.append((len(head), len(whole) - 1))
    plain = p.tokenizer(text, return_offsets_mapping=True)
    inside = [any(a <= s and e <= b for a, b in spans) for s, e in plain["offset_mapping"]]
    pad, out, at = m.model.config.image_token_id, [], 0
    for t, label in zip(plain["input_ids"], inside):
        n = 1
        while t == pad and ids[at + n] == pad:  # one pad token of the text stands for a whole image
            n += 1
        if ids[at] != t:
            raise SystemExit("the processor's ids are not those of the rendered text")
        out += [label] * n
        at += n
    assert at == len(ids)
    return torch.tensor(out)


def samples(m, path):
    """(inputs, label mask) of every line."""
    out = []
    for line in Path(path).read_text().splitlines():
        conversation = json.loads(line)["messages"]
        batch = forward.inputs(m, conversation, Path(path).parent, reply=False)
        out.append((batch, labels(m, conversation, batch["input_ids"][0])))
    return out


def new_adapter(m, spec, out, name, seed):
    """An adapter whose B is small but not zero, so that every gradient of the first step says something."""
    torch.manual_seed(seed)
    cfg = LoraConfig(
        r=spec["r"],
        lora_alpha=spec["alpha"],
        target_modules=spec["targets"],
        lora_dropout=0.0,
        bias="none",
        use_rslora=spec.get("rslora", False),
        init_lora_weights=False,
    )
    net = get_peft_model(m.model, cfg)
    net.peft_config["default"].base_model_name_or_path = name
    with torch.no_grad():
        for k, p in net.named_parameters():
            if "lora_B" in k:
                p.mul_(0.3)
    save(net, out)
    net.unload()


def save(net, out):
    net.save_pretrained(str(out), save_embedding_layers=False)
    (Path(out) / "README.md").unlink(missing_ok=True)


def plain(name):
    return name.replace(".default.", ".")


def run(folder, spec, init, data, dtype=torch.float32):
    """Trains; returns (metrics, first gradients, final adapter's tensors, the PEFT model, the Model)."""
    m = forward.Model(folder, dtype)
    net = PeftModel.from_pretrained(m.model, str(init), is_trainable=True)
    net = net.to(dtype).eval()  # no dropout anywhere; eval changes nothing else
    tuned = {plain(k): p for k, p in net.named_parameters() if p.requires_grad}
    rows = samples(m, data)
    per_step = spec["batch_size"]
    batches = [rows[i : i + per_step] for i in range(0, len(rows), per_step)]
    steps = len(batches) * spec["epochs"]
    optimizer = torch.optim.AdamW(
        tuned.values(), lr=spec["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=spec["weight_decay"]
    )
    schedule = spec["schedule"]
    if schedule == "constant" and spec["warmup_steps"]:
        schedule = "constant_with_warmup"
    scheduler = get_scheduler(schedule, optimizer, spec["warmup_steps"], steps)
    metrics, first = [], None
    for step in range(1, steps + 1):
        batch = batches[(step - 1) % len(batches)]
        n, loss = sum(int(mask.sum()) for _, mask in batch), 0.0
        for x, mask in batch:
            logits = net(**x, use_cache=False).logits[0]
            part = (
                torch.nn.functional.cross_entropy(
                    logits[:-1][mask[1:]], x["input_ids"][0, 1:][mask[1:]], reduction="sum"
                )
                / n
            )
            part.backward()
            loss += float(part.detach())
        if first is None:
            silent = [k for k, p in tuned.items() if p.grad is None or not p.grad.abs().sum() > 0]
            if silent:
                raise SystemExit(f"no gradient: {silent}")
            first = {k: p.grad.clone().contiguous() for k, p in tuned.items()}
        norm = float(torch.nn.utils.clip_grad_norm_(tuned.values(), spec["max_grad_norm"]))
        metrics.append(
            {"step": step, "loss": loss, "lr": scheduler.get_last_lr()[0], "grad_norm": norm, "label_tokens": n}
        )
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return metrics, first, {k: p.detach().clone().contiguous() for k, p in tuned.items()}, net, m


def make(folder, spec, data, out, seed, only=None):
    """Writes the folder of a run, and returns how far a float64 run is from it: (loss, norm, gradients, adapter).
    `only`: the tensors of merged.one_image.safetensors to keep."""
    out = Path(out)
    out.mkdir()
    (out / "spec.json").write_text(json.dumps(spec, indent=1))
    new_adapter(forward.Model(folder), spec, out / "init_adapter", Path(folder).name, seed)
    metrics, first, _, net, m = run(folder, spec, out / "init_adapter", data)
    (out / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metrics))
    save_file(first, out / "first_gradients.safetensors")
    save(net, out / "final_adapter")
    one = Path(data).parent / "one_image.json"
    batch = forward.inputs(m, forward.messages(one), one.parent)
    merged = forward.tensors(net.merge_and_unload(), batch)
    save_file({k: v for k, v in merged.items() if only is None or k in only}, out / "merged.one_image.safetensors")
    return check(folder, out, data, torch.float64)[0]


def relative(got, want):
    """The worst tensor's relative L2 error."""
    assert set(got) == set(want), sorted(set(got) ^ set(want))
    return max(float((got[k].double() - w.double()).norm() / w.double().norm()) for k, w in want.items())


def check(folder, run_folder, data, dtype=torch.float32):
    """Runs a run folder's recipe again: worst relative differences (loss, lr, norm, gradients, adapter; `applied`: the
    tensors of one_image with the final adapter), and the names of integer tensors that differ."""
    run_folder = Path(run_folder)
    spec = json.loads((run_folder / "spec.json").read_text())
    metrics, first, final, net, m = run(folder, spec, run_folder / "init_adapter", data, dtype)
    want = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert len(want) == len(metrics) and all(a["label_tokens"] == b["label_tokens"] for a, b in zip(metrics, want))

    def worst(k):
        return max(abs(a[k] - b[k]) / max(abs(b[k]), 1e-30) for a, b in zip(metrics, want))

    said = {
        "loss": worst("loss"),
        "lr": worst("lr"),
        "norm": worst("grad_norm"),
        "gradients": relative(first, load_file(run_folder / "first_gradients.safetensors")),
        "adapter": relative(final, load_file(run_folder / "final_adapter" / "adapter_model.safetensors")),
    }
    one = Path(data).parent / "one_image.json"
    applied = (
        PeftModel.from_pretrained(forward.Model(folder, dtype).model, str(run_folder / "final_adapter"))
        .to(dtype)
        .eval()
    )
    batch = forward.inputs(m, forward.messages(one), one.parent)
    got, want = forward.tensors(applied, batch), load_file(run_folder / "merged.one_image.safetensors")
    return said | {"applied": forward.distance(got, want)[0]}, forward.unequal(got, want)
