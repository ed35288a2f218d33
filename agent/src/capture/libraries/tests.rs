use std::{fs, process::Command};

use super::*;

/// Files of this machine, as they are.
struct Here;

impl Files for Here {
    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(path)
    }
}

/// Files below a directory.
struct Below(PathBuf);

impl Files for Below {
    fn open(&self, path: &Path) -> io::Result<File> {
        File::open(self.0.join(path.strip_prefix("/").unwrap_or(path)))
    }
}

impl Below {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!(
            "lingerscope-libraries-{}-{name}",
            std::process::id()
        ));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        Self(root)
    }

    fn put(&self, path: &str, data: &[u8]) {
        let path = self.0.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An image with an interpreter and these dynamic strings, as small as the
/// linker would take it.
fn image(interpreter: Option<&str>, dynamic: &[(i64, &str)]) -> Vec<u8> {
    const HEADERS: usize = 64 + 3 * 56;
    let mut strings = vec![0];
    let mut entries: Vec<(i64, u64)> = Vec::new();
    for (tag, text) in dynamic {
        entries.push((*tag, strings.len() as u64));
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
    }
    let mut text = interpreter.unwrap_or_default().as_bytes().to_vec();
    text.push(0);
    let interpreter_at = HEADERS;
    let strings_at = interpreter_at + text.len();
    let dynamic_at = strings_at + strings.len();
    entries.extend([
        (object::elf::DT_STRTAB, strings_at as u64),
        (object::elf::DT_STRSZ, strings.len() as u64),
        (0, 0),
    ]);
    let size = dynamic_at + 16 * entries.len();

    let mut data = b"\x7fELF\x02\x01\x01".to_vec();
    data.resize(64, 0);
    data[16..18].copy_from_slice(&3_u16.to_le_bytes());
    data[18..20].copy_from_slice(&62_u16.to_le_bytes());
    data[20] = 1;
    data[32] = 64;
    data[52] = 64;
    data[54] = 56;
    data[56] = 3;
    data[58] = 64;
    let interp = if interpreter.is_some() {
        object::elf::PT_INTERP
    } else {
        object::elf::PT_NULL
    };
    let segments = [
        (object::elf::PT_LOAD, 0, size),
        (interp, interpreter_at, text.len()),
        (object::elf::PT_DYNAMIC, dynamic_at, 16 * entries.len()),
    ];
    for (kind, offset, size) in segments {
        data.extend(kind.to_le_bytes());
        data.extend(5_u32.to_le_bytes());
        for word in [offset, offset, offset, size, size, 8] {
            data.extend((word as u64).to_le_bytes());
        }
    }
    data.extend(text);
    data.extend(strings);
    data.extend(
        entries
            .iter()
            .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()),
    );
    data
}

use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH};

const GLIBC: Option<&str> = Some("/lib64/ld-linux-x86-64.so.2");

