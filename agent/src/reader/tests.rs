use super::*;

/// Not a test: what the tests of this program start as their reader.
#[test]
#[ignore = "the reader process of other tests"]
fn the_reader_of_other_tests() {
    let _ = serve::run();
    // The test runner would print, which a reader may not.
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

fn own() -> File {
    File::open("/proc/self/exe").unwrap()
}

#[test]
fn a_file_is_read_by_another_process() {
    let id = build_id(&own()).unwrap();
    assert!(id.is_none_or(|id| id.len() == 40));
    let (code, rows) = code(&own()).unwrap();
    assert!(rows.len() > 10_000);
    assert!(code.segments.iter().any(|segment| segment.executable));
    assert!(self::id().is_some_and(|id| id != std::process::id()));
}
