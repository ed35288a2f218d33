//! The server's connections and the loopback clients that keep it busy.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::work::Work;

const CLIENTS: u32 = 8;
const MESSAGE: usize = 16;

/// Accepts connections for ever, one task each.
pub(super) async fn accept(listener: TcpListener, work: Arc<Work>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Arc::clone(&work)));
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers one connection's requests until its client closes it.
async fn serve(mut stream: TcpStream, work: Arc<Work>) {
    let session = work.open();
    let mut message = [0_u8; MESSAGE];
    while stream.read_exact(&mut message).await.is_ok() {
        work.request();
        let reply = reply(message);
        if stream.write_all(&reply).await.is_err() {
            break;
        }
    }
    drop(session);
}

/// Ordinary garbage of a server: a rendered body of varying size.
#[inline(never)]
fn reply(message: [u8; MESSAGE]) -> Vec<u8> {
    let number = u64::from_le_bytes(message.first_chunk().copied().unwrap_or_default());
    let body = format!(
        "{{\"request\":{number},\"pad\":\"{:>1$}\"}}",
        "",
        (number % 2000) as usize
    );
    let mut reply = message.to_vec();
    reply.rotate_left(body.len() % MESSAGE);
    reply
}

/// Starts the clients and hands out `rate` requests per second among them.
pub(super) async fn clients(address: SocketAddr, rate: u32, new_connections: bool) {
    let requests = Arc::new(Semaphore::new(0));
    for _ in 0..CLIENTS {
        tokio::spawn(client(address, Arc::clone(&requests), new_connections));
    }
    let begin = Instant::now();
    let mut issued = 0_u64;
    let mut tick = interval(Duration::from_millis(10));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let wanted = due.saturating_sub(issued) as usize;
        issued = due;
        // Clients that cannot keep up lower the rate; nothing piles up.
        let room = (rate as usize).saturating_sub(requests.available_permits());
        requests.add_permits(wanted.min(room));
    }
}

async fn client(address: SocketAddr, requests: Arc<Semaphore>, new_connections: bool) {
    let mut connection = None;
    let mut number = 0_u64;
    while let Ok(permit) = requests.acquire().await {
        permit.forget();
        number += 1;
        let outcome = exchange(&mut connection, address, number).await;
        if outcome.is_err() || new_connections {
            connection = None;
        }
    }
}

async fn exchange(
    connection: &mut Option<TcpStream>,
    address: SocketAddr,
    number: u64,
) -> std::io::Result<()> {
    if connection.is_none() {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // A connection per request would otherwise use up the ports within a
        // minute of TIME_WAIT.
        stream.set_zero_linger()?;
        *connection = Some(stream);
    }
    let Some(stream) = connection else {
        return Ok(());
    };
    let mut message = [0_u8; MESSAGE];
    if let Some(head) = message.first_chunk_mut() {
        *head = number.to_le_bytes();
    }
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await?;
    Ok(())
}
