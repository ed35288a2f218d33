use super::{owner::owner, *};

fn named(function: &str) -> Frame {
    Frame {
        function: Some(Text::symbol(function)),
        module: Some(Text::name("/usr/bin/app")),
        ..Frame::default()
    }
}

fn of(function: Option<&str>, module: &str) -> Frame {
    Frame {
        function: function.map(Text::symbol),
        module: Some(Text::name(module)),
        offset: Some("0x1234".to_owned()),
        ..Frame::default()
    }
}

fn labels(frames: &[Frame]) -> Vec<String> {
    user_functions(frames)
}

#[test]
fn user_functions_of_a_tokio_server() {
    let stack: Vec<Frame> = [
        "__libc_malloc",
        "__rust_alloc",
        "alloc::alloc::alloc",
        "alloc::alloc::Global::alloc_impl",
        "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
        "alloc::raw_vec::RawVecInner<A>::try_allocate_in",
        "<alloc::vec::Vec<u8> as core::clone::Clone>::clone",
        "server::session::Session::open",
        "<server::session::Conn as core::future::future::Future>::poll",
        "server::accept::{{closure}}",
        "<core::pin::Pin<P> as core::future::future::Future>::poll",
        "tokio::runtime::task::core::Core<T,S>::poll::{{closure}}",
        "<core::panic::unwind_safe::AssertUnwindSafe<F> as core::ops::function::FnOnce<()>>::call_once",
        "std::panicking::try",
        "tokio::runtime::task::raw::poll",
        "std::sys::backtrace::__rust_begin_short_backtrace",
        "core::ops::function::FnOnce::call_once{{vtable.shim}}",
        "start_thread",
    ]
    .into_iter()
    .map(named)
    .collect();
    assert_eq!(
        labels(&stack),
        [
            "server::session::Session::open",
            "<server::session::Conn as core::future::future::Future>::poll",
            "server::accept::{{closure}}"
        ]
    );
}

#[test]
fn runtime_frames_are_skipped() {
    for name in [
        "malloc",
        "calloc",
        "__libc_calloc",
        "_rjem_mallocx",
        "_rjem_je_arena_malloc_hard",
        "je_malloc_default",
        "mi_malloc",
        "_mi_malloc_generic",
        "mi_heap_malloc_aligned",
        "tc_malloc",
        "tc_newarray",
        "operator new(unsigned long)",
        "operator new[](unsigned long, std::nothrow_t const&)",
        "operator delete(void*)",
        "__rust_realloc",
        "__rdl_alloc",
        "__rustc::__rust_alloc",
        "__rustc[5c1a79e0b3d2f401]::__rust_alloc",
        "malloc@plt",
        "strdup",
        "<tikv_jemallocator::Jemalloc as core::alloc::global::GlobalAlloc>::alloc",
        "tcmalloc::CentralFreeList::Populate()",
        "alloc::vec::Vec<app::Foo>::push",
        "<alloc::vec::Vec<app::Foo>>::push",
        "<alloc::vec::Vec<T,A> as core::iter::traits::collect::Extend<&T>>::extend",
        "_<alloc::string::String as core::clone::Clone>::clone",
        "<&mut alloc::vec::Vec<u8> as std::io::Write>::write_all",
        "<[T] as alloc::slice::hack::ConvertVec>::to_vec",
        "alloc::slice::<impl [T]>::to_vec",
        "<T as core::convert::Into<U>>::into",
        "_<impl core::clone::Clone for alloc::vec::Vec<app::T>>::clone",
        "<impl alloc::borrow::ToOwned for str>::to_owned",
        "core::ptr::drop_in_place<app::Foo>",
        "hashbrown::raw::RawTable<(app::K, app::V)>::insert",
        "std[0123456789abcdef]::rt::lang_start",
        "<hashbrown::map::HashMap<app::K, app::V>>::insert",
        "<dyn core::future::future::Future>::poll",
        "std::vector<app::Foo, std::allocator<app::Foo> >::push_back(app::Foo const&)",
        "void std::vector<app::Foo>::_M_realloc_insert<app::Foo const&>(app::Foo const&)",
        "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >::_M_create(unsigned long&, unsigned long)",
        "__gnu_cxx::new_allocator<char>::allocate(unsigned long, void const*)",
        "__libc_start_main",
        "_start",
        "clone3",
        "tracing::instrument::Instrumented<app::serve::{{closure}}>::poll",
        "futures_util::future::join_all::JoinAll<F>::poll",
        "<tokio::runtime::task::harness::Harness<app::F, S>>::poll",
        "tokio::sync::mpsc::list::Tx<T>::find_block",
        "<<tokio::io::Lines<R> as core::future::Future>::Output as core::ops::Try>::branch",
    ] {
        assert!(
            !is_user_frame(&named(name)),
            "{name} owner {:?}",
            owner(name)
        );
    }
}

