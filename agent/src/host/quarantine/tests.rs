use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

/// A directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let folder = format!("lingerscope-quarantine-{name}-{}", std::process::id());
        Self(env::temp_dir().join(folder))
    }

    fn list(&self) -> PathBuf {
        self.0.join("quarantine.json")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn build(number: u64) -> Build {
    Build {
        build_id: Some(format!("{number:x}")),
        device: 7,
        inode: number,
        changed: (1, 2),
    }
}

fn add(list: &mut Quarantine, number: u64, uid: u32) -> Entry {
    list.add(build(number), format!("/bin/{number}"), uid, 11)
        .unwrap()
}

#[test]
fn outlives_the_run_and_belongs_to_file_and_user() {
    let place = Place::new("run");
    let mut list = Quarantine::open(&place.list());
    assert_eq!(list.entries().count(), 0);
    add(&mut list, 1, 1000);
    // The same again takes the place of the first.
    let second = add(&mut list, 1, 1000);
    let mut again = Quarantine::open(&place.list());
    assert_eq!(again.entries().collect::<Vec<_>>(), [&second]);
    assert!(again.find(&build(1), 1000).is_some());
    // Another user, another build, another file.
    assert!(again.find(&build(1), 1001).is_none());
    let mended = Build {
        build_id: Some("2".to_owned()),
        ..build(1)
    };
    assert!(again.find(&mended, 1000).is_none());
    let copied = Build {
        inode: 2,
        ..build(1)
    };
    assert!(again.find(&copied, 1000).is_none());
    // The same file after a boot, or in the container's next root.
    let moved = Build {
        device: 9,
        ..build(1)
    };
    assert!(again.find(&moved, 1000).is_some());
    // What one process adds another sees.
    add(&mut list, 3, 0);
    assert!(again.find(&build(3), 0).is_none());
    again.refresh();
    assert!(again.find(&build(3), 0).is_some());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.list()), 0o600);
    assert_eq!(mode(&place.0), 0o700);
}

#[test]
fn without_a_build_id_any_change_makes_another_build() {
    let place = Place::new("stripped");
    let stripped = Build {
        build_id: None,
        ..build(1)
    };
    let mut list = Quarantine::open(&place.list());
    let entry = list.add(stripped.clone(), "/srv/a b".into(), 5, 6).unwrap();
    assert_eq!(entry.mend(), "lingerscope quarantine clear '/srv/a b'");
    assert!(list.find(&stripped, 5).is_some());
    for other in [
        Build {
            changed: (1, 3),
            ..stripped.clone()
        },
        Build {
            device: 8,
            ..stripped.clone()
        },
        build(1),
    ] {
        assert!(list.find(&other, 5).is_none(), "{other:?}");
    }
}

#[test]
fn entries_expire() {
    let place = Place::new("expire");
    let mut list = Quarantine::open(&place.list());
    let entry = add(&mut list, 1, 0);
    assert_eq!(
        entry.until.duration_since(entry.when).unsigned_abs(),
        PERIOD
    );
    list.set_period(Duration::from_millis(1));
    add(&mut list, 2, 0);
    std::thread::sleep(Duration::from_millis(2));
    assert!(list.find(&build(2), 0).is_none());
    assert!(list.find(&build(1), 0).is_some());
    assert_eq!(list.entries().count(), 1);
    // Gone from the file with the next change.
    add(&mut list, 3, 0);
    assert!(
        !fs::read_to_string(place.list())
            .unwrap()
            .contains("/bin/2\"")
    );
}

#[test]
fn nobody_pushes_out_the_entries_of_others() {
    let place = Place::new("bound");
    let mut list = Quarantine::open(&place.list());
    add(&mut list, 1, 0);
    for number in 2..MAX_ENTRIES as u64 + 10 {
        add(&mut list, number, 1000);
    }
    assert_eq!(list.entries().count(), MAX_ENTRIES);
    assert!(list.find(&build(1), 0).is_some());
    assert!(list.find(&build(2), 1000).is_none());
    assert!(list.find(&build(MAX_ENTRIES as u64 + 9), 1000).is_some());
}

