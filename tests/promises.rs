//! The promises, tried with real processes on loopback: each test is named after the promise that it tries to break.
//!
//! | promise | in |
//! | --- | --- |
//! | p1 acknowledged is durable, p8 loss of nodes, p9 full disk, p10 old data opens | `durability` |
//! | p2 no wrong byte, p5 blind peers, p6 strangers get nothing, p7 bounded | `integrity`, `strangers` |
//! | p3 read your writes, p4 deleted is deleted | `names` |
//! | joining, reconnecting | `network` |
//! | what a user types | `files` |
//!
//! GABION_TEST_SEED repeats a run: a test that fails has printed its seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // of a test: a panic is its way to fail

#[path = "support/node.rs"]
mod node;

#[path = "promises/durability.rs"]
mod durability;
#[path = "promises/files.rs"]
mod files;
#[path = "promises/integrity.rs"]
mod integrity;
#[path = "promises/names.rs"]
mod names;
#[path = "promises/network.rs"]
mod network;
#[path = "promises/strangers.rs"]
mod strangers;
