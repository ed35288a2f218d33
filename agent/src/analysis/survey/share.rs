//! How much of the process's growth its sites explain.

use crate::finding::Estimate;

use super::SiteEstimate;

/// Rate of all sites whose curve came to rest, over the growth of the memory.
///
/// The sites' errors are independent, so they add up by their squares. Sites
/// whose curve still falls may keep something too: they only raise the high
/// end.
pub(super) fn explained<'a>(
    sites: impl Iterator<Item = &'a SiteEstimate>,
    growth: Option<Estimate>,
) -> Option<Estimate> {
    let growth = growth?;
    let (mut value, mut below, mut above) = (0.0f64, 0.0f64, 0.0f64);
    for kept in sites {
        let Some(rate) = kept.rate else { continue };
        // A site that never kept anything explains nothing.
        if rate.value <= 0.0 {
            continue;
        }
        if kept.curve.plateau.is_some() {
            value += rate.value;
            below += (rate.value - rate.low).powi(2);
            above += (rate.high - rate.value).powi(2);
        } else {
            above += rate.high.powi(2);
        }
    }
    Some(Estimate {
        value: value / growth.value,
        low: (value - below.sqrt()).max(0.0) / growth.high,
        high: (value + above.sqrt()) / growth.low,
    })
}
