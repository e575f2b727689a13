//! The segment `state`: written by the data plane, read by control. Sequence numbers, replay windows, counters, events.
//! It outlives both processes; a fresh one gets another epoch, and SAs of an older epoch are orphaned, so that neither a
//! nonce nor a replay window is ever begun anew for an old key.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::adjacency::MAX_PORTS;
use crate::events::EventRing;
use crate::layout::{Capacity, StateLayout, TWINS};
use crate::losses::{TunnelDrops, TunnelLosses, TwinReport, TwinState};
use crate::quiescence::Grace;
use crate::replay::{InboundState, Window, ring_words};
use crate::sa::InboundSa;
use crate::segment::{Array, Kind, RegionError, Segment};
use crate::sequence::{Outbound, OutboundState};
use crate::verdict::Verdict;
use crate::worker::{MAX_WORKERS, WorkerState};
use crate::writers::Writers;

/// Words of figures of a port.
const FIGURES: usize = 22;

/// What the data plane says of a port: a few cache lines, written by its housekeeping, never by a worker.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PortState {
    mac: AtomicU64,
    link: AtomicU64,
    figures: [AtomicU64; FIGURES],
    driver: [AtomicU64; 8],
}

/// The values of a [`PortState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortReport {
    /// MAC address of the device.
    pub mac: [u8; 6],
    /// Whether the link is up.
    pub link_up: bool,
    /// Link speed in Mbit/s, 0 where unknown.
    pub speed_mbit: u32,
    /// Queue pairs.
    pub queues: u64,
    /// Largest frame's payload, in octets.
    pub mtu: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Packets that the device dropped because no worker fetched them.
    pub rx_missed: u64,
    /// Packets that the device found damaged.
    pub rx_errors: u64,
    /// Packets lost because the pool was empty.
    pub rx_no_buffer: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Packets that the device failed to send.
    pub tx_errors: u64,
    /// Buffers of the port's pool.
    pub pool_size: u64,
    /// Buffers of the port's pool that are in use.
    pub pool_in_use: u64,
    /// Those of them that hold frames between the workers and the twins.
    pub pool_waiting: u64,
    /// Packets that came in several segments and could not be joined: lost before they counted as received.
    pub rx_multisegment: u64,
    /// How often the port was reported on since it was opened.
    pub reports: u64,
    /// Name of the driver, at most 63 octets.
    pub driver: String,
}

const PRESENT: u64 = 1 << 63;

impl PortState {
    /// Data plane side.
    pub fn set(&self, report: &PortReport) {
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        let figures = [
            report.queues,
            report.mtu,
            report.rx_packets,
            report.rx_bytes,
            report.rx_missed,
            report.rx_errors,
            report.rx_no_buffer,
            report.tx_packets,
            report.tx_bytes,
            report.tx_errors,
            report.pool_size,
            report.pool_in_use,
            report.pool_waiting,
            report.reports,
            report.rx_multisegment,
        ];
        self.figures.iter().zip(figures).for_each(|(word, figure)| store(word, figure));
        let mut name = [0; 64];
        let len = report.driver.len().min(63);
        name[..len].copy_from_slice(&report.driver.as_bytes()[..len]);
        self.driver.iter().zip(name.chunks_exact(8)).for_each(|(word, octets)| {
            store(word, octets.iter().fold(0, |word, octet| word << 8 | u64::from(*octet)));
        });
        store(&self.link, u64::from(report.link_up) << 32 | u64::from(report.speed_mbit));
        let mac = report.mac.iter().fold(0, |word, octet| word << 8 | u64::from(*octet));
        self.mac.store(PRESENT | mac, Ordering::Release);
    }

    /// The values as they stand; `None` where the data plane has not opened the port.
    pub fn get(&self) -> Option<PortReport> {
        let mac = self.mac.load(Ordering::Acquire);
        if mac & PRESENT == 0 {
            return None;
        }
        let link = self.link.load(Ordering::Relaxed);
        let octets: Vec<u8> =
            self.driver.iter().flat_map(|word| word.load(Ordering::Relaxed).to_be_bytes()).collect();
        let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
        let figure = |at: usize| self.figures[at].load(Ordering::Relaxed);
        let mac = mac.to_be_bytes();
        Some(PortReport {
            mac: [mac[2], mac[3], mac[4], mac[5], mac[6], mac[7]],
            link_up: link >> 32 != 0,
            speed_mbit: link as u32,
            queues: figure(0),
            mtu: figure(1),
            rx_packets: figure(2),
            rx_bytes: figure(3),
            rx_missed: figure(4),
            rx_errors: figure(5),
            rx_no_buffer: figure(6),
            tx_packets: figure(7),
            tx_bytes: figure(8),
            tx_errors: figure(9),
            pool_size: figure(10),
            pool_in_use: figure(11),
            pool_waiting: figure(12),
            reports: figure(13),
            rx_multisegment: figure(14),
            driver: String::from_utf8_lossy(&octets[..end]).into_owned(),
        })
    }

