pub mod admission;
pub mod decoder;
pub mod flow;
pub mod liveness;
