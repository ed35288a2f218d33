//! The watch on healthy histories, invented and recorded, and on real
//! processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../benches/watch/healthy.rs"]
mod healthy;
#[path = "../benches/watch/random.rs"]
mod random;
#[path = "watch/recorded.rs"]
mod recorded;
#[path = "../benches/watch/replay.rs"]
mod replay;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lingerscope::{
    host::{cgroup::LimitKind, population::Stat},
    watch::{Settings, Suspect, Sweep, Thresholds, Watch, judgement::Judge},
};

use self::{
    healthy::Family,
    replay::{Judged, Noise, Tally},
};

const KIB: f64 = 1024.0;
const GIB: f64 = KIB * KIB * KIB;
/// Set for the copy of this program that grows.
const GROWS: &str = "LINGERSCOPE_TEST_GROWS";

/// Few days, for an unoptimised build; `cargo xtask bench` runs many.
#[test]
fn invented_healthy_histories_are_not_suspected() {
    let mut all = Tally::default();
    for family in Family::BARRED {
        let tally = replay::healthy(family, 6.0, 7);
        println!("{family:?}: {tally}");
        all.add(&tally);
    }
    println!("all: {all}");
    assert_eq!(all.suspects(), 0, "{all}");
    // A limit that is nearly reached is looked at early, also wrongly.
    assert!(f64::from(all.urgent) / all.days < 0.1, "{all}");
}

/// That nothing is found above would be no news if nothing ever were.
#[test]
fn a_fill_that_goes_on_for_hours_is_suspected() {
    let tally = replay::healthy(Family::LongFill, 10.0, 7);
    println!("{tally}");
    assert!(tally.suspects() >= tally.lives / 4, "{tally}");
}

#[test]
fn recorded_healthy_histories_are_not_suspected() {
    let judge = Judge::new(&Settings::default());
    let mut days = 0.0;
    for (name, pages) in recorded::all() {
        let peak = f64::from(pages.iter().copied().max().unwrap()) * 4096.0;
        // As it was, and ten times slower, with much room and with little.
        for (stride, limit) in [(10, 16.0 * GIB), (1, 16.0 * GIB), (1, peak * 1.5)] {
            let mut judged = Judged::new(&judge, Some(limit));
            for page in pages.iter().step_by(stride) {
                days += 10.0 / 86_400.0;
                let growth = judged.next(f64::from(*page) * 4096.0);
                assert_eq!(growth, None, "{name}, every {stride}");
            }
        }
    }
    println!("{days:.1} process-days replayed");
    assert!(days > 2.0);
}

#[test]
fn leaks_are_suspected_in_time() {
    for (rate, noise, headroom, minutes) in [
        (20.0, Noise::Quiet, 16.0 * GIB, 20.0),
        (20.0, Noise::Collected, 16.0 * GIB, 90.0),
        (20.0, Noise::Busy, 16.0 * GIB, 90.0),
        (1024.0, Noise::Collected, 16.0 * GIB, 20.0),
        (1024.0, Noise::Quiet, GIB / 4.0, 3.0),
        (1.0, Noise::Quiet, 16.0 * GIB, 300.0),
    ] {
        let times = replay::leak(rate * KIB, noise, headroom, 10);
        let late = times
            .iter()
            .filter(|time| time.is_none_or(|seconds| seconds > minutes * 60.0))
            .count();
        assert!(late <= 1, "{rate} KiB/s, {noise:?}: {times:?}");
    }
}

/// Not a test: what the tests below watch. Grows 64 KiB every 10 ms.
#[test]
#[ignore = "is started by other tests"]
fn grows() {
    if env::var_os(GROWS).is_none() {
        return;
    }
    println!("growing");
    let mut kept = Vec::new();
    // Ends by itself should its starter die.
    for _ in 0..6000 {
        kept.push(vec![1u8; 64 << 10]);
        thread::sleep(Duration::from_millis(10));
    }
}

struct Growing(Child);

