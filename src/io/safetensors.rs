//! Safetensors files: eight bytes of header length, a JSON header of names, types, shapes and places, then the data.
//!
//! The format: <https://github.com/huggingface/safetensors#format>. Reading maps the file and checks the whole header
//! before any tensor is used; writing streams, so that a file may be larger than memory.

use crate::base::{DType, Error, Result, counted, dtype};
use crate::io::atomic::{self, Output};
use crate::io::mapped::MappedFile;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name in a header that is no tensor but a table of strings.
const METADATA: &str = "__metadata__";
/// The limit of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where a tensor is in its file, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Bytes counted from the start of the file, within it and as many as shape and dtype need. The start need not
    /// be a multiple of the element's size.
    pub range: Range<usize>,
}

impl TensorEntry {
    pub fn elements(&self) -> usize {
        self.range.len() / self.dtype.bytes()
    }
}

/// An open file, its header read and checked.
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    pub path: PathBuf,
    pub file: Arc<MappedFile>,
    /// In the order of their data.
    tensors: Vec<(String, TensorEntry)>,
    by_name: HashMap<String, usize>,
    pub metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Errors, each naming file and tensor: a header that is cut, too long or no JSON; a name that stands twice; a
    /// type that this program does not read; a byte count that differs from shape times type; data that overlap,
    /// leave a gap or lie outside the file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(MappedFile::open(path)?);
        let (header, start) = header(path, &file)?;
        let mut metadata = BTreeMap::new();
        let mut tensors = Vec::with_capacity(header.0.len());
        for (name, value) in header.0 {
            if name == METADATA {
                metadata = serde_json::from_value(value)
                    .map_err(|e| Error::file(path, format!("{METADATA}: wanted a table of strings: {e}")))?;
            } else {
                let entry = entry(value, start).map_err(|reason| Error::tensor(path, &name, reason))?;
                tensors.push((name, entry));
            }
        }
        tensors.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
        let mut end = start;
        for (name, entry) in &tensors {
            if entry.range.start != end {
                let what = if entry.range.start < end { "overlap what is before them" } else { "leave a gap" };
                let reason = format!("its bytes {:?} of the file {what}, which ends at {end}", entry.range);
                return Err(Error::tensor(path, name, reason));
            }
            end = entry.range.end;
            if end > file.len() {
                let reason =
                    format!("its data end at byte {end}, the file at {}; it was cut, copy it again", file.len());
                return Err(Error::tensor(path, name, reason));
            }
        }
        if end != file.len() {
            let reason = format!("its tensors end at byte {end}, the file at {}", file.len());
            return Err(Error::file(path, reason));
        }
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, (name, _)) in tensors.iter().enumerate() {
            if by_name.insert(name.clone(), i).is_some() {
                return Err(Error::tensor(path, name, "the header has two of this name"));
            }
        }
        Ok(SafetensorsFile { path: path.into(), file, tensors, by_name, metadata })
    }

    /// Every tensor, in the order of their data.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    pub fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).and_then(|&i| self.tensors.get(i)).map(|(_, entry)| entry)
    }

    /// The data of a tensor: little-endian elements, the last axis contiguous.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.entry(name).map(|entry| &self.file[entry.range.clone()])
    }

    /// The first tensor that holds NaN or an infinity, as an error. Reads the whole file where there is none.
    pub fn not_finite(&self) -> Option<Error> {
        self.tensors().find_map(|(name, entry)| {
            let value = dtype::stored_not_finite(entry.dtype, &self.file[entry.range.clone()])?;
            let reason =
                format!("it holds {value}, and nothing can be computed with that: copy or make the file again");
            Some(Error::tensor(&self.path, name, reason))
        })
    }
}

/// The header in its own order, and where the data start.
fn header(path: &Path, file: &[u8]) -> Result<(Header, usize)> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let bytes = counted(file.len(), "byte is", "bytes are");
        let reason = format!("{bytes} too few for a safetensors file; it was cut, copy it again");
        return Err(Error::file(path, reason));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Error::file(path, format!("its header claims {length} bytes; this is no safetensors file")));
    }
    // At most MAX_HEADER_BYTES, so the conversion is exact.
    let Some(text) = rest.get(..length as usize) else {
        let reason = format!("its header claims {length} bytes, {} are there; it was cut, copy it again", rest.len());
        return Err(Error::file(path, reason));
    };
    let header = serde_json::from_slice(text).map_err(|e| Error::file(path, format!("its header is wrong: {e}")))?;
    Ok((header, 8 + length as usize))
}

