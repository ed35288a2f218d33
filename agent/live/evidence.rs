//! Whether blocks of real allocators still live, told from outside, held
//! against the program's own list.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use lingerscope::{
    capture::evidence::{
        self, Allocator, FirstRead, Gone, Outcome, Request, Sign, Unreadable, facts::Mark,
    },
    host::{
        memory::{Absent, Budget, Memory, Pages},
        process,
    },
};

use crate::{
    lab,
    program::{Program, signal},
    trial,
};

/// Name, compiler, flags, allocator. Those with `thread` in their names
/// allocate from a second one.
const BUILDS: [(&str, &str, &[&str], Allocator); 7] = [
    ("glibc", "cc", &[], Allocator::Glibc),
    ("glibc_thread", "cc", &[], Allocator::Glibc),
    ("glibc_static", "cc", &["-static"], Allocator::Glibc),
    ("musl", "musl-gcc", &["-static"], Allocator::Musl),
    (
        "jemalloc",
        "cc",
        &["-Wl,--no-as-needed", "-l:libjemalloc.so.2"],
        Allocator::Jemalloc,
    ),
    (
        "mimalloc",
        "cc",
        &["-Wl,--no-as-needed", "-l:libmimalloc.so.2"],
        Allocator::Mimalloc,
    ),
    (
        "tcmalloc",
        "cc",
        &["-Wl,--no-as-needed", "-l:libtcmalloc_minimal.so.4"],
        Allocator::Tcmalloc,
    ),
];

/// How long the freed blocks' memory is reused, at the later readings.
const CHURN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];

const BUDGET: Budget = Budget {
    bytes: 256 << 20,
    time: Duration::from_secs(5),
    pause: Duration::ZERO,
};

/// All contents but the pool of texts.
const OTHERS: [&str; 8] = [
    "random", "named", "small", "zero", "equal", "counted", "leftover", "partly",
];

const UNTOUCHED: &str = "nothing freed";

/// Contents that nothing tells from those of another block.
const PLAIN: [&str; 3] = ["small", "zero", "equal"];

