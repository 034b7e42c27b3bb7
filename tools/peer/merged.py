"""A folder that `vlm merge` wrote, in transformers, against base and adapter in PEFT."""

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import Qwen3VLForConditionalGeneration

from . import forward, pictures

# Relative L2 error of any tensor, by the precision of the merged file: one rounding of each weight, through all layers.
BOUNDS = {"F32": 2e-5, "F16": 5e-3, "BF16": 3e-2}


def check(model, adapter, merged):
    """Prints what was found; True where nothing is missing or left over and all tensors agree. Computed in float32."""
    _, said = Qwen3VLForConditionalGeneration.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    fine = True
    for k in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        print(f"{k}: {sorted(map(str, said[k])) or 'none'}")
        fine = fine and not said[k]
    if not fine:
        return False
    kinds = set()
    for file in Path(merged).glob("*.safetensors"):
        with safe_open(file, "pt") as f:
            kinds |= {f.get_slice(k).get_dtype() for k in f.keys()}
    ours, base = forward.Model(merged), forward.Model(model)
    with tempfile.TemporaryDirectory() as root:
        pictures.draw(140, 90, "RGB", 3).save(f"{root}/picture.png")
        messages = [
            {
                "role": "user",
                "content": [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "What is it?"}],
            }
        ]
        got, want = (
            forward.inputs(m, messages, root) for m in (ours, base)
        )  # each with the processor files of its own folder
        other = [k for k in want if not torch.equal(got[k], want[k])]
        plain = forward.tensors(base.model, want)
        tuned = PeftModel.from_pretrained(base.model, str(adapter)).eval()
        want, got = forward.tensors(tuned, want), forward.tensors(ours.model, got)
    print(f"inputs by the two folders' own processors: {'differ in ' + ', '.join(other) if other else 'equal'}")
    if other:
        return False
    worst = max(BOUNDS[k] for k in kinds)
    error, name = forward.distance(got, want)
    logits = forward.distance({"logits": got["logits"]}, {"logits": want["logits"]})[0]
    change = forward.distance({"logits": plain["logits"]}, {"logits": want["logits"]})[0]
    print(
        f"merged as {', '.join(sorted(kinds))}: logits {logits:.2e} from base + adapter,"
        f" worst tensor {error:.2e} ({name}), at most {worst:.0e}; the adapter itself moves the logits by {change:.2e}"
    )
    return error <= worst
