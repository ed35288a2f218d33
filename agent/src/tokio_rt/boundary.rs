//! stub

/// x
pub struct Future {
    /// n
    pub name: String,
    /// f
    pub frame: usize,
}
/// x
pub fn future_name(_names: &[&str]) -> Option<Future> {
    None
}
