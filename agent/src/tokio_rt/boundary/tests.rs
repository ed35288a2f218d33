use proptest::prelude::*;

use super::*;

fn future(name: &str) -> Polled {
    Polled::Future(name.to_owned())
}

#[test]
fn legacy_names_of_a_release_build() {
    let stack = [
        "malloc",
        "alloc::alloc::alloc",
        "app::marker",
        "app::ticker::{{closure}}",
        "tokio::runtime::task::core::Core<T,S>::poll",
        "tokio::runtime::task::harness::Harness<T,S>::poll",
        "tokio::runtime::scheduler::multi_thread::worker::Context::run_task",
        "tokio::runtime::scheduler::multi_thread::worker::Context::run",
        "<tokio::runtime::blocking::task::BlockingTask<T> as core::future::future::Future>::poll",
        "tokio::runtime::task::raw::poll",
    ];
    assert_eq!(polled(&stack), Some(future("app::ticker")));
    assert_eq!(
        polled(&stack[4..]),
        Some(Polled::Unnamed),
        "the future was inlined"
    );
    assert_eq!(
        polled(&stack[7..]),
        Some(Polled::Runtime),
        "the worker between two tasks"
    );
}

#[test]
fn hashes_are_no_part_of_a_name() {
    let stack = [
        "app::held::{{closure}}::h60bf3d1e46048168",
        "tokio::runtime::task::core::Core<T,S>::poll::hb3bd687e98ce6d88",
    ];
    assert_eq!(polled(&stack), Some(future("app::held")));
    let stack = [
        "<app[19fa32e4a9ef4709]::Held as core[c1f1a4ba060b9bfa]::future::future::Future>::poll",
        "tokio[c200e20ffb54eb07]::runtime::task::raw::poll::<alloc[fdfd2bd8633a6659]::boxed::Box<dyn core::future::future::Future>, S>",
    ];
    assert_eq!(polled(&stack), Some(future("app::Held")));
}

#[test]
fn v0_names_carry_the_future() {
    let core = "<tokio::runtime::task::core::Core<app::held::{closure#0}, alloc::sync::Arc<tokio::runtime::scheduler::multi_thread::handle::Handle>>>::poll";
    assert_eq!(polled(&["malloc", core]), Some(future("app::held")));
    let raw = "tokio::runtime::task::raw::poll::<tracing::instrument::Instrumented<app::serve::{closure#0}::{closure#1}>, S>";
    assert_eq!(
        polled(&["app::other::{closure#0}", raw]),
        Some(future("app::serve::{closure#0}"))
    );
    let launch = "tokio::runtime::task::raw::poll::<tokio::runtime::blocking::task::BlockingTask<<tokio::runtime::scheduler::multi_thread::worker::Launch>::launch::{closure#0}>, tokio::runtime::blocking::schedule::BlockingSchedule>";
    assert_eq!(polled(&["malloc", launch]), Some(Polled::Runtime));
    let blocking = "tokio::runtime::task::raw::poll::<tokio::runtime::blocking::task::BlockingTask<app::main::{closure#0}::{closure#2}>, S>";
    assert_eq!(
        polled(&["malloc", blocking]),
        Some(future("app::main::{closure#0}"))
    );
    let boxed = "tokio::runtime::task::raw::poll::<core::pin::Pin<alloc::boxed::Box<dyn core::future::future::Future<Output = ()> + core::marker::Send>>, S>";
    assert_eq!(
        polled(&["app::inner::{closure#0}", boxed]),
        Some(future("app::inner"))
    );
}

#[test]
fn names_of_debug_information() {
    let stack = [
        "app::held::{async_fn#0}",
        "tokio::runtime::task::core::{impl#6}::poll::{closure#0}<app::held::{async_fn_env#0}, S>",
        "tokio::runtime::task::core::Core<app::held::{async_fn_env#0}, S>::poll<app::held::{async_fn_env#0}, S>",
    ];
    assert_eq!(polled(&stack), Some(future("app::held")));
}

#[test]
fn plumbing_is_passed_over() {
    let stack = [
        "app::fetch::{{closure}}",
        "<futures_util::future::future::map::Map<Fut,F> as core::future::future::Future>::poll",
        "<tracing::instrument::Instrumented<T> as core::future::future::Future>::poll",
        "<core::pin::Pin<P> as core::future::future::Future>::poll",
        "tokio::runtime::task::harness::poll_future",
    ];
    assert_eq!(polled(&stack), Some(future("app::fetch")));
    assert_eq!(
        polled(&[
            "<tokio::time::sleep::Sleep as core::future::future::Future>::poll",
            stack[4]
        ]),
        Some(future("tokio::time::sleep::Sleep"))
    );
    assert_eq!(
        polled(&["app::marker", stack[4]]),
        Some(Polled::Unnamed),
        "a plain function is not the future"
    );
    assert_eq!(
        polled(&[
            "app::x::{{closure}}",
            "tokio::runtime::task::harness::poll_future::{{closure}}"
        ]),
        Some(future("app::x"))
    );
    assert_eq!(
        polled(&[
            "app::<impl core::future::future::Future for app::Conn<T>>::poll",
            stack[4]
        ]),
        Some(future("app::Conn"))
    );
}

#[test]
fn a_stack_without_a_poll_is_no_task() {
    let stack = [
        "app::main::{{closure}}",
        "tokio::runtime::park::CachedParkThread::block_on",
        "tokio::runtime::runtime::Runtime::block_on",
        "app::main",
    ];
    assert_eq!(polled(&stack), None);
    assert_eq!(
        polled(&[
            "tokio::runtime::task::raw::RawTask::poll",
            "app::tokio::runtime::task::raw::poll"
        ]),
        None
    );
    assert_eq!(polled(&[]), None);
}

proptest! {
    #[test]
    fn any_names_are_read(names in prop::collection::vec("(tokio::runtime::task::raw::poll)?[<>a-z:{}#, \\[\\]()-]{0,60}( as | for |impl )?[<>:é]{0,9}", 0..6)) {
        polled(&names.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
