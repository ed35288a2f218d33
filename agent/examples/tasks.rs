//! A program with tasks of every kind, which prints the id and name of each:
//! what lingerscope's table is compared with, here and, by `cargo xtask
//! matrix`, over versions of Tokio, profiles and allocators.
//!
//! `tasks [N [MB [SECONDS [LATER]]]]` starts N tasks of one type beside the
//! others, 200 by default, holds so many megabytes of other data, and ends
//! after a while. Each task allocates a block so many seconds after its start.
//! Only what Tokio has had since 1.20 is used: the ids are taken from the join
//! handles' debug form, because `JoinHandle::id` came later.
#![allow(
    clippy::duration_suboptimal_units,
    clippy::print_stdout,
    clippy::unused_async,
    clippy::unwrap_used,
    reason = "its output is its purpose, and nobody relies on it"
)]

use std::{
    fmt::Debug,
    future::Future,
    hint::black_box,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime::Builder, sync::Notify, task::LocalSet, time::sleep};

type Gate = Arc<Notify>;
type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// `TASK kind name id`.
fn tell(kind: &str, name: &str, handle: &impl Debug) {
    println!("TASK {kind} {name} {}", id(handle));
}

fn id(handle: &impl Debug) -> String {
    let text = format!("{handle:?}");
    let id = text
        .split("Id(")
        .nth(1)
        .and_then(|rest| rest.split(')').next());
    id.unwrap_or("?").to_owned()
}

/// Milliseconds that tasks wait before they allocate.
static LATER: AtomicUsize = AtomicUsize::new(0);

fn later() -> Option<Duration> {
    let later = LATER.load(Ordering::Relaxed);
    (later > 0).then(|| Duration::from_millis(later as u64))
}

/// A block of a size that no other kind of task asks for: who allocated it is
/// known by that. An async function would be a future of its own; a plain one
/// keeps the block's site apart where the task's poll is inlined.
macro_rules! mark {
    ($size:expr) => {{
        #[inline(never)]
        fn block() -> Vec<u8> {
            vec![1_u8; $size]
        }
        if let Some(later) = later() {
            sleep(later).await;
        }
        black_box(block())
    }};
}

async fn helper(gate: &Gate) {
    gate.notified().await;
}

async fn waiting(gate: Gate) {
    let kept = mark!(41_001);
    gate.notified().await;
    drop(kept);
}

async fn nested(gate: Gate) {
    let room = [1_u8; 300];
    let kept = mark!(41_011);
    helper(&gate).await;
    black_box(room);
    drop(kept);
}

async fn ticking() {
    let kept = mark!(41_021);
    loop {
        sleep(Duration::from_millis(15)).await;
        black_box(&kept);
    }
}

async fn busy() {
    let kept = mark!(41_031);
    loop {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(4) {
            black_box(start);
        }
        sleep(Duration::from_millis(2)).await;
        black_box(&kept);
    }
}

async fn finished() -> Vec<u8> {
    mark!(41_041)
}

async fn one_of_many(gate: Gate) {
    let kept = mark!(341);
    gate.notified().await;
    drop(kept);
}

async fn boxed(gate: Gate) {
    let kept = mark!(41_051);
    gate.notified().await;
    drop(kept);
}

async fn local(gate: Gate) {
    let kept = mark!(41_061);
    gate.notified().await;
    drop(kept);
}

async fn on_one_thread(gate: Gate) {
    let kept = mark!(41_071);
    gate.notified().await;
    drop(kept);
}

struct Server {
    gate: Gate,
}

impl Server {
    async fn serve(self) {
        let kept = mark!(41_081);
        self.gate.notified().await;
        drop(kept);
    }
}

/// A runtime of its own on one thread.
fn second_runtime(gate: Gate) {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let handle = tokio::spawn(on_one_thread(gate));
            tell("future", "on_one_thread", &handle);
            sender.send(()).unwrap();
            handle.await.unwrap();
        });
    });
    receiver.recv().unwrap();
}

fn main() {
    let argument = |at| std::env::args().nth(at)?.parse().ok();
    let many: usize = argument(1).unwrap_or(200);
    let megabytes: usize = argument(2).unwrap_or(0);
    let seconds: usize = argument(3).unwrap_or(300);
    LATER.store(argument(4).unwrap_or(0) * 1000, Ordering::Relaxed);
    let data: Vec<Vec<u64>> = (0..megabytes as u64 * 16)
        .map(|piece| (0..8192).map(|word| word * (piece + 1)).collect())
        .collect();
    println!("PID {}", std::process::id());
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let gate = Arc::new(Notify::new());
    second_runtime(Arc::clone(&gate));
    runtime.block_on(LocalSet::new().run_until(async move {
        let gate = || Arc::clone(&gate);
        tell("future", "waiting", &tokio::spawn(waiting(gate())));
        tell("future", "nested", &tokio::spawn(nested(gate())));
        tell("future", "ticking", &tokio::spawn(ticking()));
        tell("future", "busy", &tokio::spawn(busy()));
        let server = Server { gate: gate() };
        tell("future", "serve", &tokio::spawn(server.serve()));
        let ids: Vec<String> = (0..many)
            .map(|_| id(&tokio::spawn(one_of_many(gate()))))
            .collect();
        println!("TASK future one_of_many {}", ids.join(","));
        let inside: Boxed = Box::pin(boxed(gate()));
        tell("boxed", "boxed", &tokio::spawn(inside));
        tell("future", "local", &tokio::task::spawn_local(local(gate())));
        let kept = gate();
        #[rustfmt::skip]
        let block = async move { // block: anonymous
            kept.notified().await;
        };
        tell("block", "anonymous", &tokio::spawn(block));
        let work = tokio::task::spawn_blocking(|| {
            thread::sleep(Duration::from_secs(600));
        });
        tell("blocking", "main", &work);
        let done = tokio::spawn(finished());
        tell("complete", "finished", &done);
        sleep(Duration::from_millis(200)).await;
        println!("READY");
        sleep(Duration::from_secs(seconds as u64)).await;
        drop(done);
    }));
    runtime.shutdown_background();
    drop(data);
}
