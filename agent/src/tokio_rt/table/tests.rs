use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::*;

async fn parked(gate: Arc<Notify>, room: [u8; 40]) {
    gate.notified().await;
    std::hint::black_box(room);
}

async fn parked_in_a_box(gate: Arc<Notify>) {
    gate.notified().await;
}

type Boxed = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn id<T>(handle: &tokio::task::JoinHandle<T>) -> u64 {
    handle.id().to_string().parse().unwrap()
}

#[test]
fn lists_the_tasks_of_this_process() {
    let me = Process::of(std::process::id()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let gate = Arc::new(Notify::new());
    let _inside = runtime.enter();
    let plain: Vec<_> = (0..50)
        .map(|_| tokio::spawn(parked(Arc::clone(&gate), [7; 40])))
        .collect();
    let boxed: Boxed = Box::pin(parked_in_a_box(Arc::clone(&gate)));
    let boxed = tokio::spawn(boxed);
    let finished = tokio::spawn(async { vec![1u8; 100] });
    std::thread::sleep(Duration::from_millis(300));
    let table = match read(&me) {
        Ok(table) => table,
        Err(WhyNot::Unreadable(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            println!("skipped: /proc/self/mem is not readable here");
            return;
        }
        Err(why) => panic!("{why}"),
    };
    let named = |part: &str| -> Vec<&Task> {
        let is_it = |task: &&Task| {
            let kind = &table.types[task.kind];
            let name = kind.boxed.as_ref().unwrap_or(&kind.name);
            name.short
                .as_deref()
                .is_some_and(|short| short.ends_with(part))
        };
        table.tasks.iter().filter(is_it).collect()
    };
    let found: BTreeSet<u64> = named("tests::parked").iter().map(|task| task.id).collect();
    let expected: BTreeSet<u64> = plain.iter().map(id).collect();
    assert_eq!(found, expected);
    for task in named("tests::parked") {
        // The runtime's list, the join handle and the waker.
        assert_eq!((task.state.name(), task.state.references()), ("idle", 3));
        assert!(table.types[task.kind].future_bytes >= 40);
    }
    let location = table.types[named("tests::parked")[0].kind]
        .name
        .location
        .clone();
    let location = location.expect("its panic names the source");
    assert!(
        location.file.ends_with("table/tests.rs") && location.line == 7,
        "{location}"
    );
    assert_eq!(named("tests::parked_in_a_box")[0].id, id(&boxed));
    let done = table.tasks.iter().find(|task| task.id == id(&finished));
    assert!(done.is_some_and(|task| task.state.is_complete()));
    assert!(
        matches!(table.modules[0].task_ids, TaskIds::Confirmed { .. }),
        "{:?}",
        table.modules[0].task_ids
    );
    gate.notify_waiters();
    // What is over is not listed.
    for handle in plain {
        runtime.block_on(handle).unwrap();
    }
    let again = read(&me).unwrap();
    let left = again
        .tasks
        .iter()
        .filter(|task| expected.contains(&task.id));
    assert_eq!(left.count(), 0);
}

#[test]
fn processes_without_tokio_say_so() {
    let mut child = std::process::Command::new("sleep")
        .arg("30")
        .spawn()
        .unwrap();
    // Until the new program is there.
    std::thread::sleep(Duration::from_millis(200));
    let outcome = read(&Process::of(child.id()).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    match outcome {
        Err(WhyNot::NoTokio) => {}
        Err(WhyNot::Unreadable(_)) => println!("skipped: no privilege"),
        other => panic!("{other:?}"),
    }
}
