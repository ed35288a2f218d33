//! A Tokio TCP server with one switchable leak, on the system allocator.
//! `cargo run --release --example server -- --help` lists the leaks.

#[path = "server/app.rs"]
mod app;

fn main() -> anyhow::Result<()> {
    app::run()
}
