"""One conversation through transformers: everything between the picture file and the greedy answer."""

import json
from pathlib import Path

import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from . import pictures

FLOATS = ("pixel_values", "image_embeds", "deepstack.", "hidden.", "logits")


class Model:
    """A folder in transformers: the processor, the model in one precision, and the ids that the tokenizer knows."""

    def __init__(self, folder, dtype=torch.float32, processor=None):
        self.folder = Path(folder)
        self.processor = processor or AutoProcessor.from_pretrained(folder)
        model, said = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        if any(said[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise SystemExit(f"{folder}: {said}")
        self.model = model.to(dtype).eval()
        self.known = len(self.processor.tokenizer)
        self.vocab = self.model.config.text_config.vocab_size


def inputs(m, messages, root, reply=True):
    """The processor's output for a conversation; image paths are relative to `root`. `reply`: end with the header of
    the assistant's turn."""
    found = [
        c["image"] for t in messages if isinstance(t["content"], list) for c in t["content"] if c["type"] == "image"
    ]
    images = [pictures.load(Path(root) / f) for f in found]
    text = m.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
    return m.processor(text=[text], images=images or None, return_tensors="pt")


@torch.no_grad()
def tensors(net, batch):
    """The tensors of a case, by check.py's names, except the generated ids. `net` may carry a PEFT adapter."""
    model = net.get_base_model() if hasattr(net, "get_base_model") else net
    grid = batch.get("image_grid_thw")
    if grid is None:
        position = torch.arange(batch["input_ids"].shape[1]).expand(3, -1)
    else:
        position = model.model.get_rope_index(batch["input_ids"], batch["mm_token_type_ids"], image_grid_thw=grid)[0][
            :, 0
        ]
    out = {"input_ids": batch["input_ids"][0], "position_ids": position}
    if grid is not None:
        features = model.model.get_image_features(batch["pixel_values"].to(model.dtype), grid)
        out |= {
            "pixel_values": batch["pixel_values"],
            "image_grid_thw": grid,
            "image_embeds": torch.cat(features.pooler_output),
        }
        out |= {f"deepstack.{i}": d for i, d in enumerate(features.deepstack_features)}
    result = net(**batch, output_hidden_states=True, use_cache=False)
    out |= {f"hidden.{i}": h[0] for i, h in enumerate(result.hidden_states)}
    return {k: v.contiguous().clone() for k, v in (out | {"logits": result.logits[0]}).items()}


@torch.no_grad()
def greedy(m, batch, limit=24):
    """Greedy ids (stop ids as generation_config.json says; ids beyond the tokenizer never), and the closest decision
    among them: the gap between the first two logits over the root mean square of the row."""
    said = m.model.generate(
        **batch,
        max_new_tokens=limit,
        do_sample=False,
        temperature=None,
        top_k=None,
        top_p=None,
        repetition_penalty=None,
        suppress_tokens=list(range(m.known, m.vocab)) or None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = said.sequences[0, batch["input_ids"].shape[1] :]
    gap = min(
        float((a := row[0, : m.known].sort(descending=True).values)[0] - a[1]) / float(row[0].square().mean().sqrt())
        for row in said.logits
    )
    return ids, gap


def messages(path):
    return json.loads(Path(path).read_text())["messages"]


def distance(got, want):
    """The largest relative L2 error over the floating tensors, and the name of its tensor."""
    worst = (0.0, "")
    for k, w in want.items():
        if k.startswith(FLOATS):
            w = w.double()
            worst = max(worst, (float((got[k].double() - w).norm() / w.norm()), k))
    return worst


def unequal(got, want):
    """Names of the integer tensors that differ."""
    return [k for k, w in want.items() if not k.startswith(FLOATS) and k in got and not torch.equal(got[k], w)]
