//! What is made of the end of a process.

use super::{Account, Investigation, description};
use crate::{
    capture::{
        TargetId,
        deaths::{Ending, Fault, Suspected},
    },
    finding::{Death, Ended, Text, UnderProbes},
    host::quarantine::Entry,
};

/// Deaths that wait to be told; the front takes them at once.
const MAX_DEATHS: usize = 64;

impl Investigation {
    /// Notes how a process ended, and what follows from it.
    pub(super) fn note_end(&mut self, id: TargetId, ending: Ending) {
        let suspected = ending
            .fault()
            .and_then(|fault| Some((fault, self.capture.suspected(id, fault.at_ns)?)));
        let account = self.accounts.get(&id).filter(|account| !account.ended);
        let began = match (account, &suspected) {
            (Some(account), _) => account.began_ns,
            (None, Some((_, suspected))) => suspected.began_ns,
            (None, None) => return,
        };
        let mut ended = ended(ending, began);
        if let Some((fault, suspected)) = suspected {
            let signal = ending.signal().unwrap_or(fault.signal);
            let kept = self.capture.quarantine(&suspected, signal);
            ended.under_probes = Some(under_probes(&fault, &suspected, kept));
            self.note_death(&suspected, &ended);
        }
        if let Some(account) = self.accounts.get_mut(&id).filter(|account| !account.ended) {
            account.ended_as = Some(ended);
        }
    }

    fn note_death(&mut self, suspected: &Suspected, ended: &Ended) {
        let build_id = suspected.build.as_ref();
        let process = description::who(
            &suspected.process,
            build_id.and_then(|build| build.build_id.clone()),
        );
        let consequence = ended
            .under_probes
            .as_ref()
            .map(|death| death.consequence(process.uid))
            .unwrap_or_default();
        let who = format!("{} (process {})", process.comm, process.pid);
        tracing::error!("{} {consequence}", ended.sentence(&who));
        if self.deaths.len() < MAX_DEATHS {
            self.deaths.push(Death {
                process,
                ended: ended.clone(),
            });
        }
    }

    /// Deaths under probes that were noticed since the last call; to be told
    /// at once.
    pub fn take_deaths(&mut self) -> Vec<Death> {
        std::mem::take(&mut self.deaths)
    }

    /// How long builds stay in quarantine that come into it from now on.
    pub fn set_quarantine(&mut self, period: std::time::Duration) {
        self.capture.set_quarantine(period);
    }
}

impl Account {
    /// How the process ended, if it did.
    pub fn ended_as(&self) -> Option<&Ended> {
        self.ended_as.as_ref()
    }
}

fn ended(ending: Ending, began_ns: u64) -> Ended {
    Ended {
        how: match ending.signal() {
            Some(_) => "killed",
            None => "exited",
        },
        signal: ending.signal(),
        exit_status: ending.exit_status(),
        oom: ending.oom,
        after_s: seconds(began_ns, ending.at_ns),
        under_probes: None,
    }
}

fn under_probes(fault: &Fault, suspected: &Suspected, kept: anyhow::Result<Entry>) -> UnderProbes {
    let death = UnderProbes {
        fault_signal: fault.signal,
        fault_code: fault.code,
        probes_off_s: suspected.off_ns.map(|off| seconds(off, fault.at_ns)),
        ..UnderProbes::default()
    };
    match kept {
        Ok(entry) => UnderProbes {
            quarantined_until: Some(format!("{:.0}", entry.until)),
            allow: Some(Text::sentence(entry.mend())),
            ..death
        },
        Err(error) => UnderProbes {
            why_not: Some(Text::sentence(format!("{error:#}"))),
            ..death
        },
    }
}

fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}
