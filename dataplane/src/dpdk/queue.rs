//! The two ends of a queue pair: bursts of frames come from the device and go to it, one call each. No RFC rules this file.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use penstock_dpdk_sys as sys;

use super::Mbuf;
use super::device::OpenPort;
use crate::port::{BURST, Burst};

/// Exactly one worker uses a queue at a time: the handles may move between threads and cannot be shared.
type NotSync = PhantomData<Cell<()>>;

/// A receive queue of a started device.
#[derive(Debug)]
pub struct RxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    _not_sync: NotSync,
}

/// A transmit queue of a started device.
#[derive(Debug)]
pub struct TxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    _not_sync: NotSync,
}

impl RxQueue {
    /// The caller makes each queue of a started port once.
    pub(super) fn new(port: Arc<OpenPort>, queue: u16) -> RxQueue {
        RxQueue { port, queue, _not_sync: PhantomData }
    }

    /// Appends received frames to `burst`, at most what it has room for. Returns how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        self.receive_at_most(burst, BURST)
    }

    /// As [`RxQueue::receive`], and at most `most`.
    #[inline]
    pub fn receive_at_most(&mut self, burst: &mut Burst<Mbuf>, most: usize) -> usize {
        let list = burst.list_mut();
        let (len, room) = (list.len(), list.remaining_capacity().min(most));
        if room == 0 {
            return 0;
        }
        // SAFETY: the port is started while its handle lives, and this is the queue's only handle. There is room for
        // `room` pointers behind the first `len`; the shim writes `count` whole mbufs there, which are ours now.
        unsafe {
            let free = list.as_mut_ptr().add(len).cast();
            let (port, mut multisegment) = (self.port.id(), 0);
            let count = sys::penstock_rx_burst(port, self.queue, free, room as u16, &raw mut multisegment);
            let count = usize::from(count);
            list.set_len(len + count);
            if multisegment != 0 {
                self.port.lost_multisegment(multisegment);
            }
            count
        }
    }

    /// The queue's number on its device.
    pub fn number(&self) -> u16 {
        self.queue
    }
}

impl TxQueue {
    /// The caller makes each queue of a started port once.
    pub(super) fn new(port: Arc<OpenPort>, queue: u16) -> TxQueue {
        TxQueue { port, queue, _not_sync: PhantomData }
    }

    /// Hands frames over from the front of `burst` and removes exactly what the device took. Returns how many.
    #[inline]
    pub fn send(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        let list = burst.list_mut();
        let len = list.len();
        if len == 0 {
            return 0;
        }
        let frames = list.as_mut_ptr();
        // SAFETY: the port is started while its handle lives, and this is the queue's only handle. The first `taken`
        // mbufs are the device's now and leave the list without being dropped; the others move to the front.
        unsafe {
            let taken = sys::penstock_tx_burst(self.port.id(), self.queue, frames.cast(), len as u16);
            let taken = usize::from(taken).min(len);
            ptr::copy(frames.add(taken), frames, len - taken);
            list.set_len(len - taken);
            taken
        }
    }

    /// The queue's number on its device.
    pub fn number(&self) -> u16 {
        self.queue
    }
}
