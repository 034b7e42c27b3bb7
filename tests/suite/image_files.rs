//! Image files to pixels: Pillow's, for every kind of file; and every refusal.

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use vlm::data::image::{Rgb, decode, dimensions, dimensions_of, load};
use vlm::data::look::{self, content};
use vlm::data::messages::ImageSource;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

/// Name, width, height, CRC-32 of each golden file (tests/golden/images/README.md).
fn listed() -> Vec<(String, usize, usize, u32)> {
    let list = String::from_utf8(bytes("crc.txt")).unwrap();
    let line = |l: &str| {
        let [name, width, height, crc] = l.split(' ').collect::<Vec<_>>()[..] else { panic!("{l}") };
        (name.into(), width.parse().unwrap(), height.parse().unwrap(), u32::from_str_radix(crc, 16).unwrap())
    };
    list.lines().map(line).collect()
}

#[test]
fn every_kind_of_file_gives_pillows_pixels() {
    let files = listed();
    assert!(files.len() > 40);
    for (name, width, height, crc) in files {
        let picture = load(&golden(&name)).unwrap();
        assert_eq!((picture.width, picture.height), (width, height), "{name}");
        assert_eq!(format!("{:08x}", crc32fast::hash(&picture.pixels)), format!("{crc:08x}"), "{name}");
        assert_eq!(dimensions(&golden(&name)).unwrap(), (width, height), "{name}");
        assert_eq!(dimensions_of(&bytes(&name), Path::new(&name)).unwrap(), (width, height), "{name}");
    }
}

/// `jpeg` with an EXIF segment that holds an orientation, of either byte order.
fn oriented(jpeg: &[u8], orientation: u8, big_endian: bool) -> Vec<u8> {
    let tiff: Vec<u8> = if big_endian {
        [b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation], &[0; 6]].concat()
    } else {
        [b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation], &[0; 7]].concat()
    };
    let length = (tiff.len() + 8) as u16;
    [&jpeg[..2], &[0xFF, 0xE1], &length.to_be_bytes(), b"Exif\0\0", &tiff, &jpeg[2..]].concat()
}

#[test]
fn all_eight_orientations_turn_the_picture_upright() {
    let plain = bytes("444.jpg");
    let as_stored = decode(&plain, Path::new("a.jpg")).unwrap();
    let (w, h) = (as_stored.width, as_stored.height);
    let folder = tempfile::tempdir().unwrap();
    for orientation in 0..=9u8 {
        let file = oriented(&plain, orientation, orientation % 2 == 0);
        let picture = decode(&file, Path::new("a.jpg")).unwrap();
        let size = if (5..=8).contains(&orientation) { (h, w) } else { (w, h) };
        assert_eq!((picture.width, picture.height), size, "orientation {orientation}");
        for (x, y) in [(0, 0), (3, 1), (size.0 - 1, 0), (0, size.1 - 1), (5, 9)] {
            // EXIF 2.3, tag 274: which side of the picture the stored first row and first column are.
            let (sx, sy) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                8 => (w - 1 - y, x),
                _ => (x, y),
            };
            let pixel = |p: &Rgb, x: usize, y: usize| p.pixels[(y * p.width + x) * 3..][..3].to_vec();
            assert_eq!(pixel(&picture, x, y), pixel(&as_stored, sx, sy), "orientation {orientation}, {x}, {y}");
        }
        let path = folder.path().join("a.jpg");
        std::fs::write(&path, file).unwrap();
        assert_eq!(dimensions(&path).unwrap(), size);
        assert_eq!(dimensions_of(&std::fs::read(&path).unwrap(), &path).unwrap(), size);
    }
}

#[test]
fn dimensions_are_found_behind_a_large_profile() {
    let plain = bytes("444.jpg");
    let profile = [&[0xFF, 0xE2, 0xFF, 0xFF][..], &[7; 65533]].concat();
    let file = [&plain[..2], &profile, &profile, &plain[2..]].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jpg");
    std::fs::write(&path, &file).unwrap();
    assert_eq!(dimensions(&path).unwrap(), (37, 29));
    assert_eq!(load(&path).unwrap(), load(&golden("444.jpg")).unwrap());
}

#[test]
fn the_format_is_found_from_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really_a_png.jpg");
    std::fs::write(&path, bytes("rgb8.png")).unwrap();
    assert_eq!(load(&path).unwrap(), load(&golden("rgb8.png")).unwrap());
}

#[test]
fn stray_bytes_before_a_marker_and_after_the_end_do_no_harm() {
    let plain = bytes("420.jpg");
    let want = decode(&plain, Path::new("a.jpg")).unwrap();
    let (body, end) = plain.split_at(plain.len() - 2);
    for file in [[body, &[0, 17, 255, 255], end].concat(), [&plain[..], b"a second picture"].concat()] {
        assert_eq!(decode(&file, Path::new("a.jpg")).unwrap(), want);
    }
}

