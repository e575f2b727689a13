//! Longest prefix match on IPv4 destinations: a trie of strides 16-8-8, one to three loads a lookup, changed by single
//! atomic stores while workers read. 256 KiB of root and 1 KiB a group stay in L2 for the prefixes of many tunnels,
//! where 64 MiB of DIR-24-8 would not.
//!
//! Every entry carries the length of the prefix that it came from, so that the trie alone tells a restarted control what
//! is in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

/// Entries of the root.
pub const ROOT: usize = 1 << 16;
/// Entries of a group.
pub const GROUP: usize = 256;

/// Where a destination leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hop {
    /// Nowhere: there is no route.
    None,
    /// An address of the gateway: to the kernel.
    Local,
    /// The next hop with this index.
    Adjacency(u32),
    /// A connected network on this port: the address itself is the next hop, and its MAC is not known.
    Glean(u32),
    /// The tunnel in this slot.
    Tunnel(u32),
    /// A route that says to drop.
    Discard,
}

/// A route as it stands in the trie: the worker's form of a [`Hop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Route(u32);

impl Route {
    /// There is no route.
    pub const NONE: Route = Route(0);

    /// To the gateway itself.
    pub const LOCAL: Route = Route(LOCAL << 29);

    /// To the tunnel in a slot.
    pub const fn to_tunnel(slot: u32) -> Route {
        Route(TUNNEL << 29 | slot & INDEX)
    }

    /// Where it leads.
    #[inline]
    pub fn hop(self) -> Hop {
        decode(self.0)
    }

    /// Whether it leads to the gateway itself.
    #[inline(always)]
    pub fn is_local(self) -> bool {
        self.0 >> 29 == LOCAL
    }

    /// Index of the next hop that it leads to.
    #[inline(always)]
    pub fn adjacency(self) -> Option<u32> {
        (self.0 >> 29 == ADJACENCY).then_some(self.0 & INDEX)
    }

    /// Slot of the tunnel that it leads to.
    #[inline(always)]
    pub fn tunnel(self) -> Option<u32> {
        (self.0 >> 29 == TUNNEL).then_some(self.0 & INDEX)
    }
}

const LOCAL: u32 = 2;
const ADJACENCY: u32 = 3;
const TUNNEL: u32 = 5;
const CHILD: u32 = 1 << 29;
const KIND: u32 = 7 << 29;
const INDEX: u32 = (1 << 23) - 1;

fn encode(hop: Hop, len: u8) -> u32 {
    let (kind, index) = match hop {
        Hop::None => return 0,
        Hop::Local => (LOCAL, 0),
        Hop::Adjacency(index) => (ADJACENCY, index),
        Hop::Glean(port) => (4, port),
        Hop::Tunnel(slot) => (TUNNEL, slot),
        Hop::Discard => (6, 0),
    };
    kind << 29 | u32::from(len) << 23 | (index & INDEX)
}

#[inline(always)]
fn decode(entry: u32) -> Hop {
    let index = entry & INDEX;
    match entry >> 29 {
        LOCAL => Hop::Local,
        ADJACENCY => Hop::Adjacency(index),
        4 => Hop::Glean(index),
        TUNNEL => Hop::Tunnel(index),
        6 => Hop::Discard,
        _ => Hop::None,
    }
}

fn length(entry: u32) -> u8 {
    (entry >> 23 & 0x3f) as u8
}

/// An IPv4 prefix, host order, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Network address, host order.
    pub address: u32,
    /// Bits of network, 0 to 32.
    pub len: u8,
}

impl Prefix {
    /// The prefix of `len` (at most 32) bits that `address` lies in.
    pub fn new(address: u32, len: u8) -> Prefix {
        let len = len.min(32);
        Prefix { address: address & Prefix::mask_of(len), len }
    }

    /// The network mask of `len` bits, host order.
    pub fn mask_of(len: u8) -> u32 {
        (u64::from(u32::MAX) << (32 - u32::from(len.min(32)))) as u32
    }

