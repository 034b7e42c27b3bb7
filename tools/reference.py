#!/usr/bin/env python3
"""Reference values from transformers, PEFT and PyTorch. A person runs this; nothing of the build or the tests does.

    python3 -m venv .cache/reference
    .cache/reference/bin/pip install torch==2.11.0 torchvision==0.26.0 transformers==5.17.0 peft==0.21.2 accelerate \\
        --extra-index-url https://download.pytorch.org/whl/cpu

    reference.py cases --template DIR --out DIR [--models N] [--seed N]
        random tiny models, conversations and LoRA runs with what transformers computes, as check.py reads them
    reference.py golden --template DIR --out tests/golden/cases
        the two small models that the tests carry
    reference.py verify --cases DIR
        computes every case and run of such a folder again and compares
    reference.py ops --out tests/golden/ops.safetensors
        single operations, forward and gradients (the list: tools/peer/ops.py)
    reference.py dropout --out tests/golden/dropout.safetensors
        a linear with LoRA behind a dropout whose mask is given
    reference.py merged --model DIR --reference-adapter DIR --merged DIR
        loads what `vlm merge` wrote and compares its logits with base and adapter

A template is a folder with tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json (or
processor_config.json); tests/golden/cases/single is one.
Everything is computed on one CPU thread in float32 (ops: float64); the distance to float64 is printed.
"""

import argparse
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    cases = sub.add_parser("cases")
    cases.add_argument("--template", required=True)
    cases.add_argument("--out", required=True)
    cases.add_argument("--models", type=int, default=28)
    cases.add_argument("--seed", type=int, default=1)
    golden = sub.add_parser("golden")
    golden.add_argument("--template", required=True)
    golden.add_argument("--out", required=True)
    verify = sub.add_parser("verify")
    verify.add_argument("--cases", required=True)
    ops = sub.add_parser("ops")
    ops.add_argument("--out", required=True)
    dropout = sub.add_parser("dropout")
    dropout.add_argument("--out", required=True)
    merged = sub.add_parser("merged")
    merged.add_argument("--model", required=True)
    merged.add_argument("--reference-adapter", required=True)
    merged.add_argument("--merged", required=True)
    a = p.parse_args()

    import torch  # after the arguments: it takes seconds
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if a.command == "cases":
        from peer import cases as part

        part.sweep(a.out, a.template, a.models, a.seed)
    elif a.command == "golden":
        from peer import cases as part

        part.golden(a.out, a.template)
    elif a.command == "verify":
        from peer import cases as part

        sys.exit(not part.verify(a.cases))
    elif a.command == "ops":
        from peer import ops as part

        part.write(a.out)
    elif a.command == "dropout":
        from peer import dropout as part

        part.write(a.out)
    else:
        from peer import merged as part

        sys.exit(not part.check(a.model, a.reference_adapter, a.merged))


if __name__ == "__main__":
    main()
