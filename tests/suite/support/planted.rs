//! The libraries of kernels with planted bugs, called as `cuda/emulator/api.h` says, past the program's own launcher.

use libc::{RTLD_LOCAL, RTLD_NOW, c_char, c_int, c_void};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

type Launch = unsafe extern "C" fn(u64, *const c_char, *const u32, *const u32, u32, *const c_void, u64) -> c_int;

/// A device, and the functions of `cuda/emulator/api.h` that the tests of planted bugs use.
pub struct Emulator {
    /// The number of the device that launches and allocates.
    pub device: u64,
    launch: Launch,
    last_error: unsafe extern "C" fn() -> *const c_char,
    alloc: unsafe extern "C" fn(u64, u64) -> u64,
    free: unsafe extern "C" fn(u64),
    tensor_map: unsafe extern "C" fn(*mut c_void, u32, u32, u64, *const u64, *const u64, *const u32, u32) -> c_int,
    configure: unsafe extern "C" fn(*const c_char, i64) -> c_int,
}

impl Emulator {
    /// A new device of `planted` or `planted-race`; None where this build has none.
    pub fn open(name: &str) -> Option<Emulator> {
        let path = Path::new(env!("OUT_DIR")).join(format!("libvlm_emu-{name}.so"));
        if !path.exists() {
            println!("skipped: {} was not built", path.display());
            return None;
        }
        let path = CString::new(path.to_str()?).ok()?;
        // SAFETY: our own library, whose initialisers only register kernels; never closed.
        let library = unsafe { libc::dlopen(path.as_ptr(), RTLD_NOW | RTLD_LOCAL) };
        assert!(!library.is_null(), "the library does not load");
        macro_rules! function {
            ($name:literal, $signature:ty) => {{
                // SAFETY: the library is open; api.h declares the function with the field's signature.
                let found = unsafe { libc::dlsym(library, $name.as_ptr()) };
                assert!(!found.is_null(), "{:?} is missing", $name);
                unsafe { std::mem::transmute::<*mut c_void, $signature>(found) }
            }};
        }
        static OPENED: AtomicU64 = AtomicU64::new(0);
        Some(Emulator {
            device: OPENED.fetch_add(1, Ordering::Relaxed),
            launch: function!(c"vlm_emu_launch", Launch),
            last_error: function!(c"vlm_emu_last_error", unsafe extern "C" fn() -> *const c_char),
            alloc: function!(c"vlm_emu_alloc", unsafe extern "C" fn(u64, u64) -> u64),
            free: function!(c"vlm_emu_free", unsafe extern "C" fn(u64)),
            tensor_map: function!(
                c"vlm_emu_tensor_map",
                unsafe extern "C" fn(*mut c_void, u32, u32, u64, *const u64, *const u64, *const u32, u32) -> c_int
            ),
            configure: function!(c"vlm_emu_configure", unsafe extern "C" fn(*const c_char, i64) -> c_int),
        })
    }

    pub fn set(&self, key: &CStr, value: i64) {
        // SAFETY: the key is a C string.
        assert_eq!(unsafe { (self.configure)(key.as_ptr(), value) }, 0, "{key:?} {value}");
    }

    /// New device memory with these bytes, or poisoned where there are none.
    pub fn buffer<T: bytemuck::NoUninit>(&self, values: &[T], length: usize) -> Buffer<'_> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: the allocation is as large as what is copied into it.
        let address = unsafe {
            let address = (self.alloc)(self.device, length as u64);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len().min(length));
            address
        };
        Buffer { emulator: self, address, length }
    }

    /// A tensor map over rows of bf16 with boxes of `width` x `height`, 128-byte swizzle.
    pub fn map(&self, of: &Buffer, columns: u64, rows: u64, [width, height]: [u32; 2]) -> Map {
        let mut map = Map([0; 16]);
        const BF16: u32 = 9;
        // SAFETY: the arrays have the lengths that api.h asks for.
        let done = unsafe {
            (self.tensor_map)(
                (&raw mut map).cast(),
                BF16,
                2,
                of.address,
                [columns, rows].as_ptr(),
                [columns * 2].as_ptr(),
                [width, height].as_ptr(),
                3,
            )
        };
        assert_eq!(done, 0, "the map is refused");
        map
    }

    pub fn launch<A>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &A,
    ) -> Result<(), String> {
        let name = CString::new(kernel).expect("a name");
        let block = [threads, 1, 1];
        let bytes = size_of::<A>() as u64;
        // SAFETY: the struct is the kernel's, its addresses are live buffers; bugs of the kernel are the emulator's to catch.
        let done = unsafe {
            let arguments = (&raw const *arguments).cast();
            (self.launch)(self.device, name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared, arguments, bytes)
        };
        if done == 0 {
            return Ok(());
        }
        // SAFETY: a C string that lives until this thread's next call.
        Err(unsafe { CStr::from_ptr((self.last_error)()) }.to_string_lossy().into_owned())
    }
}

pub struct Buffer<'a> {
    emulator: &'a Emulator,
    pub address: u64,
    pub length: usize,
}

impl Buffer<'_> {
    pub fn read<T: bytemuck::AnyBitPattern>(&self) -> Vec<T> {
        // SAFETY: the allocation has `length` bytes, aligned to 16.
        bytemuck::cast_slice(unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }).to_vec()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: from `alloc`, and unused from here on.
        unsafe { (self.emulator.free)(self.address) }
    }
}

/// A tensor map, for an argument struct.
#[repr(C, align(128))]
pub struct Map(pub [u64; 16]);
