//! Pairs of networks of a child: one of ours, one of the peer's. Enters: what there are SAs for. Leaves: the pairs that have none,
//! to be asked for one by one where the peer takes no more at once. RFC 7296 sections 2.9 and 2.9.2.

use super::{Request, Task, What};
use crate::child::{Child, ChildState};
use crate::config::ChildConfig;
use crate::message::{TrafficSelector, intersect};
use crate::sa::{Ctx, IkeSa};
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

/// Our network and the peer's.
pub(crate) type Pair = (TrafficSelector, TrafficSelector);

/// SAs of one child that are asked for at most: a tunnel has no room for more.
const MOST_PAIRS: usize = 64;
/// A pair that was refused is asked for again after this.
const REFUSED_PAIR: Duration = Duration::from_secs(60);

impl IkeSa {
    /// SAs that carry a child's traffic, those of single workers left out.
    fn carriers(&self, name: &Arc<str>) -> impl Iterator<Item = &Child> {
        let carries = |c: &&Child| c.resource.is_none() && c.state != ChildState::Deleting;
        self.children.iter().filter(move |c| c.config.name == *name).filter(carries)
    }

    /// The pairs of a child that no SA has anything of: where the peer took a part of a network, that is its will.
    pub fn pairs_without(&self, config: &ChildConfig) -> Vec<Pair> {
        let both = |local: &TrafficSelector| {
            config.remote_ts.iter().map(|remote| (*local, *remote)).collect::<Vec<_>>()
        };
        let has = |(local, remote): &Pair| {
            self.carriers(&config.name).any(|c| {
                !intersect(&[*local], &c.local_ts).is_empty()
                    && !intersect(&[*remote], &c.remote_ts).is_empty()
            })
        };
        let all = config.local_ts.iter().flat_map(both);
        all.filter(|pair| !has(pair)).collect()
    }

    /// What to ask for next: everything at first, then pair by pair what the peer left out. None where nothing is left, or what
    /// is left was refused just now.
    pub fn next_selectors(
        &self,
        config: &ChildConfig,
        now: Instant,
    ) -> Option<(Vec<TrafficSelector>, Vec<TrafficSelector>)> {
        let count = self.carriers(&config.name).count();
        if count == 0 && !self.single_pair {
            return Some((config.local_ts.clone(), config.remote_ts.clone()));
        }
        let refused = |pair: &Pair| {
            self.refused_pairs
                .iter()
                .any(|(name, one, until)| *name == config.name && one == pair && *until > now)
        };
        let next = self.pairs_without(config).into_iter().find(|pair| !refused(pair));
        next.filter(|_| count < MOST_PAIRS).map(|(local, remote)| (vec![local], vec![remote]))
    }

    /// Takes note that the peer refused a pair; the others are asked for all the same.
    pub fn refuse_pair(&mut self, ctx: &mut Ctx<'_>, name: &Arc<str>, pair: Pair) {
        let now = ctx.now.at;
        self.refused_pairs.retain(|(one, of, until)| *until > now && (one != name || *of != pair));
        self.refused_pairs.push((name.clone(), pair, now + REFUSED_PAIR));
        self.want_child(ctx, name, Duration::ZERO);
    }

    /// Whether a child lacks nothing that could be asked for now.
    pub fn is_complete(&self, name: &Arc<str>, now: Instant) -> bool {
        let config = self.connection.iter().flat_map(|c| &c.children).find(|c| c.name == *name);
        config.is_none_or(|config| self.next_selectors(config, now).is_none())
    }

    /// Queues a child unless it has all that it can have, or is asked for.
    pub fn want_child(&mut self, ctx: &mut Ctx<'_>, name: &Arc<str>, delay: Duration) {
        let asked = matches!(&self.pending, Some(p) if matches!(&p.request, Request::Child(o) if o.config.name == *name));
        if !asked && !self.is_complete(name, ctx.now.at + delay) {
            self.queue(Task::new(ctx.now.at + delay, What::CreateChild(name.clone(), None)));
        }
    }
}
