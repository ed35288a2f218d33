//! What one would write without us: a memleak-like bpftrace script, measured
//! for comparison.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::subject::Subject;

/// Compiling and attaching takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// bpftrace in PATH.
pub(crate) fn find() -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join("bpftrace"))
        .find(|path| path.is_file())
}

/// The script at work.
pub(crate) struct Script(Child);

impl Script {
    /// Starts it on a running program and waits until it slows that down.
    pub(crate) fn start(bpftrace: &Path, library: &Path, subject: &Subject) -> Result<Self> {
        let untraced = subject.best()?;
        let pid = subject.pid();
        let library = library.display();
        let script = format!(
            "uprobe:{library}:malloc /pid == {pid}/ {{ @size[tid] = arg0; @stack[tid] = ustack; }}
             uretprobe:{library}:malloc /pid == {pid} && @size[tid]/ {{
                 @live_size[retval] = @size[tid]; @live_stack[retval] = @stack[tid];
                 delete(@size[tid]); delete(@stack[tid]); }}
             uprobe:{library}:free /pid == {pid} && @live_size[arg0]/ {{
                 delete(@live_size[arg0]); delete(@live_stack[arg0]); }}"
        );
        let child = Command::new(bpftrace)
            .args(["-p", &pid.to_string(), "-e", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start bpftrace")?;
        let mut script = Self(child);
        let began = Instant::now();
        while subject.line()? < untraced * 20.0 {
            ensure!(
                script.0.try_wait()?.is_none(),
                "bpftrace has ended by itself"
            );
            ensure!(began.elapsed() < PATIENCE, "bpftrace attaches nothing");
        }
        Ok(script)
    }

    /// Ends it; its probes end with it.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
