#!/usr/bin/env python3
"""Reference values of scores and tests, from scikit-learn and statsmodels. A person runs this; no build or test does.

    python3 -m venv .cache/scores
    .cache/scores/bin/pip install scikit-learn==1.9.1 statsmodels==0.15.0
    .cache/scores/bin/python tools/reference_scores.py --out tests/golden/scores.json

Random label sets (seed 5) of 1 to 12 classes and 1 to 200 photos, some with classes that are never right, never
predicted or without photos; sets with several labels a photo and rounded, so tied, probabilities; tables for McNemar.
"""

import argparse
import json
import warnings

try:
    import numpy as np
    import sklearn
    import statsmodels
    from sklearn import metrics as m
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.proportion import proportion_confint
except ImportError as absent:
    raise SystemExit(f"{absent.name} is not installed\n{__doc__}")


def single(rng, n, k):
    names = [f"c{i:02d}" for i in range(k)]
    shares = rng.dirichlet(np.ones(k) * rng.choice([0.3, 1.0, 5.0]))
    truth = rng.choice(k, n, p=shares)
    said = np.where(rng.random(n) < rng.random(), truth, rng.integers(0, k, n))
    present = sorted(set(truth.tolist()))
    p, r, f, s = m.precision_recall_fscore_support(truth, said, labels=list(range(k)), zero_division=np.nan)
    mp, mr, mf, _ = m.precision_recall_fscore_support(truth, said, labels=present, average="macro", zero_division=0)
    number = lambda xs: [None if np.isnan(x) else float(x) for x in xs]
    right = int((truth == said).sum())
    return {
        "classes": names,
        "truth": truth.tolist(),
        "said": said.tolist(),
        "accuracy": float(m.accuracy_score(truth, said)),
        "interval": [float(x) for x in proportion_confint(right, n, method="wilson")],
        "precision": number(p),
        "recall": number(r),
        "f1": number(f),
        "support": s.tolist(),
        "macro": [float(mp), float(mr), float(mf)],
        "confusion": m.confusion_matrix(truth, said, labels=list(range(k))).tolist(),
        "majority_macro_f1": float(
            m.f1_score(truth, np.full(n, np.bincount(truth, minlength=k).argmax()), labels=present, average="macro", zero_division=0)
        ),
    }


def several(rng, n, k):
    names = [f"c{i:02d}" for i in range(k)]
    truth = (rng.random((n, k)) < rng.uniform(0.05, 0.6, k)).astype(int)
    truth[truth.sum(1) == 0, 0] = 1
    score = np.round(np.clip(0.35 * truth + rng.random((n, k)) * 0.6, 0, 1), int(rng.choice([1, 2, 6])))
    said = (score > 0.5).astype(int)
    said[said.sum(1) == 0, k - 1] = 1
    present = [c for c in range(k) if truth[:, c].any()]
    p, r, f, s = m.precision_recall_fscore_support(truth, said, zero_division=np.nan)
    number = lambda xs: [None if np.isnan(x) else float(x) for x in xs]
    ap = [float(m.average_precision_score(truth[:, c], score[:, c])) if c in present else None for c in range(k)]
    return {
        "classes": names,
        "truth": truth.tolist(),
        "said": said.tolist(),
        "score": score.tolist(),
        "accuracy": float(m.accuracy_score(truth, said)),
        "precision": number(p),
        "recall": number(r),
        "f1": number(f),
        "support": s.tolist(),
        "average_precision": ap,
        "mean_average_precision": float(m.average_precision_score(truth[:, present], score[:, present], average="macro")),
        "micro_f1": float(m.f1_score(truth, said, average="micro", zero_division=0)),
        "macro_f1": float(m.f1_score(truth[:, present], said[:, present], average="macro", zero_division=0)),
        "constant_map": float(
            m.average_precision_score(truth[:, present], np.zeros((n, len(present))), average="macro")
        ),
    }


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", required=True)
    out = a.parse_args().out
    warnings.filterwarnings("ignore")
    rng = np.random.default_rng(5)
    tables = [(0, 0), (1, 0), (0, 1), (5, 5), (4, 1), (12, 3), (3, 12), (40, 21), (150, 149), (700, 560), (2100, 1900)]
    data = {
        "origin": f"tools/reference_scores.py, scikit-learn {sklearn.__version__}, statsmodels {statsmodels.__version__}",
        "single": [single(rng, n, k) for n, k in [(1, 1), (2, 2), (30, 3), (97, 2), (120, 12), (200, 7)]],
        "several": [several(rng, n, k) for n, k in [(1, 1), (8, 3), (60, 4), (150, 9)]],
        "mcnemar": [
            {"fixed": b, "broken": c, "p": float(mcnemar([[17, c], [b, 9]], exact=True).pvalue)} for b, c in tables
        ],
    }
    with open(out, "w") as file:
        json.dump(data, file, separators=(",", ":"))
        file.write("\n")


main()
