//! The formats from outside: frozen bytes of each released version, and what no bytes may do.

// A failed unwrap is a failed test, in helpers too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod fixtures;
mod properties;
mod samples;
mod sealed;
