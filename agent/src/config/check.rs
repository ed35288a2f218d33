//! Values that are no values, and values that do not go together.

use std::{ffi::OsStr, time::Duration};

use super::{
    Mode, Settings, Severity,
    problem::Step,
    section::Scalar,
    unit::{Bytes, Rate},
};

/// Most suppressions: each is tried on each finding.
const MAX_SUPPRESSIONS: usize = 256;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const WEEK: Duration = Duration::from_hours(7 * 24);
const YEAR: Duration = Duration::from_hours(365 * 24);
/// From a leak that nobody minds to 1 GiB a second.
const RATES: (Rate, Rate) = (Rate(1.0), Rate(1_073_741_824.0));

/// What was found: how bad, which key, and the mend.
type Found = (Severity, Vec<Step>, String);

/// Everything that is wrong with the settings as a whole, in the order of the
/// default file.
pub(super) fn check(settings: &Settings, unix_s: i64) -> Vec<Found> {
    let mut found = Vec::new();
    costs(settings, &mut found);
    reports(settings, &mut found);
    combinations(settings, &mut found);
    suppressions(settings, unix_s, &mut found);
    found
}

fn key(path: &[&str]) -> Vec<Step> {
    path.iter()
        .map(|key| Step::Key((*key).to_owned()))
        .collect()
}

fn wrong(found: &mut Vec<Found>, path: &[&str], message: impl Into<String>) {
    found.push((Severity::Error, key(path), message.into()));
}

fn range<T: PartialOrd + Scalar>(
    found: &mut Vec<Found>,
    path: [&str; 2],
    value: &T,
    (least, most): (T, T),
) {
    // written so that what is no number is out of range, too
    if !(*value >= least && *value <= most) {
        let [value, least, most] = [value, &least, &most].map(Scalar::word);
        let message = format!("{value} is out of range: from {least} to {most}");
        wrong(found, &path, message);
    }
}

fn costs(settings: &Settings, found: &mut Vec<Found>) {
    let Settings {
        watch,
        capture,
        budget,
        ..
    } = settings;
    let interval = (SECOND, Duration::from_mins(10));
    range(found, ["watch", "interval"], &watch.interval, interval);
    range(found, ["watch", "min_rate"], &watch.min_rate, RATES);
    let growth = (Bytes(64 << 10), Bytes(1 << 40));
    range(found, ["watch", "min_growth"], &watch.min_growth, growth);
    let targets = (1, 64);
    range(
        found,
        ["capture", "max_targets"],
        &capture.max_targets,
        targets,
    );
    let quarantine = (MINUTE, YEAR);
    range(
        found,
        ["capture", "quarantine"],
        &capture.quarantine,
        quarantine,
    );
    let average = (0.01, 50.0);
    range(
        found,
        ["budget", "target_percent"],
        &budget.target_percent,
        average,
    );
    let window = (0.01, 100.0);
    range(
        found,
        ["budget", "window_percent"],
        &budget.window_percent,
        window,
    );
    let length = (10, 10_000);
    range(found, ["budget", "window_ms"], &budget.window_ms, length);
    let own = (0.1, 100.0);
    range(
        found,
        ["budget", "agent_percent"],
        &budget.agent_percent,
        own,
    );
    let memory = (Bytes(64 << 20), Bytes(64 << 30));
    range(found, ["budget", "memory"], &budget.memory, memory);
}

