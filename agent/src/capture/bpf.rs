//! The few bpf(2) calls that aya 0.14 does not offer: uprobe multi and session
//! links, batched reads of hash maps, and array values too big for a stack.
//!
//! Layouts: `union bpf_attr` in include/uapi/linux/bpf.h. To be dropped when
//! aya has multi-point uprobes.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::Pod;

const MAP_CREATE: u32 = 0;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const PROG_LOAD: u32 = 5;
const BTF_LOAD: u32 = 18;
const MAP_LOOKUP_BATCH: u32 = 24;
const LINK_CREATE: u32 = 28;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_KPROBE: u32 = 2;

/// How a program will be attached; the kernel wants to know at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `BPF_TRACE_UPROBE_MULTI`: many points, one link.
    Multi = 48,
}

/// `union bpf_attr` as words; the kernel takes a shorter one as zero-filled.
struct Attributes([u32; 40]);

impl Attributes {
    fn new() -> Self {
        Self([0; 40])
    }

    /// Sets the 32-bit field at a byte offset that is a multiple of four.
    fn set(mut self, offset: usize, value: u32) -> Self {
        if let Some(word) = self.0.get_mut(offset / 4) {
            *word = value;
        }
        self
    }

    /// Sets a 64-bit field.
    fn set_long(self, offset: usize, value: u64) -> Self {
        let bytes = value.to_ne_bytes();
        let half = |from: usize| {
            u32::from_ne_bytes([
                bytes[from],
                bytes[from + 1],
                bytes[from + 2],
                bytes[from + 3],
            ])
        };
        self.set(offset, half(0)).set(offset + 4, half(4))
    }

    /// Sets a pointer field; what it points to must outlive the call.
    fn set_pointer<T>(self, offset: usize, pointer: *const T) -> Self {
        self.set_long(offset, pointer as u64)
    }

    fn get(&self, offset: usize) -> u32 {
        self.0.get(offset / 4).copied().unwrap_or(0)
    }

