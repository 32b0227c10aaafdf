//! Connections over real sockets on real rings.

mod harness;
mod hostile;
mod requests;
mod strangers;
