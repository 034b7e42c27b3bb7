#!/usr/bin/env python3
"""Are wrong gradients noticed? Puts errors into the code of training, one at a time, and runs the tests against each.

    mutants.py [--work DIR] [--only N,N] [--jobs N] [--timeout SECONDS]

All errors are built into one copy of the program in --work (kept, so that a second run builds less), each behind a switch
that an environment variable turns on: one build, then a run of the tests for each. An error survives if every test still
passes. The list below says where each is: «» encloses what is replaced, the rest finds the place. A place that is not
there any more, or not once, ends the script.

Exit code 1 where an error survives that is not marked as harmless (one that changes no result by construction).
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The tests that may notice: of the words, of the tape, of whole steps and of runs.
TESTS = ["host_", "training", "dropout", "recompute", "train_", "tape"]

HOST = "src/host/"
MUTANTS = [
    # file, place, replacement
    (HOST + "norm.rs", "*dx += r * (*g «-» mean_g - *n * mean_gn);", "+"),
    (HOST + "norm.rs", "*dx += r * «(*g - mean_g - *n * mean_gn)»;", "(*g - mean_g)"),
    (HOST + "norm.rs", "for ((dx, g), n) in dx.iter_mut().zip(&g).zip(&n) {\n        *dx += «r» *", "r * T::of(0.9)"),
    (HOST + "norm.rs", "|(dw, (dy, n))| *dw += «*dy * *n»", "*dy"),
    (HOST + "norm.rs", "|(db, dy)| *db += «*dy»", "-*dy"),
    (HOST + "norm.rs", "Kind::Layer { .. } => «g.iter().copied().sum::<T>() / count»", "T::zero()"),
    (HOST + "attention.rs", "let last = if mask == Mask::Causal { «t + 1» } else { to };", "t + 1 - usize::from(t > from)"),
    (HOST + "attention.rs", "let ds = *p * «(*dp - mean)» * scale;", "*dp"),
    (HOST + "attention.rs", "add(dk.head(i, g, width), «ds», q);", "-ds"),
    (HOST + "attention_tuned.rs", "let seen = if mask == Mask::Causal { «start + i + 1» } else { n_keys };\n                    softmax(&mut p[..seen]);\n                    math::softmax_backward", "start + i + usize::from(start + i == 0)"),
    (HOST + "attention_tuned.rs", "dp[seen..].fill(«0.0»);", "1e-3"),
    (HOST + "attention_tuned.rs", "p[seen..].fill(«0.0»);\n                    dp[seen", "1e-3"),
    (HOST + "attention_tuned.rs", "gemm(n_keys, n_queries, width, «1.0», View::transposed(&dp, n_keys), q, 1.0, dk, width);", "0.9"),
    (HOST + "attention_tuned.rs", "gemm(n_keys, n_queries, width, 1.0, View::transposed(&p, n_keys), dy, «1.0», dv, width);", "0.0"),
    (HOST + "math.rs", "*dp = «scale» * *p * (*dp - mean);", "1.0"),
    (HOST + "math.rs", "*dp = scale * *p * (*dp «-» mean);", "+"),
    (HOST + "math.rs", "*dg += *dy * *u * s * (1.0 «+» *g * (s * e));", "-"),
    (HOST + "math.rs", "*du += «*dy * *g * s»;", "*dy * s"),
    (HOST + "math.rs", "*dz = *dy * s * (1.0 + TWICE_SQRT_2_OVER_PI * *z * (s * e) * (1.0 + «3.0» * square));", "2.0"),
    (HOST + "linear.rs", "half * (one + t) + half * x * «(one - t * t)»", "(one + t * t)"),
    (HOST + "linear.rs", "below + «x» * (-half * x * x).exp()", "-x"),
    (HOST + "linear_tuned_backward.rs", "gemm(dz.len() / n, l.b.rows, rank, «l.scale», left, right, 0.0", "1.0"),
    (HOST + "linear_tuned_backward.rs", "add_product(dz, n, m, s, l.b.columns, «l.scale», db);", "0.9 * l.scale"),
    (HOST + "linear_tuned_backward.rs", "add_product(dz, n, m, View::rows(x, k), k, «1.0», dw);", "-1.0"),
    (HOST + "linear_tuned_backward.rs", "|(db, dz)| *db += «*dz»", "0.9 * *dz"),
    (HOST + "linear_tuned_backward.rs", "gemm(m, depth.len(), width, 1.0, left, View::rows(&w, stride), «1.0», &mut block, width);", "0.0"),
    (HOST + "linear_tuned_backward.rs", "gemm(m, l.a.rows, width, «1.0», left, View::rows(&a, stride), 1.0, &mut block, width);\n                    continue;", "0.0"),
    (HOST + "linear_tuned_backward.rs", "|(dx, (v, keep))| *dx += «v * keep»", "*v"),
    (HOST + "linear_tuned_backward.rs", "let sums = column_blocks(&«l.input(x)», k, m, &ds[l.s_column..]", "std::borrow::Cow::Borrowed(x)"),
    (HOST + "linear_tuned_backward.rs", "add_rows(&sums, «l.s_column», k, da);", "0"),
    (HOST + "linear_loss_tuned.rs", "let at_label = logits[label] * factor - «scale»;", "0.9 * scale"),
    (HOST + "linear_loss_tuned.rs", "let factor = («f64::from(scale) / sum») as f32;", "1.0 / sum"),
    (HOST + "qk_rope.rs", "dn[j] = dy[j] * cos[j] «+» dy[j + half] * sin[j];", "-"),
    (HOST + "qk_rope.rs", "dn[j + half] = dy[j + half] * cos[j] - dy[j] * «sin[j]»;", "cos[j]"),
    (HOST + "embed.rs", "Some(rows) if rows[t] «>=» 0 => (dfeatures", ">"),
    (HOST + "embed.rs", "zip(dy) {\n                *d += «*dy»;", "-*dy"),
    (HOST + "deepstack_add.rs", "*df += «*dy»;", "T::of(0.9) * *dy"),
    (HOST + "patch_embed.rs", "*d += «*s * *dy»;", "*dy"),
    (HOST + "adamw.rs", "*v = beta2 * *v + rest2 * «g * g»;", "g"),
    (HOST + "adamw.rs", "rate: T::of(step.learning_rate / (1.0 - step.beta1.powf(«t»))),", "t + 1.0"),
    (HOST + "adamw.rs", "*p = *p * keep «-» rate * (*m", "+"),
    (HOST + "grad_norm.rs", "let coefficient = max_norm / («norm» + 1e-6);", "norm * norm"),
    (HOST + "dropout.rs", "*factor = if word >= from { «kept» } else { 0.0 };", "1.0"),
    (HOST + "dropout.rs", "Stream::of_key(key).with(«dropout.module»)", "0"),
    ("src/tape/rules.rs", "return Some(Gradient { tensor, accumulate: «Accumulate::Add» });", "Accumulate::Overwrite"),
    ("src/tape/rules.rs", "let part = op.residual.filter(|_| «op.rows.is_some()»);", "op.rows.is_none()"),
    ("src/tape/rules.rs", "if let Some(residual) = «whole» {", "None::<Tensor>"),
    ("src/tape/rules.rs", "gradients.pass_on(self, «op.x», dy)?;", "op.y"),
    ("src/ops/attention/backward.rs", "RowsMut { data: dv.values(), start: «f.v_column», stride: v_stride }", "0"),
    ("src/tape/recompute.rs", "if !again.done.contains(&i) «&&» needed.insert(i) {", "||"),
    ("src/train/step.rs", "labels.rows.push(start + t as i32 «- 1»);", "- 0"),
    ("src/train/step.rs", "beta2: o.betas[«1»]", "0"),
]
# By construction these change no result that a test could see; the reason stands beside each.
HARMLESS = {}

SWITCH = '''//! Errors that are turned on one at a time; see tools/mutants.py.

/// Whether error `n` is on.
pub fn on(n: u32) -> bool {
    static ON: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var("VLM_MUTANT").ok().and_then(|n| n.parse().ok()).unwrap_or(0));
    *ON == n
}
'''
OPERATORS = {"+", "-", ">", ">=", "&&", "||", "- 1", "- 0"}


def place_of(text, n, place, path):
    """Where error `n` changes the text, and the expression around it that gets the switch: (from, to), (from, to)."""
    before, rest = place.split("«")
    old, after = rest.split("»")
    found = text.count(before + old + after)
    if found != 1:
        sys.exit(f"error {n}: {path} has this place {found} times, wanted 1: {before + old + after}")
    at = text.index(before + old + after) + len(before)
    edit = (at, at + len(old))
    if old not in OPERATORS:
        return edit, edit
    # an operator: the switch is around the right side, the condition or the argument that it stands in
    start = max(text.rfind(mark, 0, at) + len(mark) for mark in (" = ", " += ", "if "))
    argument = text[:at].endswith("(start + t as i32 ")
    if argument:
        start = text.rfind("(", 0, at) + 1
    ends = [text.find(mark, at) for mark in (");" if argument else ";", " {", " =>", "\n")]
    return edit, (start, min(end for end in ends if end > 0))


def planted(text, errors, path):
    """The file's text with all its errors [(number, place, replacement)], each behind its switch."""
    spans = [(n, new, *place_of(text, n, place, path)) for n, place, new in errors]
    spans.sort(key=lambda s: (s[3][0], -s[3][1]))
    groups = []  # of errors whose expressions lie within each other
    for span in spans:
        if groups and span[3][0] < groups[-1][0][1]:
            (start, end), members = groups[-1]
            groups[-1] = ((start, max(end, span[3][1])), members + [span])
        else:
            groups.append((span[3], [span]))
    for (start, end), members in reversed(groups):
        chain = ""
        for n, new, (a, b), _ in members:
            chain += f"if crate::base::mutant::on({n}) {{ {text[start:a]}{new}{text[b:end]} }} else "
        text = text[:start] + f"({chain}{{ {text[start:end]} }})" + text[end:]
    return text


