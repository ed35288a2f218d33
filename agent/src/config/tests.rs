use std::fs;

use super::*;

/// Settings of files, each a text.
fn read(files: &[&str], keys: UnknownKeys) -> Result<Loaded, Invalid> {
    let mut layers = Vec::new();
    for (index, text) in files.iter().enumerate() {
        let file = PathBuf::from(format!("{index}.yaml"));
        layers.push(
            Layer::parse(&file, (*text).to_owned()).map_err(|problem| Invalid(vec![problem]))?,
        );
    }
    settings(&layers, keys, 1_800_000_000)
}

fn good(files: &[&str]) -> Settings {
    match read(files, UnknownKeys::Refuse) {
        Ok(loaded) => loaded.settings,
        Err(invalid) => panic!("{invalid}"),
    }
}

fn refused(text: &str) -> String {
    match read(&[text], UnknownKeys::Refuse) {
        Ok(loaded) => panic!("taken: {:?}", loaded.settings),
        Err(invalid) => invalid.to_string(),
    }
}

/// The default file with every setting switched on.
fn switched_on(text: &str) -> String {
    text.lines()
        .map(|line| {
            let body = line.trim_start();
            match body.strip_prefix('#') {
                // settings follow their # at once, explanations after a blank
                Some(rest)
                    if rest.starts_with(|c: char| c.is_alphabetic())
                        || rest.starts_with("  - ") =>
                {
                    let indent = line.len() - body.len();
                    format!("{:indent$}{rest}\n", "")
                }
                _ => format!("{line}\n"),
            }
        })
        .collect()
}

#[test]
fn default_file_says_what_holds() {
    let text = default_file();
    assert_eq!(good(&[&text]), Settings::default());
    let on = switched_on(&text);
    assert_eq!(good(&[&on]), Settings::default());
    // the switch works: another value behind the same key is taken
    let changed = on.replace("window_ms: 300", "window_ms: 200");
    assert_eq!(good(&[&changed]).budget.window_ms, 200);
    // every key is there, switched on
    for change in [
        "memory: 256MiB",
        "- sshd*",
        "repeat: 1d",
        "listen: null",
        "mode: survey",
    ] {
        assert!(on.contains(change), "{change} in {on}");
    }
}

#[test]
fn shipped_file_is_current() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/lingerscope.yaml");
    let shipped = fs::read_to_string(file).unwrap_or_default();
    assert!(
        shipped == default_file(),
        "config/lingerscope.yaml is out of date: cargo run -p lingerscope -- default-config > config/lingerscope.yaml"
    );
}

#[test]
fn nothing_means_defaults() {
    for text in ["", "# nothing\n", "budget:\nwatch:\n", "---\n", "{}"] {
        assert_eq!(good(&[text]), Settings::default(), "{text:?}");
    }
}

