//! Draws that a seed repeats.

/// splitmix64, good enough to vary a test's parameters.
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for each name.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let salt = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Self(seed ^ salt)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// In 0..1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In `low..=high`, orders of magnitude alike.
    pub(crate) fn log_uniform(&mut self, low: u32, high: u32) -> u32 {
        let (low, high) = (f64::from(low), f64::from(high));
        (low * (high / low).powf(self.share())).round() as u32
    }

    /// In `low..=high`.
    pub(crate) fn uniform(&mut self, low: u32, high: u32) -> u32 {
        low + (f64::from(high - low + 1) * self.share()) as u32
    }
}
