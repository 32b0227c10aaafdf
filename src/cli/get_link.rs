//! A link read on a storage node: the node hands out ciphertext, the command checks and decrypts it.

use std::io::Write;

use super::context::{Connection, Context, failure_of};
use super::exit::{Exit, Failure};
use super::get::{Fetched, GetChoices};
use super::progress::Progress;
use crate::format::Address;
use crate::format::link::Link;
use crate::node::control::client::ClientError;
use crate::node::control::{ControlEvent, ControlRequest};

pub fn read(_: &Context, _: &Link, _: &mut dyn Write, _: GetChoices, _: &mut Progress) -> Result<Fetched, Failure> {
    Err(Failure::other("not here yet"))
}
