//! Safetensors files against the format's reference implementation, and broken in every way we could think of.

use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vlm::base::DType;
use vlm::io::safetensors::{SafetensorsFile, TensorSpec, write};

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into() }
}

/// A file of that header and `data` zeros.
fn file(header: &str, data: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn error(path: &Path) -> String {
    let error = SafetensorsFile::open(path).expect_err("the file is broken").to_string();
    assert!(error.contains("x.safetensors"), "{error}");
    error
}

#[track_caller]
fn refused(header: &str, data: usize, wanted: &str) {
    let (_dir, path) = file(header, data);
    let error = error(&path);
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn what_is_written_is_read_by_the_reference_implementation_and_by_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let specs = [
        spec("half", DType::Bf16, &[3]),
        spec("flöat", DType::F32, &[2, 2]),
        spec("empty", DType::F16, &[0, 5]),
        spec("scalar", DType::I64, &[]),
        spec("bytes", DType::U8, &[5]),
    ];
    let data =
        |spec: &TensorSpec| (0..spec.bytes().unwrap()).map(|i| (i * 37 + spec.name.len()) as u8).collect::<Vec<u8>>();
    write(&path, &specs, &[("format", "pt")], |spec, out| data(spec).chunks(3).try_for_each(|piece| out.write(piece)))
        .unwrap();

    let bytes = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = SafetensorsFile::open(&path).unwrap();
    assert_eq!(theirs.len(), specs.len());
    assert_eq!(ours.tensors().len(), specs.len());
    for spec in &specs {
        let view = theirs.tensor(&spec.name).unwrap();
        assert_eq!(view.shape(), spec.shape);
        assert_eq!(view.dtype().to_string(), spec.dtype.safetensors_name());
        assert_eq!(view.data(), data(spec));
        let entry = ours.entry(&spec.name).unwrap();
        assert_eq!((entry.dtype, &entry.shape), (spec.dtype, &spec.shape));
        assert_eq!(entry.elements(), spec.shape.iter().product::<usize>());
        assert_eq!(ours.bytes(&spec.name).unwrap(), data(spec));
        assert_eq!(entry.range.start % spec.dtype.bytes(), 0, "{} is aligned", spec.name);
    }
    assert_eq!(ours.metadata["format"], "pt");
    assert!(ours.bytes("missing").is_none());
}

#[test]
fn a_file_of_the_reference_implementation_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let floats: Vec<u8> = [1.5_f32, -2.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 2], &floats).unwrap();
    safetensors::serialize_to_file([("a.b", view)], None, &path).unwrap();
    let ours = SafetensorsFile::open(&path).unwrap();
    assert_eq!(ours.bytes("a.b").unwrap(), floats);
    assert_eq!(ours.entry("a.b").unwrap().shape, [1, 2]);
}

#[test]
fn broken_headers_are_refused_in_sentences() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, [1, 2, 3]).unwrap();
    assert!(error(&path).contains("3 bytes are too few"));
    fs::write(&path, []).unwrap();
    assert!(error(&path).contains("0 bytes are too few"));
    fs::write(&path, [100, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
    assert!(error(&path).contains("header claims 100 bytes, 1 are there"));
    fs::write(&path, [255; 16]).unwrap();
    assert!(error(&path).contains("no safetensors file"));
    fs::write(&path, [2, 0, 0, 0, 0, 0, 0, 0, 0xC3, 0x28]).unwrap();
    assert!(error(&path).contains("its header is wrong"));
    refused("[]", 0, "its header is wrong");
    refused("{", 0, "its header is wrong");
    refused(r#"{"__metadata__":{"a":1}}"#, 0, "__metadata__: wanted a table of strings");
    refused(r#"{"t":{"dtype":"F32","shape":[1]}}"#, 4, "tensor t: its entry in the header is wrong: missing field");
    refused(r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "tensor t: its entry");
}

#[test]
fn broken_entries_are_refused_with_the_name_of_the_tensor() {
    refused(
        r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        4,
        "tensor t: [2] of F32 needs 8 bytes, its data_offsets are [0, 4]",
    );
    refused(
        r#"{"t":{"dtype":"BF16","shape":[2],"data_offsets":[4,0]}}"#,
        4,
        "needs 4 bytes, its data_offsets are [4, 0]",
    );
    refused(r#"{"t":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#, 4, "tensor t: its type is F8_E4M3");
    let huge = r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#;
    refused(huge, 4, "too large for any file");
    let far = format!(r#"{{"t":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}}}}"#, u64::MAX - 1, u64::MAX);
    refused(&far, 4, "too large for any file");
    refused(r#"{"t":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, 4, "tensor t: its data end at byte");
    refused(r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 4, "its tensors end at byte");
    let two = |b: &str, c: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"{b}":{{"dtype":"U8","shape":[4],"data_offsets":{c}}}}}"#
        )
    };
    refused(&two("b", "[2,6]"), 6, "tensor b: its bytes");
    refused(&two("b", "[2,6]"), 6, "overlap");
    refused(&two("b", "[5,9]"), 9, "leave a gap");
    refused(&two("b", "[0,4]"), 4, "overlap");
    refused(&two("a", "[4,8]"), 8, "tensor a: the header has two of this name");
    let empty =
        r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    refused(empty, 0, "two of this name");
}

#[test]
fn what_is_no_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = SafetensorsFile::open(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("wanted a plain file, got a folder"), "{error}");
    let error = SafetensorsFile::open(&dir.path().join("no.safetensors")).unwrap_err().to_string();
    assert!(error.starts_with("cannot open") && error.contains("no.safetensors"), "{error}");
}

#[test]
fn a_writer_that_keeps_its_word_badly_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let one = [spec("t", DType::F32, &[2])];
    for bytes in [0, 7, 9] {
        let error = write(&path, &one, &[], |_, out| out.write(&vec![0; bytes])).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor t: {bytes} bytes were written, its shape needs 8")), "{error}");
    }
    let twice = [spec("t", DType::U8, &[1]), spec("t", DType::F32, &[1])];
    let error = write(&path, &twice, &[], |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("names that differ"), "{error}");
    let reserved = [spec("__metadata__", DType::U8, &[1])];
    assert!(write(&path, &reserved, &[], |_, _| Ok(())).unwrap_err().to_string().contains("names that differ"));
    let huge = [spec("t", DType::F32, &[usize::MAX, 2])];
    assert!(write(&path, &huge, &[], |_, _| Ok(())).unwrap_err().to_string().contains("can be counted"));
    let sum = [spec("s", DType::U8, &[usize::MAX]), spec("t", DType::U8, &[2])];
    assert!(write(&path, &sum, &[], |_, _| Ok(())).unwrap_err().to_string().contains("can be counted"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

proptest! {
    /// Any change to any bytes: an error or a file whose tensors can all be read, never a panic; and never accepted
    /// where the reference implementation refuses it.
    #[test]
    fn mutated_files_never_panic(changes in prop::collection::vec((0_usize..400, any::<u8>()), 1..6), cut in 0_usize..400) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let specs = [spec("a", DType::F32, &[2, 3]), spec("b", DType::Bf16, &[4]), spec("c", DType::U8, &[3])];
        write(&path, &specs, &[("format", "pt")], |spec, out| out.write(&vec![1; spec.bytes().unwrap()])).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if cut < bytes.len() {
            bytes.truncate(cut);
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(ours) = SafetensorsFile::open(&path) {
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
            for (name, entry) in ours.tensors() {
                prop_assert_eq!(ours.bytes(name).unwrap().len(), entry.shape.iter().product::<usize>() * entry.dtype.bytes());
            }
        }
    }
}
