//! Every map, with the reason for its size.

use core::arch::asm;

use agent_ebpf::abi::{
    ABI_VERSION,
    ending::{MAX_WATCHED, Signs},
    fault::FaultSite,
    futex::{MAX_PLACES, MAX_WAITING, Place, Wait, WaitAllowance, WaitCounts, WaitTotals},
    heap::{Block, BlockKey, MAX_TARGETS, Site, Target, TargetCounts},
    place::{self, BlockPlace, PLACES as PLACE_COUNT, SITE_PLACES as SITE_PLACE_COUNT, SitePlace},
    stack::{CHUNK_ROWS, MAX_CHUNKS, MAX_FRAMES, Mappings, Row},
};
use agent_ebpf::logic::rules::RULES as RULE_COUNT;
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array as BtfArray, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};

/// Unwind rows as one array value, so that a chunk is one map lookup.
#[repr(C)]
pub(crate) struct Chunk {
    pub(crate) rows: [Row; CHUNK_ROWS],
}

/// One entry of the table in `logic::rules`.
#[repr(C)]
pub(crate) struct Rule {
    pub seal: u64,
    pub rule: u64,
}

/// Unwind rules by code address.
#[repr(C)]
pub(crate) struct Rules {
    pub entries: [Rule; RULE_COUNT],
}

/// Counters that many things share by a hash of what they are.
#[repr(C)]
pub(crate) struct Tally<const COUNTERS: usize> {
    pub counters: [u64; COUNTERS],
}

/// The counter that a number shares.
#[inline(always)]
fn tally<const COUNTERS: usize>(
    map: &'static Array<Tally<COUNTERS>>,
    number: u64,
) -> Option<*mut u64> {
    const { assert!(COUNTERS.is_power_of_two()) };
    let tally = map.get_ptr_mut(0)?;
    // Neighbouring numbers on lines of memory of their own.
    let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    // SAFETY: a map value; the index is below the number of counters.
    Some(unsafe { &raw mut (*tally).counters[hash as usize & (COUNTERS - 1)] })
}

/// Words of the stack that are copied at a time.
pub(crate) const WINDOW_WORDS: usize = 1024;

/// What one thread is doing, and its scratch memory. One thread runs one
/// program at a time, so nothing here is shared; per-CPU memory would be, as
/// uprobe programs can be preempted.
#[repr(C)]
pub(crate) struct Thread {
    /// In a place: thread group id and thread id; 0: the place is free.
    pub owner: u64,
    /// Non-zero while an allocating function that must be seen to return runs.
    pub active: u64,
    /// Stack pointer at its entry, where the return address is.
    pub sp: u64,
    /// The return address.
    pub caller: u64,
    /// CLOCK_MONOTONIC at its entry.
    pub entered_ns: u64,
    /// Requested bytes.
    pub size: u64,
    /// `FunctionKind`.
    pub kind: u64,
    /// posix_memalign: where the result goes.
    pub result: u64,
    /// Non-zero: the block is to be recorded.
    pub sampled: u64,
    /// Hash of the stack; 0 when it could not be kept.
    pub stack: u64,
    /// Tokio task id.
    pub task: u64,
    /// Sampling mean in force.
    pub mean: u64,
    /// Non-zero: `old` was taken out of `LIVE` by this realloc.
    pub has_old: u64,
    /// Address of `old`.
    pub old_address: u64,
    pub old: Block,
    /// Unwinder: valid frames, how it ended, hash, laundry (see `unwind`).
    pub frame_count: u64,
    pub end: u64,
    pub hash: u64,
    pub scratch: u64,
    pub frames: [u64; MAX_FRAMES],
    /// Where its last complete stack ended; 0: not known.
    pub bottom: u64,
    /// A piece of the thread's stack, valid during a walk: its address, and
    /// the number of bytes in it where two words begin. Kept here and not on
    /// the program's stack, where the verifier would tell apart each value
    /// they may have.
    pub window_start: u64,
    pub window_room: u64,
    pub window: [u64; WINDOW_WORDS + 2],
}

