//! Our own log, on standard error.

use std::{io, sync::OnceLock};

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Overrides every level that is set otherwise.
const VARIABLE: &str = "LINGERSCOPE_LOG";

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Begins to log warnings and errors, or what the variable `LINGERSCOPE_LOG`
/// asks for.
pub fn init() {
    let (filter, handle) = reload::Layer::new(filter("warn"));
    // Standard output carries reports; everything else goes to standard error.
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        // Where standard error is gone, saying so there would be a panic.
        .log_internal_errors(false)
        .without_time();
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    drop(FILTER.set(handle));
}

/// Another level: `error`, `warn`, `info`, `debug` or `trace`.
pub fn set_level(level: &str) {
    if let Some(handle) = FILTER.get() {
        // The subscriber lives as long as the process.
        drop(handle.reload(filter(level)));
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(level))
}
