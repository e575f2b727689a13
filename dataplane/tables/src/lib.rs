//! The layout of the region that control and data plane share (two segments, one writing process each).
//!
//! `tables` is written by control and mapped read-only by the data plane; `state` the other way round. This crate
//! depends on neither process.

pub mod key;

pub use key::{Cipher, KeyBlock, KeyError};
