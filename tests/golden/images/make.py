"""Makes the images of this folder, and crc.txt from what Pillow reads in all of them. Run inside the folder."""
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

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
    blended = io.BytesIO()
    rgba.save(blended, "WEBP", save_all=True, append_images=[rgba.rotate(180)], lossless=True)
    data = bytearray(blended.getvalue())
    data[data.index(b"ANMF") + 23] &= ~2
    with open("animation_blended.webp", "wb") as f:
        f.write(data)
    frames[0].save("animation.gif", save_all=True, append_images=frames[1:])
    frames[0].save("transparent.gif", transparency=3)


def tiff(kind, number, count=1, before=b""):
    """EXIF whose tag 274 is of this type; `before` are entries that come first."""
    entry = struct.pack("<HHI", 274, kind, count) + number + b"\0" * (4 - len(number))
    return b"II*\0" + struct.pack("<IH", 8, len(before) // 12 + 1) + before + entry + b"\0" * 4


def turned():
    """The orientation, in all the places where Pillow finds it."""
    small, short = Image.fromarray(rgb[:3, :4]), struct.pack("<H", 6)
    exif = tiff(3, short)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="%d"/>'
    element = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation=""><tiff:Orientation>8</tiff:Orientation></x:xmpmeta>'
    adobe = b"http://ns.adobe.com/xap/1.0/\0"

    def jpeg(name, *segments):
        file = io.BytesIO()
        small.convert("L").save(file, "JPEG", quality=90)
        app1 = b"".join(struct.pack(">HH", 0xFFE1, len(s) + 2) + s for s in segments)
        with open(f"turned_{name}.jpg", "wb") as f:
            f.write(file.getvalue()[:2] + app1 + file.getvalue()[2:])

    for name, kind, number, count in [
        ("long", 4, struct.pack("<I", 6), 1),
        ("sshort", 8, struct.pack("<h", 5), 1),
        ("slong", 9, struct.pack("<i", 7), 1),
        ("sbyte", 6, b"\x08", 1),
        ("float", 11, struct.pack("<f", 6), 1),
        ("two", 3, struct.pack("<HH", 8, 3), 2),
        ("byte", 1, b"\x06", 1),
        ("none", 3, short, 0),
    ]:
        jpeg(name, b"Exif\0\0" + tiff(kind, number, count))
    rational = tiff(5, struct.pack("<I", 26)) + struct.pack("<II", 12, 2)
    jpeg("rational", b"Exif\0\0" + rational)
    jpeg("big_endian", b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 8, 1, 274, 3, 1, 6 << 16) + b"\0" * 4)
    jpeg("after_empty", b"Exif\0\0", b"Exif\0\0" + exif)
    jpeg("parts", b"Exif\0\0" + exif[:13], b"Exif\0\0" + exif[13:])
    jpeg("xmp", adobe + xmp % 3, adobe + xmp % 6)
    jpeg("xmp_element", adobe + element)
    jpeg("exif_and_xmp", adobe + xmp % 6, b"Exif\0\0" + tiff(3, struct.pack("<H", 1)))
    jpeg("no_head", adobe + xmp % 6, b"Exif\0\0no TIFF")
    # 40 bytes at 99, and 4 in the entry; then more bytes than there are
    jpeg("beyond", adobe + xmp % 8, b"Exif\0\0" + tiff(3, short, before=struct.pack("<HHII", 270, 2, 20, 99)))
    jpeg("too_much", b"Exif\0\0" + tiff(3, short, before=struct.pack("<HHII", 270, 2, 9999, 8)))

    def png(name, ahead=b"", behind=b"", **options):
        file = io.BytesIO()
        small.save(file, "PNG", **options)
        data = file.getvalue()
        with open(f"turned_{name}.png", "wb") as f:
            f.write(data[:33] + ahead + data[33:-12] + behind + data[-12:])

    png("behind", behind=chunk(b"eXIf", exif))
    png("prefixed", chunk(b"eXIf", b"Exif\0\0" + exif))
    png("last", chunk(b"eXIf", tiff(3, b"\3")), chunk(b"eXIf", exif))
    png("text", chunk(b"tEXt", b"exif\0" + exif))
    profile = "\nexif\n%8d\n%s\n%s\n" % (len(exif), exif[:9].hex(), exif[9:].hex())
    for packed in (False, True):
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type exif", profile, zip=packed)
        png("profile_packed" if packed else "profile", pnginfo=text)
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", (xmp % (7 + packed)).decode(), zip=packed)
        png("xmp_packed" if packed else "xmp", pnginfo=text)
    small.save("turned_xmp.webp", lossless=True, xmp=xmp % 6)
    small.save("turned_no_flag.webp", lossless=True, exif=exif)
    with open("turned_no_flag.webp", "r+b") as f:
        f.seek(20)
        f.write(b"\0")


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
turned()
crcs()
