//! The verdict on one site of a survey.

use std::time::Duration;

use crate::{
    analysis::{
        Context, Judgement, Settings,
        process::{Process, Witness},
    },
    finding::{Confidence, Estimate, Verdict},
    ledger::survivors::{STEPS, SurveyGroup, Survivors, age},
};

use super::{SiteEstimate, limit::LEAST_WINDOWS, span, trend::Trend, witness::for_site, words};

/// Rate at the end over rate at the beginning that counts as unslowed.
const UNSLOWED: f64 = 0.75;
/// A plateau of blocks without a positive sign counts when it is so many
/// times longer than it takes until a freed block of their size shows.
const REUSES: f64 = 5.0;

/// What was found, before it is put into words.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kept: SiteEstimate,
    pub(super) trend: Option<Trend>,
    pub(super) witness: Option<Witness>,
    pub(super) signs: Signs,
    pub(super) verdict: Option<Verdict>,
    pub(super) confidence: Confidence,
    pub(super) rate: Estimate,
    pub(super) time_to_limit: Option<Duration>,
}

/// What the plateau's signs of life are worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Signs {
    /// Most are positive.
    Positive,
    /// Most say only that the allocator has given the memory to somebody.
    Mutated,
    /// Most blocks are just unchanged; freed ones of their size show within
    /// this time, and the plateau is many times longer.
    Unchanged(Duration),
    /// Most are just unchanged, and nobody knows for how long freed ones
    /// stay so.
    Unproven,
}

impl Found {
    pub(super) fn of(
        group: &SurveyGroup,
        kept: SiteEstimate,
        survivors: &Survivors,
        process: &Process,
        context: &Context,
        settings: &Settings,
    ) -> Self {
        let rate = kept.rate.unwrap_or_default();
        let mut found = Self {
            signs: signs(group, &kept, survivors),
            kept,
            trend: None,
            witness: None,
            verdict: None,
            confidence: Confidence::Suspected,
            rate,
            time_to_limit: None,
        };
        if found.signs == Signs::Unproven {
            found.rate.low = 0.0;
        }
        found.judge(group, survivors, process, context, settings);
        found
    }

    fn judge(
        &mut self,
        group: &SurveyGroup,
        survivors: &Survivors,
        process: &Process,
        context: &Context,
        settings: &Settings,
    ) {
        let span = span(survivors);
        let Some(plateau) = self.kept.curve.plateau else {
            return;
        };
        if survivors.window_count() < LEAST_WINDOWS
            || span < settings.least_observed.as_secs_f64()
            || plateau.members < settings.least_members
            || plateau.windows < settings.least_growths as usize
            || self.rate.value < settings.least_rate
        {
            return;
        }
        let trend = Trend::of(group, &plateau, survivors);
        self.trend = Some(trend.clone());
        if trend.ceased.is_some() {
            self.verdict = Some(Verdict::Bounded);
            return;
        }
        if trend.growing.0 < settings.least_growths as usize {
            return;
        }
        if trend.slows() {
            self.verdict = Some(Verdict::Warming);
            return;
        }
        let blocks = blocks_per_byte(group);
        let process = for_site(process, self.rate.value * blocks);
        let witness = process.witness(
            self.rate.value,
            self.rate.value * blocks,
            self.rate.low * blocks,
        );
        self.witness = Some(witness);
        if witness.against.is_some() {
            self.verdict = Some(Verdict::Bounded);
            return;
        }
        let agrees = process.memory_growth().is_some() && !witness.memory_flat;
        if self.rate.low <= 0.0 && !(self.signs == Signs::Unproven && agrees) {
            return;
        }
        self.rate = Estimate {
            value: self.rate.value * witness.share,
            low: self.rate.low * witness.least,
            high: self.rate.high,
        };
        if self.rate.value < settings.least_rate {
            return;
        }
        self.verdict = Some(Verdict::UnboundedGrowth);
        let left = context
            .limit
            .map(|limit| limit.limit_bytes.saturating_sub(limit.used_bytes) as f64);
        self.time_to_limit =
            left.and_then(|left| Duration::try_from_secs_f64(left / self.rate.value).ok());
        let horizon = settings
            .page_within
            .as_secs_f64()
            .min(settings.believe * span);
        // The lower bound of the rate: only what is certain may wake somebody.
        let near = left.is_some_and(|left| self.rate.low > 0.0 && left / self.rate.low <= horizon);
        let long = span >= settings.growth_confirm.as_secs_f64();
        let outlived = age(plateau.to) >= group.longest_ended.mul_f64(settings.lifetimes);
        let certain = matches!(self.signs, Signs::Positive | Signs::Unchanged(_));
        let silent = agrees && witness.share >= 0.95;
        if plateau.decade
            && outlived
            && certain
            && silent
            && trend.ratio() >= UNSLOWED
            && (long || near)
        {
            self.confidence = Confidence::Strong;
        }
    }
}

