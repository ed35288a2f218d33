//! A program with tasks of every kind, which prints the id and name of each:
//! what lingerscope's table is compared with, here and, by `cargo xtask
//! matrix`, over versions of Tokio, profiles and allocators.
//!
//! `tasks [N [MB]]` starts N tasks of one type beside the others, 200 by
//! default, and holds so many megabytes of other data.
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
    pin::Pin,
    sync::{Arc, mpsc},
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

async fn helper(gate: &Gate) {
    gate.notified().await;
}

async fn waiting(gate: Gate) {
    gate.notified().await;
}

async fn nested(gate: Gate) {
    let room = [1_u8; 300];
    helper(&gate).await;
    std::hint::black_box(room);
}

async fn ticking() {
    loop {
        sleep(Duration::from_millis(15)).await;
    }
}

async fn busy() {
    loop {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(4) {
            std::hint::black_box(start);
        }
        sleep(Duration::from_millis(2)).await;
    }
}

async fn finished() -> Vec<u8> {
    vec![1; 500]
}

async fn one_of_many(gate: Gate) {
    gate.notified().await;
}

async fn boxed(gate: Gate) {
    gate.notified().await;
}

async fn local(gate: Gate) {
    gate.notified().await;
}

async fn on_one_thread(gate: Gate) {
    gate.notified().await;
}

struct Server {
    gate: Gate,
}

impl Server {
    async fn serve(self) {
        self.gate.notified().await;
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
    let argument = std::env::args().nth(1);
    let many: usize = argument.and_then(|many| many.parse().ok()).unwrap_or(200);
    let argument = std::env::args().nth(2);
    let megabytes: usize = argument.and_then(|size| size.parse().ok()).unwrap_or(0);
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
        sleep(Duration::from_secs(300)).await;
        drop(done);
    }));
    runtime.shutdown_background();
    drop(data);
}
