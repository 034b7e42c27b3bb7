"""Folders that check.py reads: models, conversations, training runs, and what transformers and PEFT make of them."""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import checkpoint, forward, pictures, training
from .checkpoint import Spec


def image(name):
    return {"type": "image", "image": f"images/{name}.png"}


def text(t):
    return {"type": "text", "text": t}


def user(*parts):
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


def reply(t):
    return {"role": "assistant", "content": t}


def system(t):
    return {"role": "system", "content": t}


CONVERSATIONS = {
    "text_only": [user("Which dent is long? naïve 東京 🚗 0123\n\n  two  spaces")],
    "one_image": [user(image("odd"), text("Which damage?"))],
    "system_two": [
        system("You are a careful claims adjuster."),
        user(text("First: "), image("wide"), text(" second: "), image("tall"), text("Which?")),
    ],
    "turns": [
        user(image("big"), text("Look.")),
        reply("A dent."),
        user(image("cell"), image("half"), text("And?")),
        reply("Two scratches."),
        user("Sure?"),
    ],
    "up_and_down": [user(image("dot"), image("big"), text("a"), image("speck"))],
    "extremes": [user(image("strip"), image("pole")), reply("Thin."), user(text("more"), image("thread"))],
    "modes": [
        system([text("Answer "), text("briefly.")]),
        user(image("grey"), image("glass"), image("paint"), image("fog")),
    ],
    "five": [
        user(image("chip"), image("cell"), text(" and "), image("square"), image("half"), image("speck"), text("?"))
    ],
    "six": [
        user(image("chip"), image("dot"), image("half"), image("square"), image("speck"), image("wide"), text("Count."))
    ],
    "box": [
        user(image("plate"), text("<|box_start|>(1,2)<|box_end|> 'tis a\r\n<b>&amp;</b>\t{{ x }}")),
        reply([text("ok")]),
        user("It's I'LL\u00a0x²"),
    ],
    "long": [user(image("long"), text("rough or smooth?"), image("slab"))],
}

ASK = "scratch, dent or crack?"
TRAIN = [
    [user(image("odd"), text(ASK)), reply("scratch")],
    [user(image("cell"), text(ASK)), reply("dent")],
    [
        user(text("Two: "), image("wide"), text(" and "), image("half"), text(ASK)),
        reply("a long crack near the bumper"),
    ],
    [user("No photo. " + ASK), reply("none")],
    [
        system("You are careful."),
        user(image("plate"), text(ASK)),
        reply("dent"),
        user("Sure?"),
        reply("Yes, a shallow dent."),
    ],
    [user(image("glass"), text(ASK)), reply("crack")],
    [user(image("tall"), text(ASK)), reply("scratch")],
]

