//! A queue pair of a DPDK device as a [`Port`]: bursts of mbufs in and out; or none, for a worker that works for others.
//! No RFC rules this file.

use super::{Burst, Port};
use crate::dpdk::{Mbuf, Pool, RxQueue, TxQueue};

/// One queue pair, and the pool that fresh frames come from.
#[derive(Debug)]
pub struct DpdkPort {
    pair: Option<(RxQueue, TxQueue)>,
    pool: Pool,
}

impl DpdkPort {
    /// A port of a started device's queue pair.
    pub fn new(pair: (RxQueue, TxQueue), pool: Pool) -> DpdkPort {
        DpdkPort { pair: Some(pair), pool }
    }

    /// The port of a worker that has no queues of this device: nothing comes, and it takes nothing.
    pub fn absent(pool: Pool) -> DpdkPort {
        DpdkPort { pair: None, pool }
    }

    /// As [`Port::receive`], and at most `most`.
    #[inline]
    pub fn receive_at_most(&mut self, burst: &mut Burst<Mbuf>, most: usize) -> usize {
        self.pair.as_mut().map_or(0, |(rx, _)| rx.receive_at_most(burst, most))
    }

    /// The pool that [`Port::allocate`] takes from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

impl Port for DpdkPort {
    type Frame = Mbuf;

    #[inline]
    fn receive(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        self.pair.as_mut().map_or(0, |(rx, _)| rx.receive(burst))
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        self.pair.as_mut().map_or(0, |(_, tx)| tx.send(burst))
    }

    #[inline]
    fn allocate(&mut self) -> Option<Mbuf> {
        self.pool.allocate()
    }
}
