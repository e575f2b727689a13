//! What is lost at a tunnel, and at the kernel's devices: counters in `state` that are written only where a frame is
//! lost. Those of a tunnel belong to the tunnel that is in the slot now: the first loss of another one begins anew.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::verdict::Verdict;

/// The drops that are counted at the tunnel that they belong to, too.
pub const TUNNEL_DROPS: [Verdict; 18] = [
    Verdict::Replayed,
    Verdict::TooOld,
    Verdict::AuthFailed,
    Verdict::EspTrailer,
    Verdict::EspDummy,
    Verdict::InnerMalformed,
    Verdict::EcnInvalid,
    Verdict::SelectorInbound,
    Verdict::SelectorOutbound,
    Verdict::NoSa,
    Verdict::SaOrphaned,
    Verdict::SequenceExhausted,
    Verdict::TooBig,
    Verdict::TunnelLoop,
    Verdict::SealFailed,
    Verdict::NoRoute,
    Verdict::NoNeighbour,
    Verdict::PortDown,
];

/// Room for counters, so that a tunnel has whole cache lines.
const ROOM: usize = 23;

/// Per tunnel slot, written by workers only.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct TunnelLosses {
    /// Generation of the tunnel that the counters belong to.
    owner: AtomicU64,
    counts: [AtomicU64; ROOM],
}

const _: () = assert!(size_of::<TunnelLosses>() == 192 && TUNNEL_DROPS.len() <= ROOM);

impl TunnelLosses {
    /// Worker side, for the tunnel of this generation. Of losses that several workers see in the moment in which another
    /// tunnel has come into the slot, a few may go uncounted here.
    pub fn count(&self, generation: u32, verdict: Verdict) {
        let Some(place) = TUNNEL_DROPS.iter().position(|one| *one == verdict) else { return };
        let owner = u64::from(generation);
        if self.owner.swap(owner, Ordering::Relaxed) != owner {
            self.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
        self.counts[place].fetch_add(1, Ordering::Relaxed);
    }

    /// What the tunnel of this generation lost since it is there.
    pub fn of(&self, generation: u32) -> TunnelDrops {
        let mut drops = TunnelDrops::default();
        if self.owner.load(Ordering::Relaxed) == u64::from(generation) {
            drops.0.iter_mut().zip(&self.counts).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        }
        drops
    }
}

/// The drops of one tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelDrops([u64; TUNNEL_DROPS.len()]);

impl TunnelDrops {
    /// Each reason with its count, zeros included.
    pub fn each(&self) -> impl Iterator<Item = (Verdict, u64)> + '_ {
        TUNNEL_DROPS.into_iter().zip(self.0)
    }

    /// How many frames were dropped for this reason; 0 for one that no tunnel has.
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.each().find(|(one, _)| *one == verdict).map_or(0, |(_, count)| count)
    }

    /// Of these counts; reasons that no tunnel has are left out.
    pub fn from_counts(counts: impl IntoIterator<Item = (Verdict, u64)>) -> TunnelDrops {
        let mut drops = TunnelDrops::default();
        for (verdict, count) in counts {
            let place = TUNNEL_DROPS.iter().position(|one| *one == verdict);
            place.into_iter().for_each(|place| drops.0[place] += count);
        }
        drops
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What passed between the workers and the kernel's devices, and what was lost there: a frame that is `punted` ends as
/// `to_kernel`, `detached` or `refused`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TwinReport {
    /// Frames that the kernel took.
    pub to_kernel: u64,
    /// Frames lost since their device was not attached.
    pub detached: u64,
    /// Frames that the kernel refused: the device is down, or its queue is full.
    pub refused: u64,
    /// Frames of the kernel that were handed to the workers.
    pub from_kernel: u64,
    /// Frames of the kernel lost since the pool was empty, or since they were larger than a buffer.
    pub no_frame: u64,
    /// How often a device was attached.
    pub attached: u64,
}

/// A [`TwinReport`] in `state`: one cache line, written by the data plane's housekeeping.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct TwinState([AtomicU64; 8]);

impl TwinState {
    /// Data plane side.
    pub fn set(&self, report: &TwinReport) {
        let TwinReport { to_kernel, detached, refused, from_kernel, no_frame, attached } = *report;
        let figures = [to_kernel, detached, refused, from_kernel, no_frame, attached];
        self.0.iter().zip(figures).for_each(|(word, figure)| word.store(figure, Ordering::Relaxed));
    }

    /// The values as they stand.
    pub fn get(&self) -> TwinReport {
        let figure = |at: usize| self.0[at].load(Ordering::Relaxed);
        TwinReport {
            to_kernel: figure(0),
            detached: figure(1),
            refused: figure(2),
            from_kernel: figure(3),
            no_frame: figure(4),
            attached: figure(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_has_its_own_losses_only() {
        let losses = TunnelLosses { owner: AtomicU64::new(0), counts: [const { AtomicU64::new(0) }; ROOM] };
        assert_eq!(losses.of(1), TunnelDrops::default());
        losses.count(1, Verdict::Replayed);
        losses.count(1, Verdict::Replayed);
        losses.count(1, Verdict::SelectorOutbound);
        losses.count(1, Verdict::Sent);
        let drops = losses.of(1);
        assert_eq!((drops.of(Verdict::Replayed), drops.of(Verdict::SelectorOutbound)), (2, 1));
        assert_eq!((drops.total(), drops.of(Verdict::Sent)), (3, 0));
        // The next tunnel in the slot.
        assert_eq!(losses.of(2), TunnelDrops::default());
        losses.count(2, Verdict::TooOld);
        assert_eq!((losses.of(2).total(), losses.of(1).total()), (1, 0));
    }
}
