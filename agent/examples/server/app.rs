//! Arguments and start of the leaking server.
//!
//! Every leaking operation happens in one function that is never inlined, in
//! the module named after the leak, so that a test can say which function the
//! allocation stacks must lead to. The program counts what it leaks itself and
//! writes the count to a side file ([`truth`]).

mod arc_cycle;
mod blocked_consumer;
mod burst;
mod ffi;
mod forget;
mod joinset;
mod lru;
mod map;
mod sawtooth;
mod slow_cache;
mod stuck_task;
mod traffic;
mod truth;
mod unbounded_channel;
mod work;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;

use self::{truth::Truth, work::Work};

/// A leak that can be switched on, or the same work done right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Leak {
    /// No such work at all: connections and replies only.
    None,
    /// Two objects per connection that own each other.
    ArcCycle,
    /// A task per request that waits for a notification nobody will send.
    StuckTask,
    /// A queue without a bound before a consumer that is too slow.
    UnboundedChannel,
    /// A queue whose consumer waits in its task for a lock that another thread
    /// keeps.
    BlockedConsumer,
    /// Finished tasks whose results nobody collects.
    Joinset,
    /// A map that remembers every request.
    Map,
    /// A buffer per request given to `mem::forget`.
    Forget,
    /// A block from C's `malloc` per request that nobody frees.
    Ffi,
}

/// Work without a leak. The names of [`Leak`] mean the same code with the bug
/// fixed; the others look like leaks for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Healthy {
    None,
    ArcCycle,
    StuckTask,
    UnboundedChannel,
    BlockedConsumer,
    Joinset,
    Map,
    Forget,
    Ffi,
    /// A cache that is full after two seconds.
    Lru,
    /// Collects for four seconds, then drops everything.
    Sawtooth,
    /// Three seconds of allocations that stay, then nothing more.
    BurstThenIdle,
    /// A bounded cache that takes half an hour to fill.
    SlowCache,
}

#[derive(Parser, Debug)]
#[command(about = "A Tokio TCP server with loopback clients and one switchable leak")]
struct Arguments {
    /// The leak to show
    #[arg(long, value_enum, default_value = "none")]
    leak: Leak,
    /// The healthy work to do instead
    #[arg(long, value_enum, default_value = "none", conflicts_with = "leak")]
    healthy: Healthy,
    /// Operations per second (connections for arc-cycle, requests otherwise)
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// Payload bytes per operation
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    size: u32,
    /// Worker threads of the runtime
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Exit after so many seconds; 0 runs until killed
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Seconds of plain traffic before the work begins
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// File to which the program appends its own count of what it leaked
    #[arg(long)]
    truth: Option<PathBuf>,
}

/// Runs the server until `--seconds` have passed.
///
/// # Errors
///
/// The truth file or the loopback socket cannot be opened.
#[expect(
    clippy::print_stdout,
    reason = "the driver of this program waits for these lines"
)]
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("PID {}", std::process::id());
    let work = Work::new(&arguments);
    let truth = work.truth();
    if let Some(path) = &arguments.truth {
        let function = work.function();
        Truth::publish(truth, path, function)
            .with_context(|| format!("cannot append to {}", path.display()))?;
    }
    // One worker may be blocked; the others must go on.
    let least = if arguments.leak == Leak::BlockedConsumer {
        2
    } else {
        1
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(arguments.workers.max(least)))
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let work = Arc::new(work);
        work.start();
        tokio::spawn(traffic::accept(listener, Arc::clone(&work)));
        tokio::spawn(traffic::clients(
            address,
            arguments.rate,
            work.wants_new_connections(),
        ));
        println!("READY");
        if arguments.seconds == 0 {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Ok(())
}