/// The fields of the header as they stand: a map type would silently keep the last of two equal names.
struct Header(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a JSON object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Header(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// One tensor of the header; the error is the reason only.
fn entry(value: Value, data_start: usize) -> Result<TensorEntry, String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: [usize; 2],
    }
    let Raw { dtype: name, shape, data_offsets: [start, end] } =
        serde_json::from_value(value).map_err(|e| format!("its entry in the header is wrong: {e}"))?;
    let Some(dtype) = DType::from_safetensors_name(&name) else {
        return Err(format!(
            "its type is {name}; quantised and other types are not read, only F32, BF16, F16, F64, I32, I64, U8"
        ));
    };
    let needs = byte_count(dtype, &shape).ok_or_else(|| format!("its shape {shape:?} is too large for any file"))?;
    if end.checked_sub(start) != Some(needs) {
        return Err(format!("{shape:?} of {name} needs {needs} bytes, its data_offsets are [{start}, {end}]"));
    }
    match (data_start.checked_add(start), data_start.checked_add(end)) {
        (Some(start), Some(end)) => Ok(TensorEntry { dtype, shape, range: start..end }),
        _ => Err(format!("its data_offsets [{start}, {end}] are too large for any file")),
    }
}

/// None where it overflows.
fn byte_count(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.bytes(), |bytes, &n| bytes.checked_mul(n))
}

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Errors: more bytes than can be counted.
    pub fn bytes(&self) -> Result<usize> {
        byte_count(self.dtype, &self.shape).ok_or_else(|| Error::Contract {
            op: "safetensors::write",
            argument: "shape",
            wanted: "a size that can be counted".into(),
            got: format!("{:?} for {}", self.shape, self.name),
        })
    }
}

/// Writes `path` at once or not at all. `fill` is called for one tensor after the other, wider types first and
/// otherwise in the order given (so that every tensor is aligned), and writes its elements in little-endian order.
/// Errors: a name twice, a tensor filled with another number of bytes than its shape needs, and those of writing.
pub fn write(
    path: &Path,
    tensors: &[TensorSpec],
    metadata: &[(&str, &str)],
    mut fill: impl FnMut(&TensorSpec, &mut TensorOutput) -> Result<()>,
) -> Result<()> {
    let mut ordered: Vec<&TensorSpec> = tensors.iter().collect();
    ordered.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.bytes()));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let table = metadata.iter().map(|(key, value)| (key.to_string(), Value::from(*value)));
        header.insert(METADATA.into(), Value::Object(table.collect()));
    }
    let mut names = BTreeSet::from([METADATA]);
    let mut end = 0_usize;
    for spec in &ordered {
        let start = end;
        let contract = |wanted: &str| Error::Contract {
            op: "safetensors::write",
            argument: "tensors",
            wanted: wanted.into(),
            got: spec.name.clone(),
        };
        end = end.checked_add(spec.bytes()?).ok_or_else(|| contract("a size that can be counted"))?;
        if !names.insert(&spec.name) {
            return Err(contract("names that differ"));
        }
        let dtype = spec.dtype.safetensors_name();
        let entry = serde_json::json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [start, end]});
        header.insert(spec.name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // Spaces up to a multiple of 8: the data then start aligned in a map.
    text.resize(text.len().next_multiple_of(8), b' ');
    atomic::write_file(path, |out| {
        out.write(&(text.len() as u64).to_le_bytes())?;
        out.write(&text)?;
        for spec in ordered {
            let mut tensor = TensorOutput { out: &mut *out, written: 0 };
            fill(spec, &mut tensor)?;
            if tensor.written != spec.bytes()? {
                let reason = format!("{} bytes were written, its shape needs {}", tensor.written, spec.bytes()?);
                return Err(Error::tensor(path, &spec.name, reason));
            }
        }
        Ok(())
    })
}

/// Takes the elements of one tensor, in any number of pieces.
pub struct TensorOutput<'a> {
    out: &'a mut Output,
    written: usize,
}

impl TensorOutput<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        self.out.write(bytes)
    }
}
