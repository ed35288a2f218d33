//! A document as JSON.

use std::io::{self, Write};

use serde::Serialize;

/// Writes the document and a newline.
pub fn write(document: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(
        &mut *out,
        Harmless(serde_json::ser::PrettyFormatter::new()),
    );
    document.serialize(&mut serializer)?;
    out.write_all(b"\n")
}

/// Writes `<`, `>` and `&` as escapes, so that the document may stand inside
/// a web page.
struct Harmless(serde_json::ser::PrettyFormatter<'static>);

impl serde_json::ser::Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&']) {
            let (front, back) = rest.split_at(at);
            writer.write_all(front.as_bytes())?;
            if let Some(byte) = back.bytes().next() {
                write!(writer, "\\u{byte:04x}")?;
            }
            rest = back.get(1..).unwrap_or("");
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::output::sample::document;

    fn printed(name: &str) -> String {
        let mut out = Vec::new();
        write(&document(name), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_field_of_the_schema_is_there() {
        let value: Value = serde_json::from_str(&printed("f")).unwrap();
        let keys = |value: &Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            keys(&value),
            "duration_s host kernel lingerscope processes schema skipped started"
        );
        let process = &value["processes"][0];
        assert_eq!(
            keys(process),
            "allocators build_id capture cgroup comm command container_id detection_limit_bytes_per_s ended exe explained_share \
             findings not_leaks ns_pid pid rss sites start_time tokio uid unit waits why_not"
        );
        assert_eq!(
            keys(&process["capture"]),
            "agent_cpu_percent allocations decisions lost mode open_s sampled sampling_mean_bytes target_cpu target_slowdown_percent windows"
        );
        assert_eq!(
            keys(&process["capture"]["target_cpu"]),
            "cores_before cores_between cores_during probe_percent_of_own probe_percent_overall"
        );
        let finding = &process["findings"][0];
        assert_eq!(
            keys(finding),
            "advice confidence evidence fingerprint id leak leak_bytes_per_s live_blocks live_bytes members oldest_s site \
             suppressed_by tasks time_to_limit_s verdict"
        );
        assert_eq!(keys(&finding["leak_bytes_per_s"]), "high low value");
        assert_eq!(
            keys(&finding["site"]["frames"][0]),
            "build_id file function inlined line module offset"
        );
        assert_eq!(
            keys(&finding["tasks"][0]),
            "blocks bytes ended_most_s ended_s id idle_most_s idle_s location name role state"
        );
        assert_eq!(keys(&finding["evidence"][0]), "kind text value");
        assert_eq!(finding["verdict"], "unbounded-growth");
        assert_eq!(finding["confidence"], "suspected");
        assert_eq!(finding["leak"], "yes");
        assert_eq!(value["schema"], 1);
        assert_eq!(process["not_leaks"][0]["leak"], "no");
    }

    #[test]
    fn one_document_without_markup() {
        let text = printed("<script>&\x1b\n\"</script>");
        assert!(!text.contains(['<', '>', '&', '\x1b']));
        assert!(text.ends_with("}\n"));
        let value: Value = serde_json::from_str(&text).unwrap();
        // a function's name keeps its brackets for whoever reads the value
        assert_eq!(
            value["processes"][0]["findings"][0]["site"]["frames"][3]["function"],
            "<script>&\\x1b\\n\"</script>"
        );
        assert_eq!(
            value["processes"][0]["comm"],
            "\\x3cscript\\x3e&\\x1b\\n\\x22\\x3c/script\\x3e"
        );
    }
}
