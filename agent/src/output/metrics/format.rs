//! The text of a snapshot.
//!
//! Sources: OpenMetrics 1.0 (github.com/prometheus/OpenMetrics,
//! specification/OpenMetrics.md), Prometheus' "Exposition formats".

use std::{collections::BTreeMap, fmt::Write as _};

use super::{LeakRate, MAX_CAUSES, MAX_LEAKS, Snapshot};

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format, version 0.0.4.
    Text,
}

/// Type of a family.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Info,
}

/// Writes a snapshot.
pub fn format(snapshot: &Snapshot, format: Format) -> String {
    let mut page = Page {
        text: String::new(),
        format,
    };
    page.family(
        "lingerscope_build",
        Kind::Info,
        None,
        "Version of lingerscope.",
    );
    page.sample(
        "lingerscope_build_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );

    page.family(
        "lingerscope_findings",
        Kind::Gauge,
        None,
        "Findings that are open now.",
    );
    for ((verdict, confidence), count) in &snapshot.findings {
        let labels = [("verdict", verdict.id()), ("confidence", confidence.id())];
        page.sample("lingerscope_findings", &labels, *count as f64);
    }

    let name = "lingerscope_finding_leak_bytes_per_second";
    let help = "How fast an open finding leaks, the fastest findings only.";
    page.family(name, Kind::Gauge, Some("bytes_per_second"), help);
    for leak in fastest(&snapshot.leaks) {
        let fingerprint = leak.fingerprint.to_string();
        let labels = [
            ("fingerprint", fingerprint.as_str()),
            ("unit", leak.unit.as_ref().map_or("", |unit| unit.as_str())),
            ("verdict", leak.verdict.id()),
        ];
        page.sample(name, &labels, leak.bytes_per_second);
    }

    let help = "What was not recorded, by cause.";
    page.family("lingerscope_lost", Kind::Counter, None, help);
    for (cause, count) in causes(&snapshot.lost) {
        page.sample("lingerscope_lost_total", &[("cause", cause)], count as f64);
    }

    let name = "lingerscope_target_slowdown_ratio";
    let help = "Largest estimated slowdown of a followed process, 0.01 is one percent.";
    page.family(name, Kind::Gauge, Some("ratio"), help);
    if let Some(ratio) = snapshot.target_slowdown_ratio {
        page.sample(name, &[], ratio);
    }

    let name = "lingerscope_target_probe_cpu_ratio";
    let help = "Largest estimated share of its own processor time that a followed process spends in probes, 0.01 is one percent.";
    page.family(name, Kind::Gauge, Some("ratio"), help);
    if let Some(ratio) = snapshot.target_probe_cpu_ratio {
        page.sample(name, &[], ratio);
    }

    let help = "Processor time of lingerscope.";
    page.family(
        "lingerscope_agent_cpu_seconds",
        Kind::Counter,
        Some("seconds"),
        help,
    );
    page.sample(
        "lingerscope_agent_cpu_seconds_total",
        &[],
        snapshot.agent_cpu_seconds,
    );

    let help = "Processes whose memory grows suspiciously.";
    page.family("lingerscope_suspects", Kind::Gauge, None, help);
    page.sample("lingerscope_suspects", &[], snapshot.suspects as f64);

    let help = "Builds that are not probed because one died while it was.";
    page.family("lingerscope_quarantined", Kind::Gauge, None, help);
    page.sample("lingerscope_quarantined", &[], snapshot.quarantined as f64);

    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

/// The fastest ones, each series once: two processes may share a fingerprint,
/// a unit and a verdict, and a series must not be told twice.
fn fastest(leaks: &[LeakRate]) -> Vec<&LeakRate> {
    let mut series: BTreeMap<_, &LeakRate> = BTreeMap::new();
    for leak in leaks {
        let kept = series
            .entry((leak.fingerprint, leak.unit.as_ref(), leak.verdict))
            .or_insert(leak);
        if leak.bytes_per_second > kept.bytes_per_second {
            *kept = leak;
        }
    }
    let mut leaks: Vec<&LeakRate> = series.into_values().collect();
    leaks.sort_by(|a, b| b.bytes_per_second.total_cmp(&a.bytes_per_second));
    leaks.truncate(MAX_LEAKS);
    leaks
}

/// The causes by name, those beyond the bound summed up.
fn causes(lost: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    let mut causes: Vec<(&str, u64)> = lost
        .iter()
        .take(MAX_CAUSES)
        .map(|(cause, count)| (cause.as_str(), *count))
        .collect();
    if lost.len() > MAX_CAUSES {
        let rest = lost.values().skip(MAX_CAUSES).sum();
        match causes.iter_mut().find(|(cause, _)| *cause == "other") {
            Some((_, count)) => *count += rest,
            None => causes.push(("other", rest)),
        }
    }
    causes
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    /// The lines that introduce a family. OpenMetrics names a family without
    /// the suffix of its samples, the older format with it.
    fn family(&mut self, name: &str, kind: Kind, unit: Option<&str>, help: &str) {
        let (suffix, kind) = match (self.format, kind) {
            (_, Kind::Gauge) => ("", "gauge"),
            (Format::OpenMetrics, Kind::Counter) => ("", "counter"),
            (Format::OpenMetrics, Kind::Info) => ("", "info"),
            (Format::Text, Kind::Counter) => ("_total", "counter"),
            (Format::Text, Kind::Info) => ("_info", "gauge"),
        };
        let _ = writeln!(self.text, "# TYPE {name}{suffix} {kind}");
        if let Some(unit) = unit.filter(|_| self.format == Format::OpenMetrics) {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.text, "# HELP {name}{suffix} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            let _ = write!(self.text, "{separator}{label}=\"{}\"", escaped(value));
            separator = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {}", number(value));
    }
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

/// A label's value: backslash, quote and line feed have escapes.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::finding::{Confidence, Text, Verdict, fingerprint};

    /// Something of everything.
    pub(in crate::output::metrics) fn sample(unit: &str) -> Snapshot {
        Snapshot {
            findings: BTreeMap::from([
                ((Verdict::UnboundedGrowth, Confidence::Strong), 2),
                ((Verdict::UnboundedGrowth, Confidence::Suspected), 1),
            ]),
            leaks: vec![LeakRate {
                fingerprint: fingerprint("server", &["f"]),
                unit: Some(Text::name(unit)),
                verdict: Verdict::UnboundedGrowth,
                bytes_per_second: 34_901.5,
            }],
            lost: BTreeMap::from([("blocks_full".to_owned(), 12), ("ring_full".to_owned(), 0)]),
            target_slowdown_ratio: Some(0.0084),
            target_probe_cpu_ratio: Some(0.27),
            agent_cpu_seconds: 12.25,
            suspects: 3,
            quarantined: 1,
        }
    }

    /// A family: its type, and its samples' names, labels and values.
    #[derive(Debug, Default, PartialEq)]
    struct Family {
        kind: String,
        samples: Vec<(String, String, f64)>,
    }

    /// Reads OpenMetrics strictly, as far as it is written here.
    fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("no end")?;
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        let mut series = BTreeSet::new();
        for line in body.lines() {
            let wrong = |what: &str| format!("{what}: {line:?}");
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (keyword, name, value) = (words.next(), words.next(), words.next());
                let (Some(keyword), Some(name), Some(value)) = (keyword, name, value) else {
                    return Err(wrong("half a comment"));
                };
                match keyword {
                    "TYPE" => {
                        current = name.to_owned();
                        let family = Family {
                            kind: value.to_owned(),
                            ..Family::default()
                        };
                        if families.insert(current.clone(), family).is_some() {
                            return Err(wrong("twice"));
                        }
                    }
                    "UNIT" if !name.ends_with(&format!("_{value}")) => {
                        return Err(wrong("no suffix"));
                    }
                    "HELP" | "UNIT" if name == current => {}
                    _ => return Err(wrong("unknown comment")),
                }
                continue;
            }
            let (key, value) = line.rsplit_once(' ').ok_or_else(|| wrong("no value"))?;
            let value: f64 = value.parse().ok().ok_or_else(|| wrong("no number"))?;
            let (name, labels) = match key.split_once('{') {
                Some((name, labels)) => {
                    (name, labels.strip_suffix('}').ok_or_else(|| wrong("open"))?)
                }
                None => (key, ""),
            };
            let family = families
                .get_mut(&current)
                .ok_or_else(|| wrong("no family"))?;
            let suffix = match family.kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                _ => return Err(wrong("type")),
            };
            if name != format!("{current}{suffix}") {
                return Err(wrong("name"));
            }
            if !(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')) {
                return Err(wrong("letters"));
            }
            if family.kind == "counter" && (value.is_nan() || value < 0.0) {
                return Err(wrong("counter"));
            }
            check_labels(labels).map_err(|what| wrong(&what))?;
            if !series.insert(key.to_owned()) {
                return Err(wrong("series twice"));
            }
            family
                .samples
                .push((name.to_owned(), labels.to_owned(), value));
        }
        Ok(families)
    }

    fn check_labels(mut rest: &str) -> Result<(), String> {
        let mut names = BTreeSet::new();
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"").ok_or("label")?;
            if !names.insert(name) || !name.bytes().all(|b| b.is_ascii_lowercase()) {
                return Err(format!("label {name}"));
            }
            let mut escape = false;
            let end = after
                .char_indices()
                .find(|(_, c)| {
                    let ends = *c == '"' && !escape;
                    escape = *c == '\\' && !escape;
                    ends
                })
                .ok_or("open label")?
                .0;
            rest = &after[end + 1..];
            rest = match rest.strip_prefix(',') {
                Some(more) if !more.is_empty() => more,
                None if rest.is_empty() => rest,
                _ => return Err("separator".to_owned()),
            };
        }
        Ok(())
    }

    #[test]
    fn all_names_are_told() {
        let families = read(&format(&sample("web.service"), Format::OpenMetrics)).unwrap();
        let told: Vec<(&str, &str, f64)> = families
            .values()
            .flat_map(|family| &family.samples)
            .map(|(name, labels, value)| (name.as_str(), labels.as_str(), *value))
            .collect();
        let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
        let leak = format!(
            "fingerprint=\"{}\",unit=\"web.service\",verdict=\"unbounded-growth\"",
            fingerprint("server", &["f"])
        );
        assert_eq!(
            told,
            [
                ("lingerscope_agent_cpu_seconds_total", "", 12.25),
                ("lingerscope_build_info", version, 1.0),
                ("lingerscope_finding_leak_bytes_per_second", &leak, 34_901.5),
                (
                    "lingerscope_findings",
                    "verdict=\"unbounded-growth\",confidence=\"suspected\"",
                    1.0
                ),
                (
                    "lingerscope_findings",
                    "verdict=\"unbounded-growth\",confidence=\"strong\"",
                    2.0
                ),
                ("lingerscope_lost_total", "cause=\"blocks_full\"", 12.0),
                ("lingerscope_lost_total", "cause=\"ring_full\"", 0.0),
                ("lingerscope_quarantined", "", 1.0),
                ("lingerscope_suspects", "", 3.0),
                ("lingerscope_target_probe_cpu_ratio", "", 0.27),
                ("lingerscope_target_slowdown_ratio", "", 0.0084),
            ]
        );
        assert_eq!(families["lingerscope_build"].kind, "info");
    }

    #[test]
    fn the_file_has_only_types_that_node_exporter_knows() {
        let text = format(&sample("web.service"), Format::Text);
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert!(
                line.ends_with(" gauge") || line.ends_with(" counter"),
                "{line}"
            );
        }
        assert!(text.contains("# TYPE lingerscope_lost_total counter\n"));
        assert!(text.contains("# TYPE lingerscope_build_info gauge\n"));
        assert!(!text.contains("EOF") && !text.contains("UNIT") && text.ends_with('\n'));
    }

    #[test]
    fn series_are_bounded_and_told_once() {
        let mut snapshot = sample("a");
        let leak = snapshot.leaks[0].clone();
        for number in 0..300_u32 {
            snapshot.leaks.push(LeakRate {
                fingerprint: fingerprint("server", &[number.to_string()]),
                bytes_per_second: f64::from(number),
                ..leak.clone()
            });
            snapshot.lost.insert(format!("cause{number}"), 1);
        }
        snapshot.leaks.push(LeakRate {
            bytes_per_second: 1e9,
            ..leak
        });
        let families = read(&format(&snapshot, Format::OpenMetrics)).unwrap();
        let leaks = &families["lingerscope_finding_leak_bytes_per_second"].samples;
        assert_eq!(leaks.len(), MAX_LEAKS);
        assert!((leaks[0].2 - 1e9).abs() < 1.0, "the fastest first");
        let lost = &families["lingerscope_lost"].samples;
        assert_eq!(lost.len(), MAX_CAUSES + 1);
        let sum: f64 = lost.iter().map(|(_, _, count)| count).sum();
        assert!((sum - 312.0).abs() < 0.5, "{sum}");
    }

    #[test]
    fn nothing_to_tell_is_well_formed() {
        let families = read(&format(&Snapshot::default(), Format::OpenMetrics)).unwrap();
        assert!(
            families["lingerscope_target_slowdown_ratio"]
                .samples
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn any_name_gives_a_readable_page(unit in ".{0,60}", cause in ".{0,20}", ratio: f64) {
            let mut snapshot = sample(&unit);
            // even one that did not go through `Text`
            snapshot.lost.insert(cause.replace('\r', ""), 1);
            snapshot.target_slowdown_ratio = Some(ratio);
            let text = format(&snapshot, Format::OpenMetrics);
            prop_assert!(read(&text).is_ok(), "{:?} {}", read(&text), text);
        }
    }
}
