//! From configuration and kernel to the tables of the data plane.
//!
//! [`plan`] says what should be there, [`tunnels`] and [`routes`] make it so, `children` gives each of a tunnel's
//! children a slot, `adopt` finds it after a restart, [`rekey`]
//! steps keys, [`lab`] derives them where there is no IKEv2, [`journal`] keeps what must survive a reboot.

mod adopt;
mod children;
pub mod journal;
pub mod lab;
pub mod live;
pub mod negotiated;
pub mod plan;
#[cfg(test)]
mod properties;
pub mod rekey;
pub mod routes;
pub mod tunnels;
pub mod view;
pub mod watch;
