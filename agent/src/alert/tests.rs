use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Bytes, Pattern, Rate, Suppression},
    finding::{Text, Verdict, fingerprint},
    output::sample::document,
};

const HOUR: u64 = 3600;

fn at(seconds: u64) -> Moment {
    Moment {
        monotonic: Duration::from_secs(seconds),
        unix_s: 1_800_000_000 + seconds as i64,
    }
}

/// A process in which these sites leak at these rates, strongly.
fn process(pid: u32, sites: &[(&str, f64)]) -> Process {
    let mut process = document("server").processes.remove(0);
    process.pid = pid;
    process.start_time = u64::from(pid) * 10;
    let sample = process.findings.remove(0);
    process.findings = sites
        .iter()
        .map(|(site, rate)| {
            let mut finding = sample.clone();
            finding.fingerprint = fingerprint("server", &[site]);
            finding.id = format!("{}-{pid}", finding.fingerprint);
            finding.confidence = Confidence::Strong;
            finding.leak_bytes_per_s.value = *rate;
            finding.time_to_limit_s = None;
            finding
        })
        .collect();
    process
}

fn alerts() -> Alerts {
    Alerts::new(&Settings::default(), at(0))
}

/// What was told, in short: `firing4`.
fn told(notices: &[Notice]) -> Vec<String> {
    notices
        .iter()
        .map(|notice| match notice {
            Notice::Alert(alert) => format!("{}{}", alert.state, alert.priority.code()),
            Notice::Death(death) => format!("death{}", death.process.pid),
            Notice::Summary(summary) => format!("summary{}", summary.held_back()),
            Notice::Suppression(note) => format!("{:?}", note.trouble),
        })
        .collect()
}

fn judged(alerts: &mut Alerts, seconds: u64, pid: u32, sites: &[(&str, f64)]) -> Vec<String> {
    told(&alerts.judged(at(seconds), &mut process(pid, sites)))
}

#[test]
fn one_alert_then_repeats() {
    let mut alerts = alerts();
    assert_eq!(judged(&mut alerts, 0, 1, &[("f", 1000.0)]), ["firing4"]);
    for hour in 1..24 {
        assert!(judged(&mut alerts, hour * HOUR, 1, &[("f", 1900.0)]).is_empty());
    }
    assert_eq!(
        judged(&mut alerts, 24 * HOUR, 1, &[("f", 1000.0)]),
        ["firing4"]
    );
    assert!(judged(&mut alerts, 25 * HOUR, 1, &[("f", 1000.0)]).is_empty());
}

#[test]
fn worse_is_told_at_once() {
    let mut alerts = alerts();
    assert_eq!(judged(&mut alerts, 0, 1, &[("f", 1000.0)]), ["firing4"]);
    assert_eq!(judged(&mut alerts, 10, 1, &[("f", 2000.0)]), ["worsened4"]);
    assert!(judged(&mut alerts, 20, 1, &[("f", 3900.0)]).is_empty());
    assert!(
        judged(&mut alerts, 30, 1, &[("f", 1000.0)]).is_empty(),
        "better"
    );
    assert!(
        judged(&mut alerts, 40, 1, &[("f", 2000.0)]).is_empty(),
        "no flapping"
    );
    let mut near = process(1, &[("f", 1000.0)]);
    near.findings[0].time_to_limit_s = Some(3600.0);
    assert_eq!(told(&alerts.judged(at(50), &mut near)), ["worsened3"]);
    assert!(told(&alerts.judged(at(60), &mut near)).is_empty());
    assert!(judged(&mut alerts, 70, 1, &[("f", 1000.0)]).is_empty());
}

#[test]
fn more_sure_is_more_urgent() {
    let mut alerts = alerts();
    let mut suspected = process(1, &[("f", 1000.0)]);
    suspected.findings[0].confidence = Confidence::Suspected;
    assert_eq!(told(&alerts.judged(at(0), &mut suspected)), ["firing5"]);
    assert_eq!(judged(&mut alerts, 10, 1, &[("f", 1000.0)]), ["worsened4"]);
}