/// The layouts this object was built with.
#[unsafe(no_mangle)]
pub(crate) static LINGERSCOPE_ABI: u64 = ABI_VERSION;
/// Byte offset of `thread.fsbase` in `task_struct`; from the kernel's BTF.
#[unsafe(no_mangle)]
pub(crate) static TASK_FSBASE: u64 = 0;
/// Byte offset of `tgid` in `task_struct`.
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: u64 = 0;
/// Byte offset of `pid` in `task_struct`.
#[unsafe(no_mangle)]
pub(crate) static TASK_PID: u64 = 0;
/// Byte offset of `exit_code` in `task_struct`.
#[unsafe(no_mangle)]
pub(crate) static TASK_EXIT_CODE: u64 = 0;
/// Byte offset of `signal` in `task_struct`.
#[unsafe(no_mangle)]
pub(crate) static TASK_SIGNAL: u64 = 0;
/// Byte offset of `live` in `signal_struct`.
#[unsafe(no_mangle)]
pub(crate) static SIGNAL_LIVE: u64 = 0;

/// Byte offset of `se.sum_exec_runtime` in `task_struct`.
#[unsafe(no_mangle)]
pub(crate) static TASK_RAN: u64 = 0;
/// Byte offset of `sched_info.run_delay` in `task_struct`; 0: there is none.
#[unsafe(no_mangle)]
pub(crate) static TASK_DELAYED: u64 = 0;
/// Byte offset of `__state` in `task_struct`.
#[unsafe(no_mangle)]
pub(crate) static TASK_STATE: u64 = 0;

/// Reads one of the globals above.
#[inline(always)]
pub(crate) fn global(global: &'static u64) -> u64 {
    // SAFETY: a valid reference to a frozen read-only map value. Volatile, so
    // that the compiler does not fold the zero it was built with.
    unsafe { core::ptr::read_volatile(global) }
}

/// Counts the threads with an open call; this one is among them if it has one.
#[inline(always)]
pub(crate) fn open_calls(thread_id: u64) -> Option<*mut u64> {
    tally(&OPEN, thread_id)
}

/// Adds to a counter in a map; programs on one CPU can preempt each other.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, value: u64) {
    // The target is said to lack atomics, so `AtomicU64::fetch_add` does not
    // exist there; the instruction does, on every kernel with uprobes.
    // SAFETY: an aligned word of a map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value) };
}

/// 512 KiB each; user space fills them as files appear.
#[btf_map]
pub(crate) static TABLES: ArrayOfMaps<BtfArray<Chunk, 1>, { MAX_CHUNKS as usize }> =
    ArrayOfMaps::new();
/// 512 KiB, of all targets.
#[map]
pub(crate) static RULES: Array<Rules> = Array::with_max_entries(1, 0);
/// Threads whose call is being followed: at 0, none of those that share the
/// counter is inside one, and none needs to be looked for. Never less than the
/// truth; what vanishes unseen leaves it at more, which costs look-ups.
#[map]
static OPEN: Array<Tally<4096>> = Array::with_max_entries(1, 0);
/// Live blocks, by address, in the same way: those with a place and those in
/// the table, a half of each counter. User space takes off what it removes.
#[map]
pub(crate) static COUNTERS: Array<Tally<{ place::COUNTERS }>> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);
/// 12 KiB each, allocated for targets only; replaced as a whole.
#[map]
pub(crate) static MAPPINGS: HashMap<u32, Mappings> =
    HashMap::with_max_entries(MAX_TARGETS, BPF_F_NO_PREALLOC);
