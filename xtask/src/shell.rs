//! Running other programs. Everything that changes something is printed first.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, iter,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Top of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// A program that works at the top of the repository.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The cargo that runs us, without what it told us about our own package:
/// build scripts that look at those variables would run again and again.
pub(crate) fn cargo() -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_ours) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Whether `cargo run` has set this variable for us alone.
fn is_ours(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
        .iter()
        .any(|start| variable.starts_with(start))
        || [
            "CARGO",
            "CARGO_CRATE_NAME",
            "CARGO_PRIMARY_PACKAGE",
            "OUT_DIR",
        ]
        .contains(&variable)
}

/// Prints a command line as one could type it.
pub(crate) fn print(command: &Command) {
    eprintln!("$ {}", line(command));
}

/// The command line, with the variables that were set for it.
fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!(
            "{}={}",
            name.to_string_lossy(),
            quoted(&value?.to_string_lossy())
        ))
    });
    variables
        .chain([words(command)])
        .collect::<Vec<_>>()
        .join(" ")
}

/// The program and its arguments.
fn words(command: &Command) -> String {
    // Which cargo it is matters less than what it does.
    let program = Path::new(command.get_program());
    let program = if program.ends_with("cargo") {
        OsStr::new("cargo")
    } else {
        program.as_os_str()
    };
    let words = iter::once(program)
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()));
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains('\x1f') {
        format!("$'{}'", word.replace('\x1f', "\\x1f"))
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Prints and runs; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    print(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    succeeded(command, status)
}

/// Prints and runs, for at most `limit`.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    print(command);
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return succeeded(command, status);
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("stopped after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What a quiet question to another program prints; an error if it fails.
pub(crate) fn answer(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!(
            "`{}`: {}\n{}",
            words(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An error that names the command, unless it was successful.
pub(crate) fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed: {status}", words(command));
    }
    Ok(())
}

fn cannot_start(command: &Command) -> String {
    let program = command.get_program();
    if program == "sudo" && which("sudo").is_none() {
        return "this needs root, and there is no sudo here: run the same cargo xtask command as root".to_owned();
    }
    format!("cannot start {}", program.display())
}

/// The program of this name in PATH.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

/// Whether this is a file that can be run.
pub(crate) fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|file| file.uid() == 0)
}

/// The program as root: as it is for root, through sudo for others.
/// Variables are passed by `env`, because sudo clears them.
pub(crate) fn as_root(program: impl AsRef<OsStr>, variables: &[(&str, OsString)]) -> Command {
    if is_root() {
        let mut direct = command(program);
        direct.envs(variables.iter().map(|(name, value)| (name, value)));
        return direct;
    }
    let mut elevated = command("sudo");
    if !variables.is_empty() {
        elevated.arg("env");
        for (name, value) in variables {
            let mut setting = OsString::from(name);
            setting.push("=");
            setting.push(value);
            elevated.arg(setting);
        }
    }
    elevated.arg(program);
    elevated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_can_be_typed() {
        let mut shown = Command::new("/somewhere/bin/cargo");
        shown
            .env("A", "1\x1f2")
            .env_remove("B")
            .args(["it's", "-p", ""]);
        assert_eq!(line(&shown), r"A=$'1\x1f2' cargo 'it'\''s' -p ''");
    }

    #[test]
    fn only_our_own_variables_are_cleared() {
        assert!(is_ours("CARGO_PKG_NAME") && is_ours("CARGO_MANIFEST_DIR") && is_ours("CARGO"));
        assert!(
            !is_ours("CARGO_HOME") && !is_ours("CARGO_TARGET_DIR") && !is_ours("CARGO_BUILD_JOBS")
        );
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let start = Instant::now();
        assert!(run_within(Command::new("sleep").arg("60"), Duration::from_millis(200)).is_err());
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
