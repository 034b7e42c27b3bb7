"""The job of `vlm bench one-dollar` by transformers and PEFT, on the photos, weights and settings of its folder: LoRA on
q, k, v and o, then a test set scored. Started by bench_peer.py as a process of its own. Prints one JSON object.

Made as quick as these libraries allow without touching their code: bf16 with SDPA, nothing checkpointed; photos are
decoded by worker processes, ahead and once; the frozen tower runs once over each photo and what it gives stays on the
device; samples of a step go through the model together, padded to one length; logits are made of the last tokens only;
AdamW is the fused one; `--compile` compiles the decoder layers. A photo is scored by the logits of its answer's first
token after one pass over the prompt, which is less than `vlm eval` does.
"""

import argparse
import json
import math
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from . import forward, training
from .steps import batched

MODULES = r".*language_model.*\.(q|k|v|o)_proj"


class Prompts:
    """What `forward` and `training` want of a model, without its weights: each worker process opens it once."""

    def __init__(self, folder):
        self.processor = AutoProcessor.from_pretrained(folder)
        image = json.loads((Path(folder) / "config.json").read_text())["image_token_id"]
        self.model = argparse.Namespace(config=argparse.Namespace(image_token_id=image))


def start_worker(folder, of_pixels):
    global prompts, dtype
    torch.set_num_threads(1)
    prompts, dtype = Prompts(folder), of_pixels


def sent(batch):
    """A worker's tensors as arrays, which go through a pipe: each tensor would be a file of shared memory that stays open.
    Pixels are rounded as the tower rounds them first of all; numpy has no bf16, so its bits go."""
    pixels = batch["pixel_values"].to(dtype)
    if dtype == torch.bfloat16:
        pixels = pixels.view(torch.int16)
    return {k: v.numpy() for k, v in (batch | {"pixel_values": pixels}).items()}


def received(arrays, of_pixels):
    """The tensors of `sent`, over the same memory."""
    batch = {k: torch.from_numpy(v) for k, v in arrays.items()}
    return batch | {"pixel_values": batch["pixel_values"].view(of_pixels)}


def learnt(line, root):
    """(arrays of the inputs, label mask) of a line that is learnt."""
    conversation = json.loads(line)["messages"]
    batch = dict(forward.inputs(prompts, conversation, root, reply=False))
    return sent(batch), training.labels(prompts, conversation, batch["input_ids"][0]).numpy()


