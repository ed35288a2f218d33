//! Whether blocks that stay keep coming.

use crate::{
    analysis::shape::{PARTS, Parts},
    ledger::survivors::{SurveyGroup, Survivors, WindowAccount},
};

use super::{curve::Plateau, rate::View};

/// The members of a plateau over the windows they come from.
#[derive(Clone, Debug)]
pub(super) struct Trend {
    /// Bytes per second of open time, in up to eight parts of the survey.
    bytes: Option<Parts>,
    /// Blocks, likewise.
    blocks: Option<Parts>,
    /// Seconds since the last member was born, if far longer than their rate
    /// explains.
    pub(super) ceased: Option<f64>,
    /// Parts with members, of how many.
    pub(super) growing: (usize, usize),
}

/// Open time, bytes and blocks of a window or of several.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    open: f64,
    bytes: f64,
    blocks: f64,
    members: f64,
    closed: f64,
}

impl Trend {
    pub(super) fn of(group: &SurveyGroup, plateau: &Plateau, survivors: &Survivors) -> Self {
        let view = View::of(survivors);
        let windows: Vec<Part> = view
            .complete(group, plateau.counted)
            .filter(|(.., account)| account.is_none_or(|account| is_told(account, plateau)))
            .map(|(_, window, account)| {
                part(window.open, window.closed.as_secs_f64(), account, plateau)
            })
            .collect();
        let parts = PARTS.min(windows.len());
        let each = windows.len().div_ceil(parts.max(1)).max(1);
        let parts: Vec<Part> = windows.chunks(each).map(sum).collect();
        let of = |amount: fn(&Part) -> f64| {
            let all = sum(&parts);
            let rates = parts
                .iter()
                .filter(|part| part.open > 0.0)
                .map(|part| amount(part) / part.open)
                .collect();
            (all.open > 0.0)
                .then(|| Parts::of_rates(rates, amount(&all) / all.open))
                .flatten()
        };
        Self {
            bytes: of(|part| part.bytes),
            blocks: of(|part| part.blocks),
            ceased: ceased(&windows),
            growing: (
                parts.iter().filter(|part| part.members > 0.0).count(),
                parts.len(),
            ),
        }
    }

    /// Rate at the end over rate at the beginning; 1 where nobody can tell.
    pub(super) fn ratio(&self) -> f64 {
        self.bytes.as_ref().map_or(1.0, |parts| parts.slowing().0)
    }

    /// Whether it slows; by bytes and by blocks, because sizes vary by
    /// chance.
    pub(super) fn slows(&self) -> bool {
        let slows = |parts: &Option<Parts>| parts.as_ref().is_some_and(Parts::slows);
        slows(&self.bytes) && slows(&self.blocks)
    }
}

/// Whether the fate of most of a window's survivors is known at the age that
/// tells. Those that could not be read yet are not known to be missing.
fn is_told(account: &WindowAccount, plateau: &Plateau) -> bool {
    let row = account.step(plateau.counted);
    let died: f64 = (0..plateau.counted)
        .map(|step| account.step(step).died)
        .sum();
    row.at_risk + died >= account.born.bytes / 2.0
}

fn part(open: f64, closed: f64, account: Option<&WindowAccount>, plateau: &Plateau) -> Part {
    let Some(account) = account else {
        return Part {
            open,
            closed,
            ..Part::default()
        };
    };
    let row = account.step(plateau.counted);
    let bytes = row.at_risk - row.died;
    let each = account.born.blocks / account.born.bytes.max(1.0);
    Part {
        open,
        closed,
        bytes,
        blocks: bytes * each,
        members: f64::from(row.known.saturating_sub(row.gone)),
    }
}

fn sum(parts: &[Part]) -> Part {
    parts.iter().fold(Part::default(), |sum, part| Part {
        open: sum.open + part.open,
        bytes: sum.bytes + part.bytes,
        blocks: sum.blocks + part.blocks,
        members: sum.members + part.members,
        closed: part.closed,
    })
}

/// Whether members have ceased to come: the open time since the last window
/// with one is far longer than their rate until then explains, e^-6, which
/// takes one steady leak in four hundred for ceased.
fn ceased(windows: &[Part]) -> Option<f64> {
    let last = windows.iter().rposition(|window| window.members > 0.0)?;
    let before = sum(windows.get(..=last)?);
    let after = sum(windows.get(last + 1..)?);
    let expected = before.members / before.open.max(1e-3) * after.open;
    let tenth = after.open > 0.12 * (before.open + after.open);
    (expected > 6.0 && tenth).then(|| (after.closed - before.closed).max(0.0))
}
