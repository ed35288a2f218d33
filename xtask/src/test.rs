//! `cargo xtask test`: every check, the host tests, some builds of the matrix,
//! the daemon among real servers, and the live tests with real probes. Only
//! what is built runs as root.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    build::{self, Programs},
    check, matrix,
    packages::Need,
    setup, shell,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the checks and the host tests
    #[arg(long)]
    live_only: bool,
    /// For the live test binary: name filters and its options (see `-- --help`)
    #[arg(last = true)]
    live_arguments: Vec<String>,
}

pub(crate) fn run(options: &Options, no_install: bool) -> Result<()> {
    let start = Instant::now();
    if !options.live_only {
        check::without_compiler()?;
    }
    let tools = setup::prepare(Need::Servers, no_install)?;
    // First of all, because everything of the agent's is built anew when the
    // object changes.
    let targets = ["--features", "live", "--examples", "--test", "live"];
    let programs = build::agent_and(&tools, &targets)?;
    if !options.live_only {
        let mixed = Mixed::start(&programs)?;
        check::with_compiler(&tools)?;
        eprintln!("test: checks passed after {} s", start.elapsed().as_secs());
        shell::run(shell::cargo().args(["test", "--workspace"]))?;
        let before = start.elapsed().as_secs();
        matrix::few(&programs.path("lingerscope")?)?;
        let took = start.elapsed().as_secs() - before;
        eprintln!("test: the few builds of the matrix took {took} s");
        // Other tests look at what probes leave and cost.
        mixed.finish()?;
    }
    eprintln!(
        "test: live tests start after {} s",
        start.elapsed().as_secs()
    );
    live(&programs, &options.live_arguments)
}

fn live(programs: &Programs, arguments: &[String]) -> Result<()> {
    let lingerscope = programs.path("lingerscope")?;
    let examples = lingerscope
        .parent()
        .context("the program has no directory")?
        .join("examples");
    let mut variables = vec![
        ("LINGERSCOPE_BIN", lingerscope.into_os_string()),
        ("LINGERSCOPE_EXAMPLES", examples.into_os_string()),
    ];
    // sudo would drop what repeats the draws of an earlier run.
    variables.extend(env::var_os("LINGERSCOPE_SEED").map(|seed| ("LINGERSCOPE_SEED", seed)));
    shell::run(shell::as_root(programs.path("live")?, &variables).args(arguments))
}

/// The daemon among real servers. It takes minutes of which it mostly waits,
/// so it goes beside what compiles and tests on the host.
struct Mixed {
    child: Child,
    log: PathBuf,
    over: bool,
}

impl Mixed {
    fn start(programs: &Programs) -> Result<Self> {
        let log = shell::root().join("target/mixed.log");
        let output = File::create(&log)?;
        let mut mixed = shell::as_root(env::current_exe()?, &[]);
        mixed
            .args(["mixed", "--short", "--lingerscope"])
            .arg(programs.path("lingerscope")?)
            .arg("--server")
            .arg(programs.path("server")?)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        shell::print(&mixed);
        let child = mixed.spawn().context("cannot start ourselves")?;
        Ok(Self {
            child,
            log,
            over: false,
        })
    }

    fn finish(mut self) -> Result<()> {
        eprintln!("test: waiting for the daemon among real servers");
        let status = self.child.wait()?;
        self.over = true;
        eprint!("{}", fs::read_to_string(&self.log)?);
        if !status.success() {
            bail!("the daemon among real servers: {status}");
        }
        Ok(())
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        if !self.over {
            // It stops its servers. Through sudo it cannot be asked, and ends
            // by itself.
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            drop(self.child.wait());
        }
    }
}
