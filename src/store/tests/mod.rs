//! Tests of the whole layer on the simulated disk, and a few on a real one.

mod basic;
mod crash;
mod faults;
mod real;
mod recovery;
mod room;
mod small;
mod support;
