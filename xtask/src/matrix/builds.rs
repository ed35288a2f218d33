//! What is built: versions, profiles, allocators.

/// Tokio's version in this workspace is the newest that is tried.
const NEWEST: &str = "1.54.1";
/// Versions that are tried in release and stripped builds: the first that can
/// be read, and one before and after each change of layout.
const VERSIONS: [&str; 9] = [
    "1.23.1", "1.28.2", "1.30.0", "1.35.1", "1.38.2", "1.40.0", "1.44.2", "1.47.1", NEWEST,
];
/// Versions that are refused with a sentence.
const TOO_OLD: [&str; 2] = ["1.20.6", "1.22.0"];

const RELEASE: &str = "";
const STRIPPED: &str = "strip = true\nlto = \"fat\"\ncodegen-units = 1\n";

/// One way to build the sample.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) name: String,
    pub(crate) tokio: &'static str,
    /// Lines of the release profile; `None` for a debug build.
    profile: Option<&'static str>,
    pub(crate) flags: &'static str,
    pub(crate) target: Option<&'static str>,
    /// Crate and type.
    allocator: Option<(&'static str, &'static str)>,
}

impl Build {
    fn new(name: &str, tokio: &'static str, profile: Option<&'static str>) -> Self {
        Self {
            name: format!("{tokio} {name}").replace(' ', "-"),
            tokio,
            profile,
            flags: "",
            target: None,
            allocator: None,
        }
    }

    fn flags(self, flags: &'static str) -> Self {
        Self { flags, ..self }
    }

    fn target(self, target: &'static str) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    fn allocator(self, crate_name: &'static str, path: &'static str) -> Self {
        Self {
            allocator: Some((crate_name, path)),
            ..self
        }
    }

    /// Whether symbols are left to name futures by.
    pub(crate) fn has_symbols(&self) -> bool {
        !self.profile.is_some_and(|lines| lines.contains("strip"))
    }

    /// Whether nothing tells where its allocator is: a static one without
    /// symbols.
    pub(crate) fn hides_its_allocator(&self) -> bool {
        !self.has_symbols() && (self.target.is_some() || self.allocator.is_some())
    }

    /// Whether debug information tells the types of futures.
    pub(crate) fn has_types(&self) -> bool {
        self.profile.is_none_or(|lines| lines.contains("debug = 2"))
    }

    /// Whether this version's tasks can be listed.
    pub(crate) fn is_readable(&self) -> bool {
        !TOO_OLD.contains(&self.tokio)
    }

    /// The package around the sample.
    pub(crate) fn manifest(&self) -> String {
        let allocator = self.allocator.map_or_else(String::new, |(name, _)| {
            format!("{name} = {{ version = \"*\", default-features = false }}\n")
        });
        format!(
            "[package]\nname = \"sample\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[workspace]\n\n\
             [dependencies]\ntokio = {{ version = \"={}\", features = [\"rt-multi-thread\", \"time\", \"sync\"] }}\n{allocator}\n\
             [profile.release]\n{}",
            self.tokio,
            self.profile.unwrap_or_default(),
        )
    }

    /// What is added to the sample.
    pub(crate) fn global_allocator(&self) -> String {
        self.allocator.map_or_else(String::new, |(_, path)| {
            format!("\n#[global_allocator]\nstatic ALLOCATOR: {path} = {path};\n")
        })
    }

    /// Arguments of `cargo build`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        arguments.extend(self.profile.map(|_| "--release".to_owned()));
        arguments.extend(self.target.map(|target| format!("--target={target}")));
        arguments
    }

    /// The program below the target directory.
    pub(crate) fn output(&self) -> String {
        let profile = if self.profile.is_some() {
            "release"
        } else {
            "debug"
        };
        match self.target {
            Some(target) => format!("{target}/{profile}/sample"),
            None => format!("{profile}/sample"),
        }
    }
}

/// Everything that is tried.
pub(crate) fn all() -> Vec<Build> {
    let newest = |name: &str, profile| Build::new(name, NEWEST, profile);
    let mut builds = Vec::new();
    for version in VERSIONS {
        builds.push(Build::new("release", version, Some(RELEASE)));
        builds.push(Build::new("fat LTO stripped", version, Some(STRIPPED)));
    }
    builds.extend([
        newest("debug", None),
        newest("line tables", Some("debug = \"line-tables-only\"\n")),
        newest("full debug", Some("debug = 2\n")),
        newest("thin LTO", Some("lto = \"thin\"\n")),
        newest("fat LTO", Some("lto = \"fat\"\ncodegen-units = 1\n")),
        newest("stripped", Some("strip = true\n")),
        newest("panic abort", Some("panic = \"abort\"\n")),
        newest(
            "size abort fat LTO stripped",
            Some("opt-level = \"s\"\npanic = \"abort\"\nstrip = true\nlto = \"fat\"\n"),
        ),
        newest("v0", Some(RELEASE)).flags("-Csymbol-mangling-version=v0"),
        newest("fixed address", Some(RELEASE)).flags("-Crelocation-model=static"),
        newest("fixed address stripped", Some("strip = true\n")).flags("-Crelocation-model=static"),
        newest("packed relocations", Some(RELEASE)).flags("-Clink-arg=-Wl,-z,pack-relative-relocs"),
        newest("tokio_unstable", Some(RELEASE)).flags("--cfg tokio_unstable"),
        newest("tokio_unstable stripped", Some(STRIPPED)).flags("--cfg tokio_unstable"),
        newest("musl", Some(RELEASE)).target("x86_64-unknown-linux-musl"),
        newest("musl stripped", Some(STRIPPED)).target("x86_64-unknown-linux-musl"),
        newest("jemalloc", Some(RELEASE))
            .allocator("tikv-jemallocator", "tikv_jemallocator::Jemalloc"),
        newest("jemalloc stripped", Some(STRIPPED))
            .allocator("tikv-jemallocator", "tikv_jemallocator::Jemalloc"),
        newest("mimalloc", Some(RELEASE)).allocator("mimalloc", "mimalloc::MiMalloc"),
        newest("mimalloc stripped", Some(STRIPPED)).allocator("mimalloc", "mimalloc::MiMalloc"),
    ]);
    for version in TOO_OLD {
        builds.push(Build::new("release", version, Some(RELEASE)));
    }
    builds
}

/// Builds that the tests try: the first readable version with symbols, the
/// newest stripped of everything, and one as developers run it.
pub(crate) fn few() -> Vec<Build> {
    const FEW: [&str; 3] = ["1.23.1-release", "1.54.1-fat-LTO-stripped", "1.54.1-debug"];
    let mut builds = all();
    builds.retain(|build| FEW.contains(&build.name.as_str()));
    builds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_exist() {
        assert_eq!(few().len(), 3);
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<String> = all().into_iter().map(|build| build.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_allocator_is_used() {
        let build = all()
            .into_iter()
            .find(|build| build.name.ends_with("mimalloc"))
            .unwrap();
        assert!(build.manifest().contains("\nmimalloc = "));
        assert!(build.global_allocator().contains("mimalloc::MiMalloc"));
    }
}