def copy(work):
    root = Path(__file__).resolve().parent.parent
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, tracked):
        source, to = root / name, work / name
        if not source.is_file():
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_bytes()
        if name in {m[0] for m in MUTANTS}:
            errors = [(n, place, new) for n, (path, place, new) in enumerate(MUTANTS, 1) if path == name]
            text = planted(text.decode(), errors, name).encode()
        if name == "src/base/mod.rs":
            text += b"\npub mod mutant;\n"
        if name == "src/lib.rs":
            text = b"#![allow(unused_parens)]\n" + text
        if not to.exists() or to.read_bytes() != text:
            to.write_bytes(text)
            shutil.copymode(source, to)
    switch = work / "src/base/mutant.rs"
    if not switch.exists() or switch.read_text() != SWITCH:
        switch.write_text(SWITCH)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", default="target/mutants", help="where the copy lies and is built")
    p.add_argument("--only", help="numbers of errors, with commas")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--timeout", type=int, default=900)
    p.add_argument("--plant-only", action="store_true", help="write the copy, build and run nothing")
    a = p.parse_args()
    work = Path(a.work).resolve()
    copy(work)
    if a.plant_only:
        return
    build = ["cargo", "test", "--test", "suite", "--no-run"]
    said = subprocess.run(build, cwd=work, capture_output=True, text=True)
    if said.returncode:
        sys.exit(said.stderr)
    binary = said.stderr.rsplit("(", 1)[1].split(")")[0]

    def run(n):
        start = time.time()
        env = os.environ | {"VLM_MUTANT": str(n)}
        try:
            done = subprocess.run([work / binary, *TESTS], cwd=work, capture_output=True, text=True, env=env, timeout=a.timeout)
            failed = [line.split()[1] for line in done.stdout.splitlines() if line.endswith("FAILED") and line.startswith("test ")]
            return n, "killed" if done.returncode else "SURVIVED", failed, time.time() - start
        except subprocess.TimeoutExpired:
            return n, "killed", ["ran out of time"], time.time() - start

    _, clean, failed, seconds = run(0)
    if clean == "killed":
        sys.exit(f"the tests fail without any error: {failed}")
    print(f"without an error all tests pass in {seconds:.0f} s", flush=True)
    wanted = [int(n) for n in a.only.split(",")] if a.only else range(1, len(MUTANTS) + 1)
    survived = 0
    with ThreadPoolExecutor(a.jobs) as pool:
        for n, what, failed, _ in pool.map(run, wanted):
            path, place, new = MUTANTS[n - 1]
            if what == "SURVIVED":
                what = f"harmless: {HARMLESS[n]}" if n in HARMLESS else what
                survived += n not in HARMLESS
            old = place.split("«")[1].split("»")[0]
            by = f"{len(failed)} tests, first {failed[0]}" if failed else ""
            print(f"{n:>3}  {what:9} {path}: {old!r} -> {new!r}  {by}", flush=True)
    print(f"{len(list(wanted)) - survived} of {len(list(wanted))} noticed")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
