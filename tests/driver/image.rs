//! What a driver reads in the kernels' images before it launches: a cubin's ELF sections, or PTX.

use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSection};
use std::collections::BTreeMap;
use std::ffi::CStr;

/// What an image says of one kernel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Bytes of its parameters, and how many there are.
    pub parameter_bytes: usize,
    pub parameters: usize,
    /// Per thread. 0 in PTX, which has none yet.
    pub registers: usize,
    /// The most threads of a block that it was compiled for.
    pub threads: usize,
    /// Bytes of shared memory whatever the launch asks for.
    pub shared_bytes: usize,
}

/// Bytes of a block's shared memory that Hopper keeps for the system.
const RESERVED: usize = 1 << 10;

/// Attributes of `.nv.info`, as `cuobjdump -elf` names them: EIATTR_KPARAM_INFO, whose third number holds a parameter's
/// size above other bits, EIATTR_MAX_THREADS and EIATTR_REGCOUNT.
const PARAMETER: u8 = 0x17;
const PARAMETER_SIZE_SHIFT: u32 = 18;
const MAX_THREADS: u8 = 0x05;
const REGISTERS: u8 = 0x2f;

/// The kernels of an image.
///
/// # Safety
/// `image` points to a whole ELF file or to PTX that ends in a zero byte.
pub unsafe fn kernels(image: *const u8) -> Result<BTreeMap<String, Facts>, String> {
    // SAFETY: the caller's promise.
    if let Some(text) = unsafe { ptx(image) } {
        return of_ptx(text.to_str().map_err(|e| e.to_string())?);
    }
    // SAFETY: an ELF file begins with its header, which tells where its tables are, and they are the last of it.
    let bytes = unsafe { std::slice::from_raw_parts(image, end(std::slice::from_raw_parts(image, 64))?) };
    of_cubin(bytes)
}

/// The version of PTX; None for a cubin.
///
/// # Safety
/// As of [`kernels`].
pub unsafe fn ptx_version(image: *const u8) -> Option<(i32, i32)> {
    // SAFETY: the caller's promise.
    let text = unsafe { ptx(image) }?.to_str().ok()?;
    let (major, minor) = text.lines().find_map(|l| l.strip_prefix(".version "))?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The text of PTX; None for a cubin.
///
/// # Safety
/// As of [`kernels`].
unsafe fn ptx<'a>(image: *const u8) -> Option<&'a CStr> {
    // SAFETY: either kind has four bytes.
    let is_cubin = unsafe { std::slice::from_raw_parts(image, 4) } == b"\x7fELF";
    // SAFETY: the caller's promise.
    (!is_cubin).then(|| unsafe { CStr::from_ptr(image.cast()) })
}

/// Where a file of this header ends.
fn end(header: &[u8]) -> Result<usize, String> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(header).map_err(|e| e.to_string())?;
    let endian = header.endian().map_err(|e| e.to_string())?;
    let sections = header.e_shoff(endian) + u64::from(header.e_shentsize(endian)) * u64::from(header.e_shnum(endian));
    let segments = header.e_phoff(endian) + u64::from(header.e_phentsize(endian)) * u64::from(header.e_phnum(endian));
    Ok(sections.max(segments) as usize)
}