#[test]
fn many_processes_are_one_alert() {
    let mut alerts = alerts();
    assert_eq!(judged(&mut alerts, 0, 1, &[("f", 1000.0)]), ["firing4"]);
    for pid in 2..400 {
        assert!(judged(&mut alerts, 1, pid, &[("f", 1000.0)]).is_empty());
    }
    assert_eq!(alerts.open().count(), 1);
    for pid in 2..400 {
        assert!(alerts.ended(at(2), pid, u64::from(pid) * 10).is_empty());
    }
    assert_eq!(told(&alerts.ended(at(3), 1, 10)), ["ended6"]);
    assert_eq!(alerts.open().count(), 0);
}

#[test]
fn the_end_knows_its_process_and_unit() {
    let mut alerts = alerts();
    judged(&mut alerts, 0, 7, &[("f", 1000.0)]);
    assert!(alerts.ended(at(5), 7, 71).is_empty(), "another start time");
    let notices = alerts.ended(at(5), 7, 70);
    let [Notice::Alert(alert)] = &notices[..] else {
        panic!("{notices:?}");
    };
    assert_eq!(alert.process.pid, 7);
    assert_eq!(alert.process.unit, Some(Text::name("server.service")));
    assert_eq!(
        alert.process.cgroup,
        Some(Text::name("/system.slice/server.service"))
    );
    assert_eq!(alert.finding.verdict, Verdict::UnboundedGrowth);
    assert_eq!(alert.finding.site.frames.len(), 1);
    assert!(alerts.ended(at(6), 7, 70).is_empty());
}

#[test]
fn what_is_not_found_for_long_is_resolved() {
    let mut alerts = alerts();
    judged(&mut alerts, 0, 1, &[("f", 1000.0), ("g", 1000.0)]);
    assert!(judged(&mut alerts, 60, 1, &[("g", 1000.0)]).is_empty());
    assert!(judged(&mut alerts, 29 * 60, 1, &[("f", 1000.0), ("g", 1000.0)]).is_empty());
    assert!(judged(&mut alerts, 30 * 60, 1, &[("g", 1000.0)]).is_empty());
    assert!(judged(&mut alerts, 59 * 60, 1, &[("g", 1000.0)]).is_empty());
    assert_eq!(
        judged(&mut alerts, HOUR, 1, &[("g", 1000.0)]),
        ["resolved6"]
    );
    assert!(judged(&mut alerts, 2 * HOUR, 1, &[("g", 1000.0)]).is_empty());
}

#[test]
fn a_verdict_that_is_no_leak_resolves() {
    let mut alerts = alerts();
    judged(&mut alerts, 0, 1, &[("f", 1000.0)]);
    let mut bounded = process(1, &[("f", 1000.0)]);
    bounded.findings[0].leak = Leak::No;
    assert!(alerts.judged(at(60), &mut bounded).is_empty());
    assert_eq!(told(&alerts.judged(at(HOUR), &mut bounded)), ["resolved6"]);
}

#[test]
fn what_comes_back_is_recurring_and_then_counted() {
    let mut alerts = alerts();
    assert_eq!(judged(&mut alerts, 0, 1, &[("f", 1000.0)]), ["firing4"]);
    assert_eq!(told(&alerts.ended(at(10), 1, 10)), ["ended6"]);
    assert_eq!(judged(&mut alerts, 20, 2, &[("f", 1000.0)]), ["recurring4"]);
    assert_eq!(told(&alerts.ended(at(30), 2, 20)), ["ended6"]);
    // a service that dies of it and is restarted every half an hour
    for pid in 3..43 {
        let start = u64::from(pid) * HOUR / 2;
        assert!(judged(&mut alerts, start, pid, &[("f", 1000.0)]).is_empty());
        assert!(alerts.tick(at(start)).is_empty());
        assert!(
            alerts
                .ended(at(start + 1000), pid, u64::from(pid) * 10)
                .is_empty()
        );
    }
    let mut again = process(50, &[("f", 1000.0)]);
    let notices = alerts.judged(at(25 * HOUR), &mut again);
    let [Notice::Alert(alert)] = &notices[..] else {
        panic!("{notices:?}");
    };
    assert_eq!((alert.state, alert.recurrences), (State::Recurring, 41));
    assert_eq!(told(&alerts.ended(at(25 * HOUR + 1), 50, 500)), ["ended6"]);
}

