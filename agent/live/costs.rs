//! The cost of a hit, as the governor measures it at start.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use lingerscope::{
    capture::{
        Capture,
        governor::{Costs, costs::measure},
        links::Method,
        object::Sizes,
    },
    host::quarantine::Quarantine,
};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    [Method::Session, Method::Multi]
        .into_iter()
        .map(|method| trial(format!("costs::{}", method.name()), move || check(method)))
        .collect()
}

fn check(method: Method) -> Result<()> {
    let place = std::env::temp_dir().join(format!("lingerscope-live-costs-{}", std::process::id()));
    let sizes = Sizes { live_blocks: 4096 };
    let mut capture = Capture::new(sizes, &[method], Quarantine::open(&place))?;
    // Another load on the machine makes it longer, never shorter.
    let mut quickest = Duration::MAX;
    let mut best: Option<Costs> = None;
    for _ in 0..5 {
        let began = Instant::now();
        let costs = measure::measure(&mut capture);
        quickest = quickest.min(began.elapsed());
        if best.is_none_or(|best| costs.trap < best.trap) {
            best = Some(costs);
        }
    }
    let costs = best.context("nothing was measured")?;
    ensure!(
        quickest < Duration::from_millis(300),
        "measuring takes {quickest:?}"
    );
    let assumed = Costs::assumed(method);
    ensure!(
        (costs.trap - assumed.trap).abs() > 1e-9 && (costs.frame - assumed.frame).abs() > 1e-9,
        "costs were assumed, not measured: {costs:?}"
    );
    // Of any machine: a trap costs hundreds of nanoseconds, a frame a few, and
    // a child that inherited breakpoints pays about what its parent does.
    ensure!((150.0..5_000.0).contains(&costs.trap), "{costs:?}");
    ensure!(costs.stepped > costs.trap, "{costs:?}");
    ensure!((1.0..500.0).contains(&costs.frame), "{costs:?}");
    ensure!((50.0..10_000.0).contains(&costs.record), "{costs:?}");
    ensure!((200.0..20_000.0).contains(&costs.inherited), "{costs:?}");
    ensure!(costs.detach < Duration::from_secs(1), "{costs:?}");
    Ok(())
}
