//! From configuration and kernel to the tables of the data plane.
//!
//! [`plan`] says what should be there, [`tunnels`] and [`routes`] make it so, [`lab`] derives keys where there is no
//! IKEv2, [`journal`] keeps what must survive a reboot.

pub mod journal;
pub mod lab;
pub mod plan;
pub mod routes;
pub mod tunnels;