#[test]
fn returns_that_were_held_back_are_told_when_they_stop() {
    let mut alerts = alerts();
    for pid in 1..4 {
        judged(&mut alerts, u64::from(pid) * 100, pid, &[("f", 1000.0)]);
        alerts.ended(at(u64::from(pid) * 100 + 50), pid, u64::from(pid) * 10);
    }
    assert!(alerts.tick(at(23 * HOUR)).is_empty());
    let notices = alerts.tick(at(25 * HOUR));
    let [Notice::Alert(alert)] = &notices[..] else {
        panic!("{notices:?}");
    };
    assert_eq!((alert.state, alert.recurrences), (State::Ended, 1));
    assert!(alerts.tick(at(26 * HOUR)).is_empty());
}

#[test]
fn a_burst_is_summed_up() {
    let mut alerts = alerts();
    let names: Vec<String> = (0..300).map(|number| format!("f{number}")).collect();
    let mut sites: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), 1000.0)).collect();
    sites.rotate_left(1);
    let mut process = process(1, &sites);
    process.findings[299].time_to_limit_s = Some(60.0);
    let notices = alerts.judged(at(0), &mut process);
    assert_eq!(notices.len(), 10);
    assert!(alerts.tick(at(599)).is_empty());
    let notices = alerts.tick(at(600));
    let [Notice::Summary(summary)] = &notices[..] else {
        panic!("{notices:?}");
    };
    assert_eq!(summary.held_back(), 290);
    assert_eq!(summary.states, BTreeMap::from([(State::Firing, 290)]));
    assert_eq!(summary.lines.len(), 100);
    // the most urgent one is named, and gives the urgency
    assert_eq!(summary.priority, Priority::Page);
    let last = summary.lines.last().unwrap();
    assert_eq!(last.fingerprint, fingerprint("server", &["f0"]));
    assert!(alerts.tick(at(2000)).is_empty());
    // what was summed up counts as told
    assert!(alerts.judged(at(2000), &mut process).is_empty());
}

#[test]
fn a_late_alert_ends_the_window_too() {
    let mut alerts = alerts();
    let names: Vec<String> = (0..11).map(|number| format!("f{number}")).collect();
    let sites: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), 1000.0)).collect();
    judged(&mut alerts, 0, 1, &sites);
    assert_eq!(
        judged(&mut alerts, 700, 2, &[("new", 1000.0)]),
        ["summary1", "firing4"]
    );
}

#[test]
fn memory_is_bounded_and_what_does_not_fit_is_counted() {
    let mut alerts = alerts();
    let names: Vec<String> = (0..MAX_FINGERPRINTS + 5)
        .map(|number| format!("f{number}"))
        .collect();
    let sites: Vec<(&str, f64)> = names.iter().map(|name| (name.as_str(), 1000.0)).collect();
    judged(&mut alerts, 0, 1, &sites);
    assert_eq!(alerts.entries.len(), MAX_FINGERPRINTS);
    let notices = alerts.tick(at(600));
    let [Notice::Summary(summary)] = &notices[..] else {
        panic!("{notices:?}");
    };
    assert_eq!(
        (summary.held_back(), summary.no_room),
        (MAX_FINGERPRINTS - 10, 5)
    );
    alerts.ended(at(700), 1, 10);
    // what has just ended may come back, so it is not forgotten yet
    assert!(judged(&mut alerts, 800, 2, &[("late", 1000.0)]).is_empty());
    alerts.tick(at(2000));
    assert_eq!(
        judged(&mut alerts, 26 * HOUR, 2, &[("late", 1000.0)]),
        ["firing4"]
    );
    assert_eq!(alerts.entries.len(), MAX_FINGERPRINTS);
}

#[test]
fn little_is_not_told() {
    let mut settings = Settings::default();
    settings.verdicts.min_confidence = Confidence::Strong;
    settings.verdicts.min_rate = Rate(500.0);
    settings.watch.min_growth = Bytes(0);
    let mut alerts = Alerts::new(&settings, at(0));
    let mut suspected = process(1, &[("f", 1000.0)]);
    suspected.findings[0].confidence = Confidence::Suspected;
    assert!(alerts.judged(at(0), &mut suspected).is_empty());
    assert!(judged(&mut alerts, 1, 1, &[("f", 499.0)]).is_empty());
    assert_eq!(judged(&mut alerts, 2, 1, &[("f", 500.0)]), ["firing4"]);
    // less sure is not gone
    assert!(alerts.judged(at(3 * HOUR), &mut suspected).is_empty());
    assert_eq!(told(&alerts.ended(at(4 * HOUR), 1, 10)), ["ended6"]);
}

