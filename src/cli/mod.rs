pub mod args;
pub mod exit;
pub mod interrupt;
pub mod output;
pub mod progress;
pub mod target;
pub mod units;
