//! The name of an allocation site across builds, hosts and restarts.

use std::fmt;

use serde::{Serialize, Serializer};

/// A 128-bit hash, printed as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u128);

/// The fingerprint of a site: FNV-1a with 128 bits
/// (draft-eastlake-fnv, offset basis and prime of its section 5) over the
/// executable's file name and the names of the user functions, innermost
/// first, each followed by a zero byte.
///
/// Function names lose what changes from build to build: the hash that
/// Rust's legacy mangling appends (`::h0123456789abcdef`), v0 disambiguators
/// (`[0123abcd]`) and the clones a compiler makes (`.llvm.123`, `.constprop.0`,
/// `.cold`). Addresses, lines, build ids and verdicts do not take part.
pub fn fingerprint<S: AsRef<str>>(exe_basename: &str, functions: &[S]) -> Fingerprint {
    let add = |hash, part: &str| fnv1a(hash, part.bytes().chain([0]));
    let hash = add(OFFSET_BASIS, exe_basename);
    Fingerprint(functions.iter().fold(hash, |hash, function| {
        add(hash, &stable_name(function.as_ref()))
    }))
}

fn fnv1a(hash: u128, bytes: impl Iterator<Item = u8>) -> u128 {
    bytes.fold(hash, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    })
}

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = (1 << 88) + (1 << 8) + 0x3b;

/// A function name without the parts that change from build to build.
pub(super) fn stable_name(name: &str) -> String {
    let mut name = name;
    // clone suffixes come last and may be stacked
    while let Some((front, back)) = name.rsplit_once('.') {
        let number = !back.is_empty() && back.bytes().all(|b| b.is_ascii_digit());
        if front.is_empty()
            || !(number
                || matches!(
                    back,
                    "llvm" | "constprop" | "isra" | "part" | "cold" | "lto_priv" | "localalias"
                ))
        {
            break;
        }
        name = front;
    }
    if let Some((front, back)) = name.rsplit_once("::h")
        && back.len() == 16
        && back.bytes().all(|b| b.is_ascii_hexdigit())
    {
        name = front;
    }
    without_disambiguators(name)
}

/// Removes `[…hexadecimal digits…]` that directly follow an identifier.
fn without_disambiguators(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((front, back)) = rest.split_once('[') {
        out.push_str(front);
        let digits = back.bytes().take_while(u8::is_ascii_hexdigit).count();
        let after_identifier = front.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        match back.get(digits..).and_then(|after| after.strip_prefix(']')) {
            Some(after) if after_identifier && digits >= 8 => rest = after,
            _ => {
                out.push('[');
                rest = back;
            }
        }
    }
    out.push_str(rest);
    out
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_stable() {
        // Known answers of FNV-1a 128.
        assert_eq!(
            fnv1a(OFFSET_BASIS, b"a".iter().copied()),
            0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964
        );
        assert_eq!(
            fnv1a(OFFSET_BASIS, b"foobar".iter().copied()),
            0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18
        );
        assert_eq!(
            fingerprint("server", &["app::handle", "app::serve"]).to_string(),
            "3ba00b2471619c80102df996eedec90d"
        );
    }

    #[test]
    fn build_noise_does_not_count() {
        let one = fingerprint(
            "server",
            &[
                "app::handle::h0123456789abcdef",
                "serve.llvm.1234",
                "g.constprop.0.cold",
            ],
        );
        let two = fingerprint("server", &["app::handle::hfedcba9876543210", "serve", "g"]);
        assert_eq!(one, two);
        assert_eq!(stable_name("app[0123456789abcdef]::f"), "app::f");
        assert_eq!(stable_name("<[u8] as app::T>::f"), "<[u8] as app::T>::f");
        assert_eq!(stable_name("f<[0]>"), "f<[0]>");
        assert_eq!(stable_name("..."), "...");
        assert_eq!(stable_name("a.b"), "a.b");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint("a", &["bc"]), fingerprint("ab", &["c"]));
        assert_ne!(fingerprint("a", &["b", "c"]), fingerprint("a", &["c", "b"]));
        assert_ne!(fingerprint("a", &["b"]), fingerprint("a", &["b", ""]));
    }
}
