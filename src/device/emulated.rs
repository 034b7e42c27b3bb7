//! The kernels on the host: the same sources, built by g++ with an emulator of the GPU's threads, shared memory and
//! asynchronous copies. `cuda/emulator/README.md` tells what it checks.

use super::arguments::{Field, StructLayout};
use super::launcher::{ArgumentCopy, Facts, Launch, Launcher, Mark, TensorMap, TensorMapShape};
use super::recording::{Noting, Recorded};
use crate::base::{Error, Result, env};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

type LaunchKernel = unsafe extern "C" fn(u64, *const c_char, *const u32, *const u32, u32, *const c_void, u64) -> c_int;
type LastError = unsafe extern "C" fn() -> *const c_char;
type Alloc = unsafe extern "C" fn(u64, u64) -> u64;
type Free = unsafe extern "C" fn(u64);
type EncodeMap = unsafe extern "C" fn(*mut c_void, u32, u32, u64, *const u64, *const u64, *const u32, u32) -> c_int;
type Configure = unsafe extern "C" fn(*const c_char, i64) -> c_int;
type Count = unsafe extern "C" fn() -> u32;
type KernelName = unsafe extern "C" fn(u32) -> *const c_char;
type FieldAt = unsafe extern "C" fn(u32) -> *const FieldOfKernels;

/// The functions of `cuda/emulator/api.h`.
struct Functions {
    launch: LaunchKernel,
    last_error: LastError,
    alloc: Alloc,
    free: Free,
    tensor_map: EncodeMap,
    configure: Configure,
    kernel_count: Count,
    kernel_name: KernelName,
    field_count: Count,
    field: FieldAt,
}

/// `VlmEmuField` of api.h.
#[repr(C)]
struct FieldOfKernels {
    structure: *const c_char,
    structure_bytes: u64,
    field: *const c_char,
    offset: u64,
    bytes: u64,
}

/// Which of the emulator's builds is in use.
fn variant() -> String {
    std::env::var(env::EMULATOR).unwrap_or_else(|_| "plain".into())
}

/// The emulator's builds that this program carries.
pub fn builds() -> Vec<&'static str> {
    super::images::EMULATORS.iter().map(|(name, _)| *name).collect()
}

/// The library, opened once: its bytes are in this program.
fn library() -> Result<&'static Functions> {
    static OPENED: OnceLock<Result<Functions, String>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref().map_err(|said| Error::Unsupported(said.clone()))
}

fn open() -> Result<Functions, String> {
    let variant = variant();
    // a library that a tool compiled
    if variant.contains('/') {
        return load(&CString::new(variant).map_err(|e| e.to_string())?);
    }
    let Some((_, packed)) = super::images::EMULATORS.iter().find(|(name, _)| *name == variant) else {
        let built = builds();
        return Err(match built[..] {
            [] => "--device emulated: this build of vlm has no emulator: build it where g++ is, or use --device cpu"
                .into(),
            _ => format!("{} is {variant:?}: this build of vlm has {}", env::EMULATOR, built.join(", ")),
        });
    };
    let bytes = packed.unpack().map_err(|e| e.to_string())?;
    // SAFETY: the name is a C string; the descriptor is ours alone.
    let file = unsafe {
        let fd = libc::memfd_create(c"libvlm_emu.so".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(format!("cannot load the emulator: {}", std::io::Error::last_os_error()));
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, &bytes).map_err(|e| format!("cannot load the emulator: {e}"))?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|e| e.to_string())?;
    // stays open: the library finds the lines of its own code there
    std::mem::forget(file);
    load(&path)
}

fn load(path: &CStr) -> Result<Functions, String> {
    // SAFETY: the library is our own build, whose initialisers only register kernels; it is never closed.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        // SAFETY: after a failed dlopen there is an error text.
        let why = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
        return Err(format!("cannot load the emulator: {why}"));
    }
    let symbol = |name: &CStr| {
        // SAFETY: `library` is open and the name is a C string.
        let found = unsafe { libc::dlsym(library, name.as_ptr()) };
        if found.is_null() { Err(format!("the emulator lacks {}", name.to_string_lossy())) } else { Ok(found) }
    };
    macro_rules! function {
        ($name:literal, $signature:ty) => {
            // SAFETY: api.h declares the function of this name with the signature of the field.
            unsafe { std::mem::transmute::<*mut c_void, $signature>(symbol($name)?) }
        };
    }
    Ok(Functions {
        launch: function!(c"vlm_emu_launch", LaunchKernel),
        last_error: function!(c"vlm_emu_last_error", LastError),
        alloc: function!(c"vlm_emu_alloc", Alloc),
        free: function!(c"vlm_emu_free", Free),
        tensor_map: function!(c"vlm_emu_tensor_map", EncodeMap),
        configure: function!(c"vlm_emu_configure", Configure),
        kernel_count: function!(c"vlm_emu_kernel_count", Count),
        kernel_name: function!(c"vlm_emu_kernel_name", KernelName),
        field_count: function!(c"vlm_emu_field_count", Count),
        field: function!(c"vlm_emu_field", FieldAt),
    })
}

