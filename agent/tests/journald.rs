//! Alerts as a real systemd-journald stores, finds and explains them. Needs
//! root and systemd-journald; where one is missing, the tests say so and end.
#![expect(clippy::print_stderr, reason = "a skipped test says why")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use lingerscope::{
    alert::{Alerts, Moment, Notice, State},
    config::{Pattern, Settings, Suppression},
    finding::{
        Confidence, Death, Ended, Estimate, Evidence, Finding, Frame, Leak, Process, Site, Task,
        Text, UnderProbes, Verdict, fingerprint,
    },
    output::journald::{
        DEATH_MESSAGE_ID, Journal, SUMMARY_MESSAGE_ID, SUPPRESSION_MESSAGE_ID, end_message_id,
        message_id,
    },
};
use serde_json::Value;

const JOURNALD: &str = "/lib/systemd/systemd-journald";
const CATALOGUE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../systemd/lingerscope.catalog"
);

/// A journal of our own: an instance in a journal namespace.
struct Private {
    name: String,
    child: Child,
}

impl Private {
    fn start(test: &str) -> Option<Self> {
        // SAFETY: reads a number.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: a private journal needs root");
            return None;
        }
        if !Path::new(JOURNALD).exists() {
            eprintln!("skipped: {JOURNALD} is missing (Debian: apt-get install systemd)");
            return None;
        }
        let name = format!("lingerscope-{test}-{}", std::process::id());
        let configuration = PathBuf::from(format!("/run/systemd/journald@{name}.conf.d"));
        fs::create_dir_all(&configuration).unwrap();
        fs::write(
            configuration.join("test.conf"),
            "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\n",
        )
        .unwrap();
        let child = Command::new(JOURNALD)
            .arg(&name)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let journal = Self { name, child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !journal.socket().exists() {
            assert!(Instant::now() < deadline, "journald opens no socket");
            thread::sleep(Duration::from_millis(20));
        }
        Some(journal)
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/run/systemd/journal.{}/socket", self.name))
    }

    fn journalctl(&self) -> Command {
        let mut command = Command::new("journalctl");
        command.arg(format!("--namespace={}", self.name));
        command
    }

