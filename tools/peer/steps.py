"""LoRA steps of PEFT, timed one by one: started as a process of its own by bench_peer.py, so that its peak memory is its
own. Prints a line of JSON for each step: wall seconds, processor seconds, loss; then one with the peak in bytes.

The batch's samples are padded to one length and go through the model together, as a trainer does it; logits are made of
the last tokens only, as many as the longest answer has. Preprocessing is not timed.
"""

import json
import os
import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model

from . import forward, training

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def batched(rows):
    """One batch, padded on the right; labels are -100 elsewhere."""
    longest = max(x["input_ids"].shape[1] for x, _ in rows)
    out = {}
    for key in rows[0][0]:
        values = [x[key] for x, _ in rows]
        if values[0].ndim == 2 and values[0].shape[0] == 1 and key not in ("image_grid_thw", "pixel_values"):
            values = [torch.nn.functional.pad(v, (0, longest - v.shape[1])) for v in values]
        out[key] = torch.cat(values)
    labels = torch.full_like(out["input_ids"], -100)
    for i, (x, mask) in enumerate(rows):
        labels[i, : len(mask)][mask] = x["input_ids"][0][mask]
    return out, labels


def main(model, data, batch_size, steps, threads):
    torch.set_num_threads(threads)
    m = forward.Model(model)
    rows = training.samples(m, data)
    net = get_peft_model(m.model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0))
    net.train()
    tuned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=1e-4)
    batches = [batched(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    for step in range(steps):
        x, labels = batches[step % len(batches)]
        start, cpu = time.perf_counter(), sum(os.times()[:2])
        n = int((labels != -100).any(0).nonzero()[0])  # the first column with a label
        logits = net(**x, use_cache=False, logits_to_keep=labels.shape[1] - n + 1).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, n:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times = {"seconds": time.perf_counter() - start, "cpu_seconds": sum(os.times()[:2]) - cpu}
        print(json.dumps(times | {"loss": loss.item()}), flush=True)
    print(json.dumps({"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
