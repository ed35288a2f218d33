//! What the process as a whole did.

use crate::{
    finding::Rss,
    ledger::{Group, Ledger},
};

pub(super) struct Process {
    pub(super) rss: Option<Rss>,
}

impl Process {
    pub(super) fn of<K>(_ledger: &Ledger, _groups: &[(K, Group)]) -> Self {
        Self { rss: None }
    }
}
