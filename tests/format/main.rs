//! The formats from outside: frozen bytes of each released version, and what no bytes may do.

mod fixtures;
mod properties;
mod samples;
