//! Memory of real healthy programs, as it was recorded.

/// Name and pages, one sample a second.
pub(crate) fn all() -> Vec<(&'static str, Vec<u32>)> {
    [
        (
            "python-requests",
            include_str!("recorded/python-requests.txt"),
        ),
        ("python-batch", include_str!("recorded/python-batch.txt")),
        ("node-requests", include_str!("recorded/node-requests.txt")),
        ("node-bursts", include_str!("recorded/node-bursts.txt")),
        ("java-g1", include_str!("recorded/java-g1-384m.txt")),
        ("java-serial", include_str!("recorded/java-serial-192m.txt")),
    ]
    .map(|(name, text)| (name, unpacked(text)))
    .to_vec()
}

/// `+3` and `-3` are changes, `.` and `.3` one and three samples of none.
fn unpacked(text: &str) -> Vec<u32> {
    let mut pages = Vec::new();
    let mut now = 0i64;
    let words = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace);
    for word in words {
        let times = match word.strip_prefix('.') {
            Some("") => 1,
            Some(times) => times.parse().unwrap(),
            None => {
                now += word.parse::<i64>().unwrap();
                1
            }
        };
        pages.extend(std::iter::repeat_n(u32::try_from(now).unwrap(), times));
    }
    pages
}
