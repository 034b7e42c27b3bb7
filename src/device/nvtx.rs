//! Named ranges for NVIDIA's profiler: the words and the parts of the model on the time line of `nsys`. The library is
//! looked for once, and absent without complaint.

use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

struct Functions {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
}

fn functions() -> Option<&'static Functions> {
    static FOUND: OnceLock<Option<Functions>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Option<Functions> {
    for name in [c"libnvToolsExt.so.1", c"libnvtx3interop.so.1", c"libnvtx3interop.so"] {
        // SAFETY: NVIDIA's libraries of these names have nothing but this interface; the names are C strings.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            continue;
        }
        // SAFETY: `library` is open and stays so.
        let (push, pop) = unsafe {
            (libc::dlsym(library, c"nvtxRangePushA".as_ptr()), libc::dlsym(library, c"nvtxRangePop".as_ptr()))
        };
        if push.is_null() || pop.is_null() {
            continue;
        }
        // SAFETY: nvToolsExt.h declares both with these signatures.
        return Some(unsafe {
            Functions {
                push: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(*const c_char) -> c_int>(push),
                pop: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> c_int>(pop),
            }
        });
    }
    None
}

/// A range of the calling thread, ended when dropped. Ranges nest.
pub struct Range(&'static Functions);

impl Range {
    pub fn begin(name: &str) -> Option<Range> {
        let functions = functions()?;
        let name = CString::new(name).ok()?;
        // SAFETY: the name is a C string that outlives the call, which copies it.
        unsafe { (functions.push)(name.as_ptr()) };
        Some(Range(functions))
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: ends the range that `begin` began.
        unsafe { (self.0.pop)() };
    }
}
