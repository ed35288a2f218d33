//! Processes that come and go.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::fleet::Fleet;

/// Hundreds of programs that end at once.
const STORM: &str = "i=0; while [ $i -lt 400 ]; do /bin/true & i=$((i+1)); done; wait; sleep 5";
/// Two thousand that live long enough to be seen by the watch.
const CROWD: &str = "i=0; while [ $i -lt 2000 ]; do sleep 14 & i=$((i+1)); done; wait; sleep 25";

/// Threads that come and go, in one process.
const THREADS: &str = "
import threading, time
while True:
    threads = [threading.Thread(target=time.sleep, args=(0.5,)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
";

/// Grows by 8 MiB a second and ends.
const GROWTH: &str = "
import os, time
blocks = []
for _ in range(120):
    blocks.append(os.urandom(1 << 20))
    time.sleep(0.125)
";

/// Starts what goes on for the whole run. The servers are named so that
/// probes are set and taken off all the time.
pub(super) fn start(fleet: &mut Fleet, server: &Path) -> Result<()> {
    fleet.repeat("storms", STORM)?;
    fleet.repeat("crowds", CROWD)?;
    let mut threads = Command::new("python3");
    threads.args(["-c", THREADS]);
    fleet.start("threads", threads)?;
    fleet.repeat("growth", &format!("python3 -c '{GROWTH}'; sleep 3"))?;
    let server = server.display();
    fleet.repeat(
        "servers",
        &format!(
            "timeout 25 {server} --leak map --rate 200 & \
             timeout 25 {server} --leak arc-cycle --rate 100 & \
             timeout 25 {server} --healthy sawtooth --rate 2000 & \
             wait; sleep 15"
        ),
    )
}
