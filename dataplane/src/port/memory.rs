//! Frames in memory: a port for tests, benchmarks and replays of captures.
//!
//! Octets or a pcap file enter by `inject`, come out of `receive`, and what `send` takes stands in a list that can be
//! read or written as a pcap file (the classic format: 24 octets of file header, link type Ethernet). The pool counts
//! its frames, so that a test proves that none was lost and none was given back twice. No RFC rules this file.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrayvec::ArrayVec;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};

use super::{AREA, BURST, Burst, Frame, HEADROOM, Port};

/// Octets of a frame's buffer, headroom included: what DPDK calls RTE_MBUF_DEFAULT_BUF_SIZE.
pub const BUFFER: usize = HEADROOM + 2048;

/// Why a capture could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or created.
    #[error("cannot open {path}: {source}: check that the path exists and that you may access it")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a capture, or is cut off.
    #[error(
        "{path} is not a whole pcap file: {source}: write it with `tcpdump -w` (classic pcap, not pcapng)"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pcap_file::PcapError,
    },
    /// The capture holds another link layer.
    #[error("{path} holds link type {found:?}: only Ethernet captures can be replayed")]
    LinkType {
        /// The file.
        path: PathBuf,
        /// The link type that the file names.
        found: DataLink,
    },
    /// A packet finds no frame: the pool is empty, or the packet is longer than a buffer.
    #[error(
        "packet {index} of {path}, {octets} octets, finds no frame: give the port a larger pool ({BUFFER} octets a frame)"
    )]
    NoFrame {
        /// The file.
        path: PathBuf,
        /// Which packet, from 0.
        index: usize,
        /// Its length.
        octets: usize,
    },
}

/// Aligned as an mbuf's data is, so that benchmarks on memory and on DPDK see the same alignment.
#[repr(align(64))]
struct Octets([u8; BUFFER]);

/// Moves between the pool and the frames; its octets stay where they are.
struct Buffer(Box<Octets>);

struct Shared {
    capacity: usize,
    free: Mutex<Vec<Buffer>>,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fixed number of frames, allocated once. Clones are handles on the same pool.
#[derive(Clone)]
pub struct MemoryPool {
    shared: Arc<Shared>,
}

impl MemoryPool {
    /// A pool of `capacity` frames of [`BUFFER`] octets each.
    pub fn new(capacity: usize) -> MemoryPool {
        let buffers = (0..capacity).map(|_| Buffer(Box::new(Octets([0; BUFFER])))).collect();
        MemoryPool { shared: Arc::new(Shared { capacity, free: Mutex::new(buffers) }) }
    }

    /// An empty frame with [`HEADROOM`] in front; `None` where all frames are in use.
    pub fn allocate(&self) -> Option<MemoryFrame> {
        let buffer = self.shared.free().pop()?;
        Some(MemoryFrame { buffer: Some(buffer), start: HEADROOM, end: HEADROOM, pool: self.shared.clone() })
    }

    /// A frame that holds a copy of `octets`; `None` where the pool is empty or the octets do not fit.
    pub fn frame(&self, octets: &[u8]) -> Option<MemoryFrame> {
        let mut frame = self.allocate()?;
        frame.append(octets.len())?.copy_from_slice(octets);
        Some(frame)
    }

    /// Frames that are free.
    pub fn available(&self) -> usize {
        self.shared.free().len()
    }

    /// Frames that somebody holds.
    pub fn in_use(&self) -> usize {
        self.shared.capacity - self.available()
    }

    /// Frames in all.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }
}

impl fmt::Debug for MemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryPool({} of {} frames free)", self.available(), self.capacity())
    }
}

/// A frame of a [`MemoryPool`]; dropping it gives it back.
pub struct MemoryFrame {
    /// `None` only while the frame is being dropped.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    pool: Arc<Shared>,
}

impl MemoryFrame {
    /// Octets that [`Frame::prepend`] can still add.
    pub fn headroom(&self) -> usize {
        self.start
    }

    /// Octets that [`Frame::append`] can still add.
    pub fn tailroom(&self) -> usize {
        BUFFER - self.end
    }

    #[inline]
    fn octets(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.0.0)
    }

    #[inline]
    fn octets_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], |buffer| &mut buffer.0.0)
    }
}

