use agent_ebpf::abi::result::ResultCookie;
use proptest::prelude::*;

use super::{
    question::{Name, Names, Paths, packed, unpacked},
    *,
};
use crate::{
    capture::{
        files::Segment,
        probes::{FamilyProbes, FunctionProbe, ResultProbe},
    },
    tokio_rt::vtable::Vtable,
};

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

/// One of each kind, with something in it.
fn cases() -> Vec<(Question, Answer)> {
    // Smaller than this program.
    let (code, _) = code(&File::open("/bin/sh").unwrap()).unwrap();
    let vtable = Vtable {
        address: 0x5000,
        functions: [0x1000; 7],
        trailer: 72,
        scheduler: 32,
        id: 40,
        spawn_location: None,
    };
    let questions = Questions {
        all: vec![vtable.clone()],
        vtables: vec![vtable],
        ..Questions::default()
    };
    let names = Question::Names {
        key: [0; 5],
        debug: true,
        addresses: vec![1, 2],
    };
    let name = Name {
        function: Some("main".to_owned()),
        file: Some("main.rs".to_owned()),
        line: Some(7),
        inlined: false,
    };
    let tasks = Question::Tasks {
        analyse: Some(true),
        mapping: (0, 0),
    };
    let about_tasks = serve::answer(&tasks, &std::fs::read("/bin/sh").unwrap()).0;
    let answers = Answers {
        names: vec![crate::tokio_rt::future_name::FutureName::default()],
        ..Answers::default()
    };
    vec![
        (Question::BuildId, Answer::BuildId(Some("00ff".to_owned()))),
        (Question::Code, Answer::Code(code)),
        (Question::Rows, Answer::Rows),
        (names, Answer::Names(Names(vec![At(vec![name])]))),
        (tasks, about_tasks),
        (
            Question::TaskNames(questions),
            Answer::TaskNames(Box::new(answers.into())),
        ),
        (Question::Linking, Answer::Linking(Linking::default())),
        (
            Question::CachedLibrary(Vec::new()),
            Answer::CachedLibrary(Paths(vec![b"/lib/a.so".to_vec()])),
        ),
        (Question::Rows, Answer::Nothing("no file".to_owned())),
    ]
}

#[test]
fn answers_fit_their_questions_only() {
    let cases = cases();
    for (index, (question, _)) in cases.iter().enumerate() {
        for (other, (_, answer)) in cases.iter().enumerate() {
            let fits = answer.fits(question, 1 << 40);
            let nothing = matches!(answer, Answer::Nothing(_));
            let same = std::mem::discriminant(question) == std::mem::discriminant(&cases[other].0);
            assert_eq!(fits, same || nothing, "{index} {other}");
        }
    }
}

#[test]
fn a_probe_is_in_the_code_of_the_file() {
    let at = |offset: u64, result: u64, reading: u64, executable: bool| {
        let function = FunctionProbe { offset, ..probe() };
        let result = ResultProbe {
            offset: result,
            reading,
        };
        Code {
            build_id: None,
            segments: vec![Segment {
                offset: 0x1000,
                address: 0x1000,
                size: 0x1000,
                executable,
            }],
            families: vec![FamilyProbes {
                kind: "glibc",
                functions: vec![function],
                results: vec![result],
                uncovered: Vec::new(),
                why_not: None,
            }],
            is_go: false,
            task_ids: None,
            not_read: None,
            unsupported: 0,
            no_rows: None,
            debug_link: None,
        }
    };
    let code = |offset, executable| at(offset, 0x1000, ResultCookie::KIND, executable);
    let fits = |code: Code, size| Answer::Code(Box::new(code)).fits(&Question::Code, size);
    assert!(fits(code(0x1000, true), 0x4000) && fits(code(0x1fff, true), 0x4000));
    assert!(!fits(code(0xfff, true), 0x4000) && !fits(code(0x2000, true), 0x4000));
    assert!(!fits(code(0x1000, false), 0x4000), "no code");
    assert!(!fits(code(0x1800, true), 0x1800), "behind the file's end");
    assert!(!fits(at(0x1000, 0x2000, ResultCookie::KIND, true), 0x4000));
    assert!(
        !fits(
            at(0x1000, 0x1000, ResultCookie::KIND | 1 << 16, true),
            0x4000
        ),
        "another target's"
    );
    for link in ["..", "a/b", ""] {
        let code = Code {
            debug_link: Some(link.to_owned()),
            ..code(0x1000, true)
        };
        assert!(!fits(code, 0x4000), "{link:?}");
    }
}

fn probe() -> FunctionProbe {
    FunctionProbe {
        kind: agent_ebpf::abi::heap::FunctionKind::Malloc,
        may_nest: false,
        arguments: [7, 6, 2],
        offset: 0,
        stepped: false,
    }
}

#[test]
fn rows_come_in_order_and_of_known_kinds() {
    let row = |pc, kind| Row {
        pc,
        kind,
        ..Row::default()
    };
    let rows = vec![row(1, Row::RSP), row(2, Row::SIGNAL)];
    assert_eq!(unpacked(&packed(&rows)), Some(rows));
    for bad in [
        vec![row(2, Row::RSP), row(2, Row::RBP)],
        vec![row(3, Row::RSP), row(2, Row::RBP)],
        vec![row(1, Row::SIGNAL + 1)],
    ] {
        assert_eq!(unpacked(&packed(&bad)), None);
    }
    assert_eq!(unpacked(&[0; 9]), None);
}

/// Decodes and checks as the asking side does.
fn take(bytes: &[u8]) {
    let addresses = vec![1, 2];
    let names = Question::Names {
        key: [0; 5],
        debug: false,
        addresses,
    };
    if let Ok(answer) = postcard::from_bytes::<Answer>(bytes) {
        for question in [Question::BuildId, Question::Code, names, Question::Linking] {
            let _ = answer.fits(&question, 1 << 20);
        }
    }
    let _ = unpacked(bytes);
}

proptest! {
    #[test]
    fn any_answer_is_survived(kind in 0u8..12, bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        take(&bytes);
        take(&[&[kind], bytes.as_slice()].concat());
    }

    #[test]
    fn damaged_answers_are_survived(
        which in any::<prop::sample::Index>(),
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        thread_local!(static SOUND: Vec<Vec<u8>> = cases()
            .iter()
            .map(|(_, answer)| postcard::to_allocvec(answer).unwrap_or_default())
            .collect());
        SOUND.with(|sound| {
            let mut bytes = sound[which.index(sound.len())].clone();
            // Where lengths and kinds are.
            let start = bytes.len().min(300);
            for (at, value) in hits {
                if start > 0 {
                    bytes[at.index(start)] = value;
                }
            }
            take(&bytes);
        });
    }
}