/// Indexed by the slot in a probe's cookie.
#[map]
pub(crate) static TARGETS: Array<Target> = Array::with_max_entries(MAX_TARGETS, 0);
/// How many programs each target has run since it became one, indexed like
/// `TARGETS`. Blocks of another epoch are void: exec replaced the address
/// space. Apart from `TARGETS`, because user space rewrites that as a whole.
#[map]
pub(crate) static EPOCHS: Array<u32> = Array::with_max_entries(MAX_TARGETS, 0);
/// `generation` of each target's mappings, indexed like `TARGETS`; 0: none are
/// known. Spares looking up mappings where all rules are remembered.
#[map]
pub(crate) static GENERATIONS: Array<u32> = Array::with_max_entries(MAX_TARGETS, 0);
/// Slot of each target, for the process events.
#[map]
pub(crate) static SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_TARGETS, 0);
/// Indexed like `TARGETS`.
#[map]
pub(crate) static COUNTS: PerCpuArray<TargetCounts> = PerCpuArray::with_max_entries(MAX_TARGETS, 0);
/// In front of `THREADS`, see `threads`.
pub(crate) const THREAD_PLACE_COUNT: u32 = 256;
/// 9.4 KiB each.
#[map]
pub(crate) static THREAD_PLACES: Array<Thread> = Array::with_max_entries(THREAD_PLACE_COUNT, 0);
/// 9.4 KiB each, allocated for threads that were sampled.
#[map]
pub(crate) static THREADS: HashMap<u64, Thread> =
    HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);
/// A zeroed thread: too big for the 512 bytes of a program's stack.
#[map]
pub(crate) static NEW_THREAD: Array<Thread> = Array::with_max_entries(1, 0);
/// In front of `LIVE`, see `live`. 4 MiB; user space reads and clears it in its
/// own memory.
#[map]
pub(crate) static PLACES: Array<BlockPlace> = Array::with_max_entries(PLACE_COUNT, BPF_F_MMAPABLE);
/// About 110 bytes each; the loader sets the size. Preallocated, because the
/// kernel's allocator may refuse in bursts.
#[map]
pub(crate) static LIVE: HashMap<BlockKey, Block> = HashMap::with_max_entries(262_144, 0);
/// In front of `SITES`, see `sites`.
#[map]
pub(crate) static SITE_PLACES: Array<SitePlace> =
    Array::with_max_entries(SITE_PLACE_COUNT, BPF_F_MMAPABLE);
/// By hash of the stack.
#[map]
pub(crate) static SITES: HashMap<u64, Site> = HashMap::with_max_entries(65_536, 0);
/// Processes whose end is watched, by their tgid; user space enters them.
#[map]
pub(crate) static SIGNS: HashMap<u32, Signs> = HashMap::with_max_entries(MAX_WATCHED, 0);
/// By hash of the stack.
#[map]
pub(crate) static FAULTS: HashMap<u64, FaultSite> = HashMap::with_max_entries(8192, 0);
/// Slots of the processes whose waits are followed.
#[map]
pub(crate) static WAITERS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_TARGETS, 0);
/// Switches of all threads of the host while waits are followed.
#[map]
pub(crate) static SWITCHES: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The waits of threads. Preallocated like the next one: they are written
/// where the scheduler runs.
#[map]
pub(crate) static WAITS: HashMap<u64, Wait> = HashMap::with_max_entries(MAX_WAITING, 0);
/// Ended waits.
#[map]
pub(crate) static WAIT_TOTALS: HashMap<Place, WaitTotals> =
    HashMap::with_max_entries(MAX_PLACES, 0);
/// Stacks whose frames were sent to user space: process and epoch.
#[map]
pub(crate) static WAIT_STACKS: HashMap<u64, u64> = HashMap::with_max_entries(MAX_PLACES, 0);
/// Indexed like `TARGETS`.
#[map]
pub(crate) static WAIT_COUNTS: PerCpuArray<WaitCounts> =
    PerCpuArray::with_max_entries(MAX_TARGETS, 0);
/// Indexed like `TARGETS`.
#[map]
pub(crate) static WAIT_ALLOWANCES: Array<WaitAllowance> = Array::with_max_entries(MAX_TARGETS, 0);
/// The unwinder's memory for page faults and waits.
#[map]
pub(crate) static FAULT_SCRATCH: PerCpuArray<Thread> = PerCpuArray::with_max_entries(1, 0);
/// Rare facts only: new stacks, process events, unknown mappings.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
/// Distance to the next sample point, in 1/UNIT means.
#[map]
pub(crate) static SAMPLER: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