impl Frame for MemoryFrame {
    #[inline]
    fn data(&self) -> &[u8] {
        &self.octets()[self.start..self.end]
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.end);
        &mut self.octets_mut()[start..end]
    }

    #[inline]
    fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        let start = self.start.checked_sub(n)?;
        self.start = start;
        Some(&mut self.octets_mut()[start..start + n])
    }

    #[inline]
    fn append(&mut self, n: usize) -> Option<&mut [u8]> {
        let old = self.end;
        let end = old.checked_add(n).filter(|&end| end <= BUFFER)?;
        self.end = end;
        Some(&mut self.octets_mut()[old..end])
    }

    #[inline]
    fn trim_front(&mut self, n: usize) {
        self.start += n.min(self.end - self.start);
    }

    #[inline]
    fn trim_back(&mut self, n: usize) {
        self.end -= n.min(self.end - self.start);
    }

    #[inline]
    fn wrap(&mut self, cut: u16, head: u8, tail: u8) -> Option<(&mut [u8; AREA], &mut [u8])> {
        let packet = Some(self.start + usize::from(cut)).filter(|&packet| packet <= self.end)?;
        let area = packet.checked_sub(AREA)?;
        let end = Some(self.end + usize::from(tail)).filter(|&end| end <= BUFFER)?;
        (self.start, self.end) = (packet - usize::from(head).min(AREA), end);
        self.octets_mut()[area..end].split_first_chunk_mut()
    }

    #[inline]
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn free_all(frames: &mut ArrayVec<Self, BURST>) {
        // One lock for all frames of the first one's pool; the others go one by one, after it.
        let Some(pool) = frames.first().map(|frame| frame.pool.clone()) else { return };
        {
            let mut free = pool.free();
            let own = frames.iter_mut().filter(|frame| Arc::ptr_eq(&frame.pool, &pool));
            free.extend(own.filter_map(|frame| frame.buffer.take()));
        }
        frames.clear();
    }
}

impl Drop for MemoryFrame {
    #[inline]
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.free().push(buffer);
        }
    }
}

impl fmt::Debug for MemoryFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFrame({:02x?})", self.data())
    }
}

/// A port whose wire is two lists: what will be received, and what was sent.
#[derive(Debug)]
pub struct MemoryPort {
    pool: MemoryPool,
    input: VecDeque<MemoryFrame>,
    output: Vec<MemoryFrame>,
    send_limit: usize,
}

impl MemoryPort {
    /// A silent port that allocates from `pool`.
    pub fn new(pool: MemoryPool) -> MemoryPort {
        let capacity = pool.capacity();
        let (input, output) = (VecDeque::with_capacity(capacity), Vec::with_capacity(capacity));
        MemoryPort { pool, input, output, send_limit: usize::MAX }
    }

    /// The pool that the port allocates from.
    pub fn pool(&self) -> &MemoryPool {
        &self.pool
    }

    /// Puts a copy of `octets` at the end of the input; false where the pool is empty or the octets do not fit.
    pub fn inject(&mut self, octets: &[u8]) -> bool {
        let frame = self.pool.frame(octets);
        let injected = frame.is_some();
        self.input.extend(frame);
        injected
    }

    /// Puts a frame at the end of the input, of whatever pool it is.
    pub fn inject_frame(&mut self, frame: MemoryFrame) {
        self.input.push_back(frame);
    }

    /// Puts all packets of a pcap file at the end of the input. Returns how many.
    ///
    /// # Errors
    /// The file is missing, is no pcap file, holds another link layer than Ethernet, or does not fit into the pool (what
    /// came before the fault stays in the input).
    pub fn inject_pcap(&mut self, path: &Path) -> Result<usize, CaptureError> {
        let format = |source| CaptureError::Format { path: path.into(), source };
        let file = File::open(path).map_err(|source| CaptureError::Open { path: path.into(), source })?;
        let mut capture = PcapReader::new(BufReader::new(file)).map_err(format)?;
        let found = capture.header().datalink;
        if found != DataLink::ETHERNET {
            return Err(CaptureError::LinkType { path: path.into(), found });
        }
        let mut index = 0;
        while let Some(packet) = capture.next_packet() {
            let packet = packet.map_err(format)?;
            if !self.inject(&packet.data) {
                return Err(CaptureError::NoFrame { path: path.into(), index, octets: packet.data.len() });
            }
            index += 1;
        }
        Ok(index)
    }

