//! A child SA within its IKE SA, and the choice of selectors. Enters: what an exchange negotiated. Leaves: the
//! installed SA with its limits. RFC 7296 sections 2.8, 2.9 and 2.17.

use crate::config::{ChildConfig, Connection, Lifetime};
use crate::crypto::{EspChoice, Rng};
use crate::message::{TrafficSelector, intersect, is_subset};
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

/// A new SA that an older one of another IKE SA precedes is sent with after this part of the draining time, if the peer
/// does not show before that it has it: the peer keeps the older one for the whole of it.
pub(crate) const SWITCH_PART: u32 = 4;

/// Where a child SA is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// In use.
    Live,
    /// Our request to replace it is under way.
    Rekeying,
    /// The peer replaced it and will delete it.
    Replaced,
    /// Our request to delete it is under way or queued.
    Deleting,
}

/// A child SA.
pub(crate) struct Child {
    pub config: Arc<ChildConfig>,
    pub spi_in: u32,
    pub spi_out: u32,
    pub esp: EspChoice,
    pub local_ts: Vec<TrafficSelector>,
    pub remote_ts: Vec<TrafficSelector>,
    /// We initiated the exchange that made it.
    pub ours: bool,
    /// The lower nonce of that exchange: decides collisions (RFC 7296 2.8.1).
    pub nonce: Vec<u8>,
    /// Made in IKE_AUTH, where no key exchange of its own is negotiated.
    pub first: bool,
    /// Its rekey was refused, by the peer or by us: it ends at its hard limit unless something takes its place.
    pub refused: Option<crate::Refused>,
    /// Made by a rekey, so not a duplicate of its predecessor.
    pub rekeyed: bool,
    pub state: ChildState,
    pub established: Instant,
    pub soft_at: Instant,
    pub hard_at: Instant,
    /// The peer's replacement for it, while our own request to replace it is under way.
    pub replaced_by: Option<(u32, Vec<u8>)>,
    /// The SA that this one replaces, as long as we still send with that one.
    pub awaits: Option<u32>,
    /// Something else carries the tunnel's traffic still: an SA of another IKE SA, or one from before a restart. We send
    /// with this one when the peer shows that it has our answer, or at this moment.
    pub switch_at: Option<Instant>,
    pub resource: Option<u32>,
    /// We answered the exchange that made it, and the peer has not shown yet that the answer arrived. Until then, or this
    /// moment at the latest, nothing is asked of the peer about it: it would not know the SA.
    pub unconfirmed: Option<Instant>,
    /// Why it is being deleted, for the event.
    pub closing: Option<crate::Reason>,
    pub bytes: (u64, u64),
}

/// Draws the moment of replacement: `margin` to twice that before the hard limit, so that two ends rarely collide.
pub(crate) fn soft_limit(lifetime: &Lifetime, now: Instant, rng: &mut Rng) -> Instant {
    let jitter = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    let before = lifetime.margin.as_secs_f64() * (1.0 + jitter);
    now + lifetime.hard.saturating_sub(Duration::from_secs_f64(before))
}

/// The child of the connection that fits a peer's offer, with the narrowed selectors (RFC 7296 2.9): the one that is
/// covered wholly if there is one, else the first with anything in common.
pub(crate) fn narrow(
    connection: &Connection,
    local_offer: &[TrafficSelector],
    remote_offer: &[TrafficSelector],
) -> Option<(Arc<ChildConfig>, Vec<TrafficSelector>, Vec<TrafficSelector>)> {
    type Found = (u8, Arc<ChildConfig>, Vec<TrafficSelector>, Vec<TrafficSelector>);
    let mut found: Option<Found> = None;
    for c in &connection.children {
        let (local, remote) = (intersect(local_offer, &c.local_ts), intersect(remote_offer, &c.remote_ts));
        if local.is_empty() || remote.is_empty() {
            continue;
        }
        let whole = is_subset(&c.local_ts, local_offer) && is_subset(&c.remote_ts, remote_offer);
        let exact = whole && is_subset(local_offer, &c.local_ts) && is_subset(remote_offer, &c.remote_ts);
        let score = u8::from(whole) + u8::from(exact);
        if found.as_ref().is_none_or(|(s, ..)| score > *s) {
            found = Some((score, c.clone(), local, remote));
        }
    }
    found.map(|(_, c, l, r)| (c, l, r))
}

/// Selectors of both sides as one text, the same for the same selectors.
pub(crate) fn selectors_text(local: &[TrafficSelector], remote: &[TrafficSelector]) -> String {
    let sorted = |side: &[TrafficSelector]| {
        let mut side = side.to_vec();
        side.sort_unstable();
        list(&side)
    };
    format!("{} {}", sorted(local), sorted(remote))
}

/// Selectors as one text.
pub(crate) fn list(ts: &[TrafficSelector]) -> String {
    ts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{connection, rng};

    #[test]
    fn the_best_child_is_chosen() {
        let mut c = connection("a", "192.0.2.1", "192.0.2.2", "10.0.0.0/8", "10.0.0.0/8");
        let mut second = (*c.children[0]).clone();
        second.name = "second".into();
        second.remote_ts = vec![TrafficSelector::network("10.9.0.0".parse().unwrap(), 16)];
        c.children.push(second.into());
        let all = [TrafficSelector::network("10.0.0.0".parse().unwrap(), 8)];
        let some = [TrafficSelector::network("10.9.0.0".parse().unwrap(), 16)];
        let (chosen, l, r) = narrow(&c, &all, &some).unwrap();
        assert_eq!((&*chosen.name, &l[..], &r[..]), ("second", &all[..], &some[..]));
        assert_eq!(&*narrow(&c, &all, &all).unwrap().0.name, "net");
        let one = [TrafficSelector::network("10.7.0.1".parse().unwrap(), 32)];
        let (chosen, _, r) = narrow(&c, &all, &one).unwrap();
        assert_eq!((&*chosen.name, &r[..]), ("net", &one[..]));
        assert!(narrow(&c, &[TrafficSelector::any_v6()], &all).is_none());
    }

    #[test]
    fn soft_limit_lies_within_the_margin() {
        let lifetime = Lifetime::of(Duration::from_secs(1000));
        for seed in 0..100 {
            let at = soft_limit(&lifetime, Instant::default(), &mut rng(seed)).0.as_secs();
            assert!((800..=900).contains(&at));
        }
    }
}
