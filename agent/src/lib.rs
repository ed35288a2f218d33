//! lingerscope finds memory that lingers: which code path and which Tokio task
//! hold memory they should have released, in any process, without a restart.
//!
//! Data flows one way: [`host`] tells what runs, [`capture`] follows
//! allocations in the kernel, [`unwind`] and [`symbols`] turn stacks into
//! functions, [`tokio_rt`] names tasks, [`ledger`] keeps what is live,
//! [`analysis`] judges it, [`finding`] is the one model that every
//! [`output`] prints. [`alert`] decides what is told, [`config`] holds the
//! settings. [`investigation`] runs them for processes. Three fronts use all
//! that: [`inspect`] for processes that are named, [`daemon`] for all of a
//! host, of which [`watch`] tells those that grow, and [`tasks`], which lists a
//! process's Tokio tasks; [`signals`] are those that they themselves get.
//!
//! `ledger`, `analysis`, `finding` and `alert` are pure: they know nothing of aya,
//! tokio, files or clocks.

pub mod alert;
pub mod analysis;
pub mod capture;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod elf;
pub mod finding;
pub mod host;
pub mod inspect;
pub mod investigation;
pub mod ledger;
pub mod log;
pub mod output;
pub mod reader;
pub mod signals;
pub mod symbols;
pub mod tasks;
pub mod tokio_rt;
pub mod unwind;
pub mod watch;
