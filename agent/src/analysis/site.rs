//! The verdict on one site.

use super::{Context, Judgement, Settings, process::Process};
use crate::{
    finding::{Confidence, Estimate},
    ledger::Group,
};

pub(super) fn judge<K>(
    key: K,
    group: Group,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Judgement<K> {
    let _ = (process, context, settings);
    Judgement {
        key,
        stacks: group.stacks,
        verdict: None,
        confidence: Confidence::Suspected,
        leak_rate: Estimate::default(),
        live_bytes: Estimate::default(),
        live_blocks: Estimate::default(),
        oldest: None,
        tasks: group.tasks,
        other_tasks: group.other_tasks,
        evidence: Vec::new(),
        advice: String::new(),
        time_to_limit: None,
    }
}
