//! A document for tests.

use std::collections::BTreeMap;

use crate::finding::*;

/// A function in a file.
pub(crate) fn frame(function: &str, file: &str, line: u32, inlined: bool) -> Frame {
    Frame {
        function: Some(Text::symbol(function)),
        module: Some(Text::name("/srv/server")),
        build_id: Some("ab12".to_owned()),
        offset: Some("0x1f00".to_owned()),
        file: Some(Text::name(file)),
        line: Some(line),
        inlined,
    }
}

/// One process with one finding; `name` goes wherever a target can write.
pub(crate) fn document(name: &str) -> Document {
    let functions = [name];
    let fingerprint = fingerprint("server", &functions);
    let finding = Finding {
        fingerprint,
        id: format!("{fingerprint}-4242-77"),
        verdict: Verdict::UnboundedGrowth,
        confidence: Confidence::Suspected,
        leak: Leak::Yes,
        leak_bytes_per_s: Estimate { value: 34_901.0, low: 33_000.0, high: 36_000.0 },
        live_bytes: Estimate { value: 2_094_080.0, low: 2_000_000.0, high: 2_200_000.0 },
        live_blocks: Estimate { value: 2045.0, low: 1950.0, high: 2150.0 },
        oldest_s: Some(59.2),
        site: Site {
            frames: vec![
                frame("__libc_malloc", "malloc.c", 3301, false),
                frame("alloc::alloc::alloc", "alloc.rs", 95, true),
                frame("alloc::vec::Vec<T>::with_capacity", "mod.rs", 480, true),
                frame(name, "src/history.rs", 42, false),
                frame("server::serve::{{closure}}", "src/main.rs", 17, true),
                frame("tokio::runtime::task::raw::poll", "raw.rs", 271, false),
            ],
            truncated: None,
        },
        tasks: vec![Task {
            id: Some(17),
            name: Some(Text::symbol(name)),
            location: Some(Text::name("src/main.rs:17:5")),
            blocks: 2045,
            bytes: 2_094_080,
            ..Task::default()
        }],
        members: Vec::new(),
        evidence: vec![
            Evidence { kind: "growth", text: "34.1 KiB more every second for 60 s, in 8 of 8 parts of that time; 34 blocks a second.".to_owned(), value: Some(34_901.0) },
            Evidence { kind: "lives", text: "None of the 2,045 blocks seen here was released.".to_owned(), value: Some(0.0) },
        ],
        advice: "Find what keeps the memory allocated here.".to_owned(),
        time_to_limit_s: Some(86_400.0),
        suppressed_by: None,
    };
    let mut bounded = finding.clone();
    bounded.verdict = Verdict::Bounded;
    bounded.leak = Leak::No;
    let process = Process {
        pid: 4242,
        start_time: 77,
        uid: Some(1000),
        comm: Text::name(name),
        exe: Some(Text::name(format!("/srv/{name}"))),
        build_id: Some("ab12".to_owned()),
        cgroup: Some(Text::name("/system.slice/server.service")),
        unit: Some(Text::name("server.service")),
        allocators: vec![Allocator {
            kind: Text::name("jemalloc"),
            module: Text::name("/lib/libjemalloc.so.2"),
            attached: false,
            why_not: Some(Text::sentence("no symbols")),
        }],
        capture: Capture {
            mode: "trace",
            windows: 1,
            open_s: 60.0,
            sampling_mean_bytes: 1,
            allocations: 1_234_567,
            sampled: 1_234_567,
            lost: BTreeMap::from([("blocks_full".to_owned(), 12)]),
            target_slowdown_percent: Some(0.84),
            target_cpu: TargetCpu {
                cores_before: Some(0.03),
                cores_during: Some(0.0312),
                cores_between: None,
                probe_percent_of_own: Some(26.9),
                probe_percent_overall: Some(26.9),
            },
            decisions: Vec::new(),
            agent_cpu_percent: Some(1.26),
        },
        detection_limit_bytes_per_s: Some(967.0),
        rss: Some(Rss {
            start_bytes: 10 << 20,
            end_bytes: 12 << 20,
            growth_bytes_per_s: 34_952.0,
        }),
        findings: vec![finding],
        not_leaks: vec![bounded],
        ..Process::default()
    };
    Document {
        schema: SCHEMA,
        lingerscope: "0.1.0",
        host: Some(Text::name("db1")),
        kernel: Some(Text::name("6.18.0")),
        started: "2026-11-22T07:00:00Z".to_owned(),
        duration_s: 60.0,
        processes: vec![process],
        skipped: vec![Skipped {
            pid: Some(9),
            why: Text::sentence("it is a kernel thread; name a program"),
        }],
    }
}