    /// Data plane side: the port is closed.
    pub fn clear(&self) {
        self.mac.store(0, Ordering::Release);
    }
}

/// What both sides do with the segment.
#[derive(Debug)]
struct StateMap {
    workers: Array<WorkerState>,
    events: Array<EventRing>,
    ports: Array<PortState>,
    twins: Array<TwinState>,
    losses: Array<TunnelLosses>,
    outbound: Array<OutboundState>,
    inbound: Array<InboundState>,
    rings: Array<AtomicU64>,
    ring_words: usize,
    epoch: u32,
    segment: Segment,
}

impl StateMap {
    fn new(segment: Segment) -> StateMap {
        let capacity = segment.capacity();
        let layout = StateLayout::new(capacity);
        let (inbound, ring_words) = (capacity.inbound_slots(), ring_words(capacity.replay_window));
        StateMap {
            workers: segment.array(layout.workers, MAX_WORKERS),
            events: segment.array(layout.events, MAX_WORKERS),
            ports: segment.array(layout.ports, MAX_PORTS),
            twins: segment.array(layout.twins, TWINS),
            losses: segment.array(layout.losses, capacity.tunnel_slots()),
            outbound: segment.array(layout.outbound, capacity.outbound_slots()),
            inbound: segment.array(layout.inbound, inbound),
            rings: segment.array(layout.rings, inbound * ring_words),
            ring_words,
            epoch: segment.header().epoch(),
            segment,
        }
    }

    fn workers(&self) -> &[WorkerState] {
        let count = (self.segment.header().figure.load(Ordering::Acquire) as usize).min(MAX_WORKERS);
        &self.workers.as_slice()[..count]
    }
}

/// The data plane's side.
#[derive(Debug)]
pub struct StateOwner(StateMap, Writers);

impl StateOwner {
    /// Takes the role of the data plane in `directory`, for `workers` workers, with the capacity of `tables`. Where it is one,
    /// only one thread may reserve numbers and mark windows; others have no place to count in ([`StateOwner::worker`]).
    ///
    /// # Errors
    /// [`RegionError`], each saying what to do.
    pub fn open(directory: &Path, capacity: Capacity, workers: usize) -> Result<StateOwner, RegionError> {
        let len = StateLayout::new(capacity.check()?).len;
        let (segment, _) = Segment::own(directory, Kind::State, capacity, len)?;
        let map = StateMap::new(segment);
        let count = workers.clamp(1, MAX_WORKERS);
        map.segment.header().figure.store(count as u32, Ordering::Release);
        map.workers().iter().for_each(WorkerState::restart);
        map.ports.as_slice().iter().for_each(PortState::clear);
        map.twins.as_slice().iter().for_each(|twin| twin.set(&TwinReport::default()));
        Ok(StateOwner(map, Writers::of(count)))
    }

    /// The number that SAs must carry to be used with this segment.
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        self.0.epoch
    }

    /// Tells control the frequency of the TSC, in Hz.
    pub fn set_tsc_hz(&self, hz: u64) {
        self.0.segment.header().word.store(hz, Ordering::Release);
    }

    /// Sequence word and counters of an outbound slot.
    #[inline(always)]
    pub fn outbound(&self, slot: u32) -> Outbound<'_> {
        Outbound::new(self.0.outbound.get(slot as usize), self.1)
    }

    /// Counters of an inbound slot.
    #[inline(always)]
    pub fn inbound(&self, slot: u32) -> &InboundState {
        self.0.inbound.get(slot as usize)
    }

    /// Fetches the line of an outbound slot that is about to be asked for.
    #[inline(always)]
    pub fn prefetch_outbound(&self, slot: u32) {
        self.0.outbound.prefetch(slot as usize, 0);
    }

    /// Fetches the line of an inbound slot that is about to be asked for.
    #[inline(always)]
    pub fn prefetch_inbound(&self, slot: u32) {
        self.0.inbound.prefetch(slot as usize, 0);
    }

    /// Fetches the word of a replay ring that a number with these low bits is about to be looked up in.
    #[inline(always)]
    pub fn prefetch_window(&self, slot: u32, sa: &InboundSa, low: u32) {
        let on_ring = sa.base().wrapping_add(u64::from(low));
        let word = (on_ring >> 5) as usize & (ring_words(sa.window()) - 1);
        self.0.rings.prefetch(slot as usize * self.0.ring_words + word, 0);
    }

    /// Replay window of the SA in an inbound slot.
    #[inline(always)]
    pub fn window(&self, slot: u32, sa: &InboundSa) -> Window<'_> {
        let words = self.0.ring_words;
        let ring = &self.0.rings.as_slice()[slot as usize * words..][..words];
        Window::new(self.inbound(slot), ring, sa.base(), sa.window()).marked_by(self.1)
    }

    /// A worker's place, `worker` below the count given to [`StateOwner::open`].
    pub fn worker(&self, worker: usize) -> &WorkerState {
        &self.0.workers()[worker]
    }

    /// A worker's ring to control.
    pub fn events(&self, worker: usize) -> &EventRing {
        self.0.events.get(worker)
    }

    /// Where the state of port `index` is told.
    pub fn port(&self, index: usize) -> &PortState {
        self.0.ports.get(index)
    }

    /// Where it is told what passed the twin of port `index`; without a port, the interfaces of all tunnels.
    pub fn twin(&self, port: Option<usize>) -> &TwinState {
        self.0.twins.get(port.unwrap_or(MAX_PORTS))
    }

    /// Counts a frame that was dropped at the tunnel in `slot`, which is of this generation.
    #[cold]
    pub fn count_tunnel_drop(&self, slot: u32, generation: u32, verdict: Verdict) {
        self.0.losses.get(slot as usize).count(generation, verdict);
    }

    /// A clean end: wipes and removes the file. Sequence numbers are gone then: only where no SA will be used again.
    ///
    /// # Errors
    /// [`RegionError::Io`] where the file cannot be removed.
    pub fn remove(self) -> Result<(), RegionError> {
        self.0.segment.remove()
    }
}