#[test]
fn values_are_taken() {
    let settings = good(&["
mode: full
watch: {interval: 30s, min_rate: 1MiB/h, min_growth: 16MiB}
capture: {max_targets: 2, never: [postgres]}
budget: {target_percent: 0.5, window_percent: 10, window_ms: 100, agent_percent: 1, memory: 128MiB}
verdicts: {growth_confirm: 2h, min_confidence: strong}
alerts: {page_within: 1h 30m, worsened_factor: 3, burst: 5, burst_window: 1min}
include: {unit: [web*.service], uid: [1000, 0]}
exclude: {exe: [/opt/*], cgroup: ['/user.slice/*']}
pinned: {name: [server]}
suppressions:
  - {verdict: unbounded-growth, function: 'reportd::*', reason: known, ticket: OPS-1, expires: 2027-03-31}
metrics: {listen: '[::1]:9464', textfile: /var/lib/node_exporter/lingerscope.prom, interval: 1min}
log: {level: debug}
"]);
    assert_eq!(settings.mode, Mode::Full);
    assert_eq!(settings.watch.interval, Duration::from_secs(30));
    assert_eq!(settings.budget.memory, Bytes(128 << 20));
    assert_eq!(settings.alerts.page_within, Duration::from_mins(90));
    assert_eq!(settings.suppressions.len(), 1);
    assert_eq!(
        settings.suppressions[0].words().as_str(),
        "known (OPS-1), until 2027-03-31"
    );
    assert_eq!(settings.metrics.listen, "[::1]:9464".parse().ok());
    let subject = |unit, exe| Subject {
        name: "x",
        unit: Some(unit),
        exe: Some(exe),
        ..Subject::default()
    };
    assert!(settings.covers(&subject("web1.service", "/srv/web")));
    assert!(!settings.covers(&subject("db.service", "/srv/web")));
    assert!(!settings.covers(&subject("web1.service", "/opt/web")));
    assert!(settings.covers(&Subject {
        uid: Some(0),
        ..Subject::default()
    }));
    assert!(settings.capture.forbids(1, "init", None));
    assert!(
        settings
            .capture
            .forbids(9, "renamed", Some("/usr/bin/postgres"))
    );
    assert!(
        !settings.capture.forbids(9, "sshd", None),
        "a list replaces the default"
    );
}

#[test]
fn the_never_list_holds_what_a_machine_lives_on() {
    let capture = Capture::default();
    for name in [
        "sshd",
        "sshd-session",
        "systemd-journal",
        "dbus-daemon",
        "containerd-shim",
        "kubelet",
        "conmon",
    ] {
        assert!(capture.forbids(9, name, None), "{name}");
    }
    assert!(!capture.forbids(9, "postgres", Some("/usr/bin/postgres")));
}

#[test]
fn later_files_win_by_key() {
    let settings = good(&[
        "budget: {memory: 128MiB, window_ms: 100}\ncapture: {never: [a, b]}\nalerts: {burst: 3}",
        "budget: {window_ms: 50}\ncapture: {never: [c]}\nalerts: {burst: null}",
    ]);
    assert_eq!(settings.budget.memory, Bytes(128 << 20));
    assert_eq!(settings.budget.window_ms, 50);
    assert_eq!(settings.capture.never.len(), 1);
    assert_eq!(settings.alerts.burst, Alerts::default().burst);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn errors_name_file_line_key_and_mend() {
    for (text, parts) in [
        (
            "mode: survey\nbuget:\n  memory: 1GiB\n",
            [
                "0.yaml:2: buget: ",
                "unknown key `buget`; did you mean `budget`?",
            ],
        ),
        (
            "budget:\n  memroy: 1GiB\n",
            ["0.yaml:2: budget.memroy: ", "did you mean `memory`?"],
        ),
        (
            "target_percent: 1\n",
            ["0.yaml:1: target_percent: ", "it belongs below `budget`"],
        ),
        (
            "telemetry: 1\n",
            ["0.yaml:1: telemetry: ", "known here: mode, watch"],
        ),
        (
            "\nbudget: {memory: 256}\n",
            ["0.yaml:2: budget.memory: ", "256 of what? Write 256B"],
        ),
        (
            "watch:\n  interval: fast\n",
            ["0.yaml:2: watch.interval: ", "is no time"],
        ),
        (
            "watch:\n\n  interval: 10\n",
            ["0.yaml:3: watch.interval: ", "Write 10s"],
        ),
        (
            "watch:\n  interval: 1ms\n",
            ["0.yaml:2: watch.interval: ", "from 1s to 10min"],
        ),
        (
            "budget:\n  target_percent: 20\n  window_percent: 10\n",
            [
                "0.yaml:3: budget.window_percent: ",
                "less than budget.target_percent (20)",
            ],
        ),
        (
            "budget:\n  target_percent: 40\n",
            ["budget.window_percent: ", "less than"],
        ),
        ("budget: 1\n", ["0.yaml:1: budget: ", "keys belong here"]),
        (
            "capture:\n  never: sshd\n",
            ["0.yaml:2: capture.never: ", "a list belongs here"],
        ),
        (
            "capture:\n  never:\n    - a\n    - [b]\n",
            ["0.yaml:4: capture.never[1]: ", "not a list"],
        ),
        (
            "alerts: {burst_window: 2d}\n",
            [
                "0.yaml:1: alerts.burst_window: ",
                "longer than alerts.repeat",
            ],
        ),
        (
            "mode: watch\npinned: {name: [a]}\n",
            ["0.yaml:2: pinned: ", "`mode: watch` sets none"],
        ),
        (
            "suppressions:\n  - exe: a\n    reason: b\n  - reason: c\n",
            ["0.yaml:4: suppressions[1]: ", "silence everything"],
        ),
        (
            "suppressions:\n  - exe: a\n",
            ["0.yaml:2: suppressions[0]: ", "has no reason"],
        ),
        (
            "suppressions:\n  - exe: a\n    reasn: b\n",
            [
                "0.yaml:3: suppressions[0].reasn: ",
                "did you mean `reason`?",
            ],
        ),
        (
            "suppressions:\n  - verdict: unbounded-grouth\n    reason: b\n",
            [
                "0.yaml:2: suppressions[0].verdict: ",
                "did you mean `unbounded-growth`?",
            ],
        ),
        (
            "metrics: {listen: 'localhost:1'}\n",
            ["0.yaml:1: metrics.listen: ", "127.0.0.1:9464"],
        ),
        (
            "metrics: {textfile: /x/y.txt}\n",
            ["0.yaml:1: metrics.textfile: ", ".prom"],
        ),
        (
            "metrics: {textfile: y.prom}\n",
            ["0.yaml:1: metrics.textfile: ", "begin with `/`"],
        ),
        (
            "include: {name: [a]}\nexclude: {name: [a]}\n",
            ["0.yaml:2: exclude.name: ", "nothing would be left"],
        ),
        ("mode: [survey]\n", ["0.yaml:1: mode: ", "not a list"]),
        ("mode: !x survey\n", ["0.yaml:1: mode: ", "tags"]),
        ("mode: survey\nmode: full\n", ["0.yaml:", "duplicate"]),
        (
            "mode: survey\n  budget: [\n",
            ["0.yaml:2: ", "this is no YAML"],
        ),
        ("- mode\n", ["0.yaml", "keys belong here"]),
        ("1: 2\n", ["0.yaml", "plain word"]),
    ] {
        let said = refused(text);
        for part in parts {
            assert!(
                said.contains(part),
                "{part:?} is not in {said:?} about {text:?}"
            );
        }
    }
}

#[test]
fn a_fault_is_told_where_the_value_was_set() {
    let invalid = read(
        &[
            "\nbudget: {target_percent: 2}",
            "\n\nbudget: {window_percent: 1}",
        ],
        UnknownKeys::Refuse,
    )
    .unwrap_err();
    assert!(
        invalid
            .to_string()
            .starts_with("1.yaml:3: budget.window_percent: "),
        "{invalid}"
    );
}

#[test]
fn unknown_keys_can_be_a_warning() {
    let text = "future: 1\nbudget: {window_ms: 100}\nsuppressions: [{exe: a, reason: b, until: c}]";
    let loaded = read(&[text], UnknownKeys::Warn).unwrap();
    assert_eq!(loaded.settings.budget.window_ms, 100);
    assert_eq!(loaded.warnings.len(), 2);
    assert!(read(&["mode: what\nfuture: 1"], UnknownKeys::Warn).is_err());
}

#[test]
fn doubts_are_warnings() {
    let loaded = read(
        &["metrics: {listen: '0.0.0.0:9464'}\nsuppressions: [{exe: a, reason: b, expires: 2020-01-01}]"],
        UnknownKeys::Refuse,
    )
    .unwrap();
    let said: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("0.yaml:1: metrics.listen: "), "{said:?}");
    assert!(said[1].contains("expired on 2020-01-01"), "{said:?}");
}

#[test]
fn problems_are_bounded() {
    let many: Vec<String> = (0..1000).map(|number| format!("key{number}: 1")).collect();
    let many = many.join("\n");
    let invalid = read(&[&many], UnknownKeys::Refuse).unwrap_err();
    assert_eq!(invalid.0.len(), 21);
    assert!(
        invalid
            .to_string()
            .ends_with("and 980 more; mend the first ones"),
        "{invalid}"
    );
}

#[test]
fn a_reload_tells_what_changes() {
    let old = Settings::default();
    let new = good(&[
        "budget: {memory: 128MiB, window_ms: 100}\nsuppressions: [{exe: a, reason: b c}]\nmetrics: {listen: '127.0.0.1:1'}",
    ]);
    assert_eq!(difference(&old, &old), []);
    let changes = difference(&old, &new);
    let told: Vec<(&str, &str, &str, bool)> = changes
        .iter()
        .map(|change| {
            (
                change.key.as_str(),
                change.before.as_str(),
                change.after.as_str(),
                change.needs_restart,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("budget.window_ms", "300", "100", false),
            ("budget.memory", "256MiB", "128MiB", true),
            ("suppressions", "[]", "[{exe: a, reason: 'b c'}]", false),
            ("metrics.listen", "null", "'127.0.0.1:1'", true),
        ]
    );
    let now = reloaded(&old, new.clone());
    assert_eq!(now.budget.window_ms, 100);
    assert_eq!(now.budget.memory, old.budget.memory);
    // what still waits for the restart is named again
    assert_eq!(difference(&now, &new).len(), 2);
}

#[test]
fn files_and_drop_ins_are_read_in_order() {
    let folder = std::env::temp_dir().join(format!("lingerscope-config-{}", std::process::id()));
    let drop_ins = folder.join("main.d");
    fs::create_dir_all(&drop_ins).unwrap();
    let file = folder.join("main.yaml");
    let load = || load(Some(&file), UnknownKeys::Refuse, 0);

    let error = load().unwrap_err().to_string();
    assert!(
        error.contains("no such file") && error.contains("default-config"),
        "{error}"
    );

    fs::write(&file, "budget: {window_ms: 20}").unwrap();
    fs::write(drop_ins.join("20-b.yaml"), "budget: {window_ms: 30}\n").unwrap();
    fs::write(
        drop_ins.join("10-a.yaml"),
        "budget: {window_ms: 40, memory: 128MiB}\n",
    )
    .unwrap();
    fs::write(drop_ins.join("30-c.yaml.off"), "nonsense: [").unwrap();
    fs::write(drop_ins.join(".40.yaml"), "nonsense: [").unwrap();
    let loaded = load().unwrap();
    assert_eq!(loaded.settings.budget.window_ms, 30);
    assert_eq!(loaded.settings.budget.memory, Bytes(128 << 20));
    assert_eq!(loaded.files.len(), 3);

    fs::write(drop_ins.join("50.yaml"), vec![b'#'; 70_000]).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(error.contains("50.yaml: is longer than 64 KiB"), "{error}");
    fs::write(drop_ins.join("50.yaml"), b"a: \xff").unwrap();
    assert!(load().unwrap_err().to_string().contains("not UTF-8"));
    fs::remove_file(drop_ins.join("50.yaml")).unwrap();
    // a pipe must not be waited for
    nix::unistd::mkfifo(&drop_ins.join("50.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(
        load()
            .unwrap_err()
            .to_string()
            .contains("not a regular file")
    );
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn bombs_do_not_go_off() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        text += &[
            "a",
            &level.to_string(),
            ": &a",
            &level.to_string(),
            " [",
            &before,
            "]\n",
        ]
        .concat();
    }
    assert!(read(&[&text], UnknownKeys::Warn).is_err());
    let deep = format!("mode: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(read(&[&deep], UnknownKeys::Warn).is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_answered(text in "[a-z:{}\\[\\],&*!|>'\" \n-]{0,200}") {
        let _ = read(&[&text], UnknownKeys::Refuse);
    }
}
