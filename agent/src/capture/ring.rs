//! Records of the kernel's ring buffer, decoded and checked.

use agent_ebpf::abi::{
    event::{Header, MappingRecord, ProcessRecord, StackRecord},
    stack::{MAX_FRAMES, StackEnd},
};

use super::deaths::Ending;

/// A distinct allocation stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The process that it was seen in.
    pub tgid: u32,
    /// Epoch of the process.
    pub epoch: u32,
    /// Its hash.
    pub hash: u64,
    /// How it ends.
    pub end: StackEnd,
    /// Code addresses, innermost first, and whether each is exact (the probed
    /// instruction, or one that a signal interrupted) or a return address.
    pub frames: Vec<(u64, bool)>,
}

/// Something the kernel programs report about the process `tgid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stack that was not seen before.
    Stack(Stack),
    /// It forked; the child's process id.
    Fork(u32),
    /// It runs another program; its new epoch.
    Exec(u32),
    /// It ended.
    Exit(Ending),
    /// Code at this address lies in no mapping known to the kernel.
    UnknownMapping(u64),
}

/// Decodes a record; `None` for one of an unknown kind or a wrong length.
pub fn decode(record: &[u8]) -> Option<(u32, Event)> {
    let header: Header = plain(record)?;
    let event = match header.kind {
        Header::STACK => Event::Stack(stack(header.tgid, &plain::<StackRecord>(record)?)),
        Header::FORK => Event::Fork(plain::<ProcessRecord>(record)?.detail),
        Header::EXEC => Event::Exec(plain::<ProcessRecord>(record)?.detail),
        Header::EXIT => Event::Exit(Ending::of(&plain(record)?)),
        Header::MAPPING => Event::UnknownMapping(plain::<MappingRecord>(record)?.address),
        _ => return None,
    };
    Some((header.tgid, event))
}

fn stack(tgid: u32, record: &StackRecord) -> Stack {
    let len = usize::try_from(record.len)
        .unwrap_or(MAX_FRAMES)
        .min(MAX_FRAMES);
    let frames = record
        .frames
        .iter()
        .take(len)
        .enumerate()
        .map(|(index, frame)| {
            (
                frame & !StackRecord::EXACT,
                index == 0 || frame & StackRecord::EXACT != 0,
            )
        });
    Stack {
        tgid,
        epoch: record.epoch,
        hash: record.hash,
        end: StackEnd::from_number(record.end),
        frames: frames.collect(),
    }
}

/// A record as its type; `None` when it is too short.
pub(super) fn plain<T: aya::Pod>(record: &[u8]) -> Option<T> {
    if record.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: long enough, any bytes are a value of a Pod type, and the read
    // needs no alignment.
    Some(unsafe { record.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decodes_a_fork() {
        let record = ProcessRecord {
            header: Header {
                kind: Header::FORK,
                tgid: 7,
            },
            detail: 8,
            reserved: 0,
        };
        // SAFETY: a Pod type as bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of_val(&record))
        };
        assert_eq!(decode(bytes), Some((7, Event::Fork(8))));
        assert_eq!(decode(&bytes[..12]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(mut bytes in proptest::collection::vec(any::<u8>(), 0..1200), kind in 0u8..8) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            for byte in bytes.iter_mut().skip(1).take(3) {
                *byte = 0;
            }
            if let Some((_, Event::Stack(stack))) = decode(&bytes) {
                prop_assert!(stack.frames.len() <= MAX_FRAMES);
            }
        }
    }
}
