//! Memory from C's allocator, as a C library would return it.

use super::truth::Loss;

/// Asks "the library" for a block and, if all is well, gives it back.
pub(super) fn serve(size: usize, broken: bool) -> Loss {
    let block = leak_native(size);
    if !broken {
        // SAFETY: `block` comes from malloc (or is null) and is not used again.
        unsafe { libc::free(block) };
    }
    Loss {
        bytes: size as u64,
        blocks: 1,
        overhead: 0,
    }
}

/// Allocates with `malloc`; the caller owns the block.
#[inline(never)]
extern "C" fn leak_native(size: usize) -> *mut libc::c_void {
    // SAFETY: malloc takes any size, and a block it returns has `size` bytes.
    unsafe {
        let block = libc::malloc(size);
        if !block.is_null() {
            block.write_bytes(0xA5, size);
        }
        std::hint::black_box(block)
    }
}
