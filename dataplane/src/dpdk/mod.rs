//! Safe wrappers of DPDK: the environment, pools of mbufs, devices, and their queues.
//!
//! Device strings and typed settings enter, queue handles for [`crate::port::Port`] leave. The order is [`Eal::init`],
//! [`Pool::new`], [`Device::open`], [`Device::configure`], [`Device::start`]; everything is closed by dropping it, in
//! whatever order, and DPDK itself last. No RFC rules this folder; the names are DPDK's.

pub mod clock;
mod device;
mod eal;
mod error;
mod mbuf;
mod name;
mod pool;
mod queue;
mod rules;

pub use device::{Device, DeviceConfig, FRAME_OVERHEAD, Info, Link, Stats};
pub use eal::{Eal, EalConfig, LogLevel, Memory, RegisteredThread};
pub use error::{Cause, Error};
pub use mbuf::Mbuf;
pub use name::DeviceName;
pub use pool::{Pool, PoolConfig};
pub use queue::{RxQueue, TxQueue};
pub use rules::{Carrier, Choice, Rules};