    /// Whether `other` lies wholly inside.
    pub fn contains(self, other: Prefix) -> bool {
        other.len >= self.len && Prefix::new(other.address, self.len) == self
    }
}

/// The trie in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Fib<'a> {
    root: &'a [AtomicU32; ROOT],
    groups: &'a [AtomicU32],
}

impl<'a> Fib<'a> {
    /// `root` has [`ROOT`] entries, `groups` a multiple of [`GROUP`].
    #[inline]
    pub fn new(root: &'a [AtomicU32], groups: &'a [AtomicU32]) -> Fib<'a> {
        let (root, rest) = root.split_first_chunk().expect("a root of 65,536 entries");
        assert!(rest.is_empty() && groups.len().is_multiple_of(GROUP));
        Fib { root, groups }
    }

    /// Where `destination` (host order) leads.
    #[inline(always)]
    pub fn lookup(&self, destination: u32) -> Hop {
        self.find(destination).hop()
    }

    /// The route of `destination` (host order).
    #[inline(always)]
    pub fn find(&self, destination: u32) -> Route {
        let mut entry = self.root[(destination >> 16) as usize].load(Ordering::Acquire);
        for octet in [destination >> 8, destination] {
            if entry & KIND != CHILD {
                break;
            }
            let at = (entry & INDEX) as usize * GROUP + (octet & 0xff) as usize;
            match self.groups.get(at) {
                Some(next) => entry = next.load(Ordering::Acquire),
                None => return Route::NONE,
            }
        }
        Route(entry)
    }

    fn group(&self, index: u32) -> &'a [AtomicU32] {
        &self.groups[index as usize * GROUP..][..GROUP]
    }
}

/// The table of groups is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the route table is full: raise capacity.routes")]
pub struct FibFull;

/// Control's side of the trie: what is in it and which groups are free.
#[derive(Debug, Default)]
pub struct FibWriter {
    routes: BTreeMap<Prefix, Hop>,
    free: Vec<u32>,
    retired: Vec<u32>,
}

impl FibWriter {
    /// Learns what an existing trie holds (all zero: nothing), as far as it can be seen: a route that more specific ones
    /// hide wholly is forgotten, so call [`FibWriter::sync`] next.
    pub fn adopt(fib: Fib<'_>) -> FibWriter {
        let mut writer = FibWriter::default();
        let groups = (fib.groups.len() / GROUP) as u32;
        let mut used = vec![false; groups as usize];
        for (at, word) in fib.root.iter().enumerate() {
            writer.learn(fib, word, (at as u32) << 16, 8, &mut used);
        }
        writer.free = (0..groups).rev().filter(|group| !used[*group as usize]).collect();
        writer
    }

    fn learn(&mut self, fib: Fib<'_>, word: &AtomicU32, address: u32, shift: u32, used: &mut [bool]) {
        let entry = word.load(Ordering::Acquire);
        let index = entry & INDEX;
        if entry & KIND != CHILD {
            if decode(entry) != Hop::None {
                self.routes.insert(Prefix::new(address, length(entry)), decode(entry));
            }
        } else if shift <= 8 && (index as usize) < used.len() && !used[index as usize] {
            used[index as usize] = true;
            for (at, child) in fib.group(index).iter().enumerate() {
                let next = if shift == 8 { 0 } else { 16 };
                self.learn(fib, child, address | (at as u32) << shift, next, used);
            }
        } else {
            word.store(0, Ordering::Release);
        }
    }

    /// What is in the trie.
    pub fn routes(&self) -> &BTreeMap<Prefix, Hop> {
        &self.routes
    }

    /// Groups that are in use.
    pub fn groups_used(&self, fib: Fib<'_>) -> usize {
        fib.groups.len() / GROUP - self.free.len()
    }

