//! redis-server under redis-benchmark.

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{Subject, answers::Answers};

/// Requests per run of redis-benchmark.
const REQUESTS: u64 = 200_000;

pub(crate) struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// None where it is not installed.
    pub(crate) fn start() -> Result<Option<Self>> {
        let benchmark = Command::new("redis-benchmark").arg("--version").output();
        if benchmark.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let started = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--maxmemory", "64mb"])
            .args(["--maxmemory-policy", "allkeys-random"])
            .stdout(Stdio::null())
            .spawn();
        let child = match started {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            started => started.context("cannot start redis-server")?,
        };
        let mut redis = Self { child, port };
        let limit = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > limit {
                bail!("redis-server does not listen");
            }
            thread::sleep(Duration::from_millis(50));
        }
        // Full before anything is measured.
        redis.answers(Duration::from_secs(10))?;
        Ok(Some(redis))
    }

    /// One run of redis-benchmark.
    fn run(&self) -> Result<Answers> {
        let began = Instant::now();
        let output = Command::new("redis-benchmark")
            .args(["-p", &self.port.to_string(), "-t", "set", "-d", "100"])
            .args(["-c", "8", "-r", "10000000", "--precision", "3"])
            .args(["-n", &REQUESTS.to_string()])
            .output()
            .context("cannot start redis-benchmark")?;
        let seconds = began.elapsed().as_secs_f64();
        let took = cumulative(&String::from_utf8_lossy(&output.stdout));
        if took.iter().map(|(_, count)| count).sum::<u64>() != REQUESTS {
            bail!("redis-benchmark printed something else than expected");
        }
        Ok(Answers::new(took, seconds))
    }
}

/// From lines such as `99.902% <= 0.287 milliseconds (cumulative count 99902)`
/// below the heading for percentiles.
fn cumulative(text: &str) -> Vec<(f64, u64)> {
    let mut before = 0;
    let mut took = Vec::new();
    let lines = text
        .lines()
        .skip_while(|line| !line.starts_with("Latency by percentile"))
        .skip(1)
        .take_while(|line| !line.is_empty());
    for line in lines {
        let mut words = line.split_whitespace();
        let millis = words.nth(2).and_then(|word| word.parse::<f64>().ok());
        let count = words
            .last()
            .and_then(|word| word.trim_end_matches(')').parse::<u64>().ok());
        if let (Some(millis), Some(count)) = (millis, count)
            && count > before
        {
            took.push((millis * 1e3, count - before));
            before = count;
        }
    }
    took
}

impl Subject for Redis {
    const NAME: &'static str = "redis-server";

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answers(&mut self, turn: Duration) -> Result<Answers> {
        let end = Instant::now() + turn;
        let mut all = Answers::default();
        while Instant::now() < end {
            all.join(self.run()?);
        }
        Ok(all)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