/// Control's side: read-only.
#[derive(Debug)]
pub struct StateView(StateMap);

impl StateView {
    /// Maps what the data plane made in `directory`.
    ///
    /// # Errors
    /// [`RegionError`]; [`RegionError::Missing`] until the data plane started for the first time.
    pub fn open(directory: &Path) -> Result<StateView, RegionError> {
        let segment = Segment::view(directory, Kind::State, |capacity| StateLayout::new(capacity).len)?;
        Ok(StateView(StateMap::new(segment)))
    }

    /// The number that SAs must carry to be used with this segment.
    pub fn epoch(&self) -> u32 {
        self.0.epoch
    }

    /// Random number of the data plane's present run.
    pub fn instance(&self) -> u64 {
        self.0.segment.header().instance.load(Ordering::Acquire)
    }

    /// Process of the data plane's last run.
    pub fn pid(&self) -> u32 {
        self.0.segment.header().pid.load(Ordering::Acquire)
    }

    /// Frequency of the TSC, in Hz; 0 until told.
    pub fn tsc_hz(&self) -> u64 {
        self.0.segment.header().word.load(Ordering::Acquire)
    }

    /// Whether the data plane runs.
    pub fn data_plane_lives(&self) -> bool {
        self.0.segment.owner_lives()
    }

    /// Whether the file is still the one at its path; otherwise open anew.
    pub fn is_current(&self) -> bool {
        self.0.segment.is_current()
    }

    /// Sequence word and counters of an outbound slot.
    pub fn outbound(&self, slot: u32) -> &OutboundState {
        self.0.outbound.get(slot as usize)
    }

    /// Counters and highest number of an inbound slot.
    pub fn inbound(&self, slot: u32) -> &InboundState {
        self.0.inbound.get(slot as usize)
    }

    /// The workers of the data plane's last run.
    pub fn workers(&self) -> &[WorkerState] {
        self.0.workers()
    }

    /// A worker's ring to control.
    pub fn events(&self, worker: usize) -> &EventRing {
        self.0.events.get(worker)
    }

    /// The ports, by index.
    pub fn ports(&self) -> &[PortState] {
        self.0.ports.as_slice()
    }

    /// What passed the twin of port `index`, or was lost there; without a port, at the interfaces of all tunnels.
    pub fn twin(&self, port: Option<usize>) -> &TwinState {
        self.0.twins.get(port.unwrap_or(MAX_PORTS))
    }

    /// What was dropped at the tunnel in `slot`, which is of this generation, since it is there.
    pub fn tunnel_drops(&self, slot: u32, generation: u32) -> TunnelDrops {
        self.0.losses.get(slot as usize).of(generation)
    }

    /// Starts to wait until no worker can hold what was unlinked before this call.
    pub fn grace(&self) -> Grace {
        Grace::start(self.instance(), self.workers().iter().map(|worker| &worker.quiescent))
    }

    /// Whether that wait is over.
    pub fn passed(&self, grace: &Grace) -> bool {
        grace.over(self.instance(), self.workers().iter().map(|worker| &worker.quiescent))
            || !self.data_plane_lives()
    }
}
