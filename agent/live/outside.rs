//! Growth that no allocator function shows is found by its page faults.

use anyhow::ensure;
use libtest_mimic::Trial;

use crate::{inspection::Inspection, lab, program::Program, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("outside::mapped_arena", || {
            let mut random = lab::random("outside::mapped_arena")?;
            let rate = random.log_uniform(3000, 12_000);
            let path = lab::compile("cc", "arena.c", &[], "arena")?;
            let program = Program::start(&path, &["keep", &rate.to_string()])?;
            let report = Inspection::of(program.pid(), 14)?
                .arguments(["--fail-on", "suspected"])
                .run()?;
            report.expect_code(&[3])?;
            let top = report.top(program.pid())?;
            ensure!(
                top.text("verdict") == "outside-allocators"
                    && top.first_user_function() == "grow_arena",
                "{rate} KiB/s in grow_arena\n{report}"
            );
            // usleep and the work between make it a little slower than asked.
            let (_, low, high) = top.estimate("leak_bytes_per_s")?;
            let truth = f64::from(rate) * 1024.0;
            ensure!(
                low <= truth && truth * 0.85 <= high,
                "{low:.0}..{high:.0} B/s does not cover about {truth:.0}\n{report}"
            );
            Ok(())
        }),
        trial("outside::mapped_and_given_back", || {
            let path = lab::compile("cc", "arena.c", &[], "arena")?;
            let program = Program::start(&path, &["give", "12000"])?;
            let report = Inspection::of(program.pid(), 14)?
                .arguments(["--fail-on", "suspected"])
                .run()?;
            report.expect_code(&[0])
        }),
    ]
}