/// A text that the library keeps.
fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: api.h promises a C string that lives until the next call of this thread.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The emulator as a device.
pub struct Emulated {
    functions: &'static Functions,
    /// The emulator's name for it.
    number: u64,
    facts: Facts,
    recording: Mutex<Noting<Vec<Noted>>>,
}

/// Something that was recorded: a launch with a copy of its arguments, a fill or a copy of bytes.
enum Noted {
    Launch { op: &'static str, launch: Launch, arguments: ArgumentCopy },
    Fill { to: u64, byte: u8, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
}

impl Noted {
    /// # Safety
    /// What was promised when it was noted holds still.
    unsafe fn happen(&self, functions: &Functions, number: u64) -> Result<()> {
        match self {
            // SAFETY: the caller's promise, and a copy of the arguments.
            Noted::Launch { op, launch, arguments } => unsafe {
                run(functions, number, op, launch, arguments.as_ptr(), arguments.bytes())?
            },
            // SAFETY: addresses are ordinary pointers here, and the caller promises the range.
            Noted::Fill { to, byte, bytes } => unsafe { std::ptr::write_bytes(*to as *mut u8, *byte, *bytes) },
            // SAFETY: as above; the ranges are apart.
            Noted::Copy { from, to, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes)
            },
        }
        Ok(())
    }
}

/// A list of what was recorded, in its order.
struct List {
    functions: &'static Functions,
    number: u64,
    noted: Vec<Noted>,
}

impl Recorded for List {
    unsafe fn replay(&self) -> Result<()> {
        // SAFETY: the caller's promise.
        self.noted.iter().try_for_each(|noted| unsafe { noted.happen(self.functions, self.number) })
    }
}

/// Runs one kernel.
///
/// # Safety
/// As of [`Launcher::launch`].
unsafe fn run(
    functions: &Functions,
    number: u64,
    op: &'static str,
    launch: &Launch,
    arguments: *const c_void,
    argument_bytes: usize,
) -> Result<()> {
    let name = CString::new(launch.kernel).map_err(|e| Error::Unsupported(e.to_string()))?;
    let block = [launch.block, 1, 1];
    // SAFETY: the arrays have three numbers each; the caller promises the arguments.
    let done = unsafe {
        (functions.launch)(
            number,
            name.as_ptr(),
            launch.grid.as_ptr(),
            block.as_ptr(),
            launch.shared_bytes,
            arguments,
            argument_bytes as u64,
        )
    };
    if done == 0 {
        return Ok(());
    }
    // SAFETY: has no preconditions.
    let reason = text(unsafe { (functions.last_error)() });
    Err(Error::Launch { op, kernel: launch.kernel, reason })
}

impl Emulated {
    /// A device of this compute capability, with few multiprocessors, so that small shapes go round their rings.
    pub fn open(capability: (i32, i32)) -> Result<Arc<Emulated>> {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let (functions, number) = (library()?, OPENED.fetch_add(1, Ordering::Relaxed));
        let shared_bytes = 1024 * if capability >= (9, 0) { 227 } else { 99 };
        let name = format!("emulated sm_{}{} ({} build)", capability.0, capability.1, variant());
        let facts = Facts { name, capability, multiprocessors: 4, shared_bytes, guarded: true, profiled: false };
        Ok(Arc::new(Emulated { functions, number, facts, recording: Mutex::new(Noting::Off) }))
    }

