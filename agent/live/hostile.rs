//! Names that a target chooses come out escaped, everywhere.

use std::{
    ffi::OsString, fs, os::unix::ffi::OsStringExt as _, path::PathBuf, process::Command, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    inspection::{Inspection, Report},
    lab,
    program::Program,
    trial,
};

/// What follows the newline in the hostile names: never at a line's start.
pub(crate) const AFTER_NEWLINE: &str = "FORGED";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hostile::names_are_escaped_in_text_and_json", escaped),
        trial("hostile::json_alone_is_one_document", alone),
    ]
}

/// The program under a hostile path, with a hostile function name.
pub(crate) fn hostile_program() -> Result<Program> {
    let mut name = b"\x1b[31m\nFORGED\"'<script>alert(1)</script>\x9b\x7f".to_vec();
    let function = OsString::from_vec(
        [
            b"leak_here=".to_vec(),
            b"evil\x1b[31m\nFORGED\"'<script>\x07".to_vec(),
        ]
        .concat(),
    );
    name.retain(|byte| *byte != b'/');
    let built = lab::compile("cc", "hostile.c", &[], "hostile")?;
    let path: PathBuf = lab::path("")?.join(OsString::from_vec(name));
    if !path.exists() {
        let mut rename = Command::new("objcopy");
        lab::run(
            rename
                .arg("--redefine-sym")
                .arg(function)
                .arg(built)
                .arg(&path),
        )?;
    }
    let program = Program::start(&path, &["300", "4000", "60"])?;
    thread::sleep(Duration::from_millis(500));
    Ok(program)
}

fn escaped() -> Result<()> {
    let program = hostile_program()?;
    let pid = program.pid();
    let report = Inspection::of(pid, 8)?
        .arguments(["--fail-on", "suspected"])
        .run()?;
    report.expect_code(&[3])?;
    let top = report.top(pid)?;
    ensure!(
        top.first_user_function().contains("evil"),
        "the leak's function keeps its readable part\n{report}"
    );
    check_bytes("standard output", &report.text, &report)?;
    check_bytes("standard error", &report.log, &report)?;
    check_bytes("the document", &report.raw_document, &report)?;
    check_value(report.document.as_ref().context("no document")?, &report)
}

/// No control byte but the newline, and no line that the target has begun.
pub(crate) fn check_bytes(what: &str, bytes: &[u8], report: &Report) -> Result<()> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{what} is not UTF-8"))?;
    let raw = text
        .chars()
        .find(|letter| letter.is_control() && *letter != '\n');
    ensure!(raw.is_none(), "{what} contains {raw:?}\n{report}");
    ensure!(
        !text.lines().any(|line| line.starts_with(AFTER_NEWLINE)),
        "{what} has a line that the target forged\n{report}"
    );
    Ok(())
}

/// A JSON string's `\u001b` is a control byte again for whoever prints it.
fn check_value(value: &Value, report: &Report) -> Result<()> {
    match value {
        Value::String(text) => {
            ensure!(
                !text.chars().any(char::is_control),
                "a string is {text:?}\n{report}"
            );
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, report)),
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            check_value(&Value::String(name.clone()), report)?;
            check_value(field, report)
        }),
        _ => Ok(()),
    }
}

/// `--json` prints the document and nothing else.
fn alone() -> Result<()> {
    let program = hostile_program()?;
    let mut command = Command::new(lab::lingerscope()?);
    command.args([
        "inspect",
        "-p",
        &program.pid().to_string(),
        "--for",
        "2s",
        "--json",
    ]);
    let output = command.output().context("cannot start lingerscope")?;
    let about = format!("{command:?}: {}", output.status);
    let document: Value = serde_json::from_slice(&output.stdout).with_context(|| about.clone())?;
    ensure!(document["schema"] == 1, "{about}: {document}");
    ensure!(
        !fs::exists(lab::path("document")?)? && output.stdout.first() == Some(&b'{'),
        "{about}: something stands before the document"
    );
    Ok(())
}
