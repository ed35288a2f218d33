//! The command line program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything of ours runs: a reader has no use for it, and no right.
    if lingerscope::reader::is_asked_for() {
        return lingerscope::reader::serve::run();
    }
    lingerscope::log::init();
    lingerscope::cli::run()
}