#[test]
fn clears_by_name() {
    let place = Place::new("clear");
    let mut list = Quarantine::open(&place.list());
    for number in 10..14 {
        add(&mut list, number, 0);
    }
    assert_eq!(list.clear(Which::Named("nothing")).unwrap(), []);
    assert_eq!(list.clear(Which::Named("a")).unwrap().len(), 1);
    assert_eq!(list.clear(Which::Named("/bin/11")).unwrap().len(), 1);
    assert!(list.find(&build(11), 0).is_none());
    assert_eq!(list.entries().count(), 2);
    assert_eq!(list.clear(Which::All).unwrap().len(), 2);
    assert_eq!(Quarantine::open(&place.list()).entries().count(), 0);
}

#[test]
fn clearing_nothing_makes_nothing() {
    let place = Place::new("nothing");
    let mut list = Quarantine::open(&place.list());
    assert_eq!(list.clear(Which::All).unwrap(), []);
    assert!(!place.0.exists());
}

#[test]
fn what_is_damaged_is_set_aside() {
    let place = Place::new("damaged");
    let file = place.list();
    fs::create_dir_all(&place.0).unwrap();
    let good = {
        let mut list = Quarantine::open(&file);
        add(&mut list, 1, 0);
        fs::read(&file).unwrap()
    };
    let cut = good[..good.len() / 2].to_vec();
    let bad_time = String::from_utf8(good.clone())
        .unwrap()
        .replace("\"when\": \"2", "\"when\": \"x");
    for bytes in [
        b"".to_vec(),
        b"not a list".to_vec(),
        vec![b'['; 100_000],
        vec![0; (1 << 20) + 1],
        b"{\"format\": 2, \"entries\": [{}]}".to_vec(),
        bad_time.into_bytes(),
        cut,
    ] {
        fs::write(&file, &bytes).unwrap();
        let mut list = Quarantine::open(&file);
        assert_eq!(list.entries().count(), 0);
        assert!(!file.exists());
        let kept = fs::read(place.0.join("quarantine.json.damaged")).unwrap();
        assert_eq!(kept, bytes);
        add(&mut list, 2, 0);
        assert_eq!(Quarantine::open(&file).entries().count(), 1);
    }
    // A directory, and a pipe that would block whoever opens it.
    fs::remove_file(&file).unwrap();
    fs::remove_file(place.0.join("quarantine.json.damaged")).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(Quarantine::open(&file).entries().count(), 0);
    assert!(!file.exists());
    // Nothing takes the place of a directory: this one stays, and is written
    // over.
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut list = Quarantine::open(&file);
    assert_eq!(list.entries().count(), 0);
    add(&mut list, 3, 0);
    assert_eq!(Quarantine::open(&file).entries().count(), 1);
}

#[test]
fn other_formats_are_set_aside() {
    let place = Place::new("old");
    fs::create_dir_all(&place.0).unwrap();
    let old = br#"[{"build_id":"ab","exe":"/bin/x","signal":11,"when":"2026-01-01T00:00:00Z"}]"#;
    for bytes in [&old[..], br#"{"format": 3, "deaths": {}}"#] {
        fs::write(place.list(), bytes).unwrap();
        assert_eq!(Quarantine::open(&place.list()).entries().count(), 0);
        let kept = fs::read(place.0.join("quarantine.json.old")).unwrap();
        assert_eq!(kept, bytes);
    }
}

#[test]
fn writers_do_not_lose_each_others_entries() {
    let place = Place::new("writers");
    let writer = |uid: u32| {
        let file = place.list();
        std::thread::spawn(move || {
            let mut list = Quarantine::open(&file);
            for number in 0..5 {
                add(&mut list, number, uid);
                // Nobody writes without a pause; a loop would starve others.
                std::thread::sleep(Duration::from_millis(30));
            }
        })
    };
    let writers: Vec<_> = (0..4).map(writer).collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(Quarantine::open(&place.list()).entries().count(), 20);
}

#[test]
fn what_cannot_be_written_holds_for_the_run() {
    let place = Place::new("unwritable");
    // The directory's place is taken, for root too.
    fs::write(&place.0, b"").unwrap();
    let mut list = Quarantine::open(&place.list());
    let error = list.add(build(1), "/bin/x".into(), 0, 11).unwrap_err();
    assert!(format!("{error:#}").contains("cannot write"));
    list.refresh();
    assert!(list.find(&build(1), 0).is_some());
    fs::remove_file(&place.0).unwrap();
}
