//! Threads and tasks that wait in every way that `lingerscope inspect` tells
//! apart. Each waits for ever in a function of its own, with a result of its own,
//! so that the compiler does not make one of two.
#![expect(clippy::print_stdout, reason = "the driver waits for these lines")]

use std::{
    process::id,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

fn lock(mutex: &Mutex<u8>) -> MutexGuard<'_, u8> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[inline(never)]
fn task_on_lock(taken: &Mutex<u8>) -> u8 {
    *lock(taken) ^ 1
}

#[inline(never)]
fn task_on_channel(receiver: &mpsc::Receiver<u8>) -> u8 {
    receiver.recv().unwrap_or(1)
}

#[inline(never)]
fn task_on_condvar(never: &(Mutex<u8>, Condvar)) -> u8 {
    let mut guard = lock(&never.0);
    while *guard == 0 {
        guard = never.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    *guard
}

#[inline(never)]
fn closure_on_lock(taken: &Mutex<u8>) -> u8 {
    *lock(taken) ^ 2
}

#[inline(never)]
fn thread_on_lock(taken: &Mutex<u8>) -> u8 {
    *lock(taken) ^ 3
}

#[inline(never)]
fn thread_on_channel(receiver: &mpsc::Receiver<u8>) -> u8 {
    receiver.recv().unwrap_or(2)
}

/// Long enough to be a thread of the pool, and then an idle one.
#[inline(never)]
fn short_closure() {
    thread::sleep(Duration::from_millis(1));
}

#[expect(
    clippy::disallowed_methods,
    reason = "waiting is the point, nothing is sent"
)]
fn main() -> std::io::Result<()> {
    let taken: &'static Mutex<u8> = Box::leak(Box::default());
    let never: &'static (Mutex<u8>, Condvar) = Box::leak(Box::default());
    let _held = lock(taken);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(6)
        .thread_keep_alive(Duration::from_mins(10))
        .enable_all()
        .build()?;
    let (_sender, receiver) = mpsc::channel::<u8>();
    let receiver = Arc::new(Mutex::new(receiver));
    thread::spawn(move || std::hint::black_box(thread_on_lock(taken)));
    let (_other, others) = mpsc::channel::<u8>();
    thread::spawn(move || std::hint::black_box(thread_on_channel(&others)));
    println!("PID {}", id());
    runtime.block_on(async {
        tokio::spawn(async move { std::hint::black_box(task_on_lock(taken)) });
        let mine = Arc::clone(&receiver);
        tokio::spawn(async move {
            let receiver = mine.lock().unwrap_or_else(PoisonError::into_inner);
            std::hint::black_box(task_on_channel(&receiver))
        });
        tokio::spawn(async move { task_on_condvar(never) });
        tokio::task::spawn_blocking(move || std::hint::black_box(closure_on_lock(taken)));
        for _ in 0..4 {
            tokio::task::spawn_blocking(short_closure);
        }
        // Something to allocate, so that there is something to follow.
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        println!("READY");
        loop {
            ticks.tick().await;
            std::hint::black_box(vec![0_u8; 256]);
        }
    });
    Ok(())
}
