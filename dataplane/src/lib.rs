//! Penstock's data plane: a burst enters by a port, goes through [`path::Worker::run`], and leaves by ports or twins.

pub mod crypto;
pub mod dpdk;
pub mod options;
pub mod path;
pub mod plan;
pub mod port;
pub mod steering;
pub mod twin;
pub mod wire;
pub mod worker;