    /// Frames that wait to be received.
    pub fn waiting(&self) -> usize {
        self.input.len()
    }

    /// What was sent and not yet taken away, oldest first.
    pub fn sent(&self) -> &[MemoryFrame] {
        &self.output
    }

    /// Takes away what was sent, oldest first; the list keeps its memory.
    pub fn drain_sent(&mut self) -> std::vec::Drain<'_, MemoryFrame> {
        self.output.drain(..)
    }

    /// Writes what was sent to a pcap file, oldest first, stamped one microsecond apart from the epoch on.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn write_pcap(&self, path: &Path) -> Result<(), CaptureError> {
        let format = |source| CaptureError::Format { path: path.into(), source };
        let file = File::create(path).map_err(|source| CaptureError::Open { path: path.into(), source })?;
        let header = PcapHeader { datalink: DataLink::ETHERNET, snaplen: 65535, ..PcapHeader::default() };
        let mut capture = PcapWriter::with_header(BufWriter::new(file), header).map_err(format)?;
        for (micros, frame) in (0..).zip(&self.output) {
            let data = Cow::Borrowed(frame.data());
            let orig_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let packet = PcapPacket { timestamp: Duration::from_micros(micros), orig_len, data };
            capture.write_packet(&packet).map_err(format)?;
        }
        let flushed = capture.into_writer().into_inner().map(drop);
        flushed.map_err(|refused| CaptureError::Open { path: path.into(), source: refused.into_error() })
    }

    /// From now on each [`Port::send`] takes at most `frames`: 0 is a port that is wholly blocked, `usize::MAX` undoes it.
    pub fn set_send_limit(&mut self, frames: usize) {
        self.send_limit = frames;
    }
}

impl Port for MemoryPort {
    type Frame = MemoryFrame;

    fn receive(&mut self, burst: &mut Burst<MemoryFrame>) -> usize {
        let count = burst.room().min(self.input.len());
        burst.extend(self.input.drain(..count));
        count
    }

    fn send(&mut self, burst: &mut Burst<MemoryFrame>) -> usize {
        let count = burst.len().min(self.send_limit);
        self.output.extend(burst.drain(..count));
        count
    }

