//! Layouts of map keys, map values and ring buffer records.

pub mod ending;
pub mod event;
pub mod fault;
pub mod futex;
pub mod heap;
pub mod loss;
pub mod place;
pub mod result;
pub mod stack;

/// Changes with every change of a layout; the loader refuses an object that
/// was built for another version.
pub const ABI_VERSION: u64 = 7;

/// Fails the build when a layout changes by accident.
macro_rules! assert_size {
    ($type:ty, $bytes:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $bytes);
        // SAFETY: repr(C), integers only, and the padding is explicit, so that
        // every byte of the value is initialised.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use assert_size;
