"""Makes the images of this folder, and crc.txt from what Pillow reads in all of them. Run inside the folder."""
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

W, H = 37, 29
y, x = np.mgrid[0:H, 0:W].astype(float)
rng = np.random.default_rng(7)
rgb = np.stack([127 + 120 * np.sin(x / 5 + y / 9), 127 + 120 * np.cos(x / 7 - y / 4), 255 * ((x // 6 + y // 5) % 2)], -1)
rgb = (rgb + rng.normal(0, 12, (H, W, 3))).clip(0, 255).astype(np.uint8)
im = Image.fromarray(rgb)
cmyk = np.concatenate([rgb, ((x * 5 + y * 2) % 256).astype(np.uint8)[..., None]], -1)


def jpegs():
    for name, options in {
        "444": dict(subsampling=0), "422": dict(subsampling=1), "420": dict(subsampling=2),
        "420_low_quality": dict(subsampling=2, quality=8),
        "420_progressive": dict(subsampling=2, progressive=True),
        "444_progressive": dict(subsampling=0, progressive=True, quality=95),
        "420_restart": dict(subsampling=2, restart_marker_blocks=2),
        "420_progressive_restart": dict(subsampling=2, progressive=True, restart_marker_rows=1),
        "rgb": dict(keep_rgb=True),
    }.items():
        im.save(name + ".jpg", **{"quality": 85, **options})
    im.convert("L").save("gray.jpg", quality=85)
    im.convert("L").save("gray_progressive.jpg", quality=85, progressive=True)
    Image.fromarray(cmyk, "CMYK").save("cmyk.jpg", quality=85)
    per_channel()
    im.crop((0, 0, 3, 3)).save("3x3.jpg", quality=85, subsampling=2)
    im.crop((0, 0, 1, 5)).save("1x5.jpg", quality=85, subsampling=2)
    im.crop((0, 0, 5, 1)).save("5x1.jpg", quality=85, subsampling=1)


def per_channel():
    """Each channel in a scan of its own, 4:2:0: three gray files under one frame header."""
    out = b""
    for i, channel in enumerate(im.convert("YCbCr").split()):
        file = io.BytesIO()
        (channel if i == 0 else channel.resize((19, 15))).save(file, "JPEG", quality=85)
        gray = file.getvalue()
        at = {marker: gray.index(bytes([0xFF, marker])) for marker in (0xDB, 0xC0, 0xC4, 0xDA)}
        if i == 0:
            parts = bytes([1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0])
            out = gray[:2] + gray[at[0xDB] : at[0xC0]] + struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, H, W, 3) + parts
        out += gray[at[0xC4] : at[0xDA]] + struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, i + 1, 0, 0, 63, 0)
        out += gray[at[0xDA] + 10 : -2]
    with open("per_channel.jpg", "wb") as f:
        f.write(out + b"\xff\xd9")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name, depth, color, rows, extra=b""):
    """A PNG of a kind that Pillow does not write."""
    head = struct.pack(">IIBBBBB", 13, 11, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    with open(name, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def packed(values, bits):
    rows = ["".join(format(int(v), f"0{bits}b") for v in row) for row in values]
    return [int(r + "0" * (-len(r) % 8), 2).to_bytes((len(r) + 7) // 8, "big") for r in rows]


def others():
    r = rgb[:11, :13]
    small = Image.fromarray(r)
    h, w = r.shape[:2]
    alpha = ((x[:h, :w] * 23 + y[:h, :w] * 31) % 256).astype(np.uint8)
    g = np.array(small.convert("L"))
    for bits in (1, 2, 4, 8):
        png(f"gray{bits}.png", bits, 0, packed(g >> (8 - bits), bits))
    png("gray8_key.png", 8, 0, packed(g // 16 * 16, 8), chunk(b"tRNS", struct.pack(">H", int(g[5, 5] // 16 * 16))))
    palette = bytes(rng.integers(0, 256, 768, dtype=np.uint8))
    for bits in (1, 2, 4, 8):
        opacity = chunk(b"tRNS", bytes(range(0, 256, 255 // (2**bits - 1)))[: 2**bits]) if bits in (2, 8) else b""
        png(f"palette{bits}.png", bits, 3, packed(g >> (8 - bits), bits), chunk(b"PLTE", palette[: 3 * 2**bits]) + opacity)
    rgb16 = (r.astype(np.uint16) * 256 + rng.integers(0, 256, r.shape)).astype(">u2")
    a16 = (alpha.astype(np.uint16) * 256 + rng.integers(0, 256, alpha.shape)).astype(">u2")
    g16 = (g.astype(np.uint16) * 256 + rng.integers(0, 256, g.shape)).astype(">u2")
    png("rgb16.png", 16, 2, [q.tobytes() for q in rgb16])
    png("rgba16.png", 16, 6, [q.tobytes() for q in np.concatenate([rgb16, a16[..., None]], -1)])
    png("gray16.png", 16, 0, [q.tobytes() for q in g16])
    png("gray_alpha16.png", 16, 4, [q.tobytes() for q in np.stack([g16, a16], -1)])
    png("rgb8_key.png", 8, 2, [q.tobytes() for q in r], chunk(b"tRNS", struct.pack(">HHH", *map(int, r[4, 7]))))
    small.save("rgb8.png")
    rgba = Image.fromarray(np.concatenate([r, alpha[..., None]], -1))
    rgba.save("rgba8.png")
    rgba.convert("LA").save("gray_alpha8.png")
    turned = Image.Exif()
    turned[0x112] = 6
    small.save("orientation6.png", exif=turned)
    small.save("orientation6.webp", lossless=True, exif=turned)
    small.save("orientation6.jpg", quality=85, exif=turned)
    im.save("lossy.webp", quality=70)
    rgba.save("lossy_alpha.webp", quality=70)
    rgba.save("lossless_alpha.webp", lossless=True, exact=True)
    frames = [im.quantize(16).crop((0, 0, 20, 15)), im.quantize(16).crop((5, 5, 25, 20))]
    frames[0].save("animation.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save("animation.gif", save_all=True, append_images=frames[1:])
    frames[0].save("transparent.gif", transparency=3)


def crcs():
    with open("crc.txt", "w") as out:
        for name in sorted(os.listdir(".")):
            if name.split(".")[-1] not in ("jpg", "png", "webp", "gif"):
                continue
            image = ImageOps.exif_transpose(Image.open(name))
            if image.mode == "I;16":  # Pillow would clip at 255 here
                image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
            if image.mode in ("LA", "RGBA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGB", image.size, "white")
                white.paste(image, mask=image.getchannel("A"))
                image = white
            image = image.convert("RGB")
            out.write(f"{name} {image.width} {image.height} {zlib.crc32(image.tobytes()):08x}\n")


jpegs()
others()
crcs()
