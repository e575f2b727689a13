//! Child SAs that we ask for, in IKE_AUTH or CREATE_CHILD_SA, new or replacing one, and what is done with any child that was
//! agreed to. Enters: a task, or the answer. Leaves: an installed child SA, make before break. Those that the peer asks for:
//! `accept_child`. RFC 7296 sections 1.3.1, 1.3.3, 2.8, 2.8.1, 2.9 and 2.25.1.

use super::accept_child::too_many;
use super::{ChildOffer, Payloads, Request, Task, What, lower, nonce, refusal};
use crate::child::{Child, ChildState, list, selectors_text, soft_limit};
use crate::config::{ChildConfig, Start};
use crate::crypto::choice::{accept_esp, with_key_exchange};
use crate::crypto::{ChildKeys, EspChoice, EspProposal, Method};
use crate::message::is_subset;
use crate::message::{ExchangeType, KeyExchangeData, Notify, NotifyType, Payload, Protocol, TrafficSelector};
use crate::output::{ChildSa, EventKind};
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa};
use crate::tunnels::Tunnels;
use std::sync::Arc;
use std::time::Duration;

/// A child that the peer refused for good reason is asked for again after this long.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// After TEMPORARY_FAILURE: at least this, at most twice (RFC 7296 2.25: not at once).
const BUSY_RETRY: Duration = Duration::from_millis(500);

/// What was negotiated, from whichever side.
pub(super) struct Agreed {
    pub config: Arc<ChildConfig>,
    /// Made in IKE_AUTH.
    pub first: bool,
    pub esp: EspChoice,
    pub spi_in: u32,
    pub spi_out: u32,
    pub local_ts: Vec<TrafficSelector>,
    pub remote_ts: Vec<TrafficSelector>,
    pub keys: ChildKeys,
    pub ours: bool,
    pub nonce: Vec<u8>,
    pub replaces: Option<u32>,
    pub resource: Option<u32>,
}

impl ChildOffer {
    /// SA, Ni, KEi, TSi, TSr and notifies; without nonce and key exchange in IKE_AUTH.
    pub fn payloads(&self, own_keys: bool) -> Vec<Payload> {
        let esp = &self.esp;
        let mut out = Vec::new();
        if let Some(worker) = self.resource {
            out.push(Payload::Notify(Notify::new(NotifyType::SaResourceInfo, worker.to_be_bytes())));
        }
        out.push(Payload::Sa(
            esp.iter().zip(1..).map(|(p, n)| p.to_wire(n, self.spi_in, own_keys)).collect(),
        ));
        if own_keys {
            out.push(Payload::Nonce(self.nonce.clone()));
            let ke = |k: &crate::crypto::ke::Exchange| KeyExchangeData {
                method: k.method().id(),
                data: k.public().to_vec(),
            };
            out.extend(self.ke.as_ref().map(|k| Payload::Ke(ke(k))));
        }
        out.push(Payload::TsI(self.local_ts.clone()));
        out.push(Payload::TsR(self.remote_ts.clone()));
        out
    }
}

impl IkeSa {
    // ---- asking ----

