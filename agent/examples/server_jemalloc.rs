//! The leaking server on jemalloc, whose functions keep their `_rjem_` prefix.

#[path = "server/app.rs"]
mod app;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    app::run()
}