VISION = (
    r"model\.visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])|"
    r"(merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def run_spec(r, alpha, targets, **more):
    """A run; what differs from these settings is given."""
    return {
        "r": r,
        "alpha": alpha,
        "targets": targets,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "batch_size": 2,
        "epochs": 3,
        "schedule": "cosine",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
    } | more


# `same_as`: flags that must give the same run, because losses are normalised by the label tokens of the whole step.
RUNS = {
    "all_text": run_spec(5, 11, ATTENTION + MLP, schedule="linear", warmup_steps=2, weight_decay=0.1),
    "vision_merger_attention": run_spec(4, 8, rf"{VISION}|.*\.(q_proj|v_proj)", schedule="constant", lr=5e-4),
    "rslora_everywhere": run_spec(9, 3, rf"{VISION}|.*\.(q|k|v|o|gate|up|down)_proj", rslora=True, warmup_steps=3),
    "accumulated": run_spec(
        3,
        6,
        ["o_proj", "down_proj"],
        batch_size=4,
        schedule="constant",
        warmup_steps=2,
        max_grad_norm=1e9,
        same_as={"batch_size": 2, "grad_accumulation": 2},
    ),
}


def cycle(rng, values):
    """The values for ever, each pass in a new order: every value comes up early, and pairs differ from pass to pass."""
    while True:
        yield from rng.sample(values, len(values))


def random_specs(n, seed):
    rng = random.Random(seed)
    pick = {
        k: cycle(rng, v)
        for k, v in {
            "text_head": [16, 32, 48, 64, 80, 128],
            "vision_head": [24, 32, 40, 64, 72],
            "group": [1, 2, 3, 4, 8],
            "deepstack": [[], [0], [2, 0, 1], [1, 3]],
            "grid": [8, 12, 16, 48],
            "tied": [False, True],
            "shards": [1, 1, 3],
            "dtype": ["float32", "bfloat16"],
            "spelling": ["5", "4.57"],
            "vocab": [512, 437, 499],
            "max_pixels": [12288, 16384],
            "width": [47, 50, 52, 58, 75, 84, 90, 101, 44],
            "conversation": [k for k in CONVERSATIONS if k != "one_image"],
        }.items()
    }
    specs = []
    for i in range(n):
        take = {k: next(v) for k, v in pick.items()}
        half, d = take["text_head"] // 2, take["deepstack"]
        h = rng.randint(1, half // 3)
        w = rng.randint(1, half // 3)
        head, group = take["vision_head"], take["group"]
        specs.append(
            Spec(
                name=f"m{i:02}",
                seed=seed * 1000 + i,
                text_hidden=take["width"],
                text_head=take["text_head"],
                kv_heads=rng.choice([k for k in (1, 2, 3) if k * group * take["text_head"] <= 768] or [1]),
                group=group,
                text_layers=max(2, len(d)) + rng.randint(0, 1),
                text_mlp=rng.randint(50, 190),
                sections=(half - h - w, h, w),
                vision_head=head,
                vision_heads=rng.choice([k for k in (1, 2, 3) if k * head <= 96]),
                vision_depth=max(d, default=0) + 1 + rng.randint(0, 1),
                vision_mlp=rng.randint(50, 170),
                deepstack=d,
                grid=take["grid"],
                vocab=take["vocab"],
                tied=take["tied"],
                dtype=take["dtype"],
                shards=take["shards"],
                spelling=take["spelling"],
                max_pixels=take["max_pixels"],
                cases=["one_image", next(pick["conversation"]), take["conversation"]],
            )
        )
    return specs


def start(out, conversations, train, only_pictures=None):
    """The folder's conversations, training lines and pictures."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, turns in conversations.items():
        (out / f"{name}.json").write_text(json.dumps({"messages": turns}, ensure_ascii=False, indent=1))
    (out / "train.jsonl").write_text("".join(json.dumps({"messages": t}, ensure_ascii=False) + "\n" for t in train))
    pictures.write_all(out / "images", 7)
    for f in (out / "images").iterdir():
        if only_pictures is not None and f.stem not in only_pictures:
            f.unlink()
    return out


def build(spec, out, template):
    """Writes a model and its cases. Weights are drawn again while any greedy decision is too close to call."""
    for attempt in range(50):
        folder = out / spec.name
        n = checkpoint.write(spec, folder, template)
        m, files, ok = forward.Model(folder), {}, True
        fine = forward.Model(folder, torch.float64, m.processor)
        worst, longest, gap = (0.0, ""), 0, 1e9
        for case in dict.fromkeys(spec.cases):
            batch = forward.inputs(m, forward.messages(out / f"{case}.json"), out)
            ids, g = forward.greedy(m, batch)
            ok = ok and g > 2e-3 and torch.equal(ids, forward.greedy(fine, batch)[0])
            files[case] = forward.tensors(m.model, batch) | {"generated_ids": ids}
            worst = max(worst, forward.distance(forward.tensors(fine.model, batch), files[case]))
            longest, gap = max(longest, batch["input_ids"].shape[1]), min(gap, g)
            if longest > 150:
                raise SystemExit(f"{spec.name}: {case} has {longest} tokens")
            if not ok:
                break
        if ok:
            for case, t in files.items():
                save_file(t, out / f"{spec.name}.{case}.safetensors")
            print(
                f"{spec.name}: {n} parameters, {spec.describe()}; {' '.join(files)}: at most {longest} tokens,"
                f" float64 within {worst[0]:.1e} ({worst[1]}), closest decision {gap:.1e}, draw {attempt + 1}",
                flush=True,
            )
            return
        shutil.rmtree(folder)
        spec.seed += 1_000_000
    raise SystemExit(f"{spec.name}: no weights with clear decisions")


# How far float64 may be from a run that is kept, so that a float32 implementation has room below check.py's bounds.
ROOM = {"loss": 1e-5, "lr": 0.0, "norm": 2e-5, "gradients": 1.5e-5, "adapter": 1e-4, "applied": 4e-6}


def add_run(out, model, name, spec, seed, only=None):
    """Writes a run. The adapter is drawn again while rounding alone leads the run astray."""
    folder = out / f"{model}.train.{name}"
    for attempt in range(20):
        said = training.make(out / model, spec, out / "train.jsonl", folder, seed + 100 * attempt, only)
        if all(v <= ROOM[k] for k, v in said.items()):
            print(
                f"{folder.name}: float64 within "
                + ", ".join(f"{k} {v:.1e}" for k, v in said.items())
                + f", draw {attempt + 1}",
                flush=True,
            )
            return
        shutil.rmtree(folder)
    raise SystemExit(f"{folder.name}: no adapter whose run is steady; the last one: {said}")


def sweep(out, template, n, seed):
    out = start(out, CONVERSATIONS, TRAIN)
    specs = random_specs(n, seed)
    for s in specs:
        build(s, out, template)
    # What is added after the last text layer reaches no label: its merger would get no gradient.
    deep = [s for s in specs if len(s.deepstack) > 1 and s.text_layers > len(s.deepstack)]
    for i, (name, run) in enumerate(RUNS.items()):
        add_run(out, deep[i % len(deep)].name, name, run, seed + i)


GOLDEN = [
    Spec(
        "uneven",
        11,
        text_hidden=50,
        text_head=48,
        kv_heads=1,
        group=3,
        text_layers=3,
        text_mlp=37,
        sections=(10, 8, 6),
        vision_head=24,
        vision_heads=1,
        vision_depth=3,
        vision_mlp=41,
        deepstack=[2, 0, 1],
        grid=12,
        tied=True,
        dtype="bfloat16",
        shards=3,
        spelling="4.57",
        min_pixels=1024,
        max_pixels=2048,
        cases=["one_image", "turns"],
    ),
    Spec(
        "single",
        12,
        text_hidden=52,
        text_head=64,
        kv_heads=1,
        group=2,
        text_layers=2,
        text_mlp=41,
        sections=(24, 4, 4),
        vision_head=40,
        vision_heads=1,
        vision_depth=2,
        vision_mlp=51,
        deepstack=[],
        grid=8,
        tied=False,
        dtype="bfloat16",
        shards=1,
        spelling="5",
        min_pixels=2048,
        max_pixels=2048,
        cases=["one_image", "text_only"],
    ),
]
GOLDEN_CONVERSATIONS = {
    "text_only": [user("naïve 東京 12\n\n  a")],
    "one_image": [user(image("wide"), text("dent?"))],
    "turns": [user(image("glass")), reply("A dent."), user("Sure?")],
}
GOLDEN_TRAIN = [
    [user(image("wide"), text("Which?")), reply("dent")],
    [user(image("glass"), text("Which?")), reply("a scratch")],
    [user(image("wide"), text("Sure?")), reply("no")],
]


def golden(out, template):
    """The two small models and one run that the project's tests carry with them."""
    out = start(out, GOLDEN_CONVERSATIONS, GOLDEN_TRAIN, ("wide", "glass"))
    for s in GOLDEN:
        build(s, out, template)
    vision = r"model\.visual\.(blocks\.0\.attn\.qkv|merger\.linear_fc2|deepstack_merger_list\.1\.linear_fc1)"
    targets = rf".*\.(q_proj|down_proj)|{vision}"
    add_run(
        out,
        "uneven",
        "mixed",
        run_spec(2, 6, targets, schedule="linear", warmup_steps=1, weight_decay=0.1, rslora=True),
        5,
        ("input_ids", "logits"),
    )


def verify(folder):
    """Computes every case and run of a folder again. True where each agrees."""
    folder, fine = Path(folder), True
    for config in sorted(folder.glob("*/config.json")):
        name = config.parent.name
        m = forward.Model(config.parent)
        for file in sorted(folder.glob(f"{name}.*.safetensors")):
            case, want = file.name[len(name) + 1 : -len(".safetensors")], load_file(file)
            batch = forward.inputs(m, forward.messages(folder / f"{case}.json"), folder)
            got = forward.tensors(m.model, batch) | {
                "generated_ids": forward.greedy(m, batch, len(want["generated_ids"]))[0]
            }
            error, where = forward.distance(got, want)
            wrong = forward.unequal(got, want) + sorted(set(got) ^ set(want))
            print(f"{file.name}: worst relative error {error:.1e} {where}, unequal: {wrong or 'none'}", flush=True)
            fine = fine and error < 5e-6 and not wrong
        for run in sorted(folder.glob(f"{name}.train.*")):
            said, wrong = training.check(config.parent, run, folder / "train.jsonl")
            print(
                f"{run.name}: " + ", ".join(f"{k} {v:.1e}" for k, v in said.items()) + f", unequal: {wrong or 'none'}",
                flush=True,
            )
            fine = (
                fine
                and max(v for k, v in said.items() if k != "adapter") < 2e-5
                and said["adapter"] < 2e-4
                and not wrong
            )
    return fine