    /// # Safety
    /// Every pointer set must be valid for what the command does with it.
    unsafe fn call(&mut self, command: u32, size: usize) -> io::Result<i64> {
        // SAFETY: promised by the caller; `size` is at most the array's.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size.min(160)) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }

    /// # Safety
    /// As for [`Self::call`], for a command that returns a descriptor.
    unsafe fn descriptor(mut self, command: u32, size: usize) -> io::Result<OwnedFd> {
        // SAFETY: promised by the caller.
        let result = unsafe { self.call(command, size) }?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
    }
}

/// Loads one program of an object whose maps exist already.
///
/// # Errors
/// What the kernel answers, with the end of the verifier's log.
pub fn load_program(
    object: &[u8],
    name: &str,
    maps: &BTreeMap<String, RawFd>,
    attach: AttachType,
) -> Result<OwnedFd> {
    let mut object =
        aya_obj::Object::parse(object).context("the embedded kernel object is damaged")?;
    let types = match aya::features().btf() {
        Some(features) => object
            .fixup_and_sanitize_btf(features)?
            .map(aya_obj::btf::Btf::to_bytes),
        None => None,
    };
    let types_fd = types
        .as_deref()
        .map(load_types)
        .transpose()
        .context("the kernel refuses the object's type information")?;
    let text: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let definitions: Vec<(String, aya_obj::maps::Map)> = object.maps.drain().collect();
    let bound = definitions
        .iter()
        .filter_map(|(name, map)| maps.get(name).map(|fd| (name.as_str(), *fd, map)));
    object.relocate_maps(bound, &text)?;
    object.relocate_calls(&text)?;
    let program = object
        .programs
        .get(name)
        .with_context(|| format!("the kernel object has no program {name}"))?;
    let function = object
        .functions
        .get(&program.function_key())
        .context("the kernel object has a program without code")?;
    let info = function.func_info.func_info_bytes();

    let attributes = |log: &mut [u8]| {
        let mut attributes = Attributes::new()
            .set(0, PROG_TYPE_KPROBE)
            .set(4, function.instructions.len() as u32)
            .set_pointer(8, function.instructions.as_ptr())
            .set_pointer(16, c"GPL".as_ptr())
            .set(68, attach as u32);
        if !log.is_empty() {
            attributes = attributes
                .set(24, 1)
                .set(28, log.len() as u32)
                .set_pointer(32, log.as_mut_ptr());
        }
        if let (Some(types), true) = (&types_fd, function.func_info_rec_size > 0) {
            attributes = attributes
                .set(72, types.as_raw_fd() as u32)
                .set(76, function.func_info_rec_size as u32)
                .set_pointer(80, info.as_ptr())
                .set(88, function.func_info.len() as u32);
        }
        attributes
    };
    // SAFETY: instructions, licence and function information outlive the call.
    if let Ok(program) = unsafe { attributes(&mut []).descriptor(PROG_LOAD, 144) } {
        return Ok(program);
    }
    // Once more for the reason; logging makes verification slow.
    let mut log = vec![0u8; 1 << 20];
    // SAFETY: as above, and the log is as long as it says.
    unsafe { attributes(&mut log).descriptor(PROG_LOAD, 144) }.map_err(|error| {
        let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        let tail = log
            .get(length.saturating_sub(1500)..length)
            .unwrap_or_default();
        anyhow!(
            "the kernel refuses program {name}: {error}\n{}",
            String::from_utf8_lossy(tail).trim()
        )
    })
}

/// Loads a program given as encoded instructions; it uses no maps.
///
/// # Errors
/// What the kernel answers.
pub fn load_instructions(instructions: &[u64], attach: AttachType) -> io::Result<OwnedFd> {
    let attributes = Attributes::new()
        .set(0, PROG_TYPE_KPROBE)
        .set(4, instructions.len() as u32)
        .set_pointer(8, instructions.as_ptr())
        .set_pointer(16, c"GPL".as_ptr())
        .set(68, attach as u32);
    // SAFETY: instructions and licence outlive the call.
    unsafe { attributes.descriptor(PROG_LOAD, 144) }
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let attributes = Attributes::new()
        .set_pointer(0, types.as_ptr())
        .set(16, types.len() as u32);
    // SAFETY: `types` is as long as it says.
    unsafe { attributes.descriptor(BTF_LOAD, 32) }
}

/// One probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Offset in the file.
    pub offset: u64,
    /// Given to the program.
    pub cookie: u64,
}

/// Attaches a program to all points of one file, in one process. Closing the
/// result detaches it.
pub fn link_uprobes(
    program: BorrowedFd<'_>,
    attach: AttachType,
    file: &Path,
    points: &[Point],
    pid: u32,
) -> io::Result<OwnedFd> {
    let file = CString::new(file.as_os_str().as_bytes())?;
    let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    let attributes = Attributes::new()
        .set(0, program.as_raw_fd() as u32)
        .set(8, attach as u32)
        .set_pointer(16, file.as_ptr())
        .set_pointer(24, offsets.as_ptr())
        .set_pointer(40, cookies.as_ptr())
        .set(48, points.len() as u32)
        .set(56, pid);
    // SAFETY: path, offsets and cookies outlive the call and are as long as
    // they say.
    unsafe { attributes.descriptor(LINK_CREATE, 64) }
}

/// Makes an array map of one value.
pub fn create_single<T>() -> io::Result<OwnedFd> {
    let attributes = Attributes::new()
        .set(0, MAP_TYPE_ARRAY)
        .set(4, 4)
        .set(8, size_of::<T>() as u32)
        .set(12, 1);
    // SAFETY: no pointers.
    unsafe { attributes.descriptor(MAP_CREATE, 72) }
}

/// Writes one element.
///
/// # Safety
/// `K` and `V` must be what the map was made for.
pub unsafe fn update<K, V: ?Sized>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let value: *const V = value;
    let mut attributes = Attributes::new()
        .set(0, map.as_raw_fd() as u32)
        .set_pointer(8, key)
        .set_pointer(16, value.cast::<u8>());
    // SAFETY: the sizes fit, as promised by the caller.
    unsafe { attributes.call(MAP_UPDATE_ELEM, 32) }.map(drop)
}

