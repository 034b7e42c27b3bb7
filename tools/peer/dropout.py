"""A linear with LoRA behind a dropout whose mask is given: PyTorch's values and gradients in float64.

The mask is that of src/host/dropout.rs, computed here a second time from its description: Philox4x32-10 (Salmon et al.
2011) of (i / 4, 0, 0) under the key of row and module, word i mod 4; kept where the word is at least p 2^32.

dropout.{one,two}: x [T,K], keys [T,2] (words as signed 32-bit numbers), p, scale; for each segment j: weightj [Nj,K],
aj [r,K], bj [Nj,r], modulej (its name) -> maskj [T,K] (0 or 1), y [T, sum of Nj] = x Wj' + scale ((x mask/(1-p)) aj') bj',
and, from dy, the gradients dx, daj, dbj, dweightj.
"""

import torch
from safetensors.torch import save_file

M32 = 2**32 - 1


def philox(counter, key):
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & M32, (p0 >> 32) ^ c3 ^ k1, p0 & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def fold(key, number):
    return philox((number & M32, number >> 32, 1, 0), key)[:2]


def name_id(name):
    h = 0
    for b in name.encode():
        h = (h * 0x0100000001B3 & (2**64 - 1)) ^ b
    return h


def mask_of(keys, name, p, width):
    rows = []
    for key in keys:
        module = fold(tuple(key), name_id(name))
        words = [philox((i // 4, 0, 0, 0), module)[i % 4] for i in range(width)]
        rows.append([float(w >= int(p * 2**32)) for w in words])
    return torch.tensor(rows, dtype=torch.float64)


def write(out):
    g = torch.Generator().manual_seed(30)
    rand = lambda *shape: torch.randn(shape, generator=g).double()
    tensors = {}
    for case, (t, k, widths, rank, p) in {"one": (7, 13, [9], 3, 0.3), "two": (11, 37, [10, 5], 4, 0.5)}.items():
        keys = [[int(w) for w in torch.randint(0, 2**32, (2,), generator=g)] for _ in range(t)]
        x = rand(t, k).requires_grad_()
        scale, parts, leaves = 1.5, [], {"x": x}
        put = lambda name, value: tensors.__setitem__(f"{case}.{name}", value.detach().contiguous())
        put("keys", torch.tensor(keys).to(torch.int64).to(torch.int32).long())
        put("p", torch.tensor([p], dtype=torch.float64))
        put("scale", torch.tensor([scale], dtype=torch.float64))
        for j, n in enumerate(widths):
            mask = mask_of(keys, f"module{j}", p, k)
            w, a, b = (rand(*s).requires_grad_() for s in ((n, k), (rank, k), (n, rank)))
            leaves |= {f"weight{j}": w, f"a{j}": a, f"b{j}": b}
            put(f"mask{j}", mask)
            parts.append(x @ w.T + scale * ((x * mask / (1 - p)) @ a.T) @ b.T)
        y = torch.cat(parts, 1)
        dy = rand(*y.shape)
        y.backward(dy)
        put("y", y)
        put("dy", dy.float())
        for name, leaf in leaves.items():
            put(name, leaf.float())
            put(f"d{name}", leaf.grad)
    save_file({f"dropout.{k}": v for k, v in tensors.items()}, out)
    print(f"{out}: {len(tensors)} tensors")