    /// Makes the trie hold exactly `wanted`: first adds and changes, then removes. Unchanged routes are not touched.
    ///
    /// # Errors
    /// [`FibFull`]; what was changed before stays, and the removals are still done.
    pub fn sync(&mut self, fib: Fib<'_>, wanted: &BTreeMap<Prefix, Hop>) -> Result<(), FibFull> {
        let mut result = Ok(());
        for (prefix, hop) in wanted {
            if self.routes.get(prefix) != Some(hop) {
                result = result.and(self.insert(fib, *prefix, *hop));
            }
        }
        let gone: Vec<Prefix> =
            self.routes.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            result = result.and(self.remove(fib, prefix));
        }
        result
    }

    /// Adds or changes one route.
    ///
    /// # Errors
    /// [`FibFull`]; the route is not there then.
    pub fn insert(&mut self, fib: Fib<'_>, prefix: Prefix, hop: Hop) -> Result<(), FibFull> {
        self.paint(fib, prefix, encode(hop, prefix.len), |entry| length(entry) <= prefix.len)?;
        self.routes.insert(prefix, hop);
        Ok(())
    }

    /// Takes one route out; what it hid shows again.
    ///
    /// # Errors
    /// [`FibFull`] never in practice: a route that is there has its groups.
    pub fn remove(&mut self, fib: Fib<'_>, prefix: Prefix) -> Result<(), FibFull> {
        if self.routes.remove(&prefix).is_none() {
            return Ok(());
        }
        let below = (0..prefix.len).rev().map(|len| Prefix::new(prefix.address, len));
        let parent = below.into_iter().find_map(|parent| Some((parent, *self.routes.get(&parent)?)));
        let entry = parent.map_or(0, |(parent, hop)| encode(hop, parent.len));
        self.paint(fib, prefix, entry, |old| length(old) == prefix.len && decode(old) != Hop::None)?;
        self.collapse(fib, prefix);
        Ok(())
    }

    /// Groups that were unlinked since the last call: give them back with [`FibWriter::reuse`] when every worker has
    /// passed a quiescent point.
    pub fn take_retired(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.retired)
    }

    /// Groups that no worker can see any more.
    pub fn reuse(&mut self, groups: Vec<u32>) {
        self.free.extend(groups);
    }

    /// Writes `entry` over every entry of the prefix's range for which `over` holds.
    fn paint(
        &mut self,
        fib: Fib<'_>,
        prefix: Prefix,
        entry: u32,
        over: impl Fn(u32) -> bool,
    ) -> Result<(), FibFull> {
        let (mut level, mut table): (&[AtomicU32], u32) = (fib.root, 16);
        loop {
            let place = (prefix.address >> (32 - table)) as usize & (level.len() - 1);
            if u32::from(prefix.len) <= table {
                let count = 1usize << (table - u32::from(prefix.len));
                for word in &level[place..place + count] {
                    paint_below(fib, word, entry, &over);
                }
                return Ok(());
            }
            let child = self.child(fib, &level[place])?;
            level = fib.group(child);
            table += 8;
        }
    }

    /// The group behind an entry, made where there is none: filled first, linked by one store.
    fn child(&mut self, fib: Fib<'_>, word: &AtomicU32) -> Result<u32, FibFull> {
        let entry = word.load(Ordering::Relaxed);
        if entry & KIND == CHILD {
            return Ok(entry & INDEX);
        }
        let group = self.free.pop().ok_or(FibFull)?;
        fib.group(group).iter().for_each(|child| child.store(entry, Ordering::Relaxed));
        word.store(CHILD | group, Ordering::Release);
        Ok(group)
    }

    /// Folds the groups on the prefix's way that hold nothing longer than their parents could say.
    fn collapse(&mut self, fib: Fib<'_>, prefix: Prefix) {
        let root = &fib.root[(prefix.address >> 16) as usize];
        let entry = root.load(Ordering::Relaxed);
        if prefix.len <= 16 || entry & KIND != CHILD {
            return;
        }
        if prefix.len > 24 {
            self.fold(fib, &fib.group(entry & INDEX)[(prefix.address >> 8 & 0xff) as usize], 24);
        }
        self.fold(fib, root, 16);
    }

    fn fold(&mut self, fib: Fib<'_>, word: &AtomicU32, limit: u8) {
        let entry = word.load(Ordering::Relaxed);
        if entry & KIND != CHILD {
            return;
        }
        let group = fib.group(entry & INDEX);
        let first = group[0].load(Ordering::Relaxed);
        let uniform = |child: &AtomicU32| child.load(Ordering::Relaxed) == first;
        if first & KIND != CHILD && length(first) <= limit && group.iter().all(uniform) {
            word.store(first, Ordering::Release);
            self.retired.push(entry & INDEX);
        }
    }
}

