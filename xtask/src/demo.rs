//! `cargo xtask demo`: from a fresh clone to the leak's line.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use serde_json::Value;

use crate::{build, packages::Need, setup, shell};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The leak that the server is started with
    #[arg(long, default_value = LEAK)]
    leak: String,
}

/// A name that `agent/examples/server` knows.
const LEAK: &str = "arc-cycle";
/// How long the server is watched.
const WATCHED: &str = "30s";
/// Longer than attaching and watching take; the server ends by itself then.
const SERVER_SECONDS: &str = "120";
const READY_LIMIT: Duration = Duration::from_secs(20);

/// The example server, stopped whatever happens.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let start = Instant::now();
    let tools = setup::prepare(Need::Build, no_install)?;
    let programs = build::agent_and(&tools, &["--example", "server"])?;
    let lingerscope = programs.path("lingerscope")?;
    let server = programs.path("server")?;

    let directory = shell::root().join("target/demo");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let document = directory.join("finding.json");
    if document.exists() {
        fs::remove_file(&document)
            .with_context(|| format!("cannot remove {}", document.display()))?;
    }

    let server = start_server(&server, &options.leak, &directory.join("truth.json"))?;
    let pid = server.0.id().to_string();
    let mut inspect = shell::as_root(&lingerscope, &[]);
    inspect
        .args(["inspect", "-p", &pid, "--mode", "trace", "--for", WATCHED])
        .arg("--json-file")
        .arg(&document);
    shell::print(&inspect);
    let status = inspect.status().context("cannot start lingerscope")?;
    drop(server);

    let text = fs::read_to_string(&document)
        .with_context(|| format!("lingerscope ({status}) left no {}", document.display()))?;
    let found = top_function(&serde_json::from_str(&text)?)?;
    let expected = options.leak.replace('-', "_");
    if !found.contains(&expected) {
        bail!("the demo leaks in {expected}, but the first finding names {found}");
    }
    eprintln!(
        "demo: right, the leak is in {found}; {} s from start to finding",
        start.elapsed().as_secs()
    );
    Ok(())
}

/// Starts the server and waits until it serves.
fn start_server(path: &Path, leak: &str, truth: &Path) -> Result<Server> {
    let mut command = shell::command(path);
    let truth: [&OsStr; 2] = ["--truth".as_ref(), truth.as_ref()];
    command
        .args(["--leak", leak, "--seconds", SERVER_SECONDS])
        .args(truth)
        .stdout(Stdio::piped());
    shell::print(&command);
    let mut server = Server(command.spawn().context("cannot start the example server")?);
    let output = server
        .0
        .stdout
        .take()
        .context("the example server has no output")?;
    let (sender, ready) = mpsc::sync_channel(1);
    // Reads on to the end, so that the server never blocks on a full pipe.
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line.trim() == "READY" && sender.try_send(()).is_err() {
                break;
            }
        }
    });
    ready
        .recv_timeout(READY_LIMIT)
        .context("the example server did not say READY")?;
    Ok(server)
}

/// The function that names the first finding: the innermost one that lies in
/// the server's own crate and was not inlined.
fn top_function(document: &Value) -> Result<String> {
    let process = document["processes"]
        .get(0)
        .context("lingerscope has observed no process")?;
    let finding = process["findings"]
        .get(0)
        .context("lingerscope has found no leak")?;
    let frames = finding["site"]["frames"]
        .as_array()
        .context("the first finding has no stack")?;
    frames
        .iter()
        .filter(|frame| frame["inlined"] != true)
        .filter_map(|frame| frame["function"].as_str())
        .find(|function| function.starts_with("server::"))
        .map(str::to_owned)
        .context("no function of the server in the first finding's stack")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_own_function_counts() {
        let frames = json!([
            {"function": "malloc", "inlined": false},
            {"function": "payload", "inlined": true},
            {"function": "server::arc_cycle::connect", "inlined": false},
            {"function": "server::main", "inlined": false},
        ]);
        let document = json!({"processes": [{"findings": [{"site": {"frames": frames}}]}]});
        assert_eq!(
            top_function(&document).unwrap(),
            "server::arc_cycle::connect"
        );
    }

    #[test]
    fn no_finding_is_an_error() {
        let document = json!({"processes": [{"findings": []}]});
        assert!(
            top_function(&document)
                .unwrap_err()
                .to_string()
                .contains("no leak")
        );
    }
}