    /// What journalctl finds, as JSON.
    fn read(&self, arguments: &[&str]) -> Vec<Value> {
        output(self.journalctl().arg("--sync"));
        let output = output(
            self.journalctl()
                .args(["--output=json", "--all", "--no-pager"])
                .args(arguments),
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(format!("/run/systemd/journal.{}", self.name));
        let _ = fs::remove_dir_all(format!("/run/systemd/journald@{}.conf.d", self.name));
        for entry in fs::read_dir("/run/log/journal")
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry
                .file_name()
                .to_string_lossy()
                .ends_with(&format!(".{}", self.name))
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn sample(pid: u32, evidence: &str) -> (Process, Finding) {
    let process = Process {
        pid,
        comm: Text::name("evil\n\x1b[31mPRIORITY=0"),
        exe: Some(Text::name("/srv/server")),
        unit: Some(Text::name("lingerscope-test.service")),
        ..Process::default()
    };
    let frame = Frame {
        function: Some(Text::symbol("server::history::push")),
        file: Some(Text::name("src/history.rs")),
        line: Some(42),
        ..Frame::default()
    };
    let fingerprint = fingerprint("server", &["server::history::push"]);
    let finding = Finding {
        fingerprint,
        id: format!("{fingerprint}-{pid}-1"),
        verdict: Verdict::UnboundedGrowth,
        confidence: Confidence::Strong,
        leak: Leak::Yes,
        leak_bytes_per_s: Estimate::exact(34_901.0),
        live_bytes: Estimate::exact(2_094_080.0),
        live_blocks: Estimate::exact(2045.0),
        oldest_s: Some(59.0),
        site: Site {
            frames: vec![frame],
            truncated: None,
        },
        tasks: vec![
            Task {
                id: Some(17),
                ..Task::default()
            },
            Task {
                id: Some(18),
                ..Task::default()
            },
        ],
        members: Vec::new(),
        evidence: vec![
            Evidence {
                kind: "growth",
                text: evidence.to_owned(),
                value: None,
            },
            Evidence {
                kind: "lives",
                text: "None was released.".to_owned(),
                value: None,
            },
        ],
        advice: String::new(),
        time_to_limit_s: Some(600.0),
        suppressed_by: None,
    };
    (process, finding)
}

/// A process id that belongs to nobody any more.
fn dead_process() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
fn an_alert_is_found_under_the_leaking_unit() {
    let Some(journal) = Private::start("unit") else {
        return;
    };
    let pid = dead_process();
    let (process, finding) = sample(pid, "It grew.");
    Journal::connect(&journal.socket())
        .unwrap()
        .send(&process, &finding, Duration::from_hours(6))
        .unwrap();

    let found = journal.read(&["--unit=lingerscope-test.service"]);
    assert_eq!(found.len(), 1, "{found:?}");
    let alert = &found[0];
    let id = format!("{}-{pid}-1", finding.fingerprint);
    let fields = BTreeMap::from([
        ("MESSAGE_ID", message_id(Verdict::UnboundedGrowth)),
        ("PRIORITY", "3"),
        ("SYSLOG_IDENTIFIER", "lingerscope"),
        ("LINGERSCOPE_FINDING", &id),
        ("LINGERSCOPE_COMM", "evil\\n\\x1b[31mPRIORITY=0"),
        (
            "LINGERSCOPE_SITE",
            "server::history::push (src/history.rs:42)",
        ),
        ("LINGERSCOPE_EVIDENCE", "It grew.\nNone was released."),
        ("LINGERSCOPE_TIME_TO_LIMIT_S", "600"),
        ("LINGERSCOPE_STATE", "firing"),
        ("OBJECT_SYSTEMD_UNIT", "lingerscope-test.service"),
    ]);
    for (name, expected) in fields {
        assert_eq!(alert[name], expected, "{name} in {alert}");
    }
    assert_eq!(alert["OBJECT_PID"], pid.to_string());
    assert_eq!(
        alert["LINGERSCOPE_TASK_ID"],
        serde_json::json!(["17", "18"])
    );
    assert_eq!(journal.read(&[&format!("LINGERSCOPE_PID={pid}")]).len(), 1);
}

#[test]
fn a_message_too_long_for_a_datagram_arrives_whole() {
    let Some(journal) = Private::start("long") else {
        return;
    };
    let evidence = "It grew and grew. ".repeat(40_000);
    let (process, finding) = sample(std::process::id(), &evidence);
    let sender = Journal::connect(&journal.socket()).unwrap();
    sender.send(&process, &finding, Duration::ZERO).unwrap();
    // and the way stays open for short ones
    let (process, short) = sample(std::process::id(), "It grew.");
    sender.send(&process, &short, Duration::ZERO).unwrap();

    let found = journal.read(&["LINGERSCOPE_VERDICT=unbounded-growth"]);
    assert_eq!(found.len(), 2);
    let text = found[0]["LINGERSCOPE_EVIDENCE"].as_str().unwrap();
    assert_eq!(text.len(), evidence.len() + "\nNone was released.".len());
    assert_eq!(found[0]["PRIORITY"], "4");
}

/// One notice of every kind but the plain one.
fn notices(process: &Process, finding: &Finding) -> Vec<Notice> {
    let mut settings = Settings::default();
    settings.alerts.burst = 2;
    settings.alerts.resolve_after = Duration::ZERO;
    settings.suppressions.push(Suppression {
        unit: Pattern::read("never.service").ok(),
        reason: Some("it was so".to_owned()),
        ..Suppression::default()
    });
    let at = |hours| Moment {
        monotonic: Duration::from_hours(hours),
        unix_s: 0,
    };
    let mut alerts = Alerts::new(&settings, at(0));
    let mut with = process.clone();
    with.findings.push(finding.clone());
    let mut without = process.clone();
    let mut told = alerts.judged(at(0), &mut with);
    told.extend(alerts.judged(at(0), &mut without));
    told.extend(alerts.judged(at(0), &mut with));
    told.extend(alerts.tick(at(1)));
    told.extend(alerts.ended(at(2), process.pid, process.start_time));
    told.extend(alerts.tick(at(200)));
    told
}

fn death(process: &Process) -> Death {
    Death {
        process: process.clone(),
        ended: Ended {
            how: "killed",
            signal: Some(11),
            under_probes: Some(UnderProbes {
                fault_signal: 11,
                why_not: Some(Text::sentence("it was so")),
                ..UnderProbes::default()
            }),
            ..Ended::default()
        },
    }
}

#[test]
fn an_end_is_found_under_the_unit_that_ended() {
    let Some(journal) = Private::start("end") else {
        return;
    };
    let (process, finding) = sample(dead_process(), "It grew.");
    let sender = Journal::connect(&journal.socket()).unwrap();
    for notice in notices(&process, &finding) {
        sender.tell(&notice).unwrap();
    }
    let found = journal.read(&["--unit=lingerscope-test.service"]);
    let told: Vec<(&str, &str)> = found
        .iter()
        .map(|message| {
            let state = message["LINGERSCOPE_STATE"].as_str().unwrap_or("summary");
            (state, message["PRIORITY"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("firing", "3"),
            ("resolved", "6"),
            ("summary", "3"),
            ("ended", "6")
        ]
    );
    let fingerprint = format!("LINGERSCOPE_FINGERPRINT={}", finding.fingerprint);
    assert_eq!(journal.read(&[&fingerprint]).len(), 4);
    let troubles = journal.read(&[&format!("MESSAGE_ID={SUPPRESSION_MESSAGE_ID}")]);
    assert_eq!(troubles.len(), 1);
    assert_eq!(troubles[0]["LINGERSCOPE_SUPPRESSION"], "it was so");
}

#[test]
fn journalctl_explains_an_alert() {
    let Some(journal) = Private::start("explain") else {
        return;
    };
    let root = std::env::temp_dir().join(&journal.name);
    let database = root.join("var/lib/systemd/catalog");
    fs::create_dir_all(root.join("usr/lib/systemd/catalog")).unwrap();
    fs::create_dir_all(&database).unwrap();
    fs::copy(
        CATALOGUE,
        root.join("usr/lib/systemd/catalog/lingerscope.catalog"),
    )
    .unwrap();
    let update = output(
        Command::new("journalctl")
            .arg("--update-catalog")
            .arg("--root")
            .arg(&root),
    );
    assert_eq!(String::from_utf8_lossy(&update.stderr), "");

    let (process, finding) = sample(std::process::id(), "It grew.");
    let sender = Journal::connect(&journal.socket()).unwrap();
    for verdict in Verdict::ALL {
        sender
            .send(
                &process,
                &Finding {
                    verdict,
                    ..finding.clone()
                },
                Duration::ZERO,
            )
            .unwrap();
    }
    for notice in notices(&process, &finding) {
        sender.tell(&notice).unwrap();
    }
    sender
        .tell(&Notice::Death(Box::new(death(&process))))
        .unwrap();
    output(journal.journalctl().arg("--sync"));
    // -x reads the host's database only: put ours there, for one command.
    let script = format!(
        "mount -n --bind {} /var/lib/systemd/catalog && exec \"$@\"",
        database.display()
    );
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        &script,
        "sh",
        "journalctl",
    ]);
    command.args([
        &format!("--namespace={}", journal.name),
        "-x",
        "--no-pager",
        "-t",
        "lingerscope",
    ]);
    let text = String::from_utf8(output(&mut command).stdout).unwrap();
    let _ = fs::remove_dir_all(&root);

    let explained: Vec<&str> = text.lines().filter(|line| line.starts_with("░░")).collect();
    for part in [
        "Subject: Memory grows without bound in evil\\n\\x1b[31mPRIORITY=0",
        "server::history::push (src/history.rs:42)",
        "It grew.",
        "Confidence: strong",
        "Subject: Finished tasks are never collected",
        "Subject: Tasks that wait for ever pile up",
        "Subject: Memory still grows, ever more slowly",
        "Subject: Memory has stopped growing",
        "Subject: Memory grows and is released again",
        "is gone",
        "ended with a finding",
        "1 were held back",
        "died while lingerscope probed it",
        "a fault (signal 11, SIGSEGV) while it was probed.",
        "It is not in quarantine: it was so.",
        "has not matched anything for a week",
    ] {
        assert!(
            explained.iter().any(|line| line.contains(part)),
            "{part:?} is not explained in\n{text}"
        );
    }
    assert!(
        !explained
            .iter()
            .any(|line| line.contains('@') || line.contains("(null)")),
        "a field is not filled in:\n{text}"
    );
}

#[test]
fn catalogue_and_program_agree() {
    let text = fs::read_to_string(CATALOGUE).unwrap();
    // only fields that every message of its kind has
    let end = "COMM PID RATE_BYTES_PER_S SITE LIVE_BYTES VERDICT CONFIDENCE FINDING FINGERPRINT";
    let finding = format!("{end} EVIDENCE");
    let mut sent: BTreeMap<&str, &str> = Verdict::ALL
        .map(|verdict| (message_id(verdict), finding.as_str()))
        .into();
    sent.extend([State::Resolved, State::Ended].map(|state| (end_message_id(state).unwrap(), end)));
    sent.insert(DEATH_MESSAGE_ID, "COMM PID FAULT QUARANTINE");
    sent.insert(SUMMARY_MESSAGE_ID, "HELD_BACK NO_ROOM SUMMARY");
    sent.insert(SUPPRESSION_MESSAGE_ID, "SUPPRESSION TROUBLE");
    let mut listed = Vec::new();
    for entry in text.split("\n-- ").skip(1) {
        let (id, body) = entry.split_once('\n').unwrap();
        listed.push(id);
        let always = sent.get(id).unwrap_or(&"");
        for name in body.split('@').skip(1).step_by(2) {
            let known = name
                .strip_prefix("LINGERSCOPE_")
                .is_some_and(|name| always.split(' ').any(|field| field == name));
            assert!(known, "@{name}@ is in no message {id}, or not in every one");
        }
    }
    listed.sort_unstable();
    assert_eq!(listed, sent.keys().copied().collect::<Vec<_>>());
}
