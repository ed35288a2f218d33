//! The command line program.

use std::{io, process::ExitCode};

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Standard output carries reports; everything else goes to standard error.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .with_env_filter(
            EnvFilter::try_from_env("LINGERSCOPE_LOG").unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .init();
    lingerscope::cli::run()
}