/// The error for `file`; it must name the file.
fn refusal(file: &[u8]) -> String {
    let said = decode(file, Path::new("some/photo.jpg")).map(|p| (p.width, p.height)).unwrap_err().to_string();
    assert!(said.starts_with("some/photo.jpg: "), "{said}");
    said
}

fn says(file: &[u8], words: &[&str]) {
    let said = refusal(file);
    assert!(words.iter().all(|w| said.contains(w)), "{said}");
}

/// `file` with `new` in place of its bytes from the end of `after` on, skipping `skip`.
fn patched(file: &[u8], after: &[u8], skip: usize, new: &[u8]) -> Vec<u8> {
    let at = file.windows(after.len()).position(|w| w == after).unwrap() + after.len() + skip;
    [&file[..at], new, &file[at + new.len()..]].concat()
}

#[test]
fn other_formats_are_named() {
    for (head, name) in [
        (&b"II*\0\x08\0\0\0"[..], "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"BM\0\0\0\0", "BMP"),
        (b"\0\0\x01\0\x01\0", "ICO"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"),
        (b"\xef\xbb\xbf<?xml version=\"1.0\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
        (b"  <svg/>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
    ] {
        says(head, &[name, "JPEG, PNG, WebP and GIF are read"]);
    }
    says(b"hello", &["no image file", "JPEG, PNG, WebP and GIF are read"]);
    says(b"", &["empty"]);
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.png");
    for said in [load(&missing).unwrap_err().to_string(), dimensions(&missing).unwrap_err().to_string()] {
        assert!(said.contains("cannot open") && said.contains("none.png"), "{said}");
    }
    let said = load(folder.path()).unwrap_err().to_string();
    assert!(said.contains("is a folder"), "{said}");
    let huge = folder.path().join("huge.jpg");
    std::fs::File::create(&huge).unwrap().set_len((512 << 20) + 1).unwrap();
    let source = ImageSource::File(huge.clone());
    let refused = [load(&huge).err(), dimensions(&huge).err(), look::look(&source, None).err(), content(&source).err()];
    for said in refused.map(|e| e.unwrap().to_string()) {
        assert!(said.contains("huge.jpg") && said.contains("536870913 bytes"), "{said}");
    }
}

#[test]
fn sizes_are_checked_in_the_header() {
    let jpeg = |h: u16, w: u16| {
        patched(&bytes("444.jpg"), &[0xFF, 0xC0, 0, 17, 8], 0, &[h.to_be_bytes(), w.to_be_bytes()].concat())
    };
    says(&jpeg(13378, 13377), &["13377 x 13378", "178956970"]);
    says(&jpeg(1, 201), &["201 x 1", "200 times"]);
    says(&jpeg(0, 100), &["empty"]);
    // The header is allowed, and so the data is what is wrong: 13377 squared is 178944129.
    says(&jpeg(13377, 13377), &["truncated or damaged"]);
    let ihdr = [u32::to_be_bytes(13377), u32::to_be_bytes(13378)].concat();
    let mut png = patched(&bytes("rgb8.png"), b"IHDR", 0, &ihdr);
    let crc = crc32fast::hash(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    says(&png, &["13377 x 13378", "178956970"]);
    // where a decoder gives up before it says the size
    let beyond = i32::MAX as u32;
    let mut huge = patched(&png, b"IHDR", 0, &[beyond.to_be_bytes(), beyond.to_be_bytes()].concat());
    let crc = crc32fast::hash(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    says(&huge, &["2147483647 x 2147483647", "178956970"]);
    let webp = [&b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &[0xFF; 6]].concat();
    says(&webp, &["16777216 x 16777216", "178956970"]);
    let gif = patched(&bytes("transparent.gif"), b"GIF89a", 0, &[0xFF, 0xFF, 0xFF, 0xFF]);
    says(&gif, &["65535 x 65535", "178956970"]);
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [("bomb.gif", gif), ("bomb.png", huge), ("bomb.webp", webp)] {
        let path = folder.path().join(name);
        std::fs::write(&path, file).unwrap();
        let said = dimensions(&path).unwrap_err().to_string();
        assert!(said.contains("178956970"), "{said}");
    }
}

#[test]
fn jpegs_that_are_not_read_say_why() {
    let plain = bytes("444.jpg");
    let sof = [0xFF, 0xC0, 0, 17];
    says(&[0xFF, 0xD8, 0xFF], &["truncated"]);
    says(&patched(&plain, &sof, 0, &[12]), &["12 bits a sample"]);
    says(&patched(&plain, &sof, 5, &[2]), &["2 channels"]);
    says(&patched(&plain, &sof, 5, &[4]), &["frame header has 9 bytes for 4 channels"]);
    says(&patched(&plain, &sof, 7, &[0x50]), &["sampling factors 5 x 0"]);
    says(&patched(&plain, &sof, 7, &[0x31, 0, 2, 0x21]), &["2 x 1 samples where others have 3 x 1"]);
    says(&patched(&plain, &sof, 8, &[9]), &["quantisation table 9"]);
    says(&patched(&plain, &sof, 8, &[3]), &["quantisation table 3 without defining it"]);
    for (kind, word) in [(0xC9, "arithmetic"), (0xC3, "lossless")] {
        let at = plain.windows(4).position(|w| w == sof).unwrap();
        says(&[&plain[..at], &[0xFF, kind], &plain[at + 2..]].concat(), &[word]);
    }
    let sos = [0xFF, 0xDA, 0, 12, 3];
    says(&patched(&plain, &sos, 0, &[9]), &["names channel 9"]);
    says(&patched(&plain, &sos, 1, &[0x33]), &["Huffman table without defining it"]);
    says(&patched(&plain, &sos, 1, &[0x44]), &["scan header is damaged"]);
    says(&patched(&plain, &[0xFF, 0xDA, 0, 12], 0, &[5]), &["scan header has the wrong length"]);
    says(&patched(&plain, &[0xFF, 0xDA], 0, &[0, 1]), &["length 1"]);
    says(&patched(&plain, &[0xFF, 0xC4, 0, 31], 1, &[9]), &["Huffman table is damaged"]);
    says(&patched(&plain, &[0xFF, 0xDB, 0, 67], 0, &[9]), &["quantisation table is damaged"]);
    says(&[&plain[..plain.len() - 2], &[0xFF, 0xD8]].concat(), &["second start marker"]);
    says(&[0xFF, 0xD8, 0xFF, 0xD9], &["no picture"]);
    let scan = plain.windows(2).position(|w| w == [0xFF, 0xDA]).unwrap();
    let frame = plain.windows(4).position(|w| w == sof).unwrap();
    says(&[&plain[..2], &plain[scan..]].concat(), &["scan before its frame header"]);
    says(&[&plain[..frame + 19], &plain[frame..]].concat(), &["two frame headers"]);
    says(&[&plain[..frame + 19], &[0xFF, 0xDD, 0, 2], &plain[frame + 19..]].concat(), &["restart interval"]);
    let scan_data = &plain[scan..plain.len() - 2];
    let many = [&plain[..scan], &scan_data.repeat(501), &[0xFF, 0xD9]].concat();
    says(&many, &["more than 500 scans"]);
}

#[test]
fn damaged_jpeg_data_is_refused() {
    let restarts = bytes("420_restart.jpg");
    let at = restarts.windows(2).position(|w| w == [0xFF, 0xD1]).unwrap();
    says(&[&restarts[..at], &[0xFF, 0xD5], &restarts[at + 2..]].concat(), &["restart marker is missing"]);
    // An end marker in the middle of the data: libjpeg would warn and leave the rest grey.
    for name in ["420.jpg", "420_progressive.jpg", "gray.jpg", "cmyk.jpg"] {
        let plain = bytes(name);
        says(&[&plain[..plain.len() * 9 / 10], &[0xFF, 0xD9]].concat(), &["truncated or damaged", "ends early"]);
    }
    // A progressive file that ends after its first scans would come out blurred.
    let progressive = bytes("420_progressive.jpg");
    let scans: Vec<usize> = (0..progressive.len() - 1).filter(|&i| progressive[i..i + 2] == [0xFF, 0xC4]).collect();
    says(&[&progressive[..scans[4]], &[0xFF, 0xD9]].concat(), &["unfinished", "channel"]);
}

#[test]
fn a_truncated_file_never_gives_other_pixels() {
    for (name, ..) in listed() {
        let whole = bytes(&name);
        let want = decode(&whole, Path::new(&name)).unwrap();
        for length in 0..whole.len() {
            match decode(&whole[..length], Path::new(&name)) {
                Ok(picture) => {
                    assert!(!name.ends_with("jpg"), "{name}: {length} bytes of {} were enough", whole.len());
                    assert!(picture == want, "{name}: {length} bytes of {} gave other pixels", whole.len());
                }
                Err(e) => assert!(e.to_string().contains(&name), "{e}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn damaged_files_never_panic(
        which in any::<proptest::sample::Index>(),
        edits in prop::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3), 1..8),
    ) {
        let files = listed();
        let name = &files[which.index(files.len())].0;
        let mut file = bytes(name);
        for (at, value, kind) in edits {
            let at = at.index(file.len());
            match kind {
                0 => file[at] = value,
                1 => file.insert(at, value),
                _ => drop(file.remove(at)),
            }
        }
        if let Ok(picture) = decode(&file, Path::new(name)) {
            prop_assert_eq!(picture.pixels.len(), picture.width * picture.height * 3);
        }
    }

    #[test]
    fn random_bytes_never_panic(
        start in prop::sample::select(vec![
            &b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x80\0\0\0WEBPVP8 ", b"RIFF\x80\0\0\0WEBPVP8L", b"GIF89a",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let file = [start, &rest].concat();
        if let Ok(picture) = decode(&file, Path::new("random")) {
            prop_assert_eq!(picture.pixels.len(), picture.width * picture.height * 3);
        }
    }
}
