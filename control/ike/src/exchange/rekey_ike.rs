//! Replacing the IKE SA: CREATE_CHILD_SA with an IKE proposal, IKE_FOLLOWUP_KE if an additional key exchange was chosen.
//! Enters: a task or a request. Leaves: a new IKE SA that inherits the children, and the old one on its way out.
//! RFC 7296 sections 1.3.2, 2.8, 2.8.2, 2.18 and 2.25.2, RFC 9370 section 2.2.4.

use super::{Lack, Payloads, Request, Task, What, lower, nonce, refusal};
use crate::child::ChildState;
use crate::crypto::choice::{accept_ike, choose_ike};
use crate::crypto::difference::explain_ike;
use crate::crypto::ke::{Exchange, SharedSecret};
use crate::crypto::keys::Salt;
use crate::crypto::{IkeChoice, IkeProposal, Method};
use crate::message::{ExchangeType, Header, KeyExchangeData, Notify, NotifyType, Payload};
use crate::output::EventKind;
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa, State};
use crate::time::Instant;
use std::time::Duration;

const REFUSED_RETRY: Duration = Duration::from_secs(60);
const BUSY_RETRY: Duration = Duration::from_millis(500);

/// Our request to replace the IKE SA.
pub(crate) struct RekeyOffer {
    spi: u64,
    nonce: Vec<u8>,
    ke: Exchange,
    retried: bool,
}

/// What is known of the new IKE SA once the first key exchange is done.
struct Agreed {
    choice: IkeChoice,
    salt: Salt,
    secret: SharedSecret,
    /// We initiated the rekey.
    ours: bool,
}

/// We wait for the answer to our IKE_FOLLOWUP_KE.
pub(crate) struct FollowupWait {
    agreed: Agreed,
    ke: Exchange,
}

/// The peer owes us its IKE_FOLLOWUP_KE.
pub(crate) struct Followup {
    agreed: Agreed,
    method: Method,
    link: Vec<u8>,
    pub until: Instant,
}

impl IkeSa {
    // ---- asking ----

    pub fn rekey_ike(&mut self, ctx: &mut Ctx<'_>) {
        let Some(connection) = self.connection.clone() else { return };
        let groups = IkeProposal::groups(&connection.ike);
        let group =
            self.choice.map(|c| c.ke).filter(|g| groups.contains(g)).or_else(|| groups.first().copied());
        let Some(group) = group else { return };
        let (spi, ke) = (ctx.rng.next_u64().max(1), group.start(ctx.rng));
        let nonce = nonce(ctx);
        self.send_rekey(ctx, RekeyOffer { spi, nonce, ke, retried: false });
    }

    fn send_rekey(&mut self, ctx: &mut Ctx<'_>, offer: RekeyOffer) {
        let Some(connection) = self.connection.clone() else { return };
        let spi = offer.spi.to_be_bytes();
        let proposals = connection.ike.iter().zip(1..).map(|(p, n)| p.to_wire(n, &spi)).collect();
        let ke = KeyExchangeData { method: offer.ke.method().id(), data: offer.ke.public().to_vec() };
        let payloads = [Payload::Sa(proposals), Payload::Nonce(offer.nonce.clone()), Payload::Ke(ke)];
        self.request(ctx, ExchangeType::CreateChild, &payloads, Request::Rekey(Box::new(offer)));
    }

    pub fn on_rekey_response(&mut self, ctx: &mut Ctx<'_>, mut offer: RekeyOffer, payloads: &[Payload]) {
        let p = Payloads(payloads);
        let Some(n) = p.error() else { return self.read_rekey_response(ctx, offer, &p) };
        if let Some((spi, _)) = self.replaced_by.take() {
            // The peer's own rekey succeeded: that is the replacement.
            return self.hand_over(ctx, spi);
        }
        if n.kind == NotifyType::InvalidKePayload && !offer.retried {
            let allowed = self.connection.as_ref().map(|c| IkeProposal::groups(&c.ike)).unwrap_or_default();
            let group = n.data.first_chunk().and_then(|b| Method::from_id(u16::from_be_bytes(*b)));
            if let Some(group) = group.filter(|g| allowed.contains(g)) {
                (offer.retried, offer.ke, offer.nonce) = (true, group.start(ctx.rng), nonce(ctx));
                return self.send_rekey(ctx, offer);
            }
        }
        let jitter = Duration::from_millis(u64::from(ctx.rng.next_u32() % 500));
        let wait = if n.kind == NotifyType::TemporaryFailure { BUSY_RETRY + jitter } else { REFUSED_RETRY };
        if n.kind != NotifyType::TemporaryFailure {
            let failure = refusal(n, false);
            self.event(ctx, EventKind::Failed, Some(failure.clone()), "rekey of the IKE SA");
            self.ike_refused(ctx, failure, Duration::ZERO);
        }
        self.queue(Task::rekey_ike(ctx.now.at + wait));
    }

