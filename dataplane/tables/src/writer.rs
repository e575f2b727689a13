//! The segment `tables` as control sees it: the one writer. Allocates slots and SPIs, installs and retires SAs, tunnels,
//! next hops and routes, and wipes what no worker can hold any more (`slot`, `quiescence`).

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::NONE;
use crate::adjacency::{Adjacency, PortEntry, RETIRING, Unresolved};
use crate::events::Source;
use crate::fib::{FibFull, FibWriter, Hop, Prefix};
use crate::key::KeyBlock;
use crate::layout::{Capacity, TablesLayout};
use crate::losses::TunnelDrops;
use crate::quiescence::Grace;
use crate::sa::{ESN, InboundSa, InboundSpec, OutboundSa, OutboundSpec, UDP};
use crate::segment::{Kind, RegionError, Segment};
use crate::slot::{SlotHead, SlotState};
use crate::state::StateView;
use crate::tables::TablesMap;
use crate::tunnel::{
    MAX_CHILDREN, MAX_INTERFACE, MAX_NAME, MAX_SELECTORS, Selector, Tunnel, TunnelSpec, WORKER_SAS,
};

/// How far from its natural slot a fixed SPI may stand.
pub const MAX_PROBE: u32 = 64;

/// No free slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableFull {
    /// No tunnel slot.
    #[error("all {0} tunnels of `capacity.tunnels` are taken")]
    Tunnels(u32),
    /// No SA slot.
    #[error("no free SA slot: `capacity.tunnels` is too small for the SAs that are being rekeyed at once")]
    Sas,
    /// Every slot that a fixed SPI may stand in is taken, or the SPI itself is.
    #[error(
        "SPI {0:#x} cannot be placed: it is in use, reserved (below 256), or its neighbourhood is full; choose another"
    )]
    Spi(u32),
    /// No next hop slot.
    #[error("all {0} next hops of `capacity.neighbours` are taken")]
    Neighbours(u32),
    /// No room for routes.
    #[error(transparent)]
    Routes(#[from] FibFull),
    /// The tunnel has more selectors or a longer name than fit.
    #[error(
        "tunnel {0}: 1 to {MAX_SELECTORS} ranges on each side, at most {MAX_NAME} octets of name, and 15 of interface"
    )]
    Tunnel(String),
    /// The slot is live, and stays with its selectors.
    #[error("tunnel {0}: its slot has other selectors, which stay as they are: it needs another slot")]
    Selectors(String),
    /// The tunnel has as many children as it may.
    #[error("tunnel {0}: it has {MAX_CHILDREN} children besides the first, and takes no more")]
    Children(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Retired {
    Outbound(u32),
    Inbound(u32),
    Tunnel(u32),
    Adjacency(u32),
    Groups(Vec<u32>),
}

/// Control's side.
#[derive(Debug)]
pub struct TablesWriter {
    map: TablesMap,
    fib: FibWriter,
    free_outbound: Vec<u32>,
    free_inbound: FreeList,
    free_tunnels: Vec<u32>,
    free_adjacencies: Vec<u32>,
    /// Retired since [`TablesWriter::reclaim`] was called last.
    retired: Vec<Retired>,
    /// What was retired before, oldest first: it may go when its grace is over.
    waiting: VecDeque<(Grace, Vec<Retired>)>,
    generation: u32,
}

impl TablesWriter {
    /// Takes the role of control in `directory`: adopts what is there, or makes it new. Slots that a dead control left
    /// half-written are wiped, those it was retiring are retired again.
    ///
    /// # Errors
    /// [`RegionError`], each saying what to do.
    pub fn open(directory: &Path, capacity: Capacity) -> Result<TablesWriter, RegionError> {
        let len = TablesLayout::new(capacity.check()?).len;
        let (segment, adopted) = Segment::own(directory, Kind::Tables, capacity, len)?;
        let map = TablesMap::new(segment);
        if !adopted {
            (0..capacity.neighbours)
                .for_each(|index| map.adjacency(index).0.store(UNUSED, Ordering::Relaxed));
        }
        let mut writer = TablesWriter {
            fib: FibWriter::adopt(map.fib()),
            free_outbound: Vec::new(),
            free_inbound: FreeList::new(map.inbound_mask as usize + 1),
            free_tunnels: Vec::new(),
            free_adjacencies: (0..capacity.neighbours)
                .rev()
                .filter(|index| map.adjacency(*index).0.load(Ordering::Relaxed) == UNUSED)
                .collect(),
            retired: Vec::new(),
            waiting: VecDeque::new(),
            generation: 0,
            map,
        };
        writer.adopt_slots();
        let left = |index: &u32| writer.map.adjacency(*index).0.load(Ordering::Relaxed) & RETIRING != 0;
        let left: Vec<u32> = (0..capacity.neighbours).filter(left).collect();
        writer.retired.extend(left.into_iter().map(Retired::Adjacency));
        Ok(writer)
    }

    fn adopt_slots(&mut self) {
        for slot in (0..self.map.capacity.outbound_slots() as u32).rev() {
            match self.map.outbound(slot).head.get().0 {
                SlotState::Free => self.free_outbound.push(slot),
                SlotState::Filling => self.wipe(Retired::Outbound(slot)),
                SlotState::Retiring => self.retired.push(Retired::Outbound(slot)),
                SlotState::Live => {}
            }
        }
        for slot in (0..=self.map.inbound_mask).rev() {
            match self.map.inbound(slot).head.get().0 {
                SlotState::Free => self.free_inbound.give(slot),
                SlotState::Filling => self.wipe(Retired::Inbound(slot)),
                SlotState::Retiring => self.retired.push(Retired::Inbound(slot)),
                SlotState::Live => {}
            }
        }
        for slot in (0..self.map.capacity.tunnel_slots() as u32).rev() {
            let (state, tag) = self.map.tunnel(slot).head.get();
            self.generation = self.generation.max(tag);
            match state {
                SlotState::Free => self.free_tunnels.push(slot),
                SlotState::Filling => self.wipe(Retired::Tunnel(slot)),
                SlotState::Retiring => self.retired.push(Retired::Tunnel(slot)),
                SlotState::Live => {}
            }
        }
    }

    /// What the region was made for.
    pub fn capacity(&self) -> Capacity {
        self.map.capacity
    }

    /// The live tunnels with their slots.
    pub fn tunnels(&self) -> impl Iterator<Item = (u32, &Tunnel)> {
        self.map.tunnels()
    }

    /// What was dropped at the tunnel in `slot` since it is there, by reason.
    pub fn tunnel_drops(&self, slot: u32, state: &StateView) -> TunnelDrops {
        state.tunnel_drops(slot, self.map.tunnel(slot).generation())
    }

    /// The live outbound SAs with their slots.
    pub fn outbound(&self) -> impl Iterator<Item = (u32, &OutboundSa)> {
        let all = (0..self.map.capacity.outbound_slots() as u32).map(|slot| (slot, self.map.outbound(slot)));
        all.filter(|(_, sa)| sa.head.live().is_some())
    }

    /// The live inbound SAs with their slots.
    pub fn inbound(&self) -> impl Iterator<Item = (u32, &InboundSa)> {
        let all = (0..=self.map.inbound_mask).map(|slot| (slot, self.map.inbound(slot)));
        all.filter(|(_, sa)| sa.head.live().is_some())
    }

    /// The outbound SA in `slot`, as the data plane sees it.
    pub fn outbound_sa(&self, slot: u32) -> &OutboundSa {
        self.map.outbound(slot)
    }

    /// The inbound SA in `slot`, as the data plane sees it.
    pub fn inbound_sa(&self, slot: u32) -> &InboundSa {
        self.map.inbound(slot)
    }

    /// Key blocks as the data plane sees them, for re-adoption and tests: outbound.
    pub fn outbound_key(&self, slot: u32) -> &KeyBlock {
        self.map.outbound_key(slot)
    }

    /// Key blocks as the data plane sees them, for re-adoption and tests: inbound.
    pub fn inbound_key(&self, slot: u32) -> &KeyBlock {
        self.map.inbound_key(slot)
    }

    /// Adds a tunnel without an SA: routes may lead to it now, its packets are dropped until an SA is there.
    ///
    /// # Errors
    /// [`TableFull`].
    pub fn add_tunnel(&mut self, spec: &TunnelSpec) -> Result<u32, TableFull> {
        check_tunnel(spec)?;
        let slot = self.free_tunnels.pop().ok_or(TableFull::Tunnels(self.map.capacity.tunnels))?;
        self.generation = self.generation.wrapping_add(1).max(1);
        let tunnel = self.map.tunnel(slot);
        tunnel.head.begin();
        tunnel.outbound.store(NONE, Ordering::Relaxed);
        tunnel.clear_outbound_of_workers();
        tunnel.adjacency.store(NONE, Ordering::Relaxed);
        tunnel.next.store(NONE, Ordering::Relaxed);
        tunnel.group.store(slot, Ordering::Relaxed);
        tunnel.device.store(slot, Ordering::Relaxed);
        tunnel.fill(spec);
        let mut name = [0; MAX_NAME + 1];
        name[..spec.name.len()].copy_from_slice(spec.name.as_bytes());
        let at = self.map.layout.tunnels
            + slot as usize * size_of::<Tunnel>()
            + std::mem::offset_of!(Tunnel, name);
        for (step, octets) in name.chunks_exact(8).enumerate() {
            let word = octets.iter().rev().fold(0, |word, octet| word << 8 | u64::from(*octet));
            self.map.segment.write(at + step * 8, AtomicU64::new(word));
        }
        self.map.tunnel(slot).head.publish(self.generation);
        Ok(slot)
    }

    /// Changes what may change of a live tunnel: inner MTU, interface and peer, each by one store.
    ///
    /// # Errors
    /// [`TableFull::Tunnel`], and [`TableFull::Selectors`] where the selectors are others: nothing was changed then.
    pub fn update_tunnel(&mut self, slot: u32, spec: &TunnelSpec) -> Result<(), TableFull> {
        check_tunnel(spec)?;
        let (tunnel, now) = (self.map.tunnel(slot), self.map.tunnel(slot).spec());
        if (&now.name, &now.local, &now.remote) != (&spec.name, &spec.local, &spec.remote) {
            return Err(TableFull::Selectors(spec.name.clone()));
        }
        if now != *spec {
            tunnel.change(spec);
        }
        Ok(())
    }

    /// Makes `children` the further slots of the tunnel in slot `group`, in this order: a packet takes the first that covers
    /// it and has an SA. A slot that is left out goes on serving who holds it; retire it, or make it a tunnel of its own.
    /// A worker that is on its way from slot to slot meanwhile sees each that stays.
    pub fn link_tunnel(&mut self, group: u32, children: &[u32]) {
        let device = self.map.tunnel(group).device();
        let mut next = NONE;
        for slot in children.iter().take(MAX_CHILDREN).rev() {
            let child = self.map.tunnel(*slot);
            child.device.store(device, Ordering::Release);
            child.group.store(group, Ordering::Release);
            child.next.store(next, Ordering::Release);
            next = *slot;
        }
        self.map.tunnel(group).next.store(next, Ordering::Release);
    }

    /// Keeps the number by which the twins' thread knows an interface, where its tunnel goes on in another slot. The slot of
    /// that number must stay live, with `slot` as its group.
    pub fn set_tunnel_device(&mut self, slot: u32, device: u32) {
        self.map.tunnel(slot).device.store(device, Ordering::Release);
    }

    /// Judges an SA by the selectors of another slot: for keys of a file, whose selectors are the file's.
    pub fn move_outbound(&mut self, sa: u32, tunnel: u32) {
        self.map.outbound(sa).tunnel.store(tunnel, Ordering::Release);
    }

    /// As [`TablesWriter::move_outbound`], of an inbound SA.
    pub fn move_inbound(&mut self, sa: u32, tunnel: u32) {
        self.map.inbound(sa).tunnel.store(tunnel, Ordering::Release);
    }

    /// The tunnel in `slot`, as the data plane sees it.
    pub fn tunnel(&self, slot: u32) -> &Tunnel {
        self.map.tunnel(slot)
    }

    /// Which SA seals now, for all workers without one of their own; `None` stops the tunnel, for those too (packets are
    /// dropped, never sent in the clear).
    pub fn switch_outbound(&mut self, tunnel: u32, outbound: Option<u32>) {
        let tunnel = self.map.tunnel(tunnel);
        tunnel.outbound.store(outbound.unwrap_or(NONE), Ordering::Release);
        if outbound.is_none() {
            tunnel.clear_outbound_of_workers();
        }
    }

    /// Gives `worker` (below [`WORKER_SAS`]) an outbound SA of its own in a tunnel (RFC 9611), or with `None` takes it
    /// away: then it seals on the shared one again. The tunnel has a shared SA throughout (RFC 9611 section 3). The caller
    /// retires what is switched away. Returns whether there is room for that worker.
    pub fn switch_outbound_of_worker(&mut self, tunnel: u32, worker: usize, outbound: Option<u32>) -> bool {
        self.map.tunnel(tunnel).set_outbound_of_worker(worker, outbound);
        worker < WORKER_SAS
    }

    /// Where the outer packets of a tunnel go.
    pub fn set_tunnel_adjacency(&mut self, tunnel: u32, adjacency: Option<u32>) {
        self.map.tunnel(tunnel).adjacency.store(adjacency.unwrap_or(NONE), Ordering::Release);
    }

    /// Takes a tunnel out. Its routes and SAs are taken out by the caller, routes first.
    pub fn retire_tunnel(&mut self, slot: u32) {
        self.map.tunnel(slot).head.retire();
        self.retired.push(Retired::Tunnel(slot));
    }

    /// Installs an outbound SA; it seals once a tunnel is switched to it. `state` is where its numbers are counted.
    ///
    /// # Errors
    /// [`TableFull::Sas`].
    pub fn install_outbound(&mut self, spec: OutboundSpec, state: &StateView) -> Result<u32, TableFull> {
        let slot = self.free_outbound.pop().ok_or(TableFull::Sas)?;
        self.map.outbound(slot).head.begin();
        let place = self.map.layout.outbound_place(slot);
        self.map.segment.write(place.key, spec.key);
        let sa = OutboundSa {
            head: SlotHead::filling(),
            offset: state.outbound(slot).offset_after(spec.last_used),
            hard: AtomicU64::new(if spec.esn {
                spec.hard_limit
            } else {
                spec.hard_limit.min(u64::from(u32::MAX))
            }),
            epoch: state.epoch(),
            tunnel: AtomicU32::new(spec.tunnel),
            flags: (u8::from(spec.esn) * ESN) | (u8::from(spec.udp) * UDP),
            soft_log2: spec.soft_log2,
            dont_fragment: spec.dont_fragment as u8,
            reserved: 0,
            template: spec.template,
        };
        self.map.segment.write(place.sa, sa);
        self.map.outbound(slot).head.publish(spec.spi);
        Ok(slot)
    }

    /// Raises the hard limit of a live outbound SA (for keys whose use is recorded on disk first).
    pub fn raise_hard_limit(&mut self, slot: u32, limit: u64) {
        let sa = self.map.outbound(slot);
        let limit = if sa.esn() { limit } else { limit.min(u64::from(u32::MAX)) };
        sa.hard.fetch_max(limit, Ordering::AcqRel);
    }

    /// Lowers the hard limit of a live outbound SA to `limit` or keeps it where it is lower; returns it. What goes on with the
    /// same key elsewhere begins behind it.
    pub fn cap_hard_limit(&mut self, slot: u32, limit: u64) -> u64 {
        self.map.outbound(slot).hard.fetch_min(limit, Ordering::AcqRel).min(limit)
    }

    /// Takes an outbound SA out; switch its tunnel away first.
    pub fn retire_outbound(&mut self, slot: u32) {
        self.map.outbound(slot).head.retire();
        self.retired.push(Retired::Outbound(slot));
    }

    /// Reserves a slot and a fresh random SPI that leads to it.
    ///
    /// # Errors
    /// [`TableFull::Sas`].
    pub fn allocate_spi(&mut self) -> Result<u32, TableFull> {
        let map = &self.map;
        let free = |slot: u32| map.inbound(slot).head.get().0 == SlotState::Free;
        let slot = self.free_inbound.take(free).ok_or(TableFull::Sas)?;
        self.map.inbound(slot).head.begin();
        loop {
            let spi = crate::segment::random() as u32 & !self.map.inbound_mask | slot;
            if spi > 255 && self.map.inbound_slot(spi).is_none() {
                return Ok(spi);
            }
        }
    }

    /// Gives back an SPI that was allocated and not installed.
    pub fn release_spi(&mut self, spi: u32) {
        let slot = spi & self.map.inbound_mask;
        if self.map.inbound(slot).head.get().0 == SlotState::Filling {
            self.wipe(Retired::Inbound(slot));
        }
    }

    /// Reserves a slot for an SPI that a file fixed or a lab secret derived.
    ///
    /// # Errors
    /// [`TableFull::Spi`].
    pub fn reserve_spi(&mut self, spi: u32) -> Result<u32, TableFull> {
        if spi < 256 || self.map.inbound_slot(spi).is_some() {
            return Err(TableFull::Spi(spi));
        }
        let near = (0..=MAX_PROBE).map(|step| (step, spi.wrapping_add(step) & self.map.inbound_mask));
        let free = |slot: u32| self.map.inbound(slot).head.get().0 == SlotState::Free;
        let (step, slot) = near.into_iter().find(|(_, slot)| free(*slot)).ok_or(TableFull::Spi(spi))?;
        self.map.inbound(slot).head.begin();
        self.map.segment.header().figure.fetch_max(step, Ordering::AcqRel);
        Ok(slot)
    }

    /// Installs an inbound SA under an SPI from [`TablesWriter::allocate_spi`]; it opens packets at once.
    pub fn install_inbound(&mut self, spi: u32, spec: InboundSpec, state: &StateView) -> u32 {
        let slot = spi & self.map.inbound_mask;
        self.install_inbound_at(slot, spi, spec, state);
        slot
    }

    /// Installs an inbound SA in a slot from [`TablesWriter::reserve_spi`]; it opens packets at once.
    pub fn install_inbound_at(&mut self, slot: u32, spi: u32, spec: InboundSpec, state: &StateView) {
        assert_eq!(self.map.inbound(slot).head.get().0, SlotState::Filling, "slot was reserved");
        let place = self.map.layout.inbound_place(slot);
        self.map.segment.write(place.key, spec.key);
        let sa = InboundSa {
            head: SlotHead::filling(),
            base: AtomicU64::new(state.inbound(slot).top()),
            epoch: state.epoch(),
            tunnel: AtomicU32::new(spec.tunnel),
            window: spec.window.clamp(crate::replay::MIN_WINDOW, self.map.capacity.replay_window),
            flags: u8::from(spec.esn) * ESN,
            reserved: [0; 3],
            source: AtomicU64::new(0),
            spare: [0; 3],
        };
        self.map.segment.write(place.sa, sa);
        self.map.inbound(slot).head.publish(spi);
    }

    /// From now on the data plane tells where the newest authentic packet of a live inbound SA came from, when that is
    /// another source in UDP than this one; with `None` it tells nothing.
    pub fn expect_from(&self, slot: u32, source: Option<Source>) {
        self.map.inbound(slot).source.store(source.map_or(0, Source::pack), Ordering::Relaxed);
    }

    /// Lets a live inbound SA take every number once more. This undoes its replay protection: only for a benchmark that is fed
    /// the same capture round and round, and wants the window to be at work all the same.
    pub fn forget_window(&self, slot: u32, state: &StateView) {
        self.map.inbound(slot).base.store(state.inbound(slot).top(), Ordering::Relaxed);
    }

    /// Takes an inbound SA out.
    pub fn retire_inbound(&mut self, slot: u32) {
        self.map.inbound(slot).head.retire();
        self.retired.push(Retired::Inbound(slot));
    }

    /// Adds a next hop, resolved or not.
    ///
    /// # Errors
    /// [`TableFull::Neighbours`].
    pub fn add_adjacency(&mut self, hop: Result<Adjacency, Unresolved>) -> Result<u32, TableFull> {
        let index = self.free_adjacencies.pop().ok_or(TableFull::Neighbours(self.map.capacity.neighbours))?;
        self.set_adjacency(index, hop);
        Ok(index)
    }

    /// Changes a next hop in place.
    pub fn set_adjacency(&mut self, index: u32, hop: Result<Adjacency, Unresolved>) {
        let word = hop.map_or_else(Unresolved::pack, Adjacency::pack);
        self.map.adjacency(index).0.store(word, Ordering::Release);
    }

    /// The next hops in use, as a restarted control finds them.
    pub fn adjacencies(&self) -> impl Iterator<Item = (u32, Result<Adjacency, Unresolved>)> {
        let words = (0..self.map.capacity.neighbours)
            .map(|index| (index, self.map.adjacency(index).0.load(Ordering::Acquire)));
        let used = words.filter(|(_, word)| *word != UNUSED && word & RETIRING == 0);
        used.map(|(index, word)| (index, Adjacency::unpack(word)))
    }

    /// Takes a next hop out that neither route nor tunnel leads to any more. A worker that still holds the index may use it
    /// until its next quiescent point; only then the index is given to another.
    pub fn retire_adjacency(&mut self, index: u32) {
        self.map.adjacency(index).0.fetch_or(RETIRING, Ordering::AcqRel);
        self.retired.push(Retired::Adjacency(index));
    }

    /// What the data plane is told of port `index`.
    pub fn port(&self, index: usize) -> &PortEntry {
        &self.map.ports()[index]
    }

    /// What the data plane is told of all ports that there may be.
    pub fn ports(&self) -> &[PortEntry] {
        self.map.ports()
    }

    /// Makes the route table hold exactly `wanted`.
    ///
    /// # Errors
    /// [`TableFull::Routes`]; the routes that fit are there.
    pub fn sync_routes(&mut self, wanted: &BTreeMap<Prefix, Hop>) -> Result<(), TableFull> {
        let result = self.fib.sync(self.map.fib(), wanted);
        let groups = self.fib.take_retired();
        if !groups.is_empty() {
            self.retired.push(Retired::Groups(groups));
        }
        Ok(result?)
    }

    /// The routes as they stand.
    pub fn routes(&self) -> &BTreeMap<Prefix, Hop> {
        self.fib.routes()
    }

    /// Wipes and frees what no worker can hold any more; call every few milliseconds. `None`: no data plane ever ran.
    /// Returns how many still wait.
    pub fn reclaim(&mut self, state: Option<&StateView>) -> usize {
        let Some(state) = state else {
            let all = self.waiting.drain(..).flat_map(|(_, retired)| retired);
            let all: Vec<Retired> = all.chain(self.retired.drain(..)).collect();
            all.into_iter().for_each(|retired| self.wipe(retired));
            return 0;
        };
        // Counters only step on: where the oldest has to wait, all others have.
        while self.waiting.front().is_some_and(|(grace, _)| state.passed(grace)) {
            let oldest = self.waiting.pop_front().map(|(_, retired)| retired);
            oldest.into_iter().flatten().for_each(|retired| self.wipe(retired));
        }
        if !self.retired.is_empty() {
            self.waiting.push_back((state.grace(), std::mem::take(&mut self.retired)));
        }
        self.waiting.iter().map(|(_, retired)| retired.len()).sum()
    }

    fn wipe(&mut self, retired: Retired) {
        let layout = self.map.layout;
        match retired {
            Retired::Outbound(slot) => {
                self.map.segment.wipe::<KeyBlock>(layout.outbound_place(slot).key);
                self.map.outbound(slot).head.free();
                self.free_outbound.push(slot);
            }
            Retired::Inbound(slot) => {
                self.map.segment.wipe::<KeyBlock>(layout.inbound_place(slot).key);
                self.map.inbound(slot).head.free();
                self.free_inbound.give(slot);
            }
            Retired::Tunnel(slot) => {
                self.map.tunnel(slot).head.free();
                self.free_tunnels.push(slot);
            }
            Retired::Adjacency(index) => {
                self.map.adjacency(index).0.store(UNUSED, Ordering::Release);
                self.free_adjacencies.push(index);
            }
            Retired::Groups(groups) => self.fib.reuse(groups),
        }
    }

    /// A clean end: wipes every key and removes the file.
    ///
    /// # Errors
    /// [`RegionError::Io`] where the file cannot be removed.
    pub fn remove(self) -> Result<(), RegionError> {
        self.map.segment.remove()
    }
}

/// Free slots, longest free first: an SPI that was just given up should not soon lead to another SA's slot. A slot that
/// was reserved by its number stays listed and is passed over.
#[derive(Debug)]
struct FreeList {
    queue: VecDeque<u32>,
    listed: Vec<bool>,
}

impl FreeList {
    fn new(slots: usize) -> FreeList {
        FreeList { queue: VecDeque::with_capacity(slots), listed: vec![false; slots] }
    }

    fn give(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.listed[slot as usize], true) {
            self.queue.push_back(slot);
        }
    }

    fn take(&mut self, free: impl Fn(u32) -> bool) -> Option<u32> {
        while let Some(slot) = self.queue.pop_front() {
            self.listed[slot as usize] = false;
            if free(slot) {
                return Some(slot);
            }
        }
        None
    }
}

const UNUSED: u64 = u64::MAX >> 8;

fn check_tunnel(spec: &TunnelSpec) -> Result<(), TableFull> {
    let some = |ranges: &[Selector]| {
        (1..=MAX_SELECTORS).contains(&ranges.len()) && ranges.iter().all(|range| range.first <= range.last)
    };
    let fits = some(&spec.local)
        && some(&spec.remote)
        && spec.name.len() <= MAX_NAME
        && spec.interface.len() <= MAX_INTERFACE;
    fits.then_some(()).ok_or_else(|| TableFull::Tunnel(spec.name.clone()))
}
