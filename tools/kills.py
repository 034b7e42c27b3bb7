#!/usr/bin/env python3
"""A training run that is killed again and again must end as one that was left alone: same adapter, same log.

    kills.py --vlm PATH --model DIR --data FILE [--kills 50] [--seed 0] [--work DIR] [-- FLAGS OF vlm train]

Runs once to the end. Then starts the same run, kills it (SIGKILL) at a random moment and resumes it, until it has been
killed so often; a run that ends in between is compared and begun again. Every second kill waits for a file that is just
being written beside its place, so that writing, flushing and renaming are hit too. Compared are the bytes of
adapter_model.safetensors and every line of metrics.jsonl apart from the clock's numbers.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLOCK = ("seconds", "tokens_per_second", "word_seconds", "eval_seconds", "mfu")


def result(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    return (out / "adapter_model.safetensors").read_bytes(), log


def writing(out):
    """Whether a file is being written beside its place."""
    return any(out.glob(".*.partial-*")) or any(out.glob("checkpoints/.*.partial-*"))


def main():
    argv, extra = sys.argv[1:], []
    if "--" in argv:
        extra = argv[argv.index("--") + 1 :]
        argv = argv[: argv.index("--")]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vlm", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--work", help="a folder that is kept")
    a = p.parse_args(argv)
    work = Path(a.work or tempfile.mkdtemp(prefix="kills-"))
    work.mkdir(parents=True, exist_ok=True)

    def command(out, *flags):
        return [a.vlm, "train", "--model", a.model, "--data", a.data, "--out", out, "--save-every", "1", *extra, *flags]

    start = time.time()
    subprocess.run(command(work / "whole"), check=True, capture_output=True)
    took, want = time.time() - start, result(work / "whole")
    print(f"left alone: {len(want[1])} lines in {took:.1f} s", flush=True)
    chance, out = random.Random(a.seed), work / "killed"
    kills = in_writing = before_the_first = finished = unequal = 0
    flags = []

    def ended():
        nonlocal finished, unequal
        got = result(out)
        finished += 1
        if got != want:
            unequal += 1
            print(f"UNEQUAL after {kills} kills: adapter {got[0] == want[0]}, log {got[1] == want[1]}", flush=True)
            shutil.copytree(out, work / f"unequal{unequal}")
        shutil.rmtree(out)

    while kills < a.kills:
        p = subprocess.Popen(command(out, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.time() + chance.uniform(0, took)
        wait_for_writing = kills % 2 == 1
        while time.time() < until and p.poll() is None:
            time.sleep(0.001)
        give_up = time.time() + took
        while wait_for_writing and p.poll() is None and not writing(out) and time.time() < give_up:
            pass
        if p.poll() is None:
            hit = writing(out)
            p.kill()
            p.wait()
            kills += 1
            in_writing += hit or writing(out)
            before_the_first += not any(out.glob("checkpoints/step-*"))
            flags = ["--resume"]
        elif p.returncode:
            sys.exit(f"failed with {p.returncode}: {p.stderr.read().decode().strip()}")
        else:
            ended()
            flags = []
    if flags:
        subprocess.run(command(out, *flags), check=True, capture_output=True)
        ended()
    print(
        f"{kills} kills, {in_writing} while a file was written, {before_the_first} before the first checkpoint; "
        f"{finished} runs ended, {unequal} not as the one left alone"
    )
    if not a.work:
        shutil.rmtree(work)
    sys.exit(unequal > 0)


if __name__ == "__main__":
    main()