/// Removes one element; whether there was one.
///
/// # Safety
/// `K` must be what the map was made for.
pub unsafe fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attributes = Attributes::new()
        .set(0, map.as_raw_fd() as u32)
        .set_pointer(8, key);
    // SAFETY: the key's size fits, as promised by the caller.
    match unsafe { attributes.call(MAP_DELETE_ELEM, 32) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes all elements of a hash map, however large they are.
///
/// # Safety
/// `K` must be what the map was made for.
pub unsafe fn clear<K: Pod>(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut first = MaybeUninit::<K>::uninit();
    // As many as there may be: others could add some meanwhile.
    for _ in 0..MAX_CLEARED {
        let mut attributes = Attributes::new()
            .set(0, map.as_raw_fd() as u32)
            .set_pointer(16, first.as_mut_ptr());
        // SAFETY: room for a key, as promised by the caller; asked for the one
        // after none.
        match unsafe { attributes.call(MAP_GET_NEXT_KEY, 32) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        // SAFETY: the kernel has written it.
        unsafe { delete(map, first.assume_init_ref()) }?;
    }
    Ok(())
}

/// One element as bytes.
#[cfg(test)]
pub(super) unsafe fn lookup<K>(map: BorrowedFd<'_>, key: &K, value: &mut [u8]) -> io::Result<()> {
    let mut attributes = Attributes::new()
        .set(0, map.as_raw_fd() as u32)
        .set_pointer(8, key)
        .set_pointer(16, value.as_mut_ptr());
    // SAFETY: the sizes fit, as promised by the caller.
    unsafe { attributes.call(1, 32) }.map(drop)
}

/// Elements that [`clear`] removes at most; ours have fewer.
const MAX_CLEARED: usize = 1 << 20;

/// Removes the elements of a hash map that `unwanted` picks.
///
/// # Safety
/// `K` and `V` must be what the map was made for.
pub unsafe fn delete_where<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    unwanted: impl Fn(&K, &V) -> bool,
) -> io::Result<()> {
    let mut keys: Vec<K> = Vec::new();
    // SAFETY: promised by the caller.
    unsafe {
        read_all(map, |key: K, value: V| {
            if unwanted(&key, &value) {
                keys.push(key);
            }
        })
    }?;
    // SAFETY: promised by the caller.
    keys.iter()
        .try_for_each(|key| unsafe { delete(map, key) }.map(drop))
}

/// Elements read in one call.
const BATCH: usize = 4096;

/// Reads a whole hash map, in pieces. Elements that come or go meanwhile may
/// be missed; none is seen twice.
///
/// # Safety
/// `K` and `V` must be what the map was made for.
pub unsafe fn read_all<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, V),
) -> io::Result<()> {
    let mut keys: Vec<MaybeUninit<K>> = Vec::with_capacity(BATCH);
    let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(BATCH);
    let (mut from, mut to) = ([0u8; 256], [0u8; 256]);
    let mut first = true;
    loop {
        let mut attributes = Attributes::new()
            .set_pointer(8, to.as_mut_ptr())
            .set_pointer(16, keys.as_mut_ptr())
            .set_pointer(24, values.as_mut_ptr())
            .set(32, BATCH as u32)
            .set(36, map.as_raw_fd() as u32);
        if !first {
            attributes = attributes.set_pointer(0, from.as_ptr());
        }
        // SAFETY: the buffers hold `BATCH` elements each; the position of a
        // hash map fits its buffer.
        let result = unsafe { attributes.call(MAP_LOOKUP_BATCH, 56) };
        let end = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket that is fuller than the buffer; a hash map of ours has
            // none, so this does not end in a loop.
            Err(error) => return Err(error),
        };
        let count = (attributes.get(32) as usize).min(BATCH);
        // SAFETY: the kernel has written `count` elements.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            // SAFETY: written by the kernel, as above.
            unsafe { each(key.assume_init(), value.assume_init()) };
        }
        if end {
            return Ok(());
        }
        std::mem::swap(&mut from, &mut to);
        first = false;
    }
}
