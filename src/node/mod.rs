//! The node: what turns the decisions of the layers below into I/O.

pub mod control;