fn paint_below(fib: Fib<'_>, word: &AtomicU32, entry: u32, over: &impl Fn(u32) -> bool) {
    let old = word.load(Ordering::Relaxed);
    if old & KIND == CHILD {
        fib.group(old & INDEX).iter().for_each(|child| paint_below(fib, child, entry, over));
    } else if over(old) {
        word.store(entry, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory(groups: usize) -> (Vec<AtomicU32>, Vec<AtomicU32>) {
        let zeros = |count| (0..count).map(|_| AtomicU32::new(0)).collect();
        (zeros(ROOT), zeros(groups * GROUP))
    }

    fn model(routes: &BTreeMap<Prefix, Hop>, address: u32) -> Hop {
        let found = (0..=32).rev().find_map(|len| routes.get(&Prefix::new(address, len)));
        found.copied().unwrap_or(Hop::None)
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        let crowded = prop_oneof![Just(0x0a01_0000u32), Just(0x0a01_8000), Just(0xc000_0200), any::<u32>()];
        (crowded, any::<u16>(), 0u8..=32)
            .prop_map(|(high, low, len)| Prefix::new(high | u32::from(low) & 0x3ff, len))
    }

    fn any_hop() -> impl Strategy<Value = Hop> {
        prop_oneof![
            Just(Hop::Local),
            Just(Hop::Discard),
            (0u32..100).prop_map(Hop::Tunnel),
            (0u32..100).prop_map(Hop::Adjacency),
            (0u32..16).prop_map(Hop::Glean),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn trie_is_the_longest_prefix(
            steps in prop::collection::vec((any_prefix(), prop::option::of(any_hop())), 1..60),
            probes in prop::collection::vec(any::<u32>(), 20),
        ) {
            let (root, groups) = memory(256);
            let fib = Fib::new(&root, &groups);
            let mut writer = FibWriter::adopt(fib);
            let mut routes = BTreeMap::new();
            for (prefix, hop) in &steps {
                match hop {
                    Some(hop) => {
                        writer.insert(fib, *prefix, *hop).unwrap();
                        routes.insert(*prefix, *hop);
                    }
                    None => {
                        writer.remove(fib, *prefix).unwrap();
                        routes.remove(prefix);
                    }
                }
            }
            let edges = steps.iter().flat_map(|(p, _)| {
                let last = p.address | !Prefix::mask_of(p.len);
                [p.address, last, p.address.wrapping_sub(1), last.wrapping_add(1)]
            });
            for address in edges.chain(probes.iter().copied()) {
                prop_assert_eq!(fib.lookup(address), model(&routes, address), "{:x}", address);
            }
            let mut adopted = FibWriter::adopt(fib);
            adopted.sync(fib, &routes).unwrap();
            for (prefix, _) in &steps {
                prop_assert_eq!(fib.lookup(prefix.address), model(&routes, prefix.address));
            }
            adopted.sync(fib, &BTreeMap::new()).unwrap();
            let retired = adopted.take_retired();
            adopted.reuse(retired);
            prop_assert_eq!(adopted.groups_used(fib), 0);
            prop_assert!(root.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn full_is_an_error_and_harms_nothing() {
        let (root, groups) = memory(1);
        let fib = Fib::new(&root, &groups);
        let mut writer = FibWriter::adopt(fib);
        writer.insert(fib, Prefix::new(0x0a00_0000, 24), Hop::Tunnel(1)).unwrap();
        assert_eq!(writer.insert(fib, Prefix::new(0x0b00_0000, 24), Hop::Tunnel(2)), Err(FibFull));
        assert_eq!(fib.lookup(0x0a00_0001), Hop::Tunnel(1));
        assert_eq!(fib.lookup(0x0b00_0001), Hop::None);
    }
}