    /// Reserves what an offer needs; None (with an event) if the data plane has no SPI left.
    pub fn offer_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        config: Arc<ChildConfig>,
        replaces: Option<u32>,
        group: Option<Method>,
        own_keys: bool,
    ) -> Option<ChildOffer> {
        let Some(spi_in) = ctx.spis.allocate() else {
            self.child_event(
                ctx,
                &config.name,
                EventKind::Failed,
                Some(Reason::SpisExhausted.into()),
                String::new(),
            );
            return None;
        };
        let mut esp = config.esp.clone();
        if group.is_some_and(|g| !EspProposal::groups(&esp).contains(&g)) {
            // The peer wanted a key exchange when this was made.
            esp = with_key_exchange(&esp, group);
        }
        let group = group.or_else(|| EspProposal::groups(&esp).first().copied()).filter(|_| own_keys);
        let ke = group.map(|g| g.start(ctx.rng));
        let nonce = nonce(ctx);
        let (local_ts, remote_ts) = (config.local_ts.clone(), config.remote_ts.clone());
        Some(ChildOffer {
            config,
            spi_in,
            nonce,
            ke,
            local_ts,
            remote_ts,
            replaces,
            resource: None,
            esp,
            turned: false,
            retried: false,
            superseded: false,
        })
    }

    pub fn create_child(&mut self, ctx: &mut Ctx<'_>, name: &Arc<str>, resource: Option<u32>) {
        let Some(connection) = self.connection.clone() else { return };
        let Some(config) = connection.children.iter().find(|c| c.name == *name) else { return };
        let same =
            |c: &&Child| c.config.name == *name && c.resource == resource && c.state != ChildState::Deleting;
        let here = self.children.iter().any(|c| same(&c));
        let selectors = match resource {
            _ if !here && self.carried_elsewhere(ctx, name, resource) => None,
            None => self.next_selectors(config, ctx.now.at),
            Some(_) if here => None,
            Some(_) => Some((config.local_ts.clone(), config.remote_ts.clone())),
        };
        let Some((local_ts, remote_ts)) = selectors else { return };
        if let Some(mut offer) = self.offer_child(ctx, config.clone(), None, None, true) {
            (offer.local_ts, offer.remote_ts, offer.resource) = (local_ts, remote_ts, resource);
            self.send_offer(ctx, offer);
        }
    }

    fn send_offer(&mut self, ctx: &mut Ctx<'_>, offer: ChildOffer) {
        let mut payloads = offer.payloads(true);
        let old = offer.replaces;
        if let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == old) {
            old.state = ChildState::Rekeying;
            let (protocol, spi) = (Protocol::Esp, old.spi_in.to_be_bytes().to_vec());
            let notify = Notify { protocol, spi, kind: NotifyType::RekeySa, data: Vec::new() };
            payloads.insert(0, Payload::Notify(notify));
        }
        self.request(ctx, ExchangeType::CreateChild, &payloads, Request::Child(Box::new(offer)));
    }

    pub fn rekey_child(&mut self, ctx: &mut Ctx<'_>, spi_in: u32) {
        let Some(old) = self.children.iter().find(|c| c.spi_in == spi_in && c.state == ChildState::Live)
        else {
            return;
        };
        let (group, resource) = (old.esp.pfs, old.resource);
        // The configuration may have changed since; the name has not.
        let current = self.connection.iter().flat_map(|c| &c.children).find(|c| c.name == old.config.name);
        let config = current.unwrap_or(&old.config).clone();
        let configured = EspProposal::groups(&config.esp);
        let group = group.filter(|g| configured.is_empty() || configured.contains(g));
        // Each child keeps its own selectors (RFC 7296 2.9.2), unless the configuration has others now.
        let same = (&config.local_ts, &config.remote_ts) == (&old.config.local_ts, &old.config.remote_ts);
        let own = same.then(|| (old.local_ts.clone(), old.remote_ts.clone()));
        if let Some(mut offer) = self.offer_child(ctx, config, Some(spi_in), group, true) {
            offer.resource = resource;
            if let Some((local_ts, remote_ts)) = own {
                (offer.local_ts, offer.remote_ts) = (local_ts, remote_ts);
            }
            self.send_offer(ctx, offer);
        }
    }

    // ---- the answer to our request ----

    pub fn on_child_response(&mut self, ctx: &mut Ctx<'_>, offer: ChildOffer, payloads: &[Payload]) {
        let p = Payloads(payloads);
        if let Some(n) = p.error() {
            return self.on_child_refused(ctx, offer, n);
        }
        self.finish_child(ctx, offer, &p, true);
    }

    fn on_child_refused(&mut self, ctx: &mut Ctx<'_>, mut offer: ChildOffer, n: &Notify) {
        let (now, name) = (ctx.now.at, offer.config.name.clone());
        if n.kind == NotifyType::InvalidKePayload && !offer.retried {
            let group = n.data.first_chunk().and_then(|b| Method::from_id(u16::from_be_bytes(*b)));
            if let Some(group) = group.filter(|g| EspProposal::groups(&offer.esp).contains(g)) {
                (offer.retried, offer.ke, offer.nonce) = (true, Some(group.start(ctx.rng)), nonce(ctx));
                return self.send_offer(ctx, offer);
            }
        }
        if n.kind == NotifyType::NoProposalChosen && self.turn(ctx, &mut offer) {
            return self.send_offer(ctx, offer);
        }
        if n.kind == NotifyType::SinglePairRequired && offer.local_ts.len() + offer.remote_ts.len() > 2 {
            self.single_pair = true;
            offer.local_ts.truncate(1);
            offer.remote_ts.truncate(1);
            return self.send_offer(ctx, offer);
        }
        ctx.spis.release(offer.spi_in);
        let jitter = Duration::from_millis(u64::from(ctx.rng.next_u32() % 500));
        let later = now + BUSY_RETRY + jitter;
        let is_pair = is_one_of_several(&offer);
        let old = self.children.iter_mut().find(|c| Some(c.spi_in) == offer.replaces);
        match (n.kind, old) {
            // The peer's own rekey of it goes on: that is the replacement.
            (_, Some(old)) if old.replaced_by.is_some() => self.accept_replacement(ctx, offer.replaces),
            (NotifyType::TemporaryFailure, Some(old)) => {
                old.state = ChildState::Live;
                let spi = old.spi_in;
                self.queue(Task::rekey_child(later, spi));
            }
            (NotifyType::TemporaryFailure, None) if offer.replaces.is_none() => {
                self.queue(Task::new(later, What::CreateChild(name, offer.resource)));
            }
            (NotifyType::ChildSaNotFound, Some(old)) => {
                // It is gone on the other side: gone here too, and a new one instead (RFC 7296 2.25.1).
                let spi = old.spi_in;
                self.remove_child(ctx, spi, Reason::ChildNotFound, true);
                self.queue(Task::new(now, What::CreateChild(name, offer.resource)));
            }
            (_, Some(old)) => {
                old.state = ChildState::Live;
                let spi = old.spi_in;
                self.queue(Task::rekey_child(now + REFUSED_RETRY, spi));
                let failure = self.why_refused(spi, &offer, n);
                self.rekey_refused(ctx, spi, failure.clone(), Duration::ZERO);
                let text = self.until(ctx, spi);
                self.child_event(ctx, &name, EventKind::Failed, Some(failure), text);
            }
            (_, None) if offer.replaces.is_some() => {}
            (NotifyType::TsUnacceptable, None) if is_pair => {
                let pair = (offer.local_ts[0], offer.remote_ts[0]);
                let text = format!("{} to {}", pair.0, pair.1);
                self.child_event(ctx, &name, EventKind::Failed, Some(refusal(n, true)), text);
                self.refuse_pair(ctx, &name, pair);
            }
            (kind, None) => {
                self.child_failed(ctx, &name, refusal(n, true));
                if offer.resource.is_none() {
                    self.try_as_first(ctx, name, kind);
                }
            }
        }
    }

    fn child_failed(&mut self, ctx: &mut Ctx<'_>, name: &Arc<str>, failure: Failure) {
        self.child_event(ctx, name, EventKind::Failed, Some(failure), String::new());
        let config = self.connection.iter().flat_map(|c| &c.children).find(|c| c.name == *name);
        if config.is_some_and(|c| c.start == Start::Now) {
            self.want_child(ctx, name, REFUSED_RETRY);
        }
    }

    /// The peer agreed to our offer, in IKE_AUTH or CREATE_CHILD_SA.
    pub fn finish_child(&mut self, ctx: &mut Ctx<'_>, offer: ChildOffer, p: &Payloads<'_>, own_keys: bool) {
        let (name, spi_in) = (offer.config.name.clone(), offer.spi_in);
        let (replaces, superseded) = (offer.replaces, offer.superseded);
        match self.read_child_response(offer, p, own_keys, ctx.settings.ranges) {
            Ok(agreed) => {
                let nonce = agreed.nonce.clone();
                self.install_child(ctx, agreed);
                if superseded {
                    return self.delete_redundant(ctx, spi_in);
                }
                self.after_our_child(ctx, spi_in, replaces, &nonce);
                if replaces.is_none() {
                    // The peer may have taken a part only.
                    self.want_child(ctx, &name, Duration::ZERO);
                }
            }
            Err(failure) => {
                ctx.spis.release(spi_in);
                // The peer may have installed what we cannot use: its SPI is unknown, so the IKE SA is the remedy only
                // if the answer was malformed; a refusal needs none.
                if failure.reason == Reason::MalformedMessage {
                    return self.fail(ctx, failure);
                }
                // The peer has installed it.
                if matches!(failure.reason, Reason::SelectorsTooMany | Reason::SelectorsPorts) {
                    self.queue(Task::new(ctx.now.at, What::DisownChild(spi_in)));
                }
                if let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == replaces) {
                    old.state = ChildState::Live;
                }
                if failure.reason == Reason::SinglePairRequired
                    && !std::mem::replace(&mut self.single_pair, true)
                {
                    return self.want_child(ctx, &name, Duration::ZERO);
                }
                if let Some(old) = replaces {
                    self.rekey_refused(ctx, old, failure.clone(), Duration::ZERO);
                }
                if !own_keys {
                    self.first_refused = Some(name.clone());
                }
                self.child_failed(ctx, &name, failure);
            }
        }
    }

    fn read_child_response(
        &self,
        offer: ChildOffer,
        p: &Payloads<'_>,
        own_keys: bool,
        most: usize,
    ) -> Result<Agreed, Failure> {
        if let (Some(n), None) = (p.error(), p.sa()) {
            return Err(refusal(n, true));
        }
        let malformed = |what: &str| Failure::new(Reason::MalformedMessage, what);
        let sa = p.sa().ok_or_else(|| malformed("no SA payload in the answer"))?;
        let (esp, spi_out) = accept_esp(&offer.esp, sa, own_keys)
            .ok_or_else(|| malformed("the peer chose an ESP proposal that was not offered"))?;
        let (Some(local_ts), Some(remote_ts)) = (p.ts_i(), p.ts_r()) else {
            return Err(malformed("no traffic selectors in the answer"));
        };
        if local_ts.is_empty()
            || remote_ts.is_empty()
            || !is_subset(local_ts, &offer.local_ts)
            || !is_subset(remote_ts, &offer.remote_ts)
        {
            return Err(malformed("the peer widened the traffic selectors"));
        }
        if let Some(failure) = too_many(local_ts, remote_ts, most) {
            return Err(failure);
        }
        if !local_ts.iter().chain(remote_ts).all(TrafficSelector::is_whole) {
            let text = format!("it answers with {} to {}", list(local_ts), list(remote_ts));
            return Err(Failure::new(Reason::SelectorsPorts, text));
        }
        let (nonce_i, nonce_r) = match own_keys {
            true => {
                (offer.nonce.clone(), p.nonce().ok_or_else(|| malformed("no nonce in the answer"))?.to_vec())
            }
            false => (self.salt.nonce_i.clone(), self.salt.nonce_r.clone()),
        };
        let secrets = match (esp.pfs, offer.ke, p.ke()) {
            (None, ..) => Vec::new(),
            (Some(m), Some(ours), Some(theirs)) if ours.method() == m && theirs.method == m.id() => {
                vec![
                    ours.finish(&theirs.data)
                        .map_err(|e| Failure::new(Reason::MalformedMessage, e.to_string()))?,
                ]
            }
            _ => return Err(malformed("the key exchange in the answer is not the one that was chosen")),
        };
        let keys =
            self.keys.as_ref().ok_or_else(|| malformed("no keys"))?.child(esp, &nonce_i, &nonce_r, &secrets);
        let (local_ts, remote_ts) = (local_ts.to_vec(), remote_ts.to_vec());
        let nonce = lower(&nonce_i, &nonce_r);
        let ChildOffer { config, spi_in, replaces, resource, .. } = offer;
        Ok(Agreed {
            config,
            first: !own_keys,
            esp,
            spi_in,
            spi_out,
            local_ts,
            remote_ts,
            keys,
            ours: true,
            nonce,
            replaces,
            resource,
        })
    }

    /// We made a child: switch to it, and decide between it and a simultaneous one of the peer (RFC 7296 2.8.1).
    fn after_our_child(&mut self, ctx: &mut Ctx<'_>, spi_in: u32, replaces: Option<u32>, nonce: &[u8]) {
        let now = ctx.now.at;
        let drained = now + ctx.settings.drain;
        let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == replaces) else {
            // New, or its predecessor was deleted meanwhile.
            ctx.tunnels.switch(ctx.out, spi_in, drained);
            return self.drop_duplicate(ctx, spi_in);
        };
        match &old.replaced_by {
            Some((_, theirs)) if nonce < &theirs[..] => {
                // Ours is the redundant one: the peer will delete the old one and expects us to delete this one.
                self.accept_replacement(ctx, replaces);
                self.delete_redundant(ctx, spi_in);
            }
            theirs => {
                let redundant = theirs.as_ref().map(|t| t.0);
                old.state = ChildState::Deleting;
                old.closing = Some(Reason::Replaced);
                let old = old.spi_in;
                // The peer deletes its own redundant one; it must not linger if the peer forgets.
                let reap = now + ctx.settings.retransmission_limit();
                if let Some(c) = self.children.iter_mut().find(|c| Some(c.spi_in) == redundant) {
                    (c.state, c.hard_at, c.awaits) = (ChildState::Replaced, c.hard_at.min(reap), None);
                }
                ctx.tunnels.switch(ctx.out, spi_in, drained);
                self.queue(Task::new(now, What::DeleteChild(old)));
            }
        }
    }

    fn delete_redundant(&mut self, ctx: &mut Ctx<'_>, spi_in: u32) {
        if let Some(c) = self.children.iter_mut().find(|c| c.spi_in == spi_in) {
            c.state = ChildState::Deleting;
            c.closing = Some(Reason::Replaced);
        }
        self.queue(Task::new(ctx.now.at, What::DeleteChild(spi_in)));
    }

    /// The peer's replacement of a child wins over ours: wait for the peer to delete the old one.
    fn accept_replacement(&mut self, ctx: &mut Ctx<'_>, old: Option<u32>) {
        let reap = ctx.now.at + ctx.settings.retransmission_limit();
        if let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == old) {
            old.state = ChildState::Replaced;
            old.hard_at = old.hard_at.min(reap);
        }
    }

    // ---- both ----

    pub(super) fn install_child(&mut self, ctx: &mut Ctx<'_>, a: Agreed) {
        let now = ctx.now.at;
        let (key_in, key_out) = match a.ours {
            true => (a.keys.from_responder, a.keys.from_initiator),
            false => (a.keys.from_initiator, a.keys.from_responder),
        };
        let peer = self.peer_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let selectors = selectors_text(&a.local_ts, &a.remote_ts);
        let tunnel = self.tunnel(&a.config.name, &selectors, a.resource);
        let sa = ChildSa {
            connection: tunnel.0.clone(),
            child: a.config.name.clone(),
            peer,
            spi_in: a.spi_in,
            spi_out: a.spi_out,
            outer: (self.path.local.ip(), self.path.remote.ip()),
            encapsulation: self.encapsulation(),
            local_ts: a.local_ts.clone(),
            remote_ts: a.remote_ts.clone(),
            esp: a.esp,
            key_in,
            key_out,
            replaces: a.replaces,
            resource: a.resource,
        };
        ctx.tunnels.install(ctx.out, tunnel, sa);
        let kind = if a.replaces.is_some() { EventKind::ChildRekeyed } else { EventKind::ChildUp };
        let text = format!(
            "{} to {}, {}, spi {:08x}/{:08x}",
            list(&a.local_ts),
            list(&a.remote_ts),
            a.esp,
            a.spi_in,
            a.spi_out
        );
        self.child_event(ctx, &a.config.name, kind, None, text);
        let lifetime = a.config.lifetime;
        self.children.push(Child {
            spi_in: a.spi_in,
            spi_out: a.spi_out,
            esp: a.esp,
            local_ts: a.local_ts,
            remote_ts: a.remote_ts,
            ours: a.ours,
            nonce: a.nonce,
            first: a.first,
            refused: None,
            rekeyed: a.replaces.is_some(),
            state: ChildState::Live,
            established: now,
            soft_at: soft_limit(&lifetime, now, ctx.rng),
            hard_at: now + lifetime.hard,
            replaced_by: None,
            awaits: None,
            switch_at: None,
            resource: a.resource,
            unconfirmed: (!a.ours).then(|| now + ctx.settings.retransmit_max + Duration::from_secs(1)),
            closing: None,
            bytes: (0, 0),
            config: a.config,
        });
    }

    /// Both ends asked for the same child at once: the one with the lowest nonce is deleted by its maker.
    pub(super) fn drop_duplicate(&mut self, ctx: &mut Ctx<'_>, spi_in: u32) {
        let Some(new) = self.children.iter().find(|c| c.spi_in == spi_in) else { return };
        let twin = self.children.iter().find(|c| {
            let same = c.config.name == new.config.name
                && c.local_ts == new.local_ts
                && c.remote_ts == new.remote_ts;
            same && c.ours != new.ours
                && c.resource == new.resource
                && c.state == ChildState::Live
                && !c.rekeyed
        });
        let Some(twin) = twin else { return };
        let loser = if new.nonce < twin.nonce { new } else { twin };
        let (spi, ours) = (loser.spi_in, loser.ours);
        if ours {
            self.delete_redundant(ctx, spi);
        }
    }

    /// Forgets a child; whoever waited for its end is sent with now.
    pub fn remove_child(&mut self, ctx: &mut Ctx<'_>, spi_in: u32, reason: Reason, drain: bool) {
        let Some(at) = self.children.iter().position(|c| c.spi_in == spi_in) else { return };
        let child = self.children.remove(at);
        let end = if drain { Tunnels::drain_end(ctx.now.at, ctx.settings.drain) } else { None };
        let drained = ctx.now.at + ctx.settings.drain;
        for waiting in self.children.iter_mut().filter(|c| c.awaits == Some(spi_in)) {
            waiting.awaits = None;
            ctx.tunnels.switch(ctx.out, waiting.spi_in, drained);
        }
        ctx.tunnels.remove(ctx.out, spi_in, end);
        let reason = child.closing.unwrap_or(reason);
        if reason != Reason::Replaced {
            let text = format!("spi {spi_in:08x}");
            self.child_event(ctx, &child.config.name, EventKind::ChildDown, Some(reason.into()), text);
        }
    }
}

/// Whether it asked for one pair of several.
fn is_one_of_several(offer: &ChildOffer) -> bool {
    let pairs = offer.config.local_ts.len() * offer.config.remote_ts.len();
    pairs > 1 && (offer.local_ts.len(), offer.remote_ts.len()) == (1, 1)
}