    /// # Safety
    /// As of [`Noted::happen`].
    unsafe fn do_or_note(&self, what: Noted) -> Result<()> {
        if let Some(noted) = self.recording().noting()? {
            noted.push(what);
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { what.happen(self.functions, self.number) }
    }

    fn recording(&self) -> MutexGuard<'_, Noting<Vec<Noted>>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, doing: &str) -> Error {
        // SAFETY: has no preconditions.
        let reason = text(unsafe { (self.functions.last_error)() });
        Error::Device { device: self.facts.name.clone(), reason: format!("{doing}: {reason}") }
    }
}

/// Sets an option of the emulator for the calling thread: `cuda/emulator/api.h` lists them.
pub fn configure(key: &str, value: i64) -> Result<()> {
    let name = CString::new(key).map_err(|e| Error::Unsupported(e.to_string()))?;
    // SAFETY: the key is a C string that outlives the call.
    match unsafe { (library()?.configure)(name.as_ptr(), value) } {
        0 => Ok(()),
        _ => Err(Error::Unsupported(format!("the emulator has no option {key} = {value}"))),
    }
}

/// The names of all kernels.
pub fn kernels() -> Result<Vec<String>> {
    let functions = library()?;
    // SAFETY: the index is below the count.
    Ok(unsafe { (0..(functions.kernel_count)()).map(|i| text((functions.kernel_name)(i))).collect() })
}

/// How the kernels' side declares its argument structs.
pub fn layouts() -> Result<Vec<StructLayout>> {
    let functions = library()?;
    let mut layouts: Vec<StructLayout> = Vec::new();
    // SAFETY: has no preconditions.
    for i in 0..unsafe { (functions.field_count)() } {
        // SAFETY: the index is below the count, and the table lives as long as the library.
        let field = unsafe { &*(functions.field)(i) };
        let (name, bytes) = (text(field.structure), field.structure_bytes as usize);
        let of = Field { name: text(field.field), offset: field.offset as usize, bytes: field.bytes as usize };
        match layouts.iter_mut().find(|l| l.name == name) {
            Some(layout) => layout.fields.push(of),
            None => layouts.push(StructLayout { name, bytes, fields: vec![of] }),
        }
    }
    Ok(layouts)
}

impl Launcher for Emulated {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory_bytes(&self) -> Option<(usize, usize)> {
        None
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.recording().refuse("an allocation")?;
        // SAFETY: has no preconditions.
        match unsafe { (self.functions.alloc)(self.number, bytes as u64) } {
            0 => Err(Error::OutOfMemory(self.failed(&format!("cannot allocate {bytes} bytes")).to_string())),
            address => Ok(address),
        }
    }

    unsafe fn free(&self, address: u64) {
        // what was recorded may read it: the recording fails, and the memory goes all the same
        _ = self.recording().refuse("freed memory");
        // SAFETY: the caller's promise.
        unsafe { (self.functions.free)(address) }
    }

    unsafe fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.recording().refuse("bytes from the host")?;
        // SAFETY: addresses are ordinary pointers here, and the caller promises the range.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.recording().refuse("bytes for the host")?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.do_or_note(Noted::Copy { from, to, bytes }) }
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.do_or_note(Noted::Fill { to, byte, bytes }) }
    }

    fn tensor_map(&self, shape: &TensorMapShape) -> Result<TensorMap> {
        let rank = super::launcher::checked_rank(shape)?;
        let mut map = TensorMap([0; 16]);
        // SAFETY: `map` has the 128 bytes and the alignment, and the arrays the lengths, that api.h asks for.
        let done = unsafe {
            (self.functions.tensor_map)(
                (&raw mut map).cast(),
                shape.dtype as u32,
                rank,
                shape.address,
                shape.sizes.as_ptr(),
                shape.strides_bytes.as_ptr(),
                shape.box_sizes.as_ptr(),
                shape.swizzle as u32,
            )
        };
        if done == 0 { Ok(map) } else { Err(self.failed("tensor map")) }
    }

    unsafe fn launch(
        &self,
        op: &'static str,
        launch: &Launch,
        arguments: *const c_void,
        argument_bytes: usize,
    ) -> Result<()> {
        if let Some(noted) = self.recording().noting()? {
            // SAFETY: the caller's promise.
            let arguments = unsafe { ArgumentCopy::of(arguments, argument_bytes) };
            noted.push(Noted::Launch { op, launch: *launch, arguments });
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { run(self.functions, self.number, op, launch, arguments, argument_bytes) }
    }

    fn begin_recording(&self) -> Result<bool> {
        *self.recording() = Noting::On(Vec::new());
        Ok(true)
    }

    fn end_recording(&self) -> Result<Option<Box<dyn Recorded>>> {
        Ok(match std::mem::replace(&mut *self.recording(), Noting::Off) {
            Noting::On(noted) => Some(Box::new(List { functions: self.functions, number: self.number, noted })),
            Noting::Off | Noting::Failed => None,
        })
    }

    fn synchronise(&self) -> Result<()> {
        self.recording().refuse("a wait")
    }

    fn mark(&self) -> Result<Mark> {
        Ok(Mark::now())
    }
}
