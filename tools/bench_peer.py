#!/usr/bin/env python3
"""Times `vlm` beside transformers: one model, one picture and one prompt, in turns, on the CPU in float32 and the same
cores (make, run, train); the article's job on one device, a GPU as a rule (job).

    bench_peer.py make --template DIR --out DIR [--photo FILE]
        a random model of 55 M parameters whose generation does not stop early, and a 640 x 480 picture
    bench_peer.py run --model DIR --image FILE --prompt TEXT [--vlm PATH]
                      [--new-tokens 32] [--threads 2] [--repeat 3] [--csv FILE]
    bench_peer.py train --model DIR --image FILE --vlm PATH [--batch-size 2] [--steps 4] [--threads 2] [--repeat 2] [--csv FILE]
        LoRA steps of rank 16 on all seven projections, beside PEFT: seconds, processor seconds and peak memory. Every
        sample is a picture of its own, so that a first epoch computes the tower in each step, as PEFT always does; in
        the second one vlm has the features
    bench_peer.py job --vlm PATH --out DIR [--shape 8b] [--device cuda] [--compile] [--csv FILE] [-- FLAGS]
        `vlm bench one-dollar` with FLAGS, and then its job by transformers and PEFT (tools/peer/job.py) with the same
        photos, weights, settings and device; vlm's second run counts, since both then find the weights in the page cache

The virtual environment is that of reference.py. Both programs are held to the first THREADS cores that this process
may use; each runs once before it is timed. What is timed: `preprocess` from the file to pixels and token ids, `prefill`
the vision tower, the prompt and the first token, `decode` each further token. transformers runs its forward with its
own cache in a bare greedy loop (less work than its `generate`), the model loaded once; vlm is started for each run and
reports its own times. Ids that the tokenizer does not know are never taken. Without --vlm, transformers alone.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WHAT = (("preprocess", "preprocess, ms"), ("prefill", "prefill, ms"), ("decode", "decode, ms a token"))


def make(a):
    from peer import checkpoint, pictures

    s = checkpoint.Spec(
        "model55",
        1,
        text_hidden=512,
        text_head=64,
        kv_heads=4,
        group=2,
        text_layers=8,
        text_mlp=1536,
        sections=(12, 10, 10),
        vision_head=64,
        vision_heads=6,
        vision_depth=8,
        vision_mlp=1536,
        deepstack=[1, 3, 5],
        grid=48,
        vocab=2048,
        min_pixels=65536,
        max_pixels=16777216,
    )
    n = checkpoint.write(s, a.out, a.template, eos=[s.vocab - 1])  # an id that the tokenizer does not know
    print(f"{a.out}: {n} parameters")
    if a.photo:
        pictures.draw(640, 480, "RGB", 640).save(a.photo)
        print(a.photo)


class Transformers:
    name = "transformers"

    def __init__(self, a):
        from peer import forward

        self.m, self.prompt = forward.Model(a.model), a
        self.forward = forward

    def run(self, a):
        import torch
        from transformers import DynamicCache

        net, turn = (
            self.m.model,
            [{"type": "image", "image": os.path.abspath(a.image)}, {"type": "text", "text": a.prompt}],
        )
        with torch.inference_mode():
            start = time.perf_counter()
            batch = self.forward.inputs(self.m, [{"role": "user", "content": turn}], "/")
            ready = time.perf_counter()
            cache, ids = DynamicCache(config=net.config.text_config), []
            out = net(**batch, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids.append(int(out.logits[0, -1, : self.m.known].argmax()))
            first = time.perf_counter()
            while len(ids) < a.new_tokens:
                out = net(input_ids=torch.tensor([ids[-1:]]), past_key_values=cache, use_cache=True)
                ids.append(int(out.logits[0, -1, : self.m.known].argmax()))
            done = time.perf_counter()
        times = {"preprocess": ready - start, "prefill": first - ready, "decode": (done - first) / (a.new_tokens - 1)}
        return times, ids, batch["input_ids"].shape[1]


class Vlm:
    name = "vlm"

    def __init__(self, a):
        self.path = a.vlm

    def run(self, a):
        p = subprocess.run(
            [
                self.path,
                "generate",
                "--model",
                a.model,
                "--image",
                a.image,
                "--prompt",
                a.prompt,
                "--max-new-tokens",
                str(a.new_tokens),
                "--temperature",
                "0",
                "--device",
                "cpu",
                "--precision",
                "f32",
                "--json",
            ],
            capture_output=True,
            text=True,
        )
        if p.returncode:
            sys.exit(f"{self.path} failed with {p.returncode}: {p.stderr.strip()}")
        said = json.loads(p.stdout)
        t, n = said["timings"], len(said["token_ids"])
        if n != a.new_tokens:
            sys.exit(f"{self.path} gave {n} tokens of {a.new_tokens}: it stopped early, so its times say nothing")
        times = {
            "preprocess": t["preprocess_seconds"],
            "prefill": t["prefill_seconds"],
            "decode": t["decode_seconds"] / (n - 1),
        }
        return times, said["token_ids"], said["prompt_tokens"]


def run(a):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < a.threads:
        sys.exit(f"{a.threads} threads asked for, but this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[: a.threads])
    for k in ("RAYON_NUM_THREADS", "MATMUL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[k] = str(a.threads)

    import torch
    import transformers

    torch.set_num_threads(a.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sides = [Transformers(a)] + ([Vlm(a)] if a.vlm else [])
    first = [s.run(a) for s in sides]  # not timed: files into memory, clocks up
    kept, start, before = {s.name: [] for s in sides}, time.perf_counter(), others()
    for _ in range(a.repeat):
        for s in sides:
            kept[s.name].append(s.run(a)[0])
    load = max(0.0, (others() - before) / (time.perf_counter() - start))
    busy = f"other processes used {load:.2f} cores" + (": NOT A QUIET MACHINE" if load > 0.1 else "")
    print(
        f"{a.model}, {first[0][2]} prompt tokens, {a.new_tokens} new, {a.threads} threads, {a.repeat} runs;"
        f" torch {torch.__version__}, transformers {transformers.__version__}; {busy}"
    )
    if a.vlm:
        ours, theirs = first[1][1:], first[0][1:]
        print(
            "both read the same number of prompt tokens and chose the same ids"
            if ours == theirs
            else f"THEY DIFFER: vlm {ours[1]} prompt tokens, {ours[0]}; transformers {theirs[1]}, {theirs[0]}"
        )
    table(kept)
    if a.csv:
        record(a, kept, load, first[0][2], torch.__version__, transformers.__version__)
    sys.exit(a.vlm is not None and first[0][1:] != first[1][1:])


def samples(folder, image, n):
    """A training set of copies of one picture, no two the same file."""
    data = Path(folder) / "data.jsonl"
    lines = []
    for i in range(n):
        copy = Path(folder) / f"{i}{Path(image).suffix}"
        copy.write_bytes(Path(image).read_bytes())
        turn = [{"type": "image", "image": copy.name}, {"type": "text", "text": "What is this?"}]
        said = [{"role": "user", "content": turn}, {"role": "assistant", "content": f"sample {i % 3}"}]
        lines.append(json.dumps({"messages": said}) + "\n")
    data.write_text("".join(lines))
    return data


def vlm_steps(a, data, out):
    """Two epochs; (rows of wall and processor seconds, peak bytes). The first row's processor time has the start too."""
    p = subprocess.Popen(
        [a.vlm, "train", "--model", a.model, "--data", data, "--out", out, "--epochs", "2", "--no-shuffle"]
        + ["--batch-size", str(a.batch_size), "--device", "cpu", "--precision", "f32", "--learning-rate", "1e-4"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, seen, last = Path(out) / "metrics.jsonl", [], 0.0
    while p.poll() is None:
        time.sleep(0.005)
        lines = log.read_text().splitlines() if log.exists() else []
        try:
            stat = open(f"/proc/{p.pid}/stat").read().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            break
        cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        if len(lines) > len(seen):
            seen.append(cpu - last)
            last = cpu
    if status := p.wait():
        sys.exit(f"{a.vlm} failed with {status}: {p.stderr.read().strip()}")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    cpu = seen + [float("nan")] * (len(rows) - len(seen))
    return [{"seconds": r["seconds"], "cpu_seconds": c, "loss": r["loss"]} for r, c in zip(rows, cpu)]


def train(a):
    import resource
    import tempfile

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: a.threads])
    for k in ("RAYON_NUM_THREADS", "MATMUL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[k] = str(a.threads)
    rows, start, before = {"PEFT": [], "vlm": [], "vlm, features kept": []}, time.perf_counter(), others()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        data = samples(folder, a.image, a.batch_size * a.steps)
        for turn in range(a.repeat):
            out = Path(folder) / f"run{turn}"
            took = vlm_steps(a, data, out)
            peaks["vlm"] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if turn == 0 else peaks["vlm"]
            rows["vlm"] += took[1 : a.steps]
            rows["vlm, features kept"] += took[a.steps :]
            argv = [sys.executable, "-m", "peer.steps", a.model, data, a.batch_size, a.steps, a.threads]
            said = subprocess.run(
                list(map(str, argv)), capture_output=True, text=True, cwd=Path(__file__).parent, check=True
            ).stdout
            *steps, peak = map(json.loads, said.splitlines())
            rows["PEFT"] += steps[1:]
            peaks["PEFT"] = peak["peak_bytes"]
    load = max(0.0, (others() - before) / (time.perf_counter() - start))
    busy = f"other processes used {load:.2f} cores" + (": NOT A QUIET MACHINE" if load > 0.1 else "")
    print(f"{a.model}, {a.batch_size} photos a step, {a.threads} threads, {a.repeat} turns; {busy}")
    print(f"{'':22}{'steps':>6}{'best s':>9}{'median':>9}{'cpu best':>10}{'median':>9}{'peak MiB':>10}")
    kept = []
    for name, steps in rows.items():
        wall, cpu = ([s[k] for s in steps if s[k] == s[k]] for k in ("seconds", "cpu_seconds"))
        times = [min(wall), statistics.median(wall), min(cpu), statistics.median(cpu)]
        peak = f"{peaks[name] / 2**20:.0f}" if name in peaks else ""
        print(f"{name:22}{len(steps):>6}{times[0]:>9.3f}{times[1]:>9.3f}{times[2]:>10.3f}{times[3]:>9.3f}{peak:>10}")
        names = ["best_s", "median_s", "cpu_best_s", "cpu_median_s"]
        kept.append(
            run_columns(a, load)
            | {"photos_a_step": a.batch_size, "program": name, "steps": len(steps)}
            | {n: f"{t:.3f}" for n, t in zip(names, times)}
            | {"peak_mib": peak}
        )
    if a.csv:
        append(a.csv, kept)


# rows of the job's table: a part, vlm's seconds, the peer's
JOB = (
    ("load", "load_seconds", "load_seconds"),
    ("vision (first epoch)", "vision_seconds", "vision_seconds"),
    ("steps", "steps_seconds", "steps_seconds"),
    ("train and save", "train_seconds", "train_seconds"),
    ("score", "score_seconds", "score_seconds"),
    ("train and score", "total_seconds", "total_seconds"),
)


def job(a):
    out, flags = Path(a.out), a.flags[1:] if a.flags[:1] == ["--"] else a.flags
    asked = [a.vlm, "bench", "one-dollar", "--out", out, "--shape", a.shape, "--device", a.device, "--json", *flags]
    said = subprocess.run(list(map(str, asked)), stdout=subprocess.PIPE, text=True, check=True).stdout
    run = json.loads(said)
    ours = run["warm"] | {"train_seconds": run["warm"]["total_seconds"] - run["warm"]["score_seconds"]}
    model = out.resolve() / f"random-{run['model']}"
    recipe = tomllib.loads((out / "one-dollar.toml").read_text())
    argv = [sys.executable, "-m", "peer.job", "--model", model, "--device", a.device, "--alpha", recipe["alpha"]]
    argv += ["--train", out.resolve() / "train.jsonl", "--test", out.resolve() / "test.jsonl", "--rank", run["rank"]]
    argv += ["--epochs", run["epochs"], "--batch-size", run["batch_size"], "--learning-rate", recipe["learning-rate"]]
    argv += ["--dtype", "bfloat16" if a.device == "cuda" else "float32", "--workers", a.workers]
    argv += ["--compile"] if a.compile else []
    folder = Path(__file__).parent
    peer = json.loads(
        subprocess.run(list(map(str, argv)), stdout=subprocess.PIPE, text=True, cwd=folder, check=True).stdout
    )
    sizes = f"{run['photos']} photos of {run['size'][0]}x{run['size'][1]}, {run['epochs']} epochs, rank {run['rank']}"
    print(f"{run['model']} on {peer['device']}; {sizes}, batches of {run['batch_size']}; torch {peer['torch']}")
    print(f"{'':22}{'vlm':>10}{'peer':>10}{'peer/vlm':>10}")
    for name, of_vlm, of_peer in JOB:
        times = ours[of_vlm], peer[of_peer]
        cells = [f"{t:.2f}" if t is not None else "-" for t in times]
        ratio = f"{times[1] / times[0]:.2f}" if None not in times and times[0] > 0 else "-"
        print(f"{name:22}{cells[0]:>10}{cells[1]:>10}{ratio:>10}")
    print(f"{'tokens/s in steps':22}{ours['tokens_per_second']:>10.0f}{peer['tokens_per_second']:>10.0f}")
    print(f"{'accuracy':22}{ours['accuracy']:>10.3f}{peer['accuracy']:>10.3f}")
    print(f"{'last loss':22}{ours['last_loss']:>10.4f}{peer['last_loss']:>10.4f}")
    print(f"peer's peak memory: {peer['peak_bytes'] / 2**30:.2f} GiB")
    if a.csv:
        columns = {"date": datetime.date.today().isoformat(), "device": peer["device"], "model": run["model"]}
        columns |= {k: run[k] for k in ("photos", "test", "epochs", "rank", "batch_size")}
        columns |= {"width": run["size"][0], "height": run["size"][1]}
        parts = [k for _, k, _ in JOB] + ["steps", "tokens", "tokens_per_second", "last_loss", "accuracy"]
        peer_name = f"transformers and PEFT, torch {peer['torch']}" + (", compiled" if a.compile else "")
        rows = [("vlm", ours, ""), (peer_name, peer, peer["peak_bytes"])]
        append(a.csv, [columns | {"program": n} | {k: r[k] for k in parts} | {"peak_bytes": b} for n, r, b in rows])


def others():
    """Processor seconds since the machine started, of everything but this process and its finished children."""
    user, nice, system, _, _, irq, softirq = map(int, open("/proc/stat").readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def milliseconds(kept, name, key):
    all_runs = [1000 * t[key] for t in kept[name]]
    return min(all_runs), statistics.median(all_runs)


def table(kept):
    print(
        f"{'':22}"
        + "".join(f"{n + ' best':>20}{'median':>10}" for n in kept)
        + (f"{'best, vlm/peer':>17}" if len(kept) > 1 else "")
    )
    for key, label in WHAT:
        cells = [milliseconds(kept, n, key) for n in kept]
        ratio = f"{cells[1][0] / cells[0][0]:>17.2f}" if len(cells) > 1 else ""
        print(f"{label:22}" + "".join(f"{b:>20.2f}{m:>10.2f}" for b, m in cells) + ratio)


def record(a, kept, load, prompt_tokens, torch_version, version):
    peer = f"transformers {version}, torch {torch_version}"
    rows = []
    for name in kept:
        for key, _ in WHAT:
            best, median = milliseconds(kept, name, key)
            rows.append(
                run_columns(a, load)
                | {"prompt_tokens": prompt_tokens, "new_tokens": a.new_tokens, "runs": a.repeat}
                | {"program": peer if name == "transformers" else name, "what": key}
                | {"best_ms": f"{best:.3f}", "median_ms": f"{median:.3f}"}
            )
    append(a.csv, rows)


def run_columns(a, load):
    models = (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": next(models, "unknown"),
        "threads": a.threads,
        "others_cores": f"{load:.2f}",
        "model": Path(a.model).name,
    }


def append(path, rows):
    """Adds rows to a table that has one header, which they must share."""
    new = not Path(path).exists()
    with open(path, "a", newline="") as f:
        w = csv.DictWriter(f, rows[0])
        if new:
            w.writeheader()
        w.writerows(rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    m = sub.add_parser("make")
    m.add_argument("--template", required=True)
    m.add_argument("--out", required=True)
    m.add_argument("--photo")
    r = sub.add_parser("run")
    r.add_argument("--vlm")
    r.add_argument("--model", required=True)
    r.add_argument("--image", required=True)
    r.add_argument("--prompt", required=True)
    r.add_argument("--new-tokens", type=int, default=32)
    r.add_argument("--threads", type=int, default=2)
    r.add_argument("--repeat", type=int, default=3)
    r.add_argument("--csv")
    t = sub.add_parser("train")
    t.add_argument("--vlm", required=True)
    t.add_argument("--model", required=True)
    t.add_argument("--image", required=True)
    t.add_argument("--batch-size", type=int, default=2)
    t.add_argument("--steps", type=int, default=4)
    t.add_argument("--threads", type=int, default=2)
    t.add_argument("--repeat", type=int, default=2)
    t.add_argument("--csv")
    j = sub.add_parser("job")
    j.add_argument("--vlm", required=True)
    j.add_argument("--out", required=True)
    j.add_argument("--shape", default="8b")
    j.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    j.add_argument("--workers", type=int, default=8)
    j.add_argument("--compile", action="store_true")
    j.add_argument("--csv")
    j.add_argument("flags", nargs=argparse.REMAINDER)
    a = p.parse_args()
    {"make": make, "run": run, "train": train, "job": job}[a.command](a)


if __name__ == "__main__":
    main()
