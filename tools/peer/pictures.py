"""Pictures of odd sizes and modes, and the road from a picture file to RGB."""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

# (name, width, height, mode): scaled up, scaled down, kept, and extreme aspects up to nearly 200.
SIZES = [
    ("dot", 1, 1, "RGB"),
    ("speck", 7, 5, "RGB"),
    ("cell", 33, 47, "RGB"),
    ("square", 64, 64, "RGB"),
    ("wide", 100, 37, "RGB"),
    ("tall", 29, 90, "RGB"),
    ("strip", 300, 5, "RGB"),
    ("pole", 3, 400, "RGB"),
    ("thread", 398, 2, "RGB"),
    ("odd", 131, 97, "RGB"),
    ("big", 351, 263, "RGB"),
    ("half", 80, 48, "RGB"),
    ("long", 210, 33, "RGB"),
    ("grey", 61, 45, "L"),
    ("glass", 75, 53, "RGBA"),
    ("paint", 57, 66, "P"),
    ("fog", 40, 70, "LA"),
    ("plate", 122, 61, "RGB"),
    ("slab", 96, 160, "RGB"),
    ("chip", 48, 16, "RGB"),
]


def draw(width, height, mode, seed):
    """Slopes, discs and a little noise, so that patches differ and a resize has edges to soften."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack(
        [
            128 + 100 * np.sin(rng.uniform(0.02, 0.3) * x + rng.uniform(0.02, 0.3) * y + rng.uniform(0, 6))
            for _ in range(3)
        ],
        -1,
    )
    picture = Image.fromarray(np.clip(base + noise.normal(0, 6, base.shape), 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1, 0.4 * max(width, height))
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=tuple(rng.randrange(256) for _ in range(3)))
    if mode in ("RGBA", "LA"):
        veil = np.clip(255 * (x + y) / max(1, width + height - 2) * 1.3 - 20, 0, 255).astype(np.uint8)
        picture = picture.convert(mode[:-1])
        picture.putalpha(Image.fromarray(veil))
        return picture
    return picture.quantize(31) if mode == "P" else picture.convert(mode)


def write_all(folder, seed):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, w, h, mode) in enumerate(SIZES):
        draw(w, h, mode, seed + i).save(folder / f"{name}.png")


def load(path):
    """EXIF orientation applied, alpha pasted on white, RGB: here, because transformers 5.17 would drop the alpha."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")