pub(crate) fn trials() -> Vec<Trial> {
    BUILDS
        .into_iter()
        .map(|(name, compiler, flags, allocator)| {
            trial(format!("evidence::{name}"), move || {
                let path = lab::compile(compiler, "blocks.c", flags, &format!("blocks-{name}"))?;
                told_rightly(name, &path, allocator)
            })
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Freed,
    Written,
}

/// A block by the program's own account.
struct Block {
    address: u64,
    size: u64,
    usable: u64,
    kind: String,
    fate: Fate,
    over_aligned: bool,
    /// What was in it when it was handed out, where that tells something.
    head: Option<Vec<u64>>,
}

struct Blocks {
    program: Program,
    table: PathBuf,
    memory: Memory,
    list: Vec<Block>,
}

impl Blocks {
    fn start(name: &str, path: &Path) -> Result<Self> {
        let table = lab::fresh(&format!("blocks-{name}.txt"))?;
        let mut arguments = vec![table.to_str().context("path")?];
        arguments.extend(name.contains("thread").then_some("thread"));
        let program = Program::start(path, &arguments)?;
        let pid = program.pid();
        let memory = Memory::open_process(pid, process::start_time(pid)?)?;
        let blocks = fs::read_to_string(&table)?
            .lines()
            .map(parse)
            .collect::<Option<Vec<Block>>>()
            .context("the program's table has another shape")?;
        Ok(Self {
            program,
            table,
            memory,
            list: blocks,
        })
    }

    fn free(&self) -> Result<()> {
        signal(self.program.pid(), libc::SIGUSR1)?;
        let done = PathBuf::from(format!("{}.freed", self.table.display()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done.exists() {
            ensure!(Instant::now() < deadline, "the program did not free");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// First reads of all blocks, identified by site: size and contents.
    fn first_reads(&mut self, allocator: Allocator, born: bool) -> Result<Vec<FirstRead>> {
        let requests: Vec<Request> = self
            .list
            .iter()
            .map(|block| Request {
                allocator,
                address: block.address,
                requested: block.size,
                over_aligned: block.over_aligned,
            })
            .collect();
        let started = Instant::now();
        let outcome = evidence::first_reads(&self.memory, &requests, BUDGET)?;
        report_cost("first reads", &outcome, started.elapsed());
        let mut sites: BTreeMap<(u64, String), (Vec<usize>, Vec<FirstRead>)> = BTreeMap::new();
        for (index, (block, first)) in self.list.iter().zip(outcome.results).enumerate() {
            let mut first = match first {
                Ok(first) => first,
                // Nobody has written into the large zeroed ones.
                Err(Unreadable::Absent(Absent::Hole)) if block.kind == "zero" => continue,
                Err(why) => bail!("a live block of {} bytes: {why:?}", block.size),
            };
            if let Some(head) = block.head.as_ref().filter(|_| born) {
                first.born(head);
            }
            let site = sites.entry((block.size, block.kind.clone())).or_default();
            site.0.push(index);
            site.1.push(first);
        }
        let mut firsts: Vec<(usize, FirstRead)> = Vec::new();
        for (indices, mut samples) in sites.into_values() {
            evidence::identify(&mut samples);
            firsts.extend(indices.into_iter().zip(samples));
        }
        firsts.sort_unstable_by_key(|(index, _)| *index);
        let (kept, firsts): (Vec<usize>, Vec<FirstRead>) = firsts.into_iter().unzip();
        let mut index = 0;
        self.list.retain(|_| {
            index += 1;
            kept.binary_search(&(index - 1)).is_ok()
        });
        Ok(firsts)
    }
}

/// The tables are what these tests are for.
#[expect(clippy::print_stdout, reason = "a test reports to its terminal")]
fn show(text: &str) {
    println!("{text}");
}

fn parse(line: &str) -> Option<Block> {
    let mut fields = line.split(' ');
    Some(Block {
        address: fields.next()?.parse().ok()?,
        size: fields.next()?.parse().ok()?,
        usable: fields.next()?.parse().ok()?,
        kind: fields.next()?.to_owned(),
        fate: match fields.next()? {
            "0" => Fate::Kept,
            "1" => Fate::Freed,
            "2" => Fate::Written,
            _ => return None,
        },
        over_aligned: fields.next()? == "1",
        head: {
            let resized = fields.next()? == "1";
            let words = fields
                .map(|word| word.parse().ok())
                .collect::<Option<_>>()?;
            Some(words).filter(|_| !resized)
        },
    })
}

/// Signs by contents and truth.
#[derive(Default)]
struct Confusion(BTreeMap<(String, bool), BTreeMap<&'static str, u32>>);

const COLUMNS: [&str; 6] = ["alive", "mutated", "held", "unchanged", "gone", "unknown"];

impl Confusion {
    fn of(blocks: &[Block], signs: &[Sign]) -> Self {
        let mut table = Self::default();
        for (block, sign) in blocks.iter().zip(signs) {
            let row = (block.kind.clone(), block.fate == Fate::Freed);
            let column = match sign {
                Sign::Alive => "alive",
                Sign::Mutated => "mutated",
                Sign::Held => "held",
                Sign::Unchanged => "unchanged",
                Sign::Gone(_) => "gone",
                Sign::Unknown(_) => "unknown",
            };
            *table.0.entry(row).or_default().entry(column).or_default() += 1;
        }
        table
    }

    /// Share of blocks with this truth, of kinds that pass, in the columns.
    fn share(&self, kinds: impl Fn(&str) -> bool, freed: bool, columns: &[&str]) -> f64 {
        let rows = self
            .0
            .iter()
            .filter(|((kind, truth), _)| *truth == freed && kinds(kind));
        let (mut hits, mut all) = (0, 0);
        for (column, count) in rows.flat_map(|(_, row)| row) {
            all += count;
            hits += if columns.contains(column) { *count } else { 0 };
        }
        f64::from(hits) / f64::from(all.max(1))
    }

    fn print(&self, title: &str) {
        let mut text = format!("{title}\n{:>18}", "");
        for column in COLUMNS {
            let _ = write!(text, "{column:>10}");
        }
        for ((kind, freed), row) in &self.0 {
            let truth = if *freed { "freed" } else { "live" };
            let _ = write!(text, "\n{kind:>12} {truth:<5}");
            for column in COLUMNS {
                let _ = write!(text, "{:>10}", row.get(column).unwrap_or(&0));
            }
        }
        show(&text);
    }
}

fn report_cost<T>(what: &str, outcome: &Outcome<T>, took: Duration) {
    show(&format!(
        "{what}: {} blocks, {} reads, {} KiB, {took:?}, skipped {:?}",
        outcome.results.len(),
        outcome.reads,
        outcome.bytes >> 10,
        outcome.skipped
    ));
}

fn told_rightly(name: &str, path: &Path, allocator: Allocator) -> Result<()> {
    let mut target = Blocks::start(name, path)?;
    let firsts = target.first_reads(allocator, false)?;
    let born = target.first_reads(allocator, true)?;
    sizes_are_right(&target.list, &firsts)?;
    let before = contents(&target)?;

    let look = |title: &str, firsts: &[FirstRead]| -> Result<(Vec<Sign>, Confusion)> {
        let started = Instant::now();
        let outcome = evidence::again_all(&target.memory, firsts, BUDGET)?;
        report_cost(title, &outcome, started.elapsed());
        let confusion = Confusion::of(&target.list, &outcome.results);
        confusion.print(&format!("{name}, {title}"));
        let nothing_freed = title == UNTOUCHED;
        for (block, sign) in target.list.iter().zip(&outcome.results) {
            let wrong = match block.fate {
                Fate::Freed => matches!(sign, Sign::Alive | Sign::Mutated),
                _ => matches!(sign, Sign::Gone(_)),
            };
            if wrong && !nothing_freed {
                show(&format!(
                    "  {} {} {:?}: {sign:?}",
                    block.kind, block.size, block.fate
                ));
            }
        }
        Ok((outcome.results, confusion))
    };

    let (signs, _) = look(UNTOUCHED, &firsts)?;
    ensure!(
        signs.iter().all(|sign| !matches!(sign, Sign::Gone(_))),
        "a live block was called gone"
    );
    target.free()?;
    let (signs, freed) = look("freed, not reused", &firsts)?;
    marks_are_right(allocator, &target, &before, &signs)?;
    check(&freed, allocator)?;
    signal(target.program.pid(), libc::SIGUSR1)?;
    for after in CHURN {
        thread::sleep(after);
        let title = format!("after {after:?} more of churn");
        let (_, reused) = look(&title, &firsts)?;
        check(&reused, allocator)?;
        let (_, reused) = look(&format!("{title}, first words at birth known"), &born)?;
        check(&reused, allocator)?;
    }
    let calls = fs::read_to_string(format!("{}.calls", target.table.display()))?;
    show(&format!("{} allocations and frees meanwhile", calls.trim()));
    ensure!(target.program.is_running()?, "the program has died");
    Ok(())
}

fn check(confusion: &Confusion, allocator: Allocator) -> Result<()> {
    // Of texts drawn from a few some are the same again by chance.
    for (kinds, most) in [(["pool"].as_slice(), 0.02), (&OTHERS, 0.002)] {
        let survivors = confusion.share(|kind| kinds.contains(&kind), true, &["alive", "mutated"]);
        ensure!(
            survivors <= most,
            "{:.2} % of the freed blocks are called alive",
            survivors * 100.0
        );
    }
    let lost = confusion.share(|_| true, false, &["gone"]);
    ensure!(
        lost <= 0.002,
        "{:.2} % of the live blocks are called gone",
        lost * 100.0
    );
    let found = match allocator.facts().mark {
        Mark::Nowhere => ["unchanged"].as_slice(),
        Mark::Header => &["alive", "held"],
        _ => &["alive", "mutated"],
    };
    let known = confusion.share(|kind| kind == "random", false, found);
    ensure!(
        known >= 0.8,
        "only {:.0} % of the live blocks with random contents are recognised",
        known * 100.0
    );
    let plain = confusion.share(|kind| PLAIN.contains(&kind), false, &["alive", "mutated"]);
    ensure!(plain <= 0.0, "blocks with plain contents are recognised");
    Ok(())
}

/// The table's sizes, against the allocator's own account.
fn sizes_are_right(blocks: &[Block], firsts: &[FirstRead]) -> Result<()> {
    for (block, first) in blocks.iter().zip(firsts) {
        let known = match first.allocator() {
            Allocator::Glibc => true,
            // Aligned blocks may come from a larger class.
            other => other.class_size(block.size).is_some() && block.address % 64 != 0,
        };
        if known && first.usable() != block.usable {
            bail!(
                "a block of {} bytes has {}, the allocator says {}",
                block.size,
                first.usable(),
                block.usable
            );
        }
    }
    Ok(())
}

/// Words of the blocks that [`marks_are_right`] looks at.
fn contents(target: &Blocks) -> Result<Vec<Vec<u64>>> {
    let mut pages = Pages::new(&target.memory, BUDGET)?;
    let words = |block: &Block| {
        (0..block.size / 8)
            .filter(|_| is_marked(block))
            .map_while(|word| pages.word(block.address + word * 8).ok())
            .collect()
    };
    Ok(target.list.iter().map(words).collect())
}

fn is_marked(block: &Block) -> bool {
    block.fate == Fate::Freed && block.kind == "random" && block.size <= 4096
}

/// The table's marks, against what free has really done.
fn marks_are_right(
    allocator: Allocator,
    target: &Blocks,
    before: &[Vec<u64>],
    signs: &[Sign],
) -> Result<()> {
    let facts = allocator.facts();
    let after = contents(target)?;
    let (mut freed, mut told, mut destroyed, mut should, mut beyond) = (0, 0, 0, 0, 0);
    let blocks = target.list.iter().zip(signs);
    for ((block, sign), (before, after)) in blocks.zip(before.iter().zip(&after)) {
        if !is_marked(block) || block.over_aligned {
            continue;
        }
        freed += 1;
        told += i32::from(matches!(sign, Sign::Gone(_)));
        if matches!(sign, Sign::Gone(Gone::Unmapped | Gone::Purged)) {
            continue;
        }
        let changed: Vec<bool> = before.iter().zip(after).map(|(a, b)| a != b).collect();
        // Of glibc's larger ones some are merged unwritten.
        let limit = match facts.mark {
            Mark::LinkAndChunks => facts.one_word_limit,
            Mark::Nowhere => u64::MAX,
            _ => facts.link_limit,
        };
        if block.usable <= limit {
            let words = facts.words_destroyed(block.usable);
            should += words;
            destroyed += changed
                .iter()
                .take(words)
                .filter(|changed| **changed)
                .count();
            beyond += usize::from(changed.iter().skip(words.max(2)).any(|changed| *changed));
        }
    }
    show(&format!(
        "marks: {freed} freed blocks, {told} told by the mark; of {should} words that a free \
         destroys {destroyed} are; {beyond} blocks changed beyond them"
    ));
    ensure!(freed > 100, "too few blocks were freed");
    let expected = if facts.mark == Mark::Nowhere {
        0
    } else {
        freed
    };
    ensure!(
        f64::from(told - expected).abs() <= 0.02 * f64::from(freed),
        "of {freed} freed blocks {told} are told by their marks, by the table {expected}"
    );
    ensure!(
        destroyed == should,
        "a free destroys less than the table says"
    );
    ensure!(
        facts.mark == Mark::LinkAndChunks || beyond == 0,
        "a free writes where the table says it does not"
    );
    Ok(())
}