fn signs(group: &SurveyGroup, kept: &SiteEstimate, survivors: &Survivors) -> Signs {
    let Some(plateau) = kept.curve.plateau else {
        return Signs::Positive;
    };
    if plateau.unchanged >= 0.5 {
        let times: Option<Vec<Duration>> = group
            .kept
            .iter()
            .filter(|kept| kept.step >= plateau.counted)
            .map(|kept| survivors.reuse_time(kept.usable))
            .collect();
        return times
            .and_then(|times| times.into_iter().max())
            .filter(|time| time.mul_f64(REUSES) <= age(plateau.to))
            .map_or(Signs::Unproven, Signs::Unchanged);
    }
    if plateau.mutated >= 0.5 {
        Signs::Mutated
    } else {
        Signs::Positive
    }
}

/// Blocks per byte among the survivors.
fn blocks_per_byte(group: &SurveyGroup) -> f64 {
    let sum = |of: fn(&crate::ledger::survivors::Births) -> f64| {
        group
            .windows
            .iter()
            .map(|window| of(&window.born))
            .sum::<f64>()
    };
    let bytes = sum(|born| born.bytes);
    if bytes > 0.0 {
        sum(|born| born.blocks) / bytes
    } else {
        0.0
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "a group ends with its judgement"
)]
pub(super) fn describe<K>(
    key: K,
    group: SurveyGroup,
    found: Found,
    survivors: &Survivors,
    process: &Process,
    context: &Context,
    settings: &Settings,
) -> Judgement<K> {
    let live = live(&group, &found, survivors);
    let oldest = group.kept.iter().find(|kept| kept.step > 0);
    Judgement {
        key,
        verdict: found.verdict,
        confidence: found.confidence,
        leak_rate: found.rate,
        live_bytes: live,
        live_blocks: live.scaled(blocks_per_byte(&group)),
        oldest: oldest.map(|kept| survivors.now().saturating_sub(kept.born)),
        evidence: words::evidence(&found, &group, survivors, process, context, settings),
        advice: words::advice(&found).to_owned(),
        time_to_limit: found.time_to_limit,
        stacks: group.stacks,
        tasks: group.tasks,
        other_tasks: group.other_tasks,
    }
}

/// Bytes allocated since the survey began and live at its end: what outlives
/// a window per second, times the area below the curve.
fn live(group: &SurveyGroup, found: &Found, survivors: &Survivors) -> Estimate {
    let Some(rate) = found.kept.rate else {
        return Estimate::default();
    };
    let open = survivors.open_time();
    let born: f64 = group.windows.iter().map(|window| window.born.bytes).sum();
    if open <= 0.0 || born <= 0.0 {
        return Estimate::default();
    }
    let (span, curve) = (span(survivors), &found.kept.curve);
    let mut area = 0.0;
    for step in 0..STEPS {
        let start = age(step).as_secs_f64().min(span);
        let end = if step + 1 < STEPS {
            age(step + 1).as_secs_f64().min(span)
        } else {
            span
        };
        area += (end - start) * (curve.at(step) + curve.at(step + 1)) / 2.0;
    }
    let value = born / open * area;
    let low = (rate.low * span).min(value);
    let high = if rate.value > 0.0 {
        value * rate.high / rate.value
    } else {
        value + rate.high * span
    };
    Estimate { value, low, high }
}