fn of_cubin(bytes: &[u8]) -> Result<BTreeMap<String, Facts>, String> {
    let file = ElfFile64::<object::Endianness>::parse(bytes).map_err(|e| e.to_string())?;
    // counted with a kernel's own, and no part of what a block may ask for
    let reserved = if file.section_by_name(".nv.shared.reserved.0").is_some() { RESERVED } else { 0 };
    let mut kernels: BTreeMap<String, Facts> = BTreeMap::new();
    // in the order of the table: registers name a kernel by its symbol
    let symbols: BTreeMap<usize, String> = object::Object::symbols(&file)
        .filter_map(|s| Some((object::ObjectSymbol::index(&s).0, object::ObjectSymbol::name(&s).ok()?.to_string())))
        .collect();
    for section in file.sections() {
        let name = section.name().map_err(|e| e.to_string())?;
        if let Some(kernel) = name.strip_prefix(".nv.info.") {
            let data = section.data().map_err(|e| e.to_string())?;
            let facts = kernels.entry(kernel.to_string()).or_default();
            for (attribute, value) in attributes(data)? {
                match attribute {
                    PARAMETER => {
                        facts.parameters += 1;
                        facts.parameter_bytes += number(value, 2) >> PARAMETER_SIZE_SHIFT;
                    }
                    MAX_THREADS => facts.threads = (0..3).map(|i| number(value, i)).product(),
                    _ => {}
                }
            }
        } else if let Some(kernel) = name.strip_prefix(".nv.shared.").filter(|k| !k.starts_with("reserved")) {
            let own = (section.size() as usize).saturating_sub(reserved);
            kernels.entry(kernel.to_string()).or_default().shared_bytes = own;
        }
    }
    let common = file.section_by_name(".nv.info").ok_or("a cubin without .nv.info")?;
    for (attribute, value) in attributes(common.data().map_err(|e| e.to_string())?)? {
        let kernel = symbols.get(&number(value, 0)).and_then(|name| kernels.get_mut(name));
        if let (REGISTERS, Some(facts)) = (attribute, kernel) {
            facts.registers = number(value, 1);
        }
    }
    Ok(kernels)
}

/// The 32-bit number at an index; a 16-bit one where there is no more.
fn number(value: &[u8], index: usize) -> usize {
    match (value.get(4 * index..4 * index + 4), value) {
        (Some(four), _) => u32::from_le_bytes([four[0], four[1], four[2], four[3]]) as usize,
        (None, [a, b]) if index == 0 => u16::from_le_bytes([*a, *b]) as usize,
        _ => 0,
    }
}

/// Attributes and their values: a byte that tells how the value comes, a byte for which it is, and two bytes of value, or
/// how many bytes follow.
fn attributes(mut data: &[u8]) -> Result<Vec<(u8, &[u8])>, String> {
    const SIZED: u8 = 4;
    let mut found = Vec::new();
    while let [format, attribute, rest @ ..] = data {
        let (value, rest) = rest.split_at_checked(2).ok_or("an attribute without its value")?;
        let (value, rest) = match *format {
            SIZED => rest.split_at_checked(number(value, 0)).ok_or("an attribute that ends too early")?,
            _ => (value, rest),
        };
        found.push((*attribute, value));
        data = rest;
    }
    Ok(found)
}

fn of_ptx(text: &str) -> Result<BTreeMap<String, Facts>, String> {
    let mut kernels = BTreeMap::new();
    for entry in text.split(".entry ").skip(1) {
        let (name, rest) = entry.split_once('(').ok_or("an entry without parameters")?;
        let (parameters, rest) = rest.split_once(')').ok_or("parameters without an end")?;
        let (directives, _) = rest.split_once('{').ok_or("a kernel without code")?;
        // .param .align 128 .b8 name_param_0[640]
        let parameters: Vec<&str> = parameters.split(".param").skip(1).collect();
        let bytes = |p: &&str| p.split(['[', ']']).nth(1).and_then(|n| n.parse::<usize>().ok());
        let threads = directives.split(".maxntid").nth(1).map_or("", |t| t.trim_start());
        let threads = threads.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
        let facts = Facts {
            parameter_bytes: parameters.iter().filter_map(bytes).sum(),
            parameters: parameters.len(),
            threads: threads.unwrap_or(1024),
            ..Facts::default()
        };
        kernels.insert(name.trim().to_string(), facts);
    }
    match kernels.is_empty() {
        true => Err("neither a cubin nor PTX with kernels".into()),
        false => Ok(kernels),
    }
}
