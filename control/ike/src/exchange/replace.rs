//! What becomes of an SA whose rekey is refused, by the peer or by us: a new IKE SA with its first child takes its place before
//! its keys end. Enters: a refusal. Leaves: the wish for a new IKE SA, again until it is fulfilled. RFC 7296 sections 1.3, 2.8
//! and 2.8.3 (reauthentication by make before break).

use super::{ChildOffer, Lack, Task, What, nonce, refusal};
use crate::child::{Child, ChildState, selectors_text};
use crate::crypto::EspProposal;
use crate::crypto::choice::with_key_exchange;
use crate::message::{Notify, NotifyType};
use crate::reason::{Failure, Reason, Refused};
use crate::sa::{Ctx, IkeSa};
use crate::time::Instant;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A peer whose rekey we refused gets this long to find another way itself.
pub(super) const AFTER_THE_PEER: Duration = Duration::from_secs(5);
/// A new IKE SA is tried again after a quarter of what is left, at least and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The same for a child that was refused while others of its IKE SA are up: it may have another fault.
const AGAIN_BESIDE_OTHERS: Duration = Duration::from_secs(600);

fn lives(c: &Child) -> bool {
    matches!(c.state, ChildState::Live | ChildState::Rekeying)
}

impl IkeSa {
    /// Asks for the same with a key exchange of the child's own, or without one, if the operator has no wish. False if that
    /// was done before.
    pub(super) fn turn(&self, ctx: &mut Ctx<'_>, offer: &mut ChildOffer) -> bool {
        if offer.turned || !EspProposal::groups(&offer.config.esp).is_empty() {
            return false;
        }
        let group = self.choice.map(|c| c.ke);
        offer.esp = match offer.ke {
            Some(_) => offer.config.esp.clone(),
            None => with_key_exchange(&offer.config.esp, group),
        };
        let group = EspProposal::groups(&offer.esp).first().copied();
        (offer.turned, offer.retried, offer.nonce) = (true, false, nonce(ctx));
        offer.ke = group.map(|g| g.start(ctx.rng));
        true
    }

    /// Why the peer refuses to replace a child: the key exchange alone if everything else was agreed to in IKE_AUTH.
    pub(super) fn why_refused(&self, spi_in: u32, offer: &ChildOffer, n: &Notify) -> Failure {
        let old = self.children.iter().find(|c| c.spi_in == spi_in);
        let same = old.is_some_and(|c| c.first && offer.config.esp.iter().any(|p| p.allows(&c.esp)));
        match n.kind {
            NotifyType::NoProposalChosen if same => Reason::PfsRefused.into(),
            _ => refusal(n, true),
        }
    }

    /// The rekey of a child was refused: it is used until it ends, and a new IKE SA is begun in time.
    pub(super) fn rekey_refused(&mut self, ctx: &Ctx<'_>, spi_in: u32, failure: Failure, patience: Duration) {
        let now = ctx.now.at;
        let Some(c) = self.children.iter_mut().find(|c| c.spi_in == spi_in && lives(c)) else { return };
        let until_unix_seconds = ctx.now.unix_of(c.hard_at);
        c.refused = Some(Refused { failure, until_unix_seconds });
        let at = now + patience.min(c.hard_at.since(now) / 4);
        if c.resource.is_none() {
            self.queue(Task::new(at, What::Replace(Lack::Rekey(spi_in))));
        }
    }

    /// A child was refused that does not exist: if it was not so as the first child of this IKE SA already, it may do as the
    /// first child of another, where no key exchange of its own is negotiated.
    pub(super) fn try_as_first(&mut self, ctx: &Ctx<'_>, name: Arc<str>, kind: NotifyType) {
        let perhaps_pfs = matches!(kind, NotifyType::NoProposalChosen | NotifyType::InvalidKePayload);
        if perhaps_pfs && self.first_refused.as_ref() != Some(&name) {
            self.queue(Task::new(ctx.now.at, What::Replace(Lack::Child(name))));
        }
    }

    /// The rekey of the IKE SA was refused.
    pub(super) fn ike_refused(&mut self, ctx: &Ctx<'_>, failure: Failure, patience: Duration) {
        let now = ctx.now.at;
        let until_unix_seconds = ctx.now.unix_of(self.hard_at);
        self.refused = Some(Refused { failure, until_unix_seconds });
        let at = now + patience.min(self.hard_at.since(now) / 4);
        self.queue(Task::new(at, What::Replace(Lack::Ike)));
    }

    /// For the log: when the keys of a child end.
    pub(super) fn until(&self, ctx: &Ctx<'_>, spi_in: u32) -> String {
        let end = self.children.iter().find(|c| c.spi_in == spi_in).map_or(ctx.now.at, |c| c.hard_at);
        let clock = crate::time::clock(ctx.now.unix_of(end));
        format!("up until {clock}, then down unless a new IKE SA takes its place")
    }

    /// Asks for a new IKE SA, and again later until nothing is lacking.
    pub(super) fn replace(&mut self, ctx: &mut Ctx<'_>, lack: Lack) {
        let live = || self.children.iter().filter(|c| lives(c));
        let (wanted, end): (Vec<Arc<str>>, Option<Instant>) = match &lack {
            Lack::Ike => {
                let names: BTreeSet<_> = live().map(|c| c.config.name.clone()).collect();
                (names.into_iter().collect(), Some(self.hard_at))
            }
            Lack::Rekey(spi_in) => match live().find(|c| c.spi_in == *spi_in && c.replaced_by.is_none()) {
                Some(c) => (vec![c.config.name.clone()], Some(c.hard_at)),
                None => return,
            },
            Lack::Child(name) => {
                if live().any(|c| c.config.name == *name) || self.carried_elsewhere(ctx, name, None) {
                    return;
                }
                (vec![name.clone()], None)
            }
        };
        if wanted.is_empty() {
            return;
        }
        let now = ctx.now.at;
        let wait = match end {
            Some(end) => (end.since(now) / 4).clamp(AGAIN.0, AGAIN.1),
            None if live().next().is_some() => AGAIN_BESIDE_OTHERS,
            None => AGAIN.1,
        };
        ctx.effects.replace = Some(wanted);
        self.queue(Task::new(now + wait, What::Replace(lack)));
    }

    /// Whether other IKE SAs have SAs of all tunnels of this one; where it has none, of all that its connection has.
    pub(super) fn is_superfluous(&self, ctx: &Ctx<'_>) -> bool {
        let own: Vec<u32> = self.children.iter().map(|c| c.spi_in).collect();
        let selectors = |c: &Child| selectors_text(&c.local_ts, &c.remote_ts);
        let key = |c: &Child| self.tunnel(&c.config.name, &selectors(c), c.resource);
        let any = |name| self.tunnel(name, "", None);
        match self.children.is_empty() {
            false => self.children.iter().all(|c| ctx.tunnels.has_beside(&key(c), &own)),
            true => {
                let mut all = self.connection.iter().flat_map(|c| &c.children);
                all.all(|c| !ctx.tunnels.of_child(&any(&c.name)).is_empty())
            }
        }
    }

    /// Whether another IKE SA of the connection has a child of this name that the tunnel sends with.
    pub(super) fn carried_elsewhere(&self, ctx: &Ctx<'_>, name: &Arc<str>, resource: Option<u32>) -> bool {
        let sending = ctx.tunnels.sending(&self.tunnel(name, "", resource));
        sending.into_iter().any(|spi_in| self.children.iter().all(|c| c.spi_in != spi_in))
    }
}