impl Growing {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "grows", "--ignored", "--nocapture"])
            .env(GROWS, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        assert!(
            output
                .lines()
                .map_while(Result::ok)
                .any(|line| line.contains("growing"))
        );
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Settings for tests that cannot wait: ten sweeps a second.
fn quick() -> Settings {
    Settings {
        interval: Duration::from_millis(100),
        fast_window: Duration::from_millis(600),
        patience: Duration::from_secs(2),
        settle: Duration::ZERO,
        fast: Thresholds {
            min_rate: 256.0 * KIB,
            min_net: 1 << 20,
            min_share: 0.01,
        },
        ..Settings::default()
    }
}

fn sweep(watch: &mut Watch) -> Sweep {
    thread::sleep(watch.settings().interval);
    watch.sweep(Instant::now()).unwrap()
}

fn suspicion(watch: &mut Watch, pid: u32) -> Suspect {
    let started = Instant::now();
    loop {
        let found = sweep(watch)
            .suspects
            .into_iter()
            .find(|suspect| suspect.identity.pid == pid);
        if let Some(suspect) = found {
            return suspect;
        }
        assert!(started.elapsed() < Duration::from_secs(50), "never found");
    }
}

#[test]
fn a_growing_process_is_told_until_it_ends() {
    let mut watch = Watch::new(&quick()).unwrap();
    let mut growing = Growing::start();
    let suspect = suspicion(&mut watch, growing.pid());
    assert_eq!(suspect.identity, Stat::of(growing.pid()).unwrap().identity);
    assert!(suspect.new && suspect.confirmed);
    // Timers are late on a busy machine, never early.
    let growth = suspect.growth;
    assert!(
        growth.low > 256.0 * KIB && growth.value < 7.0 * 1024.0 * KIB,
        "{growth:?}"
    );
    assert!(growth.low <= growth.value && growth.value <= growth.high);
    assert!(suspect.net_growth >= 1 << 20 && suspect.bytes >= suspect.net_growth);
    let limit = suspect.limit.unwrap();
    let left = limit.headroom() as f64 / growth.value;
    assert!((suspect.time_to_limit.unwrap().as_secs_f64() - left).abs() < 1.0);
    assert!(suspect.group.is_some());

    let again = suspicion(&mut watch, growing.pid());
    assert!(!again.new);
    watch.dismiss(suspect.identity);
    let after = sweep(&mut watch).suspects;
    assert!(after.iter().all(|other| other.identity != suspect.identity));

    growing.end();
    let gone = sweep(&mut watch).gone;
    assert!(gone.contains(&suspect.identity));
    assert!(watch.history(suspect.identity).is_none());
}

#[test]
fn a_zombie_is_gone_and_kernel_threads_are_no_processes() {
    let mut watch = Watch::new(&quick()).unwrap();
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let identity = Stat::of(child.id()).unwrap().identity;
    let first = watch.sweep(Instant::now()).unwrap();
    assert!(first.born.contains(&identity));
    // kthreadd, where its process ids are visible.
    if Stat::of(2).is_ok_and(|stat| stat.kernel_thread) {
        assert!(first.born.iter().all(|born| born.pid != 2));
        assert!(first.skipped.without_memory > 0);
    }
    child.kill().unwrap();
    while !Stat::of(child.id()).unwrap().zombie {
        thread::yield_now();
    }
    assert!(sweep(&mut watch).gone.contains(&identity));
    assert!(!sweep(&mut watch).gone.contains(&identity), "told twice");
    child.wait().unwrap();
    assert!(!sweep(&mut watch).gone.contains(&identity), "told twice");
}

#[test]
fn another_program_of_a_process_is_told_once() {
    let mut watch = Watch::new(&quick()).unwrap();
    let mut shell = Command::new("sh")
        // Much larger than what it becomes.
        .args([
            "-c",
            r"word=$(head -c 4000000 /dev/zero | tr '\0' x); echo; read word; exec sleep 100",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let identity = Stat::of(shell.id()).unwrap().identity;
    let mut go = shell.stdin.take().unwrap();
    let exe = || fs::read_link(format!("/proc/{}/exe", identity.pid)).unwrap();
    let shells = exe();
    assert!(sweep(&mut watch).born.contains(&identity));
    assert!(!sweep(&mut watch).executed.contains(&identity));
    std::io::Write::write_all(&mut go, b"go\n").unwrap();
    while exe() == shells {
        thread::yield_now();
    }
    let began = Instant::now();
    while !sweep(&mut watch).executed.contains(&identity) {
        assert!(began.elapsed() < Duration::from_secs(10), "it is not told");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(
        !sweep(&mut watch).executed.contains(&identity),
        "told twice"
    );
    shell.kill().unwrap();
    shell.wait().unwrap();
}

/// A new process with an old process id, as far as the kernel lets us choose.
#[test]
fn a_process_id_used_again_is_another_process() {
    for files in [8192, 0] {
        let settings = Settings {
            max_files: files,
            ..quick()
        };
        let mut watch = Watch::new(&settings).unwrap();
        for _ in 0..50 {
            let mut first = Command::new("sleep").arg("100").spawn().unwrap();
            let pid = first.id();
            let before = Stat::of(pid).unwrap().identity;
            assert!(sweep(&mut watch).born.contains(&before));
            first.kill().unwrap();
            first.wait().unwrap();
            if fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_err() {
                println!("may not choose process ids: not tested");
                return;
            }
            let mut second = Command::new("sleep").arg("100").spawn().unwrap();
            let after = Stat::of(second.id()).unwrap().identity;
            let result = sweep(&mut watch);
            second.kill().unwrap();
            second.wait().unwrap();
            // Somebody else may have taken the id.
            if after.pid == pid && after != before {
                assert!(result.gone.contains(&before) && result.born.contains(&after));
                assert!(watch.history(before).is_none());
                break;
            }
        }
    }
}

#[test]
fn the_bounds_hold_and_what_is_left_out_is_counted() {
    let settings = Settings {
        max_processes: 3,
        max_files: 1,
        ..quick()
    };
    let mut watch = Watch::new(&settings).unwrap();
    let children: Vec<Growing> = (0..3).map(|_| Growing::start()).collect();
    for _ in 0..3 {
        let result = sweep(&mut watch);
        assert!(result.skipped.over_bound > 0);
        assert!(result.read <= 3 && watch.watched() <= 3);
    }
    drop(children);
}

#[test]
fn late_and_early_sweeps_are_told() {
    let mut watch = Watch::new(&quick()).unwrap();
    let now = Instant::now();
    assert!(watch.sweep(now).unwrap().read > 0);
    assert_eq!(
        watch.sweep(now + Duration::from_millis(20)).unwrap().read,
        0
    );
    let late = watch.sweep(now + Duration::from_millis(520)).unwrap();
    assert_eq!(late.skipped.missed_sweeps, 4);
}

/// Names are chosen by targets.
#[test]
fn a_hostile_name_is_a_process_as_any_other() {
    let folder = env::temp_dir().join(format!("lingerscope-watch-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let program = folder.join(") R 1 2 3 (");
    let sleep = ["/bin/sleep", "/usr/bin/sleep"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .unwrap();
    symlink(sleep, &program).unwrap();
    let mut child = Command::new(&program).arg("100").spawn().unwrap();
    let identity = Stat::of(child.id()).unwrap().identity;
    let mut watch = Watch::new(&quick()).unwrap();
    let result = watch.sweep(Instant::now()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert!(result.born.contains(&identity));
}

/// With the right to make control groups: a limit of the group's own.
#[test]
fn the_limit_of_the_control_group_is_the_nearer_one() {
    let Some(group) = Cage::make(512 << 20) else {
        println!("may not make memory control groups: not tested");
        return;
    };
    let growing = Growing::start();
    group.add(growing.pid());
    let mut watch = Watch::new(&quick()).unwrap();
    let suspect = suspicion(&mut watch, growing.pid());
    let limit = suspect.limit.unwrap();
    drop(growing);
    assert_eq!(limit.kind, LimitKind::GroupMax);
    assert_eq!(limit.max, 512 << 20);
    assert_eq!(limit.directory.as_deref(), Some(group.0.as_path()));
    assert!(limit.used > 0 && limit.used < limit.max);
    assert!(suspect.time_to_limit.unwrap() < Duration::from_secs(2000));
}

/// A memory control group of our own.
struct Cage(PathBuf);

impl Cage {
    fn make(bytes: u64) -> Option<Self> {
        let name = format!("lingerscope-test-{}", std::process::id());
        for (root, limit) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ] {
            let folder = PathBuf::from(root).join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let cage = Self(folder);
            if fs::write(cage.0.join(limit), bytes.to_string()).is_ok() {
                return Some(cage);
            }
        }
        None
    }

    fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // Empty once its process has been waited for.
        let _ = fs::remove_dir(&self.0);
    }
}
