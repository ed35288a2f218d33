//! Alerts as a real journald stores and explains them.

use std::{fs, path::Path, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    hostile::hostile_program,
    inspection::{Inspection, Report},
    lab, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("journal::alert_is_stored_and_explained", stored),
        trial("journal::catalogue_compiles", || catalogue().map(drop)),
    ]
}

/// The message catalogue, compiled by journalctl; the directory of its database.
pub(crate) fn catalogue() -> Result<PathBuf> {
    let root = lab::fresh("root")?;
    let sources = root.join("usr/lib/systemd/catalog");
    fs::create_dir_all(&sources)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/lingerscope.catalog");
    fs::copy(&source, sources.join("lingerscope.catalog"))
        .with_context(|| format!("cannot read {}", source.display()))?;
    let database = root.join("var/lib/systemd/catalog");
    fs::create_dir_all(&database)?;
    lab::run(
        Command::new("journalctl")
            .arg("--update-catalog")
            .arg("--root")
            .arg(&root),
    )?;
    ensure!(
        database.join("database").is_file(),
        "journalctl wrote no catalogue"
    );
    Ok(database)
}

fn stored() -> Result<()> {
    let program = hostile_program()?;
    let pid = program.pid();
    let journal = lab::fresh("journal")?;
    fs::create_dir_all(&journal)?;
    let catalogue = catalogue()?;
    let script = lab::programs().join("with-journald");
    let mut command = Command::new(&script);
    command
        .arg(&journal)
        .arg(&catalogue)
        .arg(lab::lingerscope()?);
    let report = Inspection::by(command, 8)?
        .arguments([
            "--journal",
            "--fail-on",
            "suspected",
            "-p",
            &pid.to_string(),
        ])
        .run()?;
    report.expect_code(&[3])?;

    let mut read = Command::new("journalctl");
    read.arg("--directory")
        .arg(&journal)
        .args(["--output=json", "--all", "--no-pager"]);
    let lines = lab::run(read.arg(format!("OBJECT_PID={pid}")))?;
    let alerts: Vec<Value> = String::from_utf8(lines)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("journalctl printed no JSON")?;
    let findings = report.findings(pid)?.len();
    ensure!(
        alerts.len() == findings,
        "{} alerts for {findings} findings\n{report}",
        alerts.len()
    );
    let alert = alerts
        .first()
        .with_context(|| format!("no alert in the journal\n{report}"))?;
    check_fields(alert, &report, pid)?;
    explained(&script, &journal, &catalogue, alert, &report)
}

/// The fields agree with the document.
fn check_fields(alert: &Value, report: &Report, pid: u32) -> Result<()> {
    let top = report.top(pid)?;
    let field = |name: &str| -> Result<&str> {
        alert[name]
            .as_str()
            .with_context(|| format!("{name} is missing from {alert}\n{report}"))
    };
    for (name, expected) in [
        ("LINGERSCOPE_FINGERPRINT", top.text("fingerprint")),
        ("LINGERSCOPE_FINDING", top.text("id")),
        ("LINGERSCOPE_VERDICT", top.text("verdict")),
        ("LINGERSCOPE_CONFIDENCE", top.text("confidence")),
        ("LINGERSCOPE_STATE", "firing"),
        ("LINGERSCOPE_PID", &pid.to_string()),
        ("OBJECT_PID", &pid.to_string()),
    ] {
        ensure!(
            field(name)? == expected,
            "{name} is {} and not {expected}\n{report}",
            field(name)?
        );
    }
    let priority = field("PRIORITY")?;
    let expected = if top.is_sure() {
        ["3", "4"].as_slice()
    } else {
        &["5"]
    };
    ensure!(
        expected.contains(&priority),
        "PRIORITY {priority} at {}",
        top.text("confidence")
    );
    let rate: f64 = field("LINGERSCOPE_RATE_BYTES_PER_S")?.parse()?;
    let (value, ..) = top.estimate("leak_bytes_per_s")?;
    ensure!(
        (rate - value).abs() <= 1.0 + value * 0.01,
        "{rate} and {value} B/s"
    );
    for name in ["LINGERSCOPE_STACK", "LINGERSCOPE_SITE"] {
        ensure!(field(name)?.contains("evil"), "{name} is {}", field(name)?);
    }
    for name in [
        "MESSAGE",
        "MESSAGE_ID",
        "LINGERSCOPE_COMM",
        "LINGERSCOPE_EXE",
        "LINGERSCOPE_EVIDENCE",
    ] {
        field(name)?;
    }
    // journalctl prints a field with control bytes as an array of numbers.
    for (name, value) in alert.as_object().into_iter().flatten() {
        if name.starts_with("LINGERSCOPE_") || name == "MESSAGE" {
            let text = value
                .as_str()
                .with_context(|| format!("{name} is not plain text: {value}"))?;
            let raw = text
                .chars()
                .find(|letter| letter.is_control() && *letter != '\n');
            ensure!(raw.is_none(), "{name} contains {raw:?}");
        }
    }
    Ok(())
}

/// `journalctl -x` adds the catalogue's text with the fields filled in.
fn explained(
    script: &Path,
    journal: &Path,
    catalogue: &Path,
    alert: &Value,
    report: &Report,
) -> Result<()> {
    let mut read = Command::new(script);
    read.arg(journal)
        .arg(catalogue)
        .arg("journalctl")
        .arg("--directory")
        .arg(journal);
    read.args(["-x", "--no-pager"]);
    let id = alert["MESSAGE_ID"].as_str().unwrap_or_default();
    let text =
        String::from_utf8_lossy(&lab::run(read.arg(format!("MESSAGE_ID={id}")))?).into_owned();
    let explanation: Vec<&str> = text.lines().filter(|line| line.starts_with("░░")).collect();
    ensure!(
        explanation.len() > 3,
        "-x explains nothing:\n{text}\n{report}"
    );
    ensure!(
        !explanation.iter().any(|line| line.contains('@')),
        "a field is not filled in:\n{text}"
    );
    Ok(())
}
