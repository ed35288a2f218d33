//! redis-server under redis-benchmark.

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Subject,
    answers::{Answers, Bin},
};

/// Requests per run of redis-benchmark.
const REQUESTS: u64 = 200_000;

/// Where the server and its clients run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// All on the first processor: turns differ by 1 %, because nobody waits
    /// for another processor to wake up, and lingerscope has the rest.
    OneProcessor,
    /// Wherever the scheduler puts them. They keep two processors busy, and
    /// turns differ by 5 %.
    Anywhere,
}

impl Place {
    fn command(self, program: &str) -> Command {
        match self {
            Self::Anywhere => Command::new(program),
            Self::OneProcessor => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", "0", program]);
                command
            }
        }
    }
}

pub(crate) struct Redis {
    child: Child,
    port: u16,
    place: Place,
}

impl Redis {
    /// None where it is not installed.
    pub(crate) fn start(place: Place) -> Result<Option<Self>> {
        for program in ["redis-server", "redis-benchmark"] {
            let version = Command::new(program).arg("--version").output();
            if version.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                return Ok(None);
            }
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = place
            .command("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--maxmemory", "64mb"])
            .args(["--maxmemory-policy", "allkeys-random"])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start redis-server")?;
        let mut redis = Self { child, port, place };
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
        let output = self
            .place
            .command("redis-benchmark")
            .args(["-p", &self.port.to_string(), "-t", "set", "-d", "100"])
            .args(["-c", "8", "-r", "10000000", "--precision", "3"])
            .args(["-n", &REQUESTS.to_string()])
            .output()
            .context("cannot start redis-benchmark")?;
        let seconds = began.elapsed().as_secs_f64();
        let bins = bins(&String::from_utf8_lossy(&output.stdout));
        if bins.iter().map(|bin| bin.count).sum::<u64>() != REQUESTS {
            bail!("redis-benchmark printed something else than expected");
        }
        Ok(Answers::new(bins, seconds))
    }
}

/// From lines such as `99.902% <= 0.287 milliseconds (cumulative count 99902)`
/// under both of its headings. The percentiles there each halve what is left
/// (98.4, 99.2, ...); the 99th stands in the last line, which is
/// `avg min p50 p95 p99 max` in milliseconds.
fn bins(text: &str) -> Vec<Bin> {
    let number = |word: &str| word.parse::<f64>().ok();
    let mut points: Vec<(f64, u64)> = text
        .lines()
        .filter(|line| line.contains("cumulative count"))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let millis = words.nth(2).and_then(number)?;
            let count = words.last()?.trim_end_matches(')').parse().ok()?;
            Some((millis * 1e3, count))
        })
        .collect();
    let summary = text.lines().rev().find(|line| !line.trim().is_empty());
    let mut words = summary.unwrap_or_default().split_whitespace();
    if let Some(millis) = words.nth(4).and_then(number) {
        points.push((millis * 1e3, REQUESTS * 99 / 100));
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut before, mut above) = (0, 0.0);
    let mut bins = Vec::new();
    for (up_to, count) in points {
        if count > before {
            bins.push(Bin {
                above,
                up_to,
                count: count - before,
            });
            before = count;
        }
        above = up_to;
    }
    bins
}

impl Subject for Redis {
    fn name(&self) -> &'static str {
        match self.place {
            Place::OneProcessor => "redis",
            Place::Anywhere => "redis, anywhere",
        }
    }

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
