//! Child SAs: asked for in IKE_AUTH or CREATE_CHILD_SA, new or replacing one. Enters: a task or a request. Leaves: an
//! installed child SA, make before break. RFC 7296 sections 1.3.1, 1.3.3, 2.8, 2.8.1, 2.9 and 2.25.1.

use super::{ChildOffer, Payloads, Request, Task, What, lower, nonce, refusal};
use crate::child::{Child, ChildState, list, narrow, soft_limit};
use crate::config::{ChildConfig, Start};
use crate::crypto::difference::explain_esp;
use crate::crypto::ke::SharedSecret;
use crate::crypto::suites::{accept_esp, choose_esp};
use crate::crypto::{ChildKeys, EspChoice, EspProposal, Method};
use crate::message::is_subset;
use crate::message::{
    ExchangeType, Header, KeyExchangeData, Notify, NotifyType, Payload, Protocol, TrafficSelector,
};
use crate::output::{ChildSa, EventKind};
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa, State};
use crate::tunnels::Tunnels;
use std::sync::Arc;
use std::time::Duration;

/// A child that the peer refused for good reason is asked for again after this long.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// After TEMPORARY_FAILURE: at least this, at most twice (RFC 7296 2.25: not at once).
const BUSY_RETRY: Duration = Duration::from_millis(500);

/// A child that we agreed to: payloads of the answer, and its inbound SPI.
pub(crate) struct AcceptedChild {
    pub payloads: Vec<Payload>,
    pub spi_in: u32,
}

/// What was negotiated, from whichever side.
struct Agreed {
    config: Arc<ChildConfig>,
    esp: EspChoice,
    spi_in: u32,
    spi_out: u32,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
    keys: ChildKeys,
    ours: bool,
    nonce: Vec<u8>,
    replaces: Option<u32>,
    resource: Option<u32>,
}

