//! The kernel object: embedded at build time, loaded once.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read as _,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use agent_ebpf::{
    abi::{ABI_VERSION, futex::ThreadRegisters},
    logic::sampling,
};
use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    programs::{Iter, PerfEvent, RawTracePoint, UProbe, raw_trace_point::RawTracePointLink},
};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::{
    bpf::{self, AttachType},
    records::Records,
};
use crate::host::kernel;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lingerscope.bpf.o"));

/// Bytes of registers that are read: those of 65 536 threads.
const MAX_REGISTERS: u64 = 2 << 20;

/// Sizes that depend on what is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Blocks that can be live at once, of all targets; about 110 bytes each.
    pub live_blocks: u32,
}

/// The loaded object.
pub struct Object {
    ebpf: Ebpf,
    maps: BTreeMap<String, RawFd>,
    records: Records,
    programs: HashMap<(&'static str, u32), OwnedFd>,
}

impl Object {
    /// Loads the maps; programs are loaded when they are first needed.
    ///
    /// # Errors
    /// When this build has no object, the kernel lacks something, or a
    /// privilege is missing.
    pub fn load(sizes: Sizes) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "this build holds no kernel programs: build it by `cargo xtask build`"
        );
        let offsets = kernel::field_offsets()?;
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries("LIVE", sizes.live_blocks)
            .verifier_log_level(VerifierLogLevel::STATS);
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        check_abi()?;
        let ebpf = loader
            .load(OBJECT)
            .context("cannot load the kernel programs")?;
        let maps = ebpf
            .maps()
            .filter_map(|(name, map)| Some((name.to_owned(), descriptor(map)?)))
            .collect();
        let records = Records::of(&ebpf)?;
        let mut object = Self {
            ebpf,
            maps,
            records,
            programs: HashMap::new(),
        };
        object.seed_sampler()?;
        Ok(object)
    }

    /// What the kernel programs have recorded.
    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    /// A map's descriptor.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        self.ebpf
            .map(name)
            .and_then(data)
            .map(|data| data.fd().as_fd())
            .with_context(|| format!("the kernel object has no map {name}"))
    }

    /// A map as aya sees it.
    pub fn aya_map(&self, name: &str) -> Result<&Map> {
        self.ebpf
            .map(name)
            .with_context(|| format!("the kernel object has no map {name}"))
    }

    /// Takes a map out, for a reader of its own.
    pub fn take_map(&mut self, name: &str) -> Result<Map> {
        self.ebpf
            .take_map(name)
            .with_context(|| format!("the kernel object has no map {name}"))
    }

    /// The object as aya sees it, for its logger.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// A program for uprobe links, loaded when it is first asked for.
    pub fn uprobe(&mut self, name: &'static str, attach: AttachType) -> Result<BorrowedFd<'_>> {
        let key = (name, attach as u32);
        if !self.programs.contains_key(&key) {
            let program = bpf::load_program(OBJECT, name, &self.maps, attach)?;
            self.programs.insert(key, program);
        }
        Ok(self
            .programs
            .get(&key)
            .context("program just loaded")?
            .as_fd())
    }

    /// A program for perf-event uprobes, loaded when it is first asked for.
    pub fn perf_uprobe(&mut self, name: &str) -> Result<&mut UProbe> {
        let program: &mut UProbe = self.program(name)?.try_into()?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("the kernel refuses program {name}"))?;
        }
        Ok(program)
    }

    /// A program for perf events, loaded when it is first asked for.
    pub fn perf_event(&mut self, name: &str) -> Result<&mut PerfEvent> {
        let program: &mut PerfEvent = self.program(name)?.try_into()?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("the kernel refuses program {name}"))?;
        }
        Ok(program)
    }

    /// Has a program called at every event of a kind, loaded when it is first
    /// asked for. Dropping the result ends it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn attach_to_event(&mut self, name: &str, event: &str) -> Result<RawTracePointLink> {
        let program: &mut RawTracePoint = self.program(name)?.try_into()?;
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("the kernel refuses program {name}"))?;
        }
        let link = program
            .attach(event)
            .with_context(|| format!("cannot attach to the kernel's event {event}"))?;
        Ok(program.take_link(link)?)
    }

    /// Removes the records of all threads. To be called while no thread is
    /// probed and none has an open call that matters.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn forget_threads(&self) -> Result<()> {
        // SAFETY: the key's own type.
        unsafe { bpf::clear::<u64>(self.map("THREADS")?) }
            .context("cannot remove the records of threads")?;
        for name in ["THREAD_PLACES", "OPEN"] {
            let map = data(self.aya_map(name)?).context("not a map of values")?;
            let info = map.info()?;
            let zeros = vec![0u8; info.value_size() as usize];
            for index in 0..info.max_entries() {
                // SAFETY: an array, and a value as long as its own are.
                unsafe { bpf::update(map.fd().as_fd(), &index, zeros.as_slice()) }
                    .with_context(|| format!("cannot clear {name}"))?;
            }
        }
        Ok(())
    }

    /// The registers of every thread of the targets; a thread that runs has
    /// those of its last entry into the kernel.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn thread_registers(&mut self) -> Result<Vec<ThreadRegisters>> {
        let program: &mut Iter = self.program("thread_registers")?.try_into()?;
        if program.fd().is_err() {
            let types = Btf::from_sys_fs().context("the kernel's types cannot be read")?;
            program
                .load("task", &types)
                .context("the kernel refuses program thread_registers")?;
        }
        let link = program.attach()?;
        let file = program.take_link(link)?.into_file()?;
        let mut bytes = Vec::new();
        file.take(MAX_REGISTERS).read_to_end(&mut bytes)?;
        let records = bytes.chunks_exact(size_of::<ThreadRegisters>());
        Ok(records.filter_map(super::ring::plain).collect())
    }

    fn program(&mut self, name: &str) -> Result<&mut aya::programs::Program> {
        self.ebpf
            .program_mut(name)
            .with_context(|| format!("the kernel object has no program {name}"))
    }

    /// Starts every CPU at a random place of the stream; from zero, the first
    /// allocation would always be taken.
    fn seed_sampler(&mut self) -> Result<()> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| anyhow::anyhow!("cannot read {path}: {error}"))?;
        let mut bytes = vec![0u8; cpus * 4];
        // SAFETY: the buffer is as long as it says.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        ensure!(
            got == bytes.len() as isize,
            "the kernel gives no random numbers"
        );
        let gaps: Vec<u64> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| sampling::gap(u32::from_ne_bytes(*word)))
            .collect();
        let map = self
            .ebpf
            .map_mut("SAMPLER")
            .context("the kernel object has no map SAMPLER")?;
        PerCpuArray::<_, u64>::try_from(map)?.set(0, PerCpuValues::try_from(gaps)?, 0)?;
        Ok(())
    }
}

