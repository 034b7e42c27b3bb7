"""Writes tests/golden/curve.json: power laws as scipy fits them; and one of its sets as folders of vlm eval, tests/golden/curve.

    python3 tools/reference_curve.py    (needs scipy 1.17, numpy)

Each set is runs (samples, correct, of) drawn here from a law with binomial noise. scipy.optimize.curve_fit fits
error = a n^-b + c with a >= 0, 0 <= b <= 5, 0 <= c <= 1 (trust region, tight tolerances) from many starts; the least
sum of squares counts. Standard errors are the roots of pcov's diagonal, where no number is at its bound.
"""
import json
import warnings
from pathlib import Path

try:
    import numpy as np
    import scipy
    from scipy.optimize import OptimizeWarning, curve_fit
except ImportError as absent:
    raise SystemExit(f"{absent.name} is not installed\n{__doc__}")

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
BOUNDS = ([0, 0, 0], [np.inf, 5, 1])


def law(n, a, b, c):
    return a * np.power(n, -b) + c


def draw(seed, truth, sizes, seeds, of):
    rng = np.random.default_rng(seed)
    runs = []
    for n in sizes:
        for _ in range(seeds):
            error = np.clip(law(n, *truth) + rng.normal(0, 0.005), 0, 1)
            runs.append((n, int(of - rng.binomial(of, error)), of))
    return runs


def fit(runs):
    x = np.array([r[0] for r in runs], float)
    y = np.array([1 - r[1] / r[2] for r in runs], float)
    best = None
    for b in (0.05, 0.2, 0.5, 1.0, 2.0, 4.0):
        for c in (0.0001, 0.02, 0.1, 0.3):
            a = max(y.max() - c, 0.01) * x.min() ** b
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OptimizeWarning)
                try:
                    p, cov = curve_fit(law, x, y, p0=(a, b, c), bounds=BOUNDS, max_nfev=20000,
                                       ftol=1e-15, xtol=1e-15, gtol=1e-15, x_scale=(max(a, 1e-3), 1.0, 0.1))
                except RuntimeError:
                    continue
            cost = float(np.sum((law(x, *p) - y) ** 2))
            if best is None or cost < best[0]:
                best = (cost, p, cov)
    cost, p, cov = best
    inside = p[0] > 1e-9 and 1e-6 < p[1] < 5 - 1e-6 and 1e-9 < p[2] < 1 - 1e-9
    return {"a": p[0], "b": p[1], "c": p[2], "sum_of_squares": cost,
            "standard_errors": list(np.sqrt(np.diag(cov))) if inside and len(runs) > 3 else None}


CASES = {
    "steep, five sizes": draw(1, (2.5, 0.6, 0.03), (20, 40, 80, 160, 319), 3, 400),
    "shallow": draw(2, (0.9, 0.25, 0.02), (10, 40, 160, 640, 2560), 3, 1000),
    "high floor": draw(3, (3.0, 0.8, 0.2), (16, 32, 64, 128, 256, 512), 2, 500),
    "large sets": draw(4, (6.0, 0.5, 0.01), (1000, 3000, 10000, 30000, 100000), 2, 5000),
    "no floor": draw(5, (1.2, 0.35, 0.0), (20, 50, 100, 200, 400), 2, 300),
    "four sizes, one run": draw(6, (1.5, 0.5, 0.05), (39, 78, 156, 319), 1, 98),
    "flat": draw(7, (0.0, 0.5, 0.3), (20, 40, 80, 160), 3, 200),
}

if __name__ == "__main__":
    cases = [{"name": name, "runs": runs, "fit": fit(runs)} for name, runs in CASES.items()]
    head = f"scipy {scipy.__version__}, numpy {np.__version__}; tools/reference_curve.py"
    (GOLDEN / "curve.json").write_text(json.dumps({"made_by": head, "cases": cases}, indent=1) + "\n")
    for samples, correct, of in CASES["four sizes, one run"]:
        folder = GOLDEN / "curve" / str(samples)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"n": of, "correct": correct, "accuracy": correct / of}
        text = json.dumps({"training_samples": samples, "data": "test.jsonl", "metrics": metrics})
        (folder / "summary.json").write_text(text + "\n")
    for case in cases:
        print(case["name"], case["fit"])