impl ChildOffer {
    /// SA, Ni, KEi, TSi, TSr and notifies; without nonce and key exchange in IKE_AUTH.
    pub fn payloads(&self, own_keys: bool) -> Vec<Payload> {
        let esp = &self.config.esp;
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
        let group = group.or_else(|| EspProposal::groups(&config.esp).first().copied()).filter(|_| own_keys);
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
            retried: false,
            superseded: false,
        })
    }

    pub fn create_child(&mut self, ctx: &mut Ctx<'_>, name: &Arc<str>, resource: Option<u32>) {
        let Some(connection) = self.connection.clone() else { return };
        let Some(config) = connection.children.iter().find(|c| c.name == *name) else { return };
        let same =
            |c: &&Child| c.config.name == *name && c.resource == resource && c.state != ChildState::Deleting;
        if self.children.iter().find(same).is_some() {
            return;
        }
        if let Some(mut offer) = self.offer_child(ctx, config.clone(), None, None, true) {
            offer.resource = resource;
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
        let group = group.filter(|g| EspProposal::groups(&config.esp).contains(g));
        if let Some(mut offer) = self.offer_child(ctx, config, Some(spi_in), group, true) {
            offer.resource = resource;
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
            if let Some(group) = group.filter(|g| EspProposal::groups(&offer.config.esp).contains(g)) {
                (offer.retried, offer.ke, offer.nonce) = (true, Some(group.start(ctx.rng)), nonce(ctx));
                return self.send_offer(ctx, offer);
            }
        }
        if n.kind == NotifyType::SinglePairRequired && offer.local_ts.len() + offer.remote_ts.len() > 2 {
            offer.local_ts.truncate(1);
            offer.remote_ts.truncate(1);
            return self.send_offer(ctx, offer);
        }
        ctx.spis.release(offer.spi_in);
        let jitter = Duration::from_millis(u64::from(ctx.rng.next_u32() % 500));
        let later = now + BUSY_RETRY + jitter;
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
                let text = "the old SA is used until it ends".to_string();
                self.child_event(ctx, &name, EventKind::Failed, Some(refusal(n, true)), text);
            }
            (_, None) if offer.replaces.is_some() => {}
            (_, None) => self.child_failed(ctx, &name, refusal(n, true)),
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
        match self.read_child_response(offer, p, own_keys) {
            Ok(agreed) => {
                let nonce = agreed.nonce.clone();
                self.install_child(ctx, agreed);
                if superseded {
                    return self.delete_redundant(ctx, spi_in);
                }
                self.after_our_child(ctx, spi_in, replaces, &nonce);
            }
            Err(failure) => {
                ctx.spis.release(spi_in);
                // The peer may have installed what we cannot use: its SPI is unknown, so the IKE SA is the remedy only
                // if the answer was malformed; a refusal needs none.
                if failure.reason == Reason::MalformedMessage {
                    return self.fail(ctx, failure);
                }
                if let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == replaces) {
                    old.state = ChildState::Live;
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
    ) -> Result<Agreed, Failure> {
        if let (Some(n), None) = (p.error(), p.sa()) {
            return Err(refusal(n, true));
        }
        let malformed = |what: &str| Failure::new(Reason::MalformedMessage, what);
        let sa = p.sa().ok_or_else(|| malformed("no SA payload in the answer"))?;
        let (esp, spi_out) = accept_esp(&offer.config.esp, sa, own_keys)
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

    // ---- answering ----

    pub fn on_create_child_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, payloads: &[Payload]) {
        let p = Payloads(payloads);
        let is_ike = p.sa().is_some_and(|s| s.first().is_some_and(|s| s.protocol == Protocol::Ike));
        if is_ike {
            return self.on_rekey_request(ctx, header, &p);
        }
        let rekeying = matches!(&self.pending, Some(x) if matches!(x.request, Request::Rekey(_) | Request::Followup(_) | Request::DeleteIke));
        if self.state != State::Up || rekeying || self.followup.is_some() {
            return self.refuse(ctx, header, NotifyType::TemporaryFailure);
        }
        let rekey = p.notify(NotifyType::RekeySa);
        let old = match rekey {
            None => None,
            Some(n) => match self.find_rekeyed(n) {
                Ok(spi) => Some(spi),
                Err(notify) => return self.respond(ctx, header, &[Payload::Notify(notify)]),
            },
        };
        match self.accept_child(ctx, &p, old, true) {
            Ok(accepted) => {
                self.respond(ctx, header, &accepted.payloads);
                self.finish_accept(ctx, accepted.spi_in, old);
            }
            Err((notify, failure)) => {
                self.respond(ctx, header, &[Payload::Notify(notify)]);
                if let Some(f) = failure {
                    self.event(ctx, EventKind::Failed, Some(f), "a child was refused");
                }
            }
        }
    }

    /// The child that a REKEY_SA names by the SPI that its sender receives on, or the refusal.
    fn find_rekeyed(&self, n: &Notify) -> Result<u32, Notify> {
        let spi = <[u8; 4]>::try_from(&n.spi[..]).map(u32::from_be_bytes).ok();
        match self.children.iter().find(|c| Some(c.spi_out) == spi) {
            None => {
                let (protocol, spi) = (n.protocol, n.spi.clone());
                Err(Notify { protocol, spi, kind: NotifyType::ChildSaNotFound, data: Vec::new() })
            }
            Some(c) if matches!(c.state, ChildState::Deleting | ChildState::Replaced) => {
                Err(Notify::new(NotifyType::TemporaryFailure, []))
            }
            Some(c) => Ok(c.spi_in),
        }
    }

    /// Agrees to a peer's child and installs its inbound half, before the answer leaves.
    pub fn accept_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        p: &Payloads<'_>,
        replaces: Option<u32>,
        own_keys: bool,
    ) -> Result<AcceptedChild, (Notify, Option<Failure>)> {
        let refuse = |kind, failure: Failure| Err((Notify::new(kind, []), Some(failure)));
        let malformed =
            || (Notify::new(NotifyType::InvalidSyntax, []), Some(Reason::MalformedMessage.into()));
        let connection = self.connection.clone().ok_or_else(malformed)?;
        let (Some(offer), Some(ts_i), Some(ts_r)) = (p.sa(), p.ts_i(), p.ts_r()) else {
            return Err(malformed());
        };
        let Some((config, local_ts, remote_ts)) = narrow(&connection, ts_r, ts_i) else {
            let ours = connection
                .children
                .iter()
                .map(|c| format!("{} to {}", list(&c.local_ts), list(&c.remote_ts)));
            let ours = ours.collect::<Vec<_>>().join("; ");
            let text = format!("peer offers {} to {}, we allow {ours}", list(ts_r), list(ts_i));
            return refuse(NotifyType::TsUnacceptable, Failure::new(Reason::SelectorsMismatch, text));
        };
        let Some((esp, mut answer)) = choose_esp(&config.esp, offer, own_keys) else {
            let text = explain_esp(&config.esp, offer, own_keys);
            return refuse(NotifyType::NoProposalChosen, Failure::new(Reason::ChildProposalMismatch, text));
        };
        let (nonce_i, nonce_r) = match own_keys {
            true => (p.nonce().ok_or_else(malformed)?.to_vec(), nonce(ctx)),
            false => (self.salt.nonce_i.clone(), self.salt.nonce_r.clone()),
        };
        let (public, secrets) = self.answer_key_exchange(ctx, esp, p)?;
        let Some(spi_in) = ctx.spis.allocate() else {
            return refuse(NotifyType::NoAdditionalSas, Reason::SpisExhausted.into());
        };
        let Some(keys) = self.keys.as_ref().map(|k| k.child(esp, &nonce_i, &nonce_r, &secrets)) else {
            return Err(malformed());
        };
        let spi_out = answer.esp_spi().unwrap_or_default();
        answer.spi = spi_in.to_be_bytes().to_vec();
        let resource = p
            .notify(NotifyType::SaResourceInfo)
            .and_then(|n| n.data.first_chunk())
            .map(|b| u32::from_be_bytes(*b));
        let resource = resource.filter(|_| config.per_worker > 1);
        let mut payloads = vec![Payload::Sa(vec![answer])];
        if own_keys {
            payloads.push(Payload::Nonce(nonce_r.clone()));
            payloads.extend(public.map(Payload::Ke));
        }
        payloads.push(Payload::TsI(remote_ts.clone()));
        payloads.push(Payload::TsR(local_ts.clone()));
        if let Some(worker) = resource {
            payloads.push(Payload::Notify(Notify::new(NotifyType::SaResourceInfo, worker.to_be_bytes())));
        }
        let nonce = lower(&nonce_i, &nonce_r);
        self.install_child(
            ctx,
            Agreed {
                config,
                esp,
                spi_in,
                spi_out,
                local_ts,
                remote_ts,
                keys,
                ours: false,
                nonce,
                replaces,
                resource,
            },
        );
        Ok(AcceptedChild { payloads, spi_in })
    }

    /// PFS: our public value and the secret, or INVALID_KE_PAYLOAD with the group that was chosen.
    #[allow(clippy::type_complexity)]
    fn answer_key_exchange(
        &self,
        ctx: &mut Ctx<'_>,
        esp: EspChoice,
        p: &Payloads<'_>,
    ) -> Result<(Option<KeyExchangeData>, Vec<SharedSecret>), (Notify, Option<Failure>)> {
        let Some(group) = esp.pfs else { return Ok((None, Vec::new())) };
        match p.ke() {
            Some(ke) if ke.method == group.id() => match group.respond(&ke.data, ctx.rng) {
                Ok((data, secret)) => Ok((Some(KeyExchangeData { method: group.id(), data }), vec![secret])),
                Err(_) => Err((Notify::new(NotifyType::InvalidSyntax, []), Some(Reason::KeInvalid.into()))),
            },
            _ => Err((Notify::new(NotifyType::InvalidKePayload, group.id().to_be_bytes()), None)),
        }
    }

    /// After the answer left: a new child is sent with at once, a replacement when the peer is known to have it.
    pub fn finish_accept(&mut self, ctx: &mut Ctx<'_>, spi_in: u32, replaces: Option<u32>) {
        let Some(nonce) = self.children.iter().find(|c| c.spi_in == spi_in).map(|c| c.nonce.clone()) else {
            return;
        };
        if !self.children.iter().any(|c| Some(c.spi_in) == replaces) && ctx.tunnels.has_older(spi_in) {
            let until = ctx.now.at + ctx.settings.drain / crate::child::SWITCH_PART;
            let new = self.children.iter_mut().filter(|c| c.spi_in == spi_in);
            new.for_each(|c| c.switch_at = Some(until));
            return self.drop_duplicate(ctx, spi_in);
        }
        let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == replaces) else {
            ctx.tunnels.switch(ctx.out, spi_in, ctx.now.at + ctx.settings.drain);
            return self.drop_duplicate(ctx, spi_in);
        };
        if old.state == ChildState::Rekeying {
            old.replaced_by = Some((spi_in, nonce));
        } else {
            old.state = ChildState::Replaced;
        }
        let old = old.spi_in;
        if let Some(c) = self.children.iter_mut().find(|c| c.spi_in == spi_in) {
            c.awaits = Some(old);
        }
    }

    // ---- both ----

    fn install_child(&mut self, ctx: &mut Ctx<'_>, a: Agreed) {
        let now = ctx.now.at;
        let (key_in, key_out) = match a.ours {
            true => (a.keys.from_responder, a.keys.from_initiator),
            false => (a.keys.from_initiator, a.keys.from_responder),
        };
        let peer = self.peer_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let tunnel = self.tunnel(&a.config.name, a.resource);
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
    fn drop_duplicate(&mut self, ctx: &mut Ctx<'_>, spi_in: u32) {
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