/// Whether this build carries the kernel object.
#[cfg(test)]
pub(super) fn is_embedded() -> bool {
    !OBJECT.is_empty()
}

/// Refuses an object of another version: its records would be misread.
fn check_abi() -> Result<()> {
    let file = object::File::parse(OBJECT).context("the embedded kernel object is damaged")?;
    let symbol = file
        .symbol_by_name("LINGERSCOPE_ABI")
        .context("the embedded kernel object tells no version")?;
    let section = symbol
        .section_index()
        .and_then(|index| file.section_by_index(index).ok());
    let bytes = section.and_then(|section| {
        section
            .data()
            .ok()?
            .get(symbol.address() as usize..)?
            .first_chunk::<8>()
            .copied()
    });
    match bytes.map(u64::from_le_bytes) {
        Some(ABI_VERSION) => Ok(()),
        other => bail!(
            "the embedded kernel object has interface version {other:?}, this program {ABI_VERSION}: build both by `cargo xtask build`"
        ),
    }
}

pub(super) fn data(map: &Map) -> Option<&MapData> {
    Some(match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::PerfEventArray(data) => data,
        _ => return None,
    })
}

fn descriptor(map: &Map) -> Option<RawFd> {
    data(map).map(|data| data.fd().as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_passes_the_verifier() {
        if OBJECT.is_empty() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs the kernel object and root");
            return;
        }
        let mut object = Object::load(Sizes { live_blocks: 1024 }).unwrap();
        object.thread_registers().unwrap();
        object.perf_event("page_fault").unwrap();
        for (program, event) in [
            ("context_switch", "sched_switch"),
            ("process_fork", "sched_process_fork"),
            ("process_exec", "sched_process_exec"),
            ("process_exit", "sched_process_exit"),
            ("signal_generate", "signal_generate"),
            ("mark_victim", "mark_victim"),
        ] {
            drop(object.attach_to_event(program, event).unwrap());
        }
        object.forget_threads().unwrap();
        for name in ["heap_call", "heap_free"] {
            object.uprobe(name, AttachType::Multi).unwrap();
            object.perf_uprobe(name).unwrap();
        }
    }
}
