//! The example that allocates 200 000 times a second.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lingerscope::host::kernel;

use crate::{
    MODES, Subject, TURNS,
    answers::{Answers, Bin},
};

pub(crate) struct Service {
    child: Child,
    file: PathBuf,
}

impl Service {
    pub(crate) fn start(turn: Duration) -> Result<Self> {
        let examples = env::var_os("LINGERSCOPE_EXAMPLES").context("where are the examples?")?;
        let file = env::temp_dir().join(format!("lingerscope-service-{}", std::process::id()));
        let seconds = turn.as_secs() * (TURNS * MODES.len() * 2 + 2) as u64;
        let mut child = Command::new(Path::new(&examples).join("service"))
            .arg(&file)
            .arg(seconds.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the service")?;
        let output = child.stdout.take().context("the service has no output")?;
        // It is ready when it tells who it is.
        BufReader::new(output).read_line(&mut String::new())?;
        Ok(Self { child, file })
    }
}

impl Subject for Service {
    fn name(&self) -> &'static str {
        "200 000 allocations/s"
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answers(&mut self, turn: Duration) -> Result<Answers> {
        let begin = kernel::monotonic_ns();
        thread::sleep(turn);
        let end = kernel::monotonic_ns();
        // What it has not written yet is of the last few seconds.
        thread::sleep(Duration::from_secs(5));
        let bytes = fs::read(&self.file)?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let took = bytes
            .chunks_exact(16)
            .map(|pair| (number(&pair[..8]), number(&pair[8..])))
            .filter(|(at, _)| (begin..end).contains(at))
            .map(|(_, took)| Bin::single(took as f64 / 1e3))
            .collect();
        Ok(Answers::new(took, (end - begin) as f64 / 1e9))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.file));
    }
}
