//! gabion: a decentralized, encrypted, content-addressed file store for Linux.
//!
//! The layers form a permission order: each may use those before it, none after it.
//!
//! ```text
//! format -> crypto -> { store, wire, cluster } -> { catalog, vault } -> node -> cli, demo
//! io  (beside: the only user of io_uring, libc and unsafe code)
//! key_locks, limits  (beside: locks by key, in memory alone; every bound's name)
//! ```

pub mod catalog;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod crypto;
pub mod demo;
pub mod format;
pub mod io;
mod key_locks;
pub mod limits;
pub mod node;
pub mod store;
pub mod vault;
pub mod wire;
