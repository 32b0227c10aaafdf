//! `gabion demo`.

use crate::cli::args::DemoArguments;
use crate::cli::context::Context;
use crate::cli::exit::Failure;

pub fn run(context: &Context, arguments: &DemoArguments) -> Result<(), Failure> {
    let _ = (context, arguments);
    Err(Failure::other("not here yet"))
}
