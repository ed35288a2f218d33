//! What the daemon took over time, and whether that grows.

use std::time::Duration;

use crate::{daemon::Footprint, fleet::census::mebibytes};

/// Fewer in a quarter tell nothing.
const FEWEST: usize = 6;

/// The daemon at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Since the run began.
    pub(super) at: Duration,
    pub(super) footprint: Footprint,
    /// Of the host.
    pub(super) processes: usize,
}

impl Sample {
    /// Open files but for those that each living process asks for.
    fn own_files(&self) -> usize {
        let files = self.footprint.files;
        files.all.saturating_sub(files.of_living)
    }
}

/// Rows of a table, each of `step`.
pub(super) fn table(samples: &[Sample], step: Duration) -> String {
    let mut lines = vec![
        "| until | RSS MiB, middle (most) | files, least and most | of these not of living processes, least and most | threads | % of one processor | processes of the host, most |"
            .to_owned(),
        "| --- | --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    let mut rest = samples;
    let mut before = samples.first();
    let mut until = step;
    while let Some(first) = rest.first() {
        let end = rest
            .iter()
            .position(|sample| sample.at > until)
            .unwrap_or(rest.len());
        let (row, after) = rest.split_at(end);
        rest = after;
        until += step;
        let Some(newest) = row.last() else { continue };
        let before_row = before.unwrap_or(first);
        let time = newest
            .footprint
            .time
            .saturating_sub(before_row.footprint.time);
        let span = newest.at.saturating_sub(before_row.at).as_secs_f64();
        let share = if span > 0.0 {
            100.0 * time.as_secs_f64() / span
        } else {
            0.0
        };
        before = Some(newest);
        let range = |of: &dyn Fn(&Sample) -> usize| {
            let least = row.iter().map(of).min().unwrap_or(0);
            let most = row.iter().map(of).max().unwrap_or(0);
            format!("{least} to {most}")
        };
        let most = row.iter().map(|sample| sample.footprint.resident).max();
        lines.push(format!(
            "| {} s | {:.1} ({:.1}) | {} | {} | {} | {share:.2} | {} |",
            newest.at.as_secs(),
            mebibytes(middle(row)),
            mebibytes(most.unwrap_or(0)),
            range(&|sample| sample.footprint.files.all),
            range(&Sample::own_files),
            range(&|sample| sample.footprint.threads as usize),
            row.iter().map(|sample| sample.processes).max().unwrap_or(0),
        ));
    }
    lines.join("\n")
}

/// The middle RSS.
fn middle(samples: &[Sample]) -> u64 {
    let mut resident: Vec<u64> = samples
        .iter()
        .map(|sample| sample.footprint.resident)
        .collect();
    resident.sort_unstable();
    resident.get(resident.len() / 2).copied().unwrap_or(0)
}

/// Compares the last quarter with the second: the sentence, an error if
/// something grows.
pub(super) fn judge(samples: &[Sample]) -> Result<String, String> {
    let end = samples.last().map_or(Duration::ZERO, |sample| sample.at);
    let quarter = |number: u32| -> Vec<Sample> {
        let (from, to) = (end * (number - 1) / 4, end * number / 4);
        samples
            .iter()
            .filter(|sample| sample.at > from && sample.at <= to)
            .copied()
            .collect()
    };
    let (second, last) = (quarter(2), quarter(4));
    if second.len().min(last.len()) < FEWEST {
        return Err("too few samples: let it run for 5 minutes and longer".into());
    }
    let (was, is) = (middle(&second), middle(&last));
    // The calmest moment of each: programs that are followed have files too.
    let files = |quarter: &[Sample]| quarter.iter().map(Sample::own_files).min().unwrap_or(0);
    let (files_were, files_are) = (files(&second), files(&last));
    let sentence = format!(
        "RSS {:.1} MiB in the second quarter and {:.1} MiB in the last; files not of living processes {files_were} and {files_are}",
        mebibytes(was),
        mebibytes(is)
    );
    if is > was + was / 20 + (1 << 20) || files_are > files_were {
        return Err(format!("the daemon grows: {sentence}"));
    }
    Ok(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::census::Files;

    fn samples(resident: impl Fn(u64) -> u64, files: impl Fn(u64) -> usize) -> Vec<Sample> {
        (0..=360)
            .map(|number| Sample {
                at: Duration::from_secs(10 * number),
                footprint: Footprint {
                    resident: resident(number),
                    files: Files {
                        all: files(number) + 50,
                        of_living: 50,
                    },
                    threads: 1,
                    time: Duration::from_millis(100 * number),
                },
                processes: 80,
            })
            .collect()
    }

    #[test]
    fn flat_is_right() {
        let wavy = |number: u64| (40 << 20) + (number % 5) * (1 << 20);
        assert!(judge(&samples(wavy, |number| 20 + number as usize % 3)).is_ok());
        // Start-up is in the first quarter.
        let warming = |number: u64| (40 << 20) - (60_u64.saturating_sub(number) << 17);
        assert!(judge(&samples(warming, |_| 20)).is_ok());
    }

    #[test]
    fn growth_is_told() {
        let growing = |number: u64| (40 << 20) + (number << 15);
        assert!(judge(&samples(growing, |_| 20)).is_err());
        let files = judge(&samples(|_| 40 << 20, |number| 20 + number as usize / 90));
        assert!(files.unwrap_err().contains("files"));
        assert!(judge(&samples(|_| 1, |_| 1)[..8]).is_err());
    }

    #[test]
    fn rows_cover_everything() {
        let table = table(&samples(|_| 40 << 20, |_| 20), Duration::from_mins(5));
        assert_eq!(table.lines().count(), 2 + 12);
        assert!(
            table.contains("| 3600 s | 40.0 (40.0) | 70 to 70 | 20 to 20 | 1 to 1 | 1.00 | 80 |"),
            "{table}"
        );
    }
}
