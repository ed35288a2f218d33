use super::*;
use crate::output::sample::document;

fn printed(document: &Document, colour: bool) -> String {
    let mut out = Vec::new();
    write(document, Style { colour }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

const EXPECTED: &str = "\
unbounded-growth (suspected) in History::push (process 4242, server.service)
  History::push at src/history.rs:42
  Rate      34.1 KiB/s (95 %: 32.2 KiB/s to 35.2 KiB/s)
";

#[test]
fn a_finding_says_what_where_and_what_to_do() {
    let text = printed(&document("History::push"), false);
    assert!(text.starts_with(EXPECTED), "{text}");
    for part in [
        "  Live      2.0 MiB (95 %: 1.9 MiB to 2.1 MiB) in 2,045 blocks, the oldest 59 s old\n",
        "  To limit  24 h\n",
        "      … 3 frames of libraries\n    > History::push",
        "    > History::push  src/history.rs:42\n    > server::serve::{{closure}} (inlined)  src/main.rs:17\n",
        "      task 17 History::push at src/main.rs:17:5: 2.0 MiB in 2,045 blocks\n",
        "    - None of the 2,045 blocks seen here was released.\n",
        "  What to do\n    Find what keeps",
        "  1 finding; any other leak above 967 B/s would have been found",
        "  No leak (bounded): History::push at src/history.rs:42, 2.0 MiB live.",
        "every allocation: 1,234,567 allocations, 1,234,567 recorded.\n",
        "  Lost, by cause: blocks_full 12.\n",
        "  Not observed: allocator jemalloc in /lib/libjemalloc.so.2: no symbols.\n",
        "Not observed: process 9: it is a kernel thread; name a program\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing from\n{text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 120),
        "{text}"
    );
}

#[test]
fn nothing_found_says_what_would_have_been() {
    let mut document = document("f");
    document.processes[0].findings.clear();
    assert!(
        printed(&document, false)
            .contains("  No leak above 967 B/s (blocks of up to 4 KiB, 95 %).\n")
    );
    document.processes[0].detection_limit_bytes_per_s = None;
    document.processes[0].why_not = Some(crate::finding::Text::sentence(
        "observed for 1.0 s; a verdict needs at least 3 s",
    ));
    assert!(
        printed(&document, false)
            .contains("nothing can be said: observed for 1.0 s; a verdict needs at least 3 s.\n")
    );
    document.processes.clear();
    document.skipped.clear();
    assert_eq!(printed(&document, false), "No process was observed.\n");
}

#[test]
fn colours_only_when_asked_for() {
    let document = document("f\x1b[31m\nFORGED <script>");
    assert!(!printed(&document, false).contains('\x1b'));
    let coloured = printed(&document, true);
    assert!(coloured.contains("\x1b[1;33munbounded-growth (suspected)\x1b[0m"));
    // ours are the only ones
    let plain: String = ["1;33", "1", "2", "0"].iter().fold(coloured, |text, code| {
        text.replace(&format!("\x1b[{code}m"), "")
    });
    assert!(!plain.contains('\x1b'));
    assert_eq!(plain, printed(&document, false));
    assert!(plain.lines().all(|line| !line.starts_with("FORGED")));
}

#[test]
fn odd_documents_are_printed() {
    let mut document = document("f");
    let finding = &mut document.processes[0].findings[0];
    finding.site.frames.clear();
    finding.tasks.clear();
    finding.evidence.clear();
    finding.time_to_limit_s = Some(f64::INFINITY);
    document.processes[0].capture.open_s = -1.0;
    assert!(printed(&document, false).contains("unknown code"));
}

#[test]
fn own_processor_time_is_told_as_far_as_it_is_known() {
    let mut document = document("f");
    let text = printed(&document, false).replace("\n    ", " ");
    assert!(
        text.contains(
            "Its own processor time: 0.030 cores before, 0.031 cores while probed; the probes took about 26.9 % of that."
        ),
        "{text}"
    );
    let cpu = &mut document.processes[0].capture.target_cpu;
    cpu.cores_before = None;
    cpu.cores_between = Some(0.0304);
    cpu.probe_percent_overall = Some(0.31);
    let text = printed(&document, false).replace("\n    ", " ");
    assert!(
        text.contains(
            "not measured before, 0.030 between windows, 0.031 cores while probed; the probes took about 26.9 % of that, 0.3 % of all it used since the first window."
        ),
        "{text}"
    );
    document.processes[0].capture.target_cpu.cores_during = None;
    assert!(!printed(&document, false).contains("processor time"));
}
