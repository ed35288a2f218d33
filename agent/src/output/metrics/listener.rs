//! Answers `GET /metrics` and nothing else.
//!
//! One path, no keep-alive, no bodies: less than a web framework needs to be
//! told. Strangers may connect, so everything has a bound.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};

/// Type of the answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 8;
/// Longest request, which has no body.
const MAX_REQUEST: usize = 8 << 10;
/// From the first byte to the last of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a refused accept (no descriptors left): do not spin.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves the page's newest text until the future is dropped.
pub async fn serve(listener: TcpListener, page: watch::Receiver<Arc<str>>) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropping the set ends its connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("metrics: a connection failed: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&free).try_acquire_owned() else {
            continue;
        };
        let page = Arc::clone(&page.borrow());
        connections.spawn(async move {
            // Who does not ask or listen is left alone.
            if let Ok(Err(error)) = timeout(PATIENCE, answer(&stream, &page)).await {
                tracing::debug!("metrics: no answer given: {error}");
            }
            drop(place);
        });
    }
}

async fn answer(stream: &TcpStream, page: &str) -> io::Result<()> {
    let mut request = Vec::new();
    let response = loop {
        if let Some(end) = head_end(&request) {
            break respond(request.get(..end).unwrap_or_default(), page);
        }
        if request.len() >= MAX_REQUEST {
            break status("431 Request Header Fields Too Large", "", true);
        }
        stream.readable().await?;
        let mut part = [0; 1024];
        match stream.try_read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(length) => request.extend_from_slice(part.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    };
    let mut rest = response.as_bytes();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where the empty line after the header fields begins.
fn head_end(request: &[u8]) -> Option<usize> {
    request.windows(4).position(|bytes| bytes == b"\r\n\r\n")
}

/// The whole answer to a request's head.
fn respond(head: &[u8], page: &str) -> String {
    let Ok(head) = str::from_utf8(head) else {
        return status("400 Bad Request", "", true);
    };
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return status("400 Bad Request", "", true);
    };
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return status("405 Method Not Allowed", "Allow: GET, HEAD\r\n", true),
    };
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    if path != "/metrics" {
        return status("404 Not Found", "", body);
    }
    let length = page.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{}",
        if body { page } else { "" }
    )
}

fn status(status: &str, field: &str, body: bool) -> String {
    let text = format!("{status}\n");
    format!(
        "HTTP/1.1 {status}\r\n{field}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
        text.len(),
        if body { &text } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A closed connection may be reset; what came before counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn start(
        text: &str,
    ) -> (
        std::net::SocketAddr,
        watch::Sender<Arc<str>>,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, page) = watch::channel(Arc::from(text));
        (address, sender, tokio::spawn(serve(listener, page)))
    }

    #[tokio::test]
    async fn only_one_page_is_served() {
        let (address, sender, _task) = start("one\n# EOF\n").await;
        let good = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        assert!(good.contains("application/openmetrics-text; version=1.0.0"));
        assert!(
            good.ends_with("Content-Length: 10\r\nConnection: close\r\n\r\none\n# EOF\n"),
            "{good}"
        );
        sender.send(Arc::from("two\n")).unwrap();
        assert!(
            ask(address, b"GET /metrics?x=y HTTP/1.0\r\n\r\n")
                .await
                .ends_with("\r\n\r\ntwo\n")
        );
        let head = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(
            head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        for (request, code) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET /metrics HTTP/2\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request.as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {code} ")),
                "{request:?} {answer:?}"
            );
        }
        let long = format!(
            "GET /metrics HTTP/1.1\r\nX: {}\r\n",
            "x".repeat(MAX_REQUEST)
        );
        assert!(
            ask(address, long.as_bytes())
                .await
                .starts_with("HTTP/1.1 431 ")
        );
    }

    #[tokio::test]
    async fn a_page_larger_than_the_socket_arrives_whole() {
        let page = "x 1\n".repeat(2_000_000);
        let (address, _sender, _task) = start(&page).await;
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.ends_with(&page) && answer.len() > page.len());
    }

    #[tokio::test]
    async fn silent_connections_are_bounded_and_given_up() {
        let (address, _sender, _task) = start("x 1\n").await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        // no place for one more
        assert_eq!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await, "");
        tokio::time::sleep(PATIENCE).await;
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
        }
    }

    proptest! {
        #[test]
        fn any_head_is_answered(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(respond(&head, "page").starts_with("HTTP/1.1 "));
        }
    }
}
