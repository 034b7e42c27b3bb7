"""Random Qwen3-VL checkpoints: config, weights, tokenizer and processor files, as a Hugging Face folder."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration


@dataclass
class Spec:
    """One model. `text_head`, `vision_head`: widths of a head; `sections`: text frequencies of t, h and w."""

    name: str
    seed: int
    text_hidden: int
    text_head: int
    kv_heads: int
    group: int  # query heads per key head
    text_layers: int
    text_mlp: int
    sections: tuple
    vision_head: int
    vision_heads: int
    vision_depth: int
    vision_mlp: int
    deepstack: list
    grid: int  # side of the table of learned positions
    vocab: int = 512
    tied: bool = False
    dtype: str = "float32"  # of the files: float32 or bfloat16
    shards: int = 1
    spelling: str = "5"  # of config.json and the processor files: "5" or "4.57"
    min_pixels: int = 4096
    max_pixels: int = 16384
    cases: list = field(default_factory=list)

    @property
    def vision_hidden(self):
        return self.vision_head * self.vision_heads

    def describe(self):
        heads = f"{self.text_head}x{self.kv_heads * self.group}:{self.kv_heads}"
        return (
            f"text {self.text_hidden}/{heads} x{self.text_layers}, vision {self.vision_hidden}/{self.vision_head}"
            f" x{self.vision_depth}, deepstack {self.deepstack}, grid {self.grid}, {self.dtype}, {self.shards} file(s),"
            f" {self.spelling}, {'tied' if self.tied else 'untied'}"
        )


def special_ids(template):
    """Ids of the special tokens, from the template's tokenizer.json, and the number of ids that it knows."""
    t = json.loads((Path(template) / "tokenizer.json").read_text())
    ids = {a["content"]: a["id"] for a in t["added_tokens"]}
    return ids, max(max(ids.values()), max(t["model"]["vocab"].values())) + 1


def config(s, ids):
    """config.json of the model in the spelling that it asks for."""
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": s.vocab,
        "hidden_size": s.text_hidden,
        "intermediate_size": s.text_mlp,
        "num_hidden_layers": s.text_layers,
        "num_attention_heads": s.kv_heads * s.group,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.text_head,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    vision = {
        "depth": s.vision_depth,
        "hidden_size": s.vision_hidden,
        "num_heads": s.vision_heads,
        "intermediate_size": s.vision_mlp,
        "out_hidden_size": s.text_hidden,
        "deepstack_visual_indexes": s.deepstack,
        "num_position_embeddings": s.grid**2,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
    }
    rope = {"mrope_interleaved": True, "mrope_section": list(s.sections), "rope_type": "default"}
    top = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": s.tied,
    }
    if s.spelling == "4.57":
        text |= {
            "rope_theta": 5000000,
            "rope_scaling": rope,
            "dtype": s.dtype,
            "tie_word_embeddings": s.tied,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        }
        vision |= {"model_type": "qwen3_vl"}
        top |= {"transformers_version": "4.57.0.dev0"}
    else:
        text |= {"rope_parameters": rope | {"rope_theta": 5000000.0}, "pad_token_id": None}
        vision |= {"model_type": "qwen3_vl_vision", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}
        top |= {"dtype": s.dtype, "transformers_version": "5.17.0"}
    return dict(sorted((top | {"text_config": text, "vision_config": vision}).items()))


@torch.no_grad()
def fill(model, seed):
    """Random weights on a scale that keeps every part audible: attention far from uniform, no bias 0, no norm 1."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        r = torch.randn(p.shape, generator=g)
        if "norm" in name and name.endswith("weight"):
            p.copy_((1.4 if "q_norm" in name or "k_norm" in name else 1.0) + 0.12 * r)
        elif name.endswith("bias"):
            p.copy_(0.1 * r)
        elif "embed_tokens" in name or "lm_head" in name or "pos_embed" in name:
            p.copy_(0.5 * r)
        elif "patch_embed" in name:
            p.copy_(0.08 * r)
        else:
            p.copy_((1.6 if "qkv" in name else 1.2) * p.shape[1] ** -0.5 * r)


def write(s, out, template, eos=None):
    """Writes the folder `out`; returns the number of parameters. `eos`: stop ids, where not those of the tokenizer."""
    out, template = Path(out), Path(template)
    out.mkdir(parents=True)
    ids, _ = special_ids(template)
    cfg = config(s, ids)
    (out / "config.json").write_text(json.dumps(cfg, indent=2))
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(out))
    fill(model, s.seed)
    state = {k: v.detach().to(getattr(torch, s.dtype)).contiguous() for k, v in sorted(model.named_parameters())}
    if s.shards == 1:
        save_file(state, out / "model.safetensors", {"format": "pt"})
    else:
        write_shards(state, out, s.shards)
    (out / "generation_config.json").write_text(
        json.dumps(
            {
                "eos_token_id": eos or [ids["<|im_end|>"], ids["<|endoftext|>"]],
                "pad_token_id": ids["<|endoftext|>"],
                "do_sample": True,
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
                "repetition_penalty": 1.0,
            },
            indent=2,
        )
    )
    write_processor(s, out, template)
    return sum(v.numel() for v in state.values())


def write_shards(state, out, n):
    total, size, index = 0, sum(v.nbytes for v in state.values()), {}
    parts = [{} for _ in range(n)]
    for k, v in state.items():
        parts[min(n - 1, total * n // size)][k] = v
        total += v.nbytes
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05}-of-{n:05}.safetensors"
        save_file(part, out / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}, indent=2)
    )


def write_processor(s, out, template):
    """4.57: preprocessor_config.json and chat_template.json; 5.x: processor_config.json and chat_template.jinja."""
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(template / f, out / f)
    if (template / "preprocessor_config.json").exists():
        pre = json.loads((template / "preprocessor_config.json").read_text())
    else:
        pre = json.loads((template / "processor_config.json").read_text())["image_processor"]
    pre["size"] = {"shortest_edge": s.min_pixels, "longest_edge": s.max_pixels}
    pre.pop("processor_class", None)
    kind = {"processor_class": "Qwen3VLProcessor"}
    chat = (template / "chat_template.jinja").read_text()
    if s.spelling == "4.57":
        pre |= kind | {"image_processor_type": "Qwen2VLImageProcessorFast"}
        (out / "preprocessor_config.json").write_text(json.dumps(pre, indent=2))
        (out / "chat_template.json").write_text(json.dumps({"chat_template": chat}, indent=2))
    else:
        parts = {
            "image_processor": pre | {"image_processor_type": "Qwen2VLImageProcessor"},
            "video_processor": {k: v for k, v in pre.items() if k not in ("size", "image_processor_type")}
            | {"video_processor_type": "Qwen3VLVideoProcessor"},
        }
        (out / "processor_config.json").write_text(json.dumps(parts | kind, indent=2))
        (out / "chat_template.jinja").write_text(chat)