def asked(line, root):
    """(arrays of the inputs, answer) of a line whose answer is guessed."""
    *question, answer = json.loads(line)["messages"]
    content = answer["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return sent(dict(forward.inputs(prompts, question, root))), text


class Features:
    """Stands in for the model's own get_image_features: gives what was computed for the photos of a batch."""

    def __init__(self, model, device):
        self.inner, self.compute, self.device, self.kept, self.wanted = model, model.get_image_features, device, {}, []
        model.get_image_features = self.of_batch

    @torch.no_grad()
    def see(self, key, inputs):
        """Computes what a photo gives, once; of its pixels, which nobody reads any more, one row stays."""
        if key not in self.kept:
            pixels = inputs["pixel_values"].to(self.device)
            found = self.compute(pixels, inputs["image_grid_thw"].to(self.device))
            self.kept[key] = (torch.cat(list(found.pooler_output)), found.deepstack_features, type(found))
            inputs["pixel_values"] = inputs["pixel_values"][:1].clone()

    def of_batch(self, pixel_values, image_grid_thw=None, **_):
        rows = [self.kept[key] for key in self.wanted]
        deepstack = [torch.cat(taps) for taps in zip(*(row[1] for row in rows))]
        return rows[0][2](pooler_output=[row[0] for row in rows], deepstack_features=deepstack)


def place(batch, device):
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def main():
    p = argparse.ArgumentParser()
    for name in ("model", "train", "test"):
        p.add_argument(f"--{name}", required=True, type=Path)
    for name, kind in (("epochs", int), ("rank", int), ("alpha", float), ("batch-size", int), ("learning-rate", float)):
        p.add_argument(f"--{name}", required=True, type=kind)
    p.add_argument("--device", required=True)
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument("--workers", type=int, default=8)
    p.add_argument("--compile", action="store_true")
    a = p.parse_args()
    device, of_pixels, clock, marks = torch.device(a.device), getattr(torch, a.dtype), time.perf_counter, {}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    began = clock()
    with ProcessPoolExecutor(a.workers, initializer=start_worker, initargs=(a.model, of_pixels)) as workers:
        lines = {file: file.read_text().splitlines() for file in (a.train, a.test)}
        rows = workers.map(learnt, lines[a.train], [a.train.parent] * len(lines[a.train]), chunksize=4)
        questions = workers.map(asked, lines[a.test], [a.test.parent] * len(lines[a.test]), chunksize=4)

        net = Qwen3VLForConditionalGeneration.from_pretrained(
            a.model, dtype=of_pixels, attn_implementation="sdpa", device_map=a.device
        )
        wait()
        marks["load"] = clock() - began
        features = Features(net.model, device)
        config = LoraConfig(r=a.rank, lora_alpha=a.alpha, target_modules=MODULES, lora_dropout=0.0)
        tuned_net = get_peft_model(net, config)
        if a.compile:
            layers = net.model.language_model.layers
            for i, layer in enumerate(layers):
                layers[i] = torch.compile(layer, dynamic=True)
        tuned_net.train()
        tuned = [p for p in tuned_net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(tuned, lr=a.learning_rate, weight_decay=0.0, fused=device.type == "cuda")

        rows = [(received(x, of_pixels), torch.from_numpy(mask)) for x, mask in rows]
        marks["photos"] = clock() - began
        n = len(rows)
        steps = a.epochs * math.ceil(n / a.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
        generator = torch.Generator().manual_seed(0)
        start, vision, tokens, losses = clock(), 0.0, 0, []
        for _ in range(a.epochs):
            order = torch.randperm(n, generator=generator).tolist()
            for at in range(0, n, a.batch_size):
                chosen = order[at : at + a.batch_size]
                looked = clock()
                for i in chosen:
                    features.see(("train", i), rows[i][0])
                features.wanted = [("train", i) for i in chosen]
                wait()
                vision += clock() - looked
                x, labels = batched([rows[i] for i in chosen])
                first = int((labels != -100).any(0).nonzero()[0])
                tokens += sum(len(rows[i][1]) for i in chosen)
                keep, wanted = labels.shape[1] - first + 1, labels[:, first:].to(device).flatten()
                logits = tuned_net(**place(x, device), use_cache=False, logits_to_keep=keep).logits
                loss = torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=-100
                )
                loss.backward()
                torch.nn.utils.clip_grad_norm_(tuned, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
        wait()
        marks |= {"vision": vision, "steps": clock() - start - vision}
        saved = clock()
        tuned_net.save_pretrained(str(a.train.parent / "peer-adapter"))
        marks["save"] = clock() - saved
        marks["train"] = clock() - began

        scored, right = clock(), 0
        net.eval()
        questions = [(received(x, of_pixels), answer) for x, answer in questions]
        tokenizer = Prompts(a.model).processor.tokenizer
        choices = sorted({answer for _, answer in questions})
        firsts = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in choices]
        if len(set(firsts)) < len(firsts):
            raise SystemExit(f"answers that begin alike cannot be scored by their first token: {choices}")
        with torch.inference_mode():
            for at in range(0, len(questions), a.batch_size):
                part = questions[at : at + a.batch_size]
                for i, (inputs, _) in enumerate(part, at):
                    features.see(("test", i), inputs)
                features.wanted = [("test", i) for i in range(at, at + len(part))]
                lasts = torch.tensor([x["input_ids"].shape[1] for x, _ in part])
                x, _ = batched([(x, torch.zeros(x["input_ids"].shape[1], dtype=torch.bool)) for x, _ in part])
                keep = int(lasts.max() - lasts.min()) + 1
                logits = tuned_net(**place(x, device), use_cache=False, logits_to_keep=keep).logits
                rows_of = (lasts - 1 - (x["input_ids"].shape[1] - keep)).to(device)
                answers = logits[torch.arange(len(part), device=device), rows_of][:, firsts].argmax(-1).tolist()
                right += sum(choices[i] == answer for i, (_, answer) in zip(answers, part))
        marks["score"] = clock() - scored
        marks["total"] = clock() - began
    on_gpu, used = device.type == "cuda", resource.getrusage(resource.RUSAGE_SELF)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * used.ru_maxrss
    seconds = {f"{name}_seconds": value for name, value in marks.items()}
    print(json.dumps(seconds | {
        "steps": steps, "tokens": tokens, "tokens_per_second": tokens / marks["steps"], "peak_bytes": peak,
        "last_loss": float(losses[-1]), "accuracy": right / len(questions),
        "device": torch.cuda.get_device_name() if on_gpu else a.device, "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
