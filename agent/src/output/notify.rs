//! Telling the service manager how the daemon is: sd_notify(3), by its
//! socket in `$NOTIFY_SOCKET`. Without one, as when started by hand, nothing
//! is told and nothing fails.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// Longest status line in bytes; systemd shows it in one line.
const MAX_STATUS: usize = 256;

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// From the environment that systemd makes: `NOTIFY_SOCKET`,
    /// `WATCHDOG_USEC` and `WATCHDOG_PID`. Leaves the environment as it is:
    /// the daemon starts no programs that could mistake it for theirs.
    ///
    /// # Errors
    /// When there is an address that cannot be used.
    pub fn from_environment() -> io::Result<Self> {
        let socket = env::var_os("NOTIFY_SOCKET");
        let watchdog = watchdog(
            env::var("WATCHDOG_USEC").ok().as_deref(),
            env::var("WATCHDOG_PID").ok().as_deref(),
        );
        Self::to(socket.as_deref(), watchdog)
    }

    /// To an address: a path, or `@name` for an abstract socket.
    pub(crate) fn to(address: Option<&OsStr>, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = match address {
            Some(address) if !address.is_empty() => {
                let socket = UnixDatagram::unbound()?;
                // A manager that does not read must not stop the daemon.
                socket.set_nonblocking(true)?;
                Some((socket, parse(address)?))
            }
            _ => None,
        };
        Ok(Self { socket, watchdog })
    }

    /// How often [`Notify::alive`] is due: half the time after which systemd
    /// ends a daemon that says nothing. `None`: nobody waits for it.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Start-up, or a reload, is done. `status` is for `systemctl status`.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\nSTATUS={}", line(status)))
    }

    /// What the daemon does, for `systemctl status`.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STATUS={}", line(status)))
    }

    /// The event loop turns.
    pub fn alive(&self) -> io::Result<()> {
        self.send("WATCHDOG=1")
    }

    /// A reload begins; [`Notify::ready`] ends it. Units of
    /// `Type=notify-reload` need the time with it.
    pub fn reloading(&self) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=Reading the settings again.",
            now.as_micros()
        ))
    }

    /// The daemon ends.
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1\nSTATUS=Taking probes off.")
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else {
            return Ok(());
        };
        socket.send_to_addr(message.as_bytes(), address).map(drop)
    }
}

fn parse(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "NOTIFY_SOCKET={} is neither a path nor an abstract socket",
                address.display()
            ),
        )),
    }
}

/// The limit, if it is meant for this process.
fn watchdog(limit: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(process::id())) {
        return None;
    }
    let micros = limit?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros))
}

/// One line: a line feed would begin another message.
fn line(status: &str) -> String {
    let mut line: String = status
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let mut end = MAX_STATUS.min(line.len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn check(receiver: &UnixDatagram, address: &str) {
        let timeout = Some(Duration::from_secs(5));
        receiver.set_read_timeout(timeout).unwrap();
        let notify = Notify::to(Some(OsStr::new(address)), Some(Duration::from_secs(30))).unwrap();
        notify.ready("Watching 12 processes.").unwrap();
        assert_eq!(receive(receiver), "READY=1\nSTATUS=Watching 12 processes.");
        notify.status("evil\nSTOPPING=1").unwrap();
        assert_eq!(receive(receiver), "STATUS=evil STOPPING=1");
        notify.status(&"é".repeat(500)).unwrap();
        assert_eq!(receive(receiver).len(), "STATUS=".len() + MAX_STATUS);
        notify.alive().unwrap();
        assert_eq!(receive(receiver), "WATCHDOG=1");
        let before = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        notify.reloading().unwrap();
        let said = receive(receiver);
        let time = said
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.split('\n').next())
            .unwrap();
        assert!(
            time.parse::<u128>().unwrap() >= before.as_micros(),
            "{said}"
        );
        notify.stopping().unwrap();
        assert!(receive(receiver).starts_with("STOPPING=1\n"));
        assert_eq!(notify.watchdog(), Some(Duration::from_secs(15)));
    }

    #[test]
    fn messages_reach_a_socket_with_a_path() {
        let path = env::temp_dir().join(format!("lingerscope-notify-{}", process::id()));
        let receiver = UnixDatagram::bind(&path).unwrap();
        check(&receiver, path.to_str().unwrap());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn messages_reach_an_abstract_socket() {
        let name = format!("lingerscope-notify-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        check(&receiver, &format!("@{name}"));
    }

    #[test]
    fn nobody_to_tell_is_no_failure() {
        let notify = Notify::to(None, None).unwrap();
        notify.ready("x").unwrap();
        notify.alive().unwrap();
        assert_eq!(notify.watchdog(), None);
        assert!(Notify::to(Some(OsStr::new("vsock:2:1")), None).is_err());
    }

    #[test]
    fn a_manager_that_is_gone_or_deaf_is_an_error_and_no_wait() {
        let gone = Notify::to(Some(OsStr::new("/nonexistent/notify")), None).unwrap();
        assert!(gone.alive().is_err());
        let name = format!("lingerscope-deaf-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _deaf = UnixDatagram::bind_addr(&address).unwrap();
        let notify = Notify::to(Some(OsStr::new(&format!("@{name}"))), None).unwrap();
        let full = (0..100_000).any(|_| notify.alive().is_err());
        assert!(full);
    }

    #[test]
    fn the_watchdog_of_another_process_is_none() {
        let own = process::id().to_string();
        assert_eq!(
            watchdog(Some("30000000"), Some(&own)),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            watchdog(Some("30000000"), None),
            Some(Duration::from_secs(30))
        );
        assert_eq!(watchdog(Some("30000000"), Some("1")), None);
        assert_eq!(watchdog(Some("0"), None), None);
        assert_eq!(watchdog(Some("soon"), None), None);
        assert_eq!(watchdog(None, None), None);
    }
}
