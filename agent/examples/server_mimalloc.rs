//! The leaking server on mimalloc, linked statically.

#[path = "server/app.rs"]
mod app;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    app::run()
}