    fn read_rekey_response(&mut self, ctx: &mut Ctx<'_>, offer: RekeyOffer, p: &Payloads<'_>) {
        let proposals = self.connection.as_ref().map(|c| c.ike.clone()).unwrap_or_default();
        let read = || {
            let choice = accept_ike(&proposals, p.sa()?)?;
            let (spi_r, ke) = (p.sa()?.first()?.ike_spi().filter(|s| *s != 0)?, p.ke()?);
            let salt =
                Salt { nonce_i: offer.nonce.clone(), nonce_r: p.nonce()?.to_vec(), spi_i: offer.spi, spi_r };
            let fits = offer.ke.method() == choice.ke && ke.method == choice.ke.id();
            let secret = fits.then(|| offer.ke.finish(&ke.data).ok())??;
            Some(Agreed { choice, salt, secret, ours: true })
        };
        let Some(agreed) = read() else {
            return self
                .fail(ctx, Failure::new(Reason::MalformedMessage, "the answer to our rekey of the IKE SA"));
        };
        match (agreed.choice.additional, p.notify(NotifyType::AdditionalKeyExchange)) {
            (None, _) => self.complete(ctx, agreed, &[]),
            (Some(method), Some(link)) => {
                let ke = method.start(ctx.rng);
                let data = KeyExchangeData { method: method.id(), data: ke.public().to_vec() };
                let link = Notify::new(NotifyType::AdditionalKeyExchange, link.data.clone());
                let payloads = [Payload::Ke(data), Payload::Notify(link)];
                let wait = Request::Followup(Box::new(FollowupWait { agreed, ke }));
                self.request(ctx, ExchangeType::FollowupKe, &payloads, wait);
            }
            (Some(_), None) => {
                self.fail(ctx, Failure::new(Reason::MalformedMessage, "no ADDITIONAL_KEY_EXCHANGE"))
            }
        }
    }

    pub fn on_followup_response(&mut self, ctx: &mut Ctx<'_>, wait: FollowupWait, payloads: &[Payload]) {
        let p = Payloads(payloads);
        let FollowupWait { agreed, ke } = wait;
        if p.error().is_some() {
            if let Some((spi, _)) = self.replaced_by.take() {
                return self.hand_over(ctx, spi);
            }
            return self.queue(Task::rekey_ike(ctx.now.at + BUSY_RETRY));
        }
        let secret = p.ke().filter(|k| k.method == ke.method().id()).and_then(|k| ke.finish(&k.data).ok());
        match secret {
            Some(secret) => self.complete(ctx, agreed, &[secret]),
            None => self.fail(ctx, Reason::KeInvalid.into()),
        }
    }

    // ---- answering ----