fn suppression(function: &str, expires: Option<&str>) -> Suppression {
    use crate::config::Day;
    Suppression {
        function: Some(pattern(function)),
        reason: Some("known".to_owned()),
        ticket: Some("OPS-1".to_owned()),
        expires: expires.map(|day| Day::read(day).unwrap()),
        ..Suppression::default()
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::read(text).unwrap()
}

#[test]
fn suppressed_findings_say_by_what() {
    let settings = Settings {
        // 2027-01-15 is day 0 here
        suppressions: vec![
            suppression("nowhere", None),
            suppression("server::serve*", Some("2027-01-16")),
            suppression("elsewhere", Some("2026-01-01")),
        ],
        ..Settings::default()
    };
    let mut alerts = Alerts::new(&settings, at(0));
    assert_eq!(told(&alerts.tick(at(0))), ["Expired"]);
    let mut known = process(1, &[("f", 1000.0)]);
    assert!(alerts.judged(at(1), &mut known).is_empty());
    let said = known.findings[0].suppressed_by.as_ref().map(Text::as_str);
    assert_eq!(said, Some("known (OPS-1), until 2027-01-16"));
    assert_eq!(alerts.open().count(), 0);
    // two days on
    let later = 2 * 24 * HOUR;
    assert_eq!(told(&alerts.judged(at(later), &mut known)), ["firing4"]);
    assert_eq!(known.findings[0].suppressed_by, None);
    assert_eq!(told(&alerts.tick(at(later))), ["Expired"]);
    assert!(alerts.tick(at(later + 10)).is_empty(), "once");
    assert_eq!(told(&alerts.tick(at(8 * 24 * HOUR))), ["NeverMatches"]);
    let uses: Vec<(u64, bool)> = alerts
        .suppressions(at(later))
        .iter()
        .map(|rule| (rule.matched, rule.expired))
        .collect();
    assert_eq!(uses, [(0, false), (1, true), (0, true)]);
}

#[test]
fn a_reload_forgets_nothing() {
    let mut settings = Settings {
        suppressions: vec![suppression("nowhere", None)],
        ..Settings::default()
    };
    let mut alerts = Alerts::new(&settings, at(0));
    judged(&mut alerts, 0, 1, &[("f", 1000.0)]);
    settings.alerts.repeat = Duration::from_hours(1);
    settings
        .suppressions
        .insert(0, suppression("server::*", None));
    alerts.reload(&settings, at(10));
    // suppressed from now on: no word, no end
    assert!(judged(&mut alerts, 20, 1, &[("f", 9000.0)]).is_empty());
    assert!(alerts.ended(at(30), 1, 10).is_empty());
    // the old rule is as old as before
    assert_eq!(told(&alerts.tick(at(7 * 24 * HOUR))), ["NeverMatches"]);
}

/// What may happen.
#[derive(Clone, Debug)]
enum Event {
    Judged { pid: u32, sites: BTreeMap<u8, u16> },
    Ended { pid: u32 },
    Pause { seconds: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (1..5_u32, proptest::collection::btree_map(0..6_u8, 300..5000_u16, 0..6))
            .prop_map(|(pid, sites)| Event::Judged { pid, sites }),
        1 => (1..5_u32).prop_map(|pid| Event::Ended { pid }),
        3 => (1..4000_u64).prop_map(|seconds| Event::Pause { seconds }),
        1 => (80_000..100_000_u64).prop_map(|seconds| Event::Pause { seconds }),
    ]
}

/// All that was told of one fingerprint: time and state.
type Log = BTreeMap<Fingerprint, Vec<(u64, State)>>;

fn note(log: &mut Log, seconds: u64, notices: Vec<Notice>) -> usize {
    let mut sent = 0;
    for notice in notices {
        match notice {
            Notice::Alert(alert) => {
                sent += 1;
                log.entry(alert.finding.fingerprint)
                    .or_default()
                    .push((seconds, alert.state));
            }
            Notice::Death(_) => panic!("deaths are not the alerts' to tell"),
            Notice::Summary(summary) => {
                assert_eq!(
                    summary.held_back(),
                    summary.lines.len(),
                    "all of them are named"
                );
                for line in summary.lines {
                    log.entry(line.fingerprint)
                        .or_default()
                        .push((seconds, line.state));
                }
            }
            Notice::Suppression(_) => {}
        }
    }
    sent
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn nothing_is_told_too_often_or_lost(events in proptest::collection::vec(event(), 1..120), burst in 1..4_u32) {
        let mut settings = Settings::default();
        settings.alerts.burst = burst;
        let mut alerts = Alerts::new(&settings, at(0));
        let window = settings.alerts.burst_window.as_secs();
        let repeat = settings.alerts.repeat.as_secs();
        let mut log = Log::new();
        let mut found = BTreeSet::new();
        let mut seconds = 0;
        let mut sent: Vec<(u64, usize)> = Vec::new();
        for event in events {
            let notices = match event {
                Event::Judged { pid, sites } => {
                    let names: Vec<String> = sites.keys().map(|site| format!("f{site}")).collect();
                    let sites: Vec<(&str, f64)> = names
                        .iter()
                        .map(String::as_str)
                        .zip(sites.values().map(|rate| f64::from(*rate)))
                        .collect();
                    let mut process = process(pid, &sites);
                    found.extend(process.findings.iter().map(|finding| finding.fingerprint));
                    alerts.judged(at(seconds), &mut process)
                }
                Event::Ended { pid } => alerts.ended(at(seconds), pid, u64::from(pid) * 10),
                Event::Pause { seconds: pause } => {
                    seconds += pause;
                    alerts.tick(at(seconds))
                }
            };
            sent.push((seconds, note(&mut log, seconds, notices)));
        }
        for pid in 1..5 {
            note(&mut log, seconds, alerts.ended(at(seconds), pid, u64::from(pid) * 10));
        }
        for later in [seconds + window, seconds + repeat, seconds + repeat + window] {
            note(&mut log, later, alerts.tick(at(later)));
        }
        // every fingerprint was told, begins with its beginning and ends with its end
        prop_assert_eq!(log.keys().copied().collect::<BTreeSet<_>>(), found);
        for told in log.values() {
            prop_assert_eq!(told[0].1, State::Firing);
            prop_assert!(told.last().unwrap().1.is_end(), "{:?}", told);
            for state in [State::Firing, State::Recurring] {
                let times: Vec<u64> = told.iter().filter(|(_, s)| *s == state).map(|(at, _)| *at).collect();
                // a summary is later than what it sums up, by less than a window and the pause after
                for pair in times.windows(2) {
                    prop_assert!(pair[1] - pair[0] + window + 100_000 >= repeat, "{:?}", told);
                }
            }
            // no two beginnings without an end between them, but repeats and changes
            for pair in told.windows(2) {
                prop_assert!(!(pair[0].1.is_end() && pair[1].1 == State::Firing && pair[1].0 - pair[0].0 < repeat));
                prop_assert!(pair[0].1.is_end() || pair[1].1 != State::Recurring || pair[1].0 - pair[0].0 >= repeat, "{:?}", told);
            }
        }
        // no more than the limit within a window
        for (index, (begin, _)) in sent.iter().enumerate() {
            let within: usize = sent[index..].iter().take_while(|(at, _)| at - begin < window).map(|(_, n)| n).sum();
            prop_assert!(within <= 2 * burst as usize, "{} within {} s of {}", within, window, begin);
        }
        prop_assert_eq!(alerts.open().count(), 0);
    }

    #[test]
    fn firing_keeps_its_distance(steps in proptest::collection::vec((0..20_000_u64, 300..400_u16, any::<bool>()), 1..200)) {
        // no limit, so that every message has its own time
        let mut settings = Settings::default();
        settings.alerts.burst = 1000;
        let mut alerts = Alerts::new(&settings, at(0));
        let repeat = settings.alerts.repeat.as_secs();
        let mut log = Log::new();
        let mut seconds = 0;
        for (pause, rate, ends) in steps {
            seconds += pause;
            let mut process = process(1, &[("f", f64::from(rate))]);
            note(&mut log, seconds, alerts.judged(at(seconds), &mut process));
            if ends {
                note(&mut log, seconds, alerts.ended(at(seconds), 1, 10));
            }
            note(&mut log, seconds, alerts.tick(at(seconds)));
        }
        for told in log.values() {
            for state in [State::Firing, State::Recurring] {
                let times: Vec<u64> = told.iter().filter(|(_, s)| *s == state).map(|(at, _)| *at).collect();
                prop_assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= repeat), "{:?}", told);
            }
        }
    }
}