fn reports(settings: &Settings, found: &mut Vec<Found>) {
    let Settings {
        verdicts,
        alerts,
        metrics,
        ..
    } = settings;
    let confirm = (MINUTE, WEEK);
    range(
        found,
        ["verdicts", "growth_confirm"],
        &verdicts.growth_confirm,
        confirm,
    );
    range(found, ["verdicts", "min_rate"], &verdicts.min_rate, RATES);
    let page = (Duration::ZERO, YEAR);
    range(found, ["alerts", "page_within"], &alerts.page_within, page);
    range(found, ["alerts", "repeat"], &alerts.repeat, (MINUTE, YEAR));
    let factor = (1.1, 1000.0);
    range(
        found,
        ["alerts", "worsened_factor"],
        &alerts.worsened_factor,
        factor,
    );
    let resolve = (MINUTE, WEEK);
    range(
        found,
        ["alerts", "resolve_after"],
        &alerts.resolve_after,
        resolve,
    );
    range(found, ["alerts", "burst"], &alerts.burst, (1, 1000));
    range(
        found,
        ["alerts", "burst_window"],
        &alerts.burst_window,
        (SECOND, WEEK),
    );
    let interval = (SECOND, Duration::from_hours(1));
    range(found, ["metrics", "interval"], &metrics.interval, interval);
}

fn combinations(settings: &Settings, found: &mut Vec<Found>) {
    let budget = &settings.budget;
    if budget.window_percent < budget.target_percent {
        wrong(
            found,
            &["budget", "window_percent"],
            format!(
                "{} is less than budget.target_percent ({}): a window cannot cost less than the average",
                budget.window_percent, budget.target_percent
            ),
        );
    }
    if settings.alerts.burst_window > settings.alerts.repeat {
        wrong(
            found,
            &["alerts", "burst_window"],
            "is longer than alerts.repeat: alerts would be repeated before they are summed up",
        );
    }
    if settings.mode == Mode::Watch && !settings.pinned.is_empty() {
        wrong(
            found,
            &["pinned"],
            "pinned processes are followed by breakpoints, and `mode: watch` sets none: take pinned away, or set mode to survey",
        );
    }
    for (name, same) in [
        (
            "name",
            settings.include.name == settings.exclude.name && !settings.include.name.is_empty(),
        ),
        (
            "exe",
            settings.include.exe == settings.exclude.exe && !settings.include.exe.is_empty(),
        ),
        (
            "unit",
            settings.include.unit == settings.exclude.unit && !settings.include.unit.is_empty(),
        ),
        (
            "cgroup",
            settings.include.cgroup == settings.exclude.cgroup
                && !settings.include.cgroup.is_empty(),
        ),
        (
            "uid",
            settings.include.uid == settings.exclude.uid && !settings.include.uid.is_empty(),
        ),
    ] {
        if same {
            wrong(
                found,
                &["exclude", name],
                format!("is the same as include.{name}: nothing would be left"),
            );
        }
    }
    let metrics = &settings.metrics;
    if let Some(file) = &metrics.textfile
        && file.extension() != Some(OsStr::new("prom"))
    {
        wrong(
            found,
            &["metrics", "textfile"],
            format!(
                "{}: node_exporter reads only names that end with .prom",
                file.display()
            ),
        );
    }
    if let Some(address) = metrics.listen
        && !address.ip().is_loopback()
    {
        found.push((
            Severity::Doubt,
            key(&["metrics", "listen"]),
            format!("{address} can be reached from other machines, without encryption or password"),
        ));
    }
}

fn suppressions(settings: &Settings, unix_s: i64, found: &mut Vec<Found>) {
    if settings.suppressions.len() > MAX_SUPPRESSIONS {
        wrong(
            found,
            &["suppressions"],
            format!("more than {MAX_SUPPRESSIONS} entries"),
        );
    }
    for (index, rule) in settings.suppressions.iter().enumerate() {
        let mut path = key(&["suppressions"]);
        path.push(Step::Index(index));
        let mut tell = |severity, message: String| found.push((severity, path.clone(), message));
        if rule.is_empty() {
            tell(
                Severity::Error,
                "would silence everything: name a verdict, exe, unit or function".to_owned(),
            );
        }
        if rule
            .reason
            .as_ref()
            .is_none_or(|reason| reason.trim().is_empty())
        {
            tell(
                Severity::Error,
                "has no reason: say why this may be silent".to_owned(),
            );
        }
        if let Some(day) = rule.expires
            && day.is_over(unix_s)
        {
            tell(
                Severity::Doubt,
                format!("expired on {day} and silences nothing any more: take it away or renew it"),
            );
        }
    }
}
