//! Where the tests find the programs and leave their files.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::random::Random;

struct Lab {
    lingerscope: PathBuf,
    examples: PathBuf,
    directory: PathBuf,
    seed: u64,
}

static LAB: OnceLock<Lab> = OnceLock::new();

fn lab() -> Result<&'static Lab> {
    LAB.get().context("the lab is not prepared")
}

/// Checks that there is something to test and makes the directory for files.
/// Returns the seed of all draws.
pub(crate) fn prepare() -> Result<u64> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    let path = |variable: &str, default: &str| {
        env::var_os(variable).map_or_else(|| target.join(default), PathBuf::from)
    };
    let lingerscope = path("LINGERSCOPE_BIN", "release/lingerscope");
    let examples = path("LINGERSCOPE_EXAMPLES", "release/examples");
    ensure!(
        lingerscope.is_file(),
        "{} is not there: build it or set LINGERSCOPE_BIN",
        lingerscope.display()
    );
    let seed = match env::var("LINGERSCOPE_SEED") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("LINGERSCOPE_SEED={text} is no number"))?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64 % 1_000_000_007,
    };
    let directory = env::temp_dir().join(format!("lingerscope-live-{}", std::process::id()));
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    drop(LAB.set(Lab {
        lingerscope,
        examples,
        directory,
        seed,
    }));
    Ok(seed)
}

/// Removes the files unless a failure is to be looked at.
#[expect(clippy::print_stderr, reason = "a test runner reports to its terminal")]
pub(crate) fn clear(failed: bool) {
    let Some(lab) = LAB.get() else { return };
    if failed {
        eprintln!("the failed tests' files are in {}", lab.directory.display());
    } else {
        drop(fs::remove_dir_all(&lab.directory));
    }
}

/// The program under test.
pub(crate) fn lingerscope() -> Result<&'static Path> {
    Ok(&lab()?.lingerscope)
}

/// Draws for the test called `name`: the same whichever other tests run.
pub(crate) fn random(name: &str) -> Result<Random> {
    Ok(Random::new(lab()?.seed, name))
}

/// A name in the lab's directory.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    Ok(lab()?.directory.join(name))
}

/// A name in the lab's directory that nothing has used before.
pub(crate) fn fresh(name: &str) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    path(&format!("{}-{name}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// An example as cargo has built it.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    let built = lab()?.examples.join(name);
    ensure!(
        built.is_file(),
        "{} is not there: cargo build --release -p lingerscope --features live --examples",
        built.display()
    );
    Ok(built)
}

/// Held while a program is made, so that no other test runs half of one.
fn making() -> MutexGuard<'static, ()> {
    static MAKING: Mutex<()> = Mutex::new(());
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An example as distributions ship programs: symbols, but no debug
/// information.
pub(crate) fn plain_example(name: &str) -> Result<PathBuf> {
    let plain = path(name)?;
    let _making = making();
    if !plain.exists() {
        let mut strip = Command::new("objcopy");
        run(strip.arg("--strip-debug").arg(example(name)?).arg(&plain))?;
    }
    Ok(plain)
}

/// An example without any symbols, as `strip = true` makes it.
pub(crate) fn stripped_example(name: &str) -> Result<PathBuf> {
    let stripped = path(&format!("{name}-stripped"))?;
    let _making = making();
    if !stripped.exists() {
        let mut strip = Command::new("strip");
        run(strip.arg(example(name)?).arg("-o").arg(&stripped))?;
    }
    Ok(stripped)
}

/// Compiles `source` of agent/live/programs to the lab's `name`, once.
pub(crate) fn compile(
    compiler: &str,
    source: &str,
    arguments: &[&str],
    name: &str,
) -> Result<PathBuf> {
    let output = path(name)?;
    let _making = making();
    if !output.exists() {
        let source = programs().join(source);
        run(Command::new(compiler)
            .arg("-O2")
            .arg(source)
            .arg("-o")
            .arg(&output)
            .args(arguments))?;
    }
    Ok(output)
}

/// Sources and scripts of the programs that the tests look at.
pub(crate) fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("live/programs")
}

/// Runs a tool to its end.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}