#[test]
fn user_frames_are_kept() {
    for name in [
        "main",
        "app::main",
        "core_logic::run",
        "stdlike::f",
        "tokio_app::serve",
        "futures_demo::main",
        "allocator_demo::grow",
        "<app::Foo as core::ops::drop::Drop>::drop",
        "<app::main::{closure#0} as core::ops::function::FnOnce<()>>::call_once",
        "app::cache::Cache<alloc::string::String>::insert",
        "app::codec::<impl app::Encode for alloc::vec::Vec<u8>>::encode",
        "<T as app::Handler>::call",
        "hyper::client::connect",
        "Session::open(int)",
        "std_session::open()",
        "void app::push<std::string>(std::string const&)",
        "(anonymous namespace)::Cache::put(int)",
        "cache_put",
        "free_list_push",
        "my_malloc_pool",
        "zmalloc",
        "handle_request.part.0",
        "<(app::A, app::B) as app::Pair>::swap",
        "Foo::operator bool() const",
        "remalloc",
        "serve(std::function<void (int)>)",
    ] {
        assert!(
            is_user_frame(&named(name)),
            "{name} owner {:?}",
            owner(name)
        );
    }
}

#[test]
fn modules_decide_where_names_do_not() {
    for module in [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/ld-musl-x86_64.so.1",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/libstdc++.so.6.0.30",
        "/usr/lib/libjemalloc.so.2",
        "/usr/lib/libtcmalloc_minimal.so.4",
        "[vdso]",
        "[uprobes]",
        "/usr/lib/libc++.so.1",
        "/usr/lib/libc++abi.so.1",
    ] {
        assert!(!is_user_frame(&of(Some("fdopen"), module)), "{module}");
        assert!(!is_user_frame(&of(None, module)), "{module}");
    }
    assert!(is_user_frame(&of(None, "/opt/app/server")));
    assert!(is_user_frame(&of(Some("f"), "/usr/lib/libcrypto.so.3")));
    assert!(is_user_frame(&of(Some("f"), "/usr/lib/libcurl.so.4")));
    assert_eq!(of(None, "/opt/app/server").label(), "server+0x1234");
}

#[test]
fn without_user_frames_the_nearest_to_one_counts() {
    let stack: Vec<Frame> = [
        "malloc",
        "__rust_alloc",
        "tokio::runtime::task::raw::poll",
        "std::rt::lang_start",
    ]
    .into_iter()
    .map(named)
    .collect();
    assert_eq!(labels(&stack), ["tokio::runtime::task::raw::poll"]);
    let stack: Vec<Frame> = ["malloc", "__rust_alloc"].into_iter().map(named).collect();
    assert_eq!(labels(&stack), ["malloc"]);
    assert_eq!(labels(&[]), Vec::<String>::new());
    assert_eq!(Frame::default().label(), "?");
}

#[test]
fn odd_names_do_no_harm() {
    for name in [
        "",
        "<",
        "<<<<<<<<<<<<<<<<",
        "_<",
        ">",
        "< as >",
        "<impl >",
        "'",
        "&'a",
        "((((",
        "operator",
        "operator()",
        "a b c(",
        "é<ü as ß>",
        "<& as &>::x",
    ] {
        let _ = is_user_frame(&named(name));
        let _ = labels(&[named(name)]);
    }
}
