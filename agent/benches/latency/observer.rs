//! lingerscope beside a program.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// Ends earlier than the turn, so that nothing of it is in the next one.
const MARGIN: Duration = Duration::from_secs(2);

/// An inspection.
pub(crate) struct Observer {
    child: Child,
    document: PathBuf,
}

impl Observer {
    pub(crate) fn start(pid: u32, mode: &str, turn: Duration) -> Result<Self> {
        let program = env::var_os("LINGERSCOPE_BIN").context("LINGERSCOPE_BIN names no program")?;
        let document = env::temp_dir().join(format!("lingerscope-latency-{}", std::process::id()));
        let watched = turn.saturating_sub(MARGIN).as_secs().max(1);
        let child = Command::new(program)
            .args(["inspect", "--mode", mode, "--for", &format!("{watched}s")])
            .args(["-p", &pid.to_string(), "--json-file"])
            .arg(&document)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start lingerscope")?;
        Ok(Self { child, document })
    }

    /// Waits for its end; its processor time in percent of a core.
    pub(crate) fn end(mut self) -> Result<f64> {
        let began = Instant::now();
        let status = self.child.wait()?;
        ensure!(
            matches!(status.code(), Some(0 | 3 | 4)) && began.elapsed() < Duration::from_secs(10),
            "lingerscope ended late or badly: {status}"
        );
        let text = fs::read_to_string(&self.document)?;
        fs::remove_file(&self.document)?;
        let document: serde_json::Value = serde_json::from_str(&text)?;
        document["processes"][0]["capture"]["agent_cpu_percent"]
            .as_f64()
            .context("lingerscope does not tell its processor time")
    }
}
