//! What the tests and benchmarks of the whole share.

pub mod esp;
pub mod gateway;
pub mod packets;
