//! The command line program.

use std::process::ExitCode;

fn main() -> ExitCode {
    lingerscope::log::init();
    lingerscope::cli::run()
}