fn paths(files: &dyn Files, command: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .collect();
    let images = images(files, OsStr::new(command), &environment).unwrap();
    images
        .files
        .iter()
        .map(|path| path.to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_real_program_needs_what_ldd_says() {
    let Ok(ldd) = Command::new("ldd").arg("/usr/bin/gdb").output() else {
        return;
    };
    let program = if ldd.status.success() {
        "/usr/bin/gdb"
    } else {
        "/bin/ls"
    };
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(ldd.stdout).unwrap();
    let expected = text
        .lines()
        .filter_map(|line| line.split("=> ").nth(1)?.split(' ').next());
    let found = images(&Here, OsStr::new(program), &[]).unwrap();
    assert!(found.missing.is_empty(), "{:?}", found.missing);
    let real = |path: &Path| fs::canonicalize(path).unwrap();
    let files: Vec<PathBuf> = found.files.iter().map(|path| real(path)).collect();
    for library in expected {
        assert!(
            files.contains(&real(Path::new(library))),
            "{library} is not in {files:?}"
        );
    }
}

#[test]
fn search_paths_come_in_the_linkers_order() {
    let root = Below::new("order");
    root.put("/lib64/ld-linux-x86-64.so.2", &image(None, &[]));
    root.put(
        "/bin/app",
        &image(
            GLIBC,
            &[(DT_NEEDED, "liba.so"), (DT_RPATH, "$ORIGIN/../old")],
        ),
    );
    root.put(
        "/bin/new",
        &image(
            GLIBC,
            &[(DT_NEEDED, "liba.so"), (DT_RUNPATH, "${ORIGIN}/../new")],
        ),
    );
    for place in ["old", "new", "env", "lib/x86_64-linux-gnu"] {
        root.put(
            &format!("/{place}/liba.so"),
            &image(None, &[(DT_NEEDED, "libb.so")]),
        );
        root.put(
            &format!("/{place}/libb.so"),
            format!("not for this machine {place}").as_bytes(),
        );
    }
    root.put("/usr/lib64/libb.so", &image(None, &[]));
    let environment = [("LD_LIBRARY_PATH", "/env")];
    assert!(
        paths(&root, "/bin/app", &environment).contains(&"/bin/../old/liba.so".to_owned()),
        "DT_RPATH wins"
    );
    assert!(
        paths(&root, "/bin/new", &environment).contains(&"/env/liba.so".to_owned()),
        "DT_RUNPATH does not"
    );
    assert!(paths(&root, "/bin/new", &[]).contains(&"/bin/../new/liba.so".to_owned()));
    assert!(
        paths(&root, "/bin/new", &[]).contains(&"/usr/lib64/libb.so".to_owned()),
        "others are passed over"
    );
}

#[test]
fn preloaded_libraries_and_variants_are_named() {
    let root = Below::new("preload");
    root.put("/lib64/ld-linux-x86-64.so.2", &image(None, &[]));
    root.put("/bin/app", &image(GLIBC, &[(DT_NEEDED, "libz.so")]));
    root.put(
        "/opt/libjemalloc.so",
        &image(None, &[(DT_NEEDED, "libgone.so")]),
    );
    root.put("/lib64/libz.so", &image(None, &[]));
    root.put(
        "/lib64/glibc-hwcaps/x86-64-v3/libz.so",
        &image(None, &[(DT_NEEDED, "libz.so")]),
    );
    let environment = [(
        OsString::from("LD_PRELOAD"),
        OsString::from("/opt/libjemalloc.so"),
    )];
    let found = images(&root, OsStr::new("/bin/app"), &environment).unwrap();
    let files: Vec<&str> = found
        .files
        .iter()
        .filter_map(|path| path.to_str())
        .collect();
    let expected = [
        "/bin/app",
        "/lib64/ld-linux-x86-64.so.2",
        "/opt/libjemalloc.so",
        "/lib64/glibc-hwcaps/x86-64-v3/libz.so",
        "/lib64/libz.so",
    ];
    assert_eq!(files, expected);
    assert_eq!(found.missing, ["libgone.so"]);
}

#[test]
fn musl_is_its_own_library() {
    let root = Below::new("musl");
    root.put("/lib/ld-musl-x86_64.so.1", &image(None, &[]));
    root.put("/etc/ld-musl-x86_64.path", b"/opt/musl\n");
    root.put(
        "/opt/musl/libx.so",
        &image(None, &[(DT_NEEDED, "libm.so.6")]),
    );
    root.put(
        "/bin/app",
        &image(
            Some("/lib/ld-musl-x86_64.so.1"),
            &[(DT_NEEDED, "libc.so"), (DT_NEEDED, "libx.so")],
        ),
    );
    assert_eq!(
        paths(&root, "/bin/app", &[]),
        ["/bin/app", "/lib/ld-musl-x86_64.so.1", "/opt/musl/libx.so"]
    );
}

#[test]
fn scripts_lead_to_their_interpreters() {
    let root = Below::new("scripts");
    root.put("/bin/env", &image(None, &[]));
    root.put("/opt/python", &image(None, &[]));
    root.put("/opt/run", b"#!/bin/env -S A=1 python\nimport os\n");
    root.put("/opt/loop", b"#!/opt/loop\n");
    root.put("/opt/text", b"hello");
    let environment = [("PATH", "/nowhere:/opt")];
    assert_eq!(
        paths(&root, "run", &environment),
        ["/bin/env", "/opt/python"]
    );
    let problem = |command: &str| {
        images(&root, OsStr::new(command), &[])
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        problem("/opt/loop"),
        "/opt/loop: too many scripts run each other"
    );
    assert_eq!(
        problem("/opt/text"),
        "/opt/text: neither a 64-bit x86 program nor a script"
    );
    assert_eq!(problem("run"), "run: command not found in PATH");
    assert!(problem("/opt/none").starts_with("/opt/none: "));
}

#[test]
fn the_number_of_files_is_bounded() {
    let root = Below::new("bound");
    root.put("/lib64/ld-linux-x86-64.so.2", &image(None, &[]));
    let names: Vec<String> = (0..MAX_NEEDS)
        .map(|number| format!("lib{number}.so"))
        .collect();
    let needs: Vec<(i64, &str)> = names
        .iter()
        .map(|name| (DT_NEEDED, name.as_str()))
        .collect();
    root.put("/bin/app", &image(GLIBC, &needs));
    for name in &names {
        let more: Vec<String> = (0..3).map(|number| format!("{name}.{number}")).collect();
        let needs: Vec<(i64, &str)> = more.iter().map(|name| (DT_NEEDED, name.as_str())).collect();
        root.put(&format!("/lib64/{name}"), &image(None, &needs));
        for name in &more {
            root.put(&format!("/lib64/{name}"), &image(None, &[]));
        }
    }
    let found = images(&root, OsStr::new("/bin/app"), &[]).unwrap();
    assert_eq!((found.files.len(), found.truncated), (MAX_FILES, true));
}