    pub fn on_rekey_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, p: &Payloads<'_>) {
        let busy = match &self.pending {
            Some(x) => {
                matches!(x.request, Request::Child(_) | Request::DeleteChildren(_) | Request::DeleteIke)
            }
            None => false,
        };
        let waits = self.followup.as_ref().is_some_and(|f| f.until > ctx.now.at);
        if self.state != State::Up || busy || waits || self.replaced_by.is_some() {
            return self.refuse(ctx, header, NotifyType::TemporaryFailure);
        }
        let Some(connection) = self.connection.clone() else { return };
        let (Some(offer), Some(theirs)) = (p.sa(), p.nonce()) else {
            return self.refuse(ctx, header, NotifyType::InvalidSyntax);
        };
        let Some((choice, mut answer)) = choose_ike(&connection.ike, offer) else {
            self.refuse(ctx, header, NotifyType::NoProposalChosen);
            let failure = Failure::new(Reason::IkeProposalMismatch, explain_ike(&connection.ike, offer));
            self.event(ctx, EventKind::Failed, Some(failure.clone()), "rekey of the IKE SA by the peer");
            return self.ike_refused(ctx, failure, super::replace::AFTER_THE_PEER);
        };
        let Some(spi_i) = answer.ike_spi().filter(|s| *s != 0) else {
            return self.refuse(ctx, header, NotifyType::InvalidSyntax);
        };
        let Some(ke) = p.ke().filter(|k| k.method == choice.ke.id()) else {
            let notify = Notify::new(NotifyType::InvalidKePayload, choice.ke.id().to_be_bytes());
            return self.respond(ctx, header, &[Payload::Notify(notify)]);
        };
        let Ok((data, secret)) = choice.ke.respond(&ke.data, ctx.rng) else {
            return self.refuse(ctx, header, NotifyType::InvalidSyntax);
        };
        let spi_r = ctx.rng.next_u64().max(1);
        answer.spi = spi_r.to_be_bytes().to_vec();
        let salt = Salt { nonce_i: theirs.to_vec(), nonce_r: nonce(ctx), spi_i, spi_r };
        let mut payloads = vec![
            Payload::Sa(vec![answer]),
            Payload::Nonce(salt.nonce_r.clone()),
            Payload::Ke(KeyExchangeData { method: choice.ke.id(), data }),
        ];
        let agreed = Agreed { choice, salt, secret, ours: false };
        let Some(method) = choice.additional else {
            self.respond(ctx, header, &payloads);
            return self.complete(ctx, agreed, &[]);
        };
        let link = nonce(ctx);
        payloads.push(Payload::Notify(Notify::new(NotifyType::AdditionalKeyExchange, link.clone())));
        self.respond(ctx, header, &payloads);
        let until = ctx.now.at + ctx.settings.half_open_timeout;
        self.followup = Some(Followup { agreed, method, link, until });
    }

    pub fn on_followup_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, payloads: &[Payload]) {
        let p = Payloads(payloads);
        let link = p.notify(NotifyType::AdditionalKeyExchange).map(|n| n.data.clone());
        let expected = |f: &mut Followup| link.as_ref() == Some(&f.link);
        let Some(followup) = self.followup.take_if(expected).filter(|_| self.state == State::Up) else {
            return self.refuse(ctx, header, NotifyType::StateNotFound);
        };
        let ke = p.ke().filter(|k| k.method == followup.method.id());
        let Some((data, secret)) = ke.and_then(|k| followup.method.respond(&k.data, ctx.rng).ok()) else {
            return self.refuse(ctx, header, NotifyType::InvalidSyntax);
        };
        self.respond(ctx, header, &[Payload::Ke(KeyExchangeData { method: followup.method.id(), data })]);
        self.complete(ctx, followup.agreed, &[secret]);
    }

    // ---- both ----

    /// Makes the new IKE SA and decides who keeps the children (RFC 7296 2.8.2).
    fn complete(&mut self, ctx: &mut Ctx<'_>, agreed: Agreed, additional: &[SharedSecret]) {
        let Some(keys) = &self.keys else { return };
        let now = ctx.now.at;
        let Agreed { choice, salt, secret, ours } = agreed;
        let mut new = IkeSa::new(ours, salt.spi_i, salt.spi_r, self.path, now);
        new.keys = Some(keys.rekeyed(choice, &salt, &secret, additional));
        new.nonce = lower(&salt.nonce_i, &salt.nonce_r);
        (new.choice, new.salt, new.state) = (Some(choice), salt, State::Up);
        (new.connection, new.nat, new.features) = (self.connection.clone(), self.nat, self.features.clone());
        (new.fragment_bytes, new.replaces) = (self.fragment_bytes, self.replaces);
        (new.single_pair, new.refused_pairs) = (self.single_pair, std::mem::take(&mut self.refused_pairs));
        (new.peer_id, new.peer_certificate) = (self.peer_id.clone(), self.peer_certificate.clone());
        new.start_lifetime(ctx);
        new.export_keys(ctx);
        let reap = now + ctx.settings.retransmission_limit();
        let contested =
            matches!(&self.pending, Some(p) if matches!(p.request, Request::Rekey(_) | Request::Followup(_)));
        match (ours, self.replaced_by.take()) {
            (false, _) if contested => {
                // Our own request is under way: its answer decides.
                self.replaced_by = Some((new.local_spi(), new.nonce.clone()));
                new.contested = true;
                ctx.effects.spawned.push(new);
            }
            (true, Some((theirs, nonce))) if new.nonce < nonce => {
                new.state = State::Rekeyed;
                new.queue(Task::new(now, What::DeleteIke(Reason::Replaced)));
                ctx.effects.spawned.push(new);
                self.hand_over(ctx, theirs);
            }
            (_, theirs) => {
                ctx.effects.reap.extend(theirs.map(|t| (t.0, reap)));
                new.event(ctx, EventKind::IkeRekeyed, None, choice.to_string());
                let spi = new.local_spi();
                ctx.effects.spawned.push(new);
                self.hand_over(ctx, spi);
                if ours {
                    self.queue(Task::new(now, What::DeleteIke(Reason::Replaced)));
                }
            }
        }
    }

    /// Gives children and tasks to the IKE SA with this local SPI; this one only waits for its deletion.
    pub fn hand_over(&mut self, ctx: &mut Ctx<'_>, spi: u64) {
        let tasks = std::mem::take(&mut self.tasks)
            .into_iter()
            .filter(|t| !matches!(t.what, What::RekeyIke | What::Replace(Lack::Ike)))
            .collect();
        let mut children = std::mem::take(&mut self.children);
        // A rekey of a child that was under way here has no answer there.
        children
            .iter_mut()
            .filter(|c| c.state == ChildState::Rekeying)
            .for_each(|c| c.state = ChildState::Live);
        ctx.effects.moves.push((spi, children, tasks));
        self.state = State::Rekeyed;
        self.reap_at = Some(ctx.now.at + ctx.settings.retransmission_limit() * 2);
    }
}
