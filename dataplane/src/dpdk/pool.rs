//! Pools of mbufs: a size enters, empty frames leave and come back. No RFC rules this file.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::mem;
use std::ptr::NonNull;
use std::sync::Arc;

use penstock_dpdk_sys as sys;

use super::{Cause, Eal, Error, Mbuf};
use crate::port::Burst;

/// The size of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Frames: enough for all descriptors of all queues, plus what the workers hold and cache.
    pub frames: u32,
    /// Octets of a buffer behind the headroom: a whole frame must fit.
    pub data_room: u16,
    /// NUMA socket of the memory; `None` takes any.
    pub socket: Option<u32>,
}

impl Default for PoolConfig {
    /// 16,384 frames of 2,048 octets on any socket: 40 MiB.
    fn default() -> PoolConfig {
        PoolConfig { frames: 16_384, data_room: 2048, socket: None }
    }
}

/// Frames that each registered thread may keep to itself, at most.
const CACHE: u32 = 256;

/// A pool of mbufs. Clones are handles on the same pool; devices hold one each.
///
/// An mbuf must not outlive its pool. Where frames are still held when the last handle goes, the pool and DPDK are kept
/// for the rest of the process: a leak, and never a dangling pointer.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: NonNull<sys::rte_mempool>,
    frames: u32,
    data_room: u16,
    eal: Eal,
}

// SAFETY: DPDK's pools are made for many producers and consumers; the pointer is constant.
unsafe impl Send for Inner {}
// SAFETY: as above; every operation on a pool takes it shared.
unsafe impl Sync for Inner {}

impl Pool {
    /// Makes a pool; `name` is unique in the process.
    ///
    /// # Errors
    /// [`Error::PoolName`], or [`Error::Pool`] where the memory does not suffice or the name is taken.
    pub fn new(eal: &Eal, name: &str, config: &PoolConfig) -> Result<Pool, Error> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let c_name = match CString::new(name) {
            Ok(c_name) if (1..=20).contains(&name.len()) && name.bytes().all(word) => c_name,
            _ => return Err(Error::PoolName { name: name.into() }),
        };
        let buffer = (sys::PENSTOCK_MBUF_HEADROOM as u16).saturating_add(config.data_room);
        let socket = config.socket.and_then(|socket| i32::try_from(socket).ok()).unwrap_or(-1);
        // DPDK wants 1.5 caches of frames; with 1/8 a few threads' caches cannot hold everything.
        let cache = CACHE.min(config.frames / 8);
        // SAFETY: DPDK runs; the name is a string with NUL that DPDK copies.
        let pool =
            unsafe { sys::rte_pktmbuf_pool_create(c_name.as_ptr(), config.frames, cache, 0, buffer, socket) };
        let Some(pool) = NonNull::new(pool) else {
            let mib = (u64::from(config.frames) * (u64::from(buffer) + 256)).div_ceil(1 << 20);
            let mib = u32::try_from(mib).unwrap_or(u32::MAX);
            return Err(Error::Pool {
                name: name.into(),
                frames: config.frames,
                mib,
                cause: Cause::from_errno(),
            });
        };
        let data_room = buffer - sys::PENSTOCK_MBUF_HEADROOM as u16;
        Ok(Pool { inner: Arc::new(Inner { pool, frames: config.frames, data_room, eal: eal.clone() }) })
    }

    /// Frames in all.
    pub fn capacity(&self) -> usize {
        self.inner.frames as usize
    }

    /// Octets of a buffer behind the headroom.
    pub fn data_room(&self) -> u16 {
        self.inner.data_room
    }

    /// Frames that are free, those in the threads' caches too. Exact while nobody allocates or frees.
    pub fn available(&self) -> usize {
        // SAFETY: the pool lives as long as this handle.
        unsafe { sys::rte_mempool_avail_count(self.inner.pool.as_ptr()) as usize }
    }

    /// Frames that somebody holds: workers, queues, devices. Exact while nobody allocates or frees.
    pub fn in_use(&self) -> usize {
        self.inner.in_use()
    }

    /// An empty frame; `None` where the pool is exhausted.
    #[inline]
    pub fn allocate(&self) -> Option<Mbuf> {
        // SAFETY: the pool lives as long as this handle.
        let mbuf = NonNull::new(unsafe { sys::penstock_alloc(self.inner.pool.as_ptr()) })?;
        // SAFETY: fresh from the pool: one segment, one owner.
        Some(unsafe { Mbuf::from_raw(mbuf) })
    }

    /// Appends `count` empty frames to `burst`, all or none: `false` where the burst or the pool has too few.
    pub fn allocate_burst(&self, burst: &mut Burst<Mbuf>, count: usize) -> bool {
        let list = burst.list_mut();
        let len = list.len();
        if count > list.remaining_capacity() {
            return false;
        }
        // SAFETY: there is room for `count` pointers behind the first `len`; the shim fills all of them or none.
        unsafe {
            let free = list.as_mut_ptr().add(len).cast();
            let filled = sys::penstock_alloc_bulk(self.inner.pool.as_ptr(), free, count as u16) == 0;
            list.set_len(if filled { len + count } else { len });
            filled
        }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.inner.pool.as_ptr()
    }
}

impl Inner {
    fn in_use(&self) -> usize {
        // SAFETY: the pool lives as long as this.
        unsafe { sys::rte_mempool_in_use_count(self.pool.as_ptr()) as usize }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.in_use() > 0 {
            mem::forget(self.eal.clone());
            return;
        }
        // SAFETY: the last handle goes, no device holds one, and no mbuf is in use.
        unsafe { sys::rte_mempool_free(self.pool.as_ptr()) };
    }
}
