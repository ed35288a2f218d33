//! What the daemon has in the kernel to follow processes; in `mode: watch`
//! there is nothing.

use anyhow::Result;
use aya_log::EbpfLogger;

use super::{LIVE_BLOCKS, budget};
use crate::{
    capture::links::Method,
    config::{Mode, Settings},
    investigation::Investigation,
};

/// The loaded kernel programs, and who is followed by them.
pub(super) struct Following {
    pub(super) investigation: Investigation,
    /// Hands on what the kernel programs have logged.
    pub(super) flush_log: Box<dyn FnMut()>,
}

impl Following {
    /// Loads what the mode needs; none where that is nothing.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) fn begin(settings: &Settings) -> Result<Option<Self>> {
        if settings.mode == Mode::Watch {
            return Ok(None);
        }
        let mut investigation = Investigation::new(LIVE_BLOCKS, &Method::ALL)?;
        investigation.govern(budget(settings));
        investigation.set_quarantine(settings.capture.quarantine);
        let mut log = EbpfLogger::init(investigation.ebpf())?;
        Ok(Some(Self {
            investigation,
            flush_log: Box::new(move || log.flush()),
        }))
    }

    /// How probes are attached.
    pub(super) fn method(&self) -> &'static str {
        self.investigation.capture().method().name()
    }
}