    fn allocate(&mut self) -> Option<MemoryFrame> {
        self.pool.allocate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(frames: usize) -> MemoryPort {
        MemoryPort::new(MemoryPool::new(frames))
    }

    #[test]
    fn grows_and_shrinks_at_both_ends() {
        let pool = MemoryPool::new(1);
        let mut frame = pool.frame(b"middle").unwrap();
        frame.prepend(3).unwrap().copy_from_slice(b"in ");
        frame.append(2).unwrap().copy_from_slice(b"!?");
        assert_eq!(frame.data(), b"in middle!?");
        frame.trim_front(3);
        frame.trim_back(1);
        assert_eq!((frame.data(), frame.len()), (&b"middle!"[..], 7));
        frame.data_mut()[0] = b'r';
        assert_eq!(frame.data(), b"riddle!");
    }

    #[test]
    fn refuses_to_grow_beyond_its_room_and_changes_nothing() {
        let pool = MemoryPool::new(1);
        let mut frame = pool.frame(b"x").unwrap();
        assert_eq!((frame.headroom(), frame.tailroom()), (HEADROOM, BUFFER - HEADROOM - 1));
        assert!(frame.prepend(HEADROOM + 1).is_none());
        assert!(frame.prepend(usize::MAX).is_none());
        assert!(frame.append(BUFFER - HEADROOM).is_none());
        assert!(frame.append(usize::MAX).is_none());
        assert_eq!(frame.data(), b"x");
        assert_eq!(frame.prepend(HEADROOM).map(|room| room.len()), Some(HEADROOM));
        assert_eq!(frame.append(BUFFER - HEADROOM - 1).map(|room| room.len()), Some(BUFFER - HEADROOM - 1));
        assert_eq!(frame.len(), BUFFER);
    }

    #[test]
    fn trims_at_most_all() {
        let pool = MemoryPool::new(1);
        let mut frame = pool.frame(b"abc").unwrap();
        frame.trim_front(usize::MAX);
        assert!(frame.is_empty());
        frame.trim_back(9);
        assert!(frame.is_empty());
    }

    #[test]
    fn receives_in_order_and_no_more_than_there_is_room_for() {
        let mut port = port(BURST * 2);
        for n in 0..BURST + 10 {
            assert!(port.inject(&[n as u8]));
        }
        let mut burst = Burst::new();
        burst.push(port.pool().frame(b"mine").unwrap()).unwrap();
        assert_eq!(port.receive(&mut burst), BURST - 1);
        assert!(burst.is_full());
        assert_eq!(port.receive(&mut burst), 0);
        assert_eq!(burst[0].data(), b"mine");
        assert_eq!(burst[BURST - 1].data(), [BURST as u8 - 2]);
        burst.clear();
        assert_eq!(port.receive(&mut burst), 11);
        assert_eq!(burst[0].data(), [BURST as u8 - 1]);
        drop(burst);
        assert_eq!((port.waiting(), port.pool().in_use()), (0, 0));
    }

    #[test]
    fn back_pressure_leaves_the_rest_with_the_caller() {
        let mut port = port(8);
        let mut burst = Burst::new();
        burst.extend((0..5).filter_map(|n| port.pool().frame(&[n])));
        port.set_send_limit(2);
        assert_eq!(port.send(&mut burst), 2);
        assert_eq!(burst.iter().map(|frame| frame.data()[0]).collect::<Vec<_>>(), [2, 3, 4]);
        port.set_send_limit(0);
        assert_eq!(port.send(&mut burst), 0);
        port.set_send_limit(usize::MAX);
        assert_eq!(port.send(&mut burst), 3);
        assert!(burst.is_empty());
        assert_eq!(port.sent().iter().map(|frame| frame.data()[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(port.pool().in_use(), 5);
        port.drain_sent();
        assert_eq!(port.pool().in_use(), 0);
    }

    #[test]
    fn every_way_to_lose_a_frame_gives_it_back_once() {
        let (pool, other) = (MemoryPool::new(BURST), MemoryPool::new(2));
        let mut burst = Burst::new();
        burst.extend(std::iter::from_fn(|| pool.allocate()).take(BURST - 2));
        burst.extend(std::iter::from_fn(|| other.allocate()));
        assert_eq!((pool.in_use(), other.in_use()), (BURST - 2, 2));
        let refused = burst.push(pool.allocate().unwrap()).unwrap_err();
        assert_eq!(pool.in_use(), BURST - 1);
        drop(refused);
        drop(burst.pop());
        assert_eq!(other.in_use(), 1);
        burst.drain(..4);
        burst.retain(|frame| frame.is_empty());
        assert_eq!((pool.in_use(), burst.len()), (BURST - 6, BURST - 5));
        burst.clear();
        assert_eq!((pool.available(), other.available()), (BURST, 2));
    }

    #[test]
    fn an_empty_pool_says_so() {
        let mut port = port(1);
        let frame = port.allocate().unwrap();
        assert!(port.allocate().is_none());
        assert!(!port.inject(b"x"));
        drop(frame);
        assert!(!port.inject(&[0; BUFFER]));
        assert_eq!(port.pool().available(), 1);
        assert!(port.inject(&[0; BUFFER - HEADROOM]));
    }

    #[test]
    fn a_capture_survives_the_way_out_and_in() {
        let folder = std::env::temp_dir().join(format!("penstock-memory-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("wire.pcap");
        let frames: Vec<Vec<u8>> = (14..90).map(|len| (0..len).collect()).collect();
        let mut one = port(100);
        frames.iter().for_each(|frame| assert!(one.inject(frame)));
        let mut burst = Burst::new();
        while one.receive(&mut burst) > 0 {
            one.send(&mut burst);
        }
        one.write_pcap(&path).unwrap();

        let mut two = port(100);
        assert_eq!(two.inject_pcap(&path).unwrap(), frames.len());
        assert!(two.input.iter().map(Frame::data).eq(frames.iter().map(Vec::as_slice)));
        let small = port(10).inject_pcap(&path).unwrap_err();
        assert!(matches!(small, CaptureError::NoFrame { index: 10, octets: 24, .. }), "{small}");
        std::fs::write(&path, b"no capture at all, but some text").unwrap();
        assert!(matches!(two.inject_pcap(&path), Err(CaptureError::Format { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(matches!(two.inject_pcap(&path), Err(CaptureError::Open { .. })));
    }
}
