//! IKE_AUTH, both roles. Enters: an IKE SA with keys. Leaves: an authenticated IKE SA with its first child, or the reason
//! why not. RFC 7296 sections 1.2, 2.15 and 2.21.2, RFC 7427.

use super::{Payloads, Request, Task, What, identity_text, refusal};
use crate::auth::{Identity, IdentityPattern, method};
use crate::config::{Connection, LocalAuth, RemoteAuth, Start};
use crate::exchange::ChildOffer;
use crate::message::{CertEncoding, ExchangeType, Header, Identification, Notify, NotifyType, Payload};
use crate::output::EventKind;
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa, State};
use std::sync::Arc;

impl IkeSa {
    /// What an end's AUTH payload covers (RFC 7296 2.15, RFC 9242 3.3.2).
    fn signed_octets(&self, by_initiator: bool, id: &Identification, auth_id: u32) -> Option<Vec<u8>> {
        let (keys, choice) = (self.keys.as_ref()?, self.choice?);
        let (message, nonce, key) = match by_initiator {
            true => (&self.init.0, &self.salt.nonce_r, &keys.p_i),
            false => (&self.init.1, &self.salt.nonce_i, &keys.p_r),
        };
        let mut out = [&message[..], &nonce[..]].concat();
        out.extend_from_slice(&choice.prf.mac(key, &[&id.body()]));
        out.extend(self.intermediate_auth(auth_id));
        Some(out)
    }

    /// Our ID, CERT and AUTH payloads.
    fn prove(
        &self,
        ctx: &mut Ctx<'_>,
        connection: &Connection,
        auth_id: u32,
    ) -> Result<Vec<Payload>, Failure> {
        let id = connection.local_id.to_wire();
        let (octets, choice) = match (self.signed_octets(self.initiator, &id, auth_id), self.choice) {
            (Some(o), Some(c)) => (o, c),
            _ => return Err(Reason::MalformedMessage.into()),
        };
        let mut out = vec![if self.initiator { Payload::IdI(id) } else { Payload::IdR(id) }];
        let (method, data) = match &connection.local_auth {
            LocalAuth::Psk(key) => (method::SHARED_KEY, key.auth(choice.prf, &octets).to_vec()),
            LocalAuth::Certificate(own) => {
                if own.not_after() < ctx.now.unix_seconds {
                    return Err(Failure::new(Reason::LocalCertificateExpired, own.subject()));
                }
                let encoding = CertEncoding::X509;
                out.extend(own.chain.iter().map(|data| Payload::Cert { encoding, data: data.clone() }));
                own.key.sign(&octets, self.features.hashes.as_deref(), ctx.rng)?
            }
        };
        out.push(Payload::Auth { method, data });
        Ok(out)
    }

    /// Verifies the peer's proof for an identity that the connection accepts.
    fn verify(
        &mut self,
        ctx: &Ctx<'_>,
        connection: &Connection,
        id: &Identification,
        p: &Payloads<'_>,
        auth_id: u32,
    ) -> Result<(), Failure> {
        let (auth_method, data) = p.auth().ok_or(Reason::MalformedMessage)?;
        let octets = self.signed_octets(!self.initiator, id, auth_id).ok_or(Reason::MalformedMessage)?;
        let prf = self.choice.ok_or(Reason::MalformedMessage)?.prf;
        let identity = Identity::from_wire(id)
            .ok_or_else(|| Failure::new(Reason::PeerIdentityMismatch, identity_text(id)))?;
        let uses_key = auth_method == method::SHARED_KEY;
        match &connection.remote_auth {
            RemoteAuth::Psk(key) if uses_key => {
                let expected = key.auth(prf, &octets);
                if subtle::ConstantTimeEq::ct_eq(&expected[..], data).unwrap_u8() != 1 {
                    return Err(Failure::new(Reason::PskMismatch, format!("peer {identity}")));
                }
            }
            RemoteAuth::Certificate(store) if !uses_key => {
                let peer = store.verify(&p.certificates(), &identity, ctx.now.unix_seconds)?;
                peer.key.verify(auth_method, data, &octets).map_err(|r| {
                    Failure::new(r, format!("peer {identity}, {}", method::name(auth_method)))
                })?;
                self.peer_certificate = Some((peer.subject, peer.not_after));
            }
            RemoteAuth::Psk(_) => {
                let text = format!("it uses {}, a pre-shared key is configured", method::name(auth_method));
                return Err(Failure::new(Reason::AuthMethodMismatch, text));
            }
            RemoteAuth::Certificate(_) => {
                return Err(Failure::new(
                    Reason::AuthMethodMismatch,
                    "it uses a pre-shared key, a certificate is configured",
                ));
            }
        }
        self.peer_id = Some(identity);
        Ok(())
    }

    // ---- initiator ----

    pub fn send_auth(&mut self, ctx: &mut Ctx<'_>) {
        let Some(connection) = self.connection.clone() else { return };
        let auth_id = self.request_id;
        let mut payloads = match self.prove(ctx, &connection, auth_id) {
            Ok(p) => p,
            Err(failure) => return self.fail(ctx, failure),
        };
        let auth = payloads.pop();
        if let RemoteAuth::Certificate(store) = &connection.remote_auth {
            let (encoding, authorities) = (CertEncoding::X509, store.authorities());
            payloads.push(Payload::CertReq { encoding, authorities });
        }
        if let IdentityPattern::Exact(id) = &connection.remote_id {
            payloads.push(Payload::IdR(id.to_wire()));
        }
        payloads.extend(auth);
        if !ctx.effects.others {
            payloads.push(Payload::Notify(Notify::new(NotifyType::InitialContact, [])));
        }
        let first = self.wanted.first().cloned();
        let config =
            connection.children.iter().find(|c| first.as_ref().is_none_or(|n| c.name == *n)).cloned();
        let offer = config.and_then(|c| self.offer_child(ctx, c, None, None, false));
        if let Some(offer) = &offer {
            payloads.extend(offer.payloads(false));
        }
        self.request(ctx, ExchangeType::Auth, &payloads, Request::Auth(offer.map(Box::new)));
    }

    pub fn on_auth_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        offer: Option<Box<ChildOffer>>,
        payloads: Vec<Payload>,
    ) {
        let p = Payloads(&payloads);
        let spi = offer.as_ref().map(|o| o.spi_in);
        match self.read_auth_response(ctx, &p) {
            Ok(()) => {}
            Err((failure, answered)) => {
                spi.into_iter().for_each(|s| ctx.spis.release(s));
                // The peer believes that all is well unless it refused itself: tell it (RFC 7296 2.21.2).
                if !answered {
                    let delete = Payload::Delete { protocol: crate::message::Protocol::Ike, spis: vec![] };
                    let notify = Payload::Notify(Notify::new(NotifyType::AuthenticationFailed, []));
                    self.request(ctx, ExchangeType::Informational, &[notify, delete], Request::DeleteIke);
                }
                let pending = self.pending.take();
                self.fail(ctx, failure);
                if pending.is_some() {
                    (self.state, self.pending) = (State::Closing, pending);
                }
                return;
            }
        }
        self.come_up(ctx, None);
        if let Some(offer) = offer {
            self.finish_child(ctx, *offer, &p, false);
        }
        if self.replaces.is_some() && self.children.is_empty() {
            // It has not what it was made for: the older one goes on alone.
            return self.queue(Task::new(ctx.now.at, What::DeleteIke(Reason::Replaced)));
        }
        self.want_children(ctx);
    }

    /// The error says whether the peer itself refused.
    fn read_auth_response(&mut self, ctx: &mut Ctx<'_>, p: &Payloads<'_>) -> Result<(), (Failure, bool)> {
        let connection = self.connection.clone().ok_or((Failure::from(Reason::NoConnection), true))?;
        if p.notify(NotifyType::Redirect).is_some() {
            return Err((Reason::RedirectRefused.into(), false));
        }
        if p.auth().is_none() {
            return Err(match p.error() {
                Some(n) => (refusal(n, false), true),
                None if p.has_eap() => (Reason::EapRefused.into(), false),
                None => (Failure::new(Reason::MalformedMessage, "IKE_AUTH without AUTH"), false),
            });
        }
        let id = p.id_r().ok_or((Failure::new(Reason::MalformedMessage, "IKE_AUTH without IDr"), false))?;
        if !Identity::from_wire(id).is_some_and(|i| connection.remote_id.accepts(&i)) {
            let text = format!("it is {}, expected {}", identity_text(id), connection.remote_id);
            return Err((Failure::new(Reason::PeerIdentityMismatch, text), false));
        }
        let auth_id = self.request_id.wrapping_sub(1);
        self.verify(ctx, &connection, id, p, auth_id).map_err(|f| (f, false))
    }

    // ---- responder ----

    pub fn on_auth_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, payloads: Vec<Payload>) {
        let p = Payloads(&payloads);
        if self.choice.is_some_and(|c| c.additional.is_some()) && self.intermediate.1.is_empty() {
            self.refuse(ctx, header, NotifyType::InvalidSyntax);
            return self.fail(
                ctx,
                Failure::new(Reason::MalformedMessage, "the negotiated IKE_INTERMEDIATE is missing"),
            );
        }
        let proof = self.identify_peer(ctx, &p).and_then(|(connection, id)| {
            self.connection = Some(connection.clone());
            self.verify(ctx, &connection, &id, &p, header.id)?;
            self.prove(ctx, &connection, header.id)
        });
        let mut answer = match proof {
            Ok(answer) => answer,
            Err(failure) => {
                self.refuse(ctx, header, NotifyType::AuthenticationFailed);
                return self.fail(ctx, failure);
            }
        };
        let contact = p.notify(NotifyType::InitialContact).is_some();
        self.come_up(ctx, Some(contact));
        let child = match (p.sa(), p.ts_i(), p.ts_r()) {
            (Some(_), Some(_), Some(_)) => Some(self.accept_child(ctx, &p, None, false)),
            _ => None,
        };
        match child {
            Some(Ok(accepted)) => {
                answer.extend(accepted.payloads);
                self.respond(ctx, header, &answer);
                self.finish_accept(ctx, accepted.spi_in, None);
            }
            Some(Err((notify, failure))) => {
                answer.push(Payload::Notify(notify));
                self.respond(ctx, header, &answer);
                if let Some(f) = failure {
                    self.event(
                        ctx,
                        EventKind::Failed,
                        Some(f),
                        "the first child was refused, the IKE SA stays",
                    );
                }
            }
            None => self.respond(ctx, header, &answer),
        }
        self.want_children(ctx);
    }

    /// The connection for who the peer says it is, where it comes from, and what was negotiated.
    fn identify_peer(
        &self,
        ctx: &Ctx<'_>,
        p: &Payloads<'_>,
    ) -> Result<(Arc<Connection>, Identification), Failure> {
        let id = p.id_i().ok_or_else(|| Failure::new(Reason::MalformedMessage, "IKE_AUTH without IDi"))?;
        if p.auth().is_none() {
            return Err(Reason::EapRefused.into());
        }
        let candidates = ctx.connections.by_address(self.path.local.ip(), self.path.remote.ip());
        let identity = Identity::from_wire(id);
        let known: Vec<_> =
            candidates.iter().filter(|c| identity.as_ref().is_some_and(|i| c.remote_id.accepts(i))).collect();
        if known.is_empty() {
            let expected: Vec<String> = candidates.iter().map(|c| c.remote_id.to_string()).collect();
            let text = format!("it is {}, configured: {}", identity_text(id), expected.join(", "));
            return Err(Failure::new(Reason::PeerIdentityUnknown, text));
        }
        // An exact identity goes before a pattern.
        let mut known = known;
        known.sort_by_key(|c| !matches!(c.remote_id, IdentityPattern::Exact(_)));
        let wanted = p.id_r().and_then(Identity::from_wire);
        let ours = |c: &&&Arc<Connection>| wanted.as_ref().is_none_or(|w| c.local_id.matches(w));
        let Some(connection) = known.iter().find(ours) else {
            let text = format!(
                "it asks for {}, we are {}",
                p.id_r().map(identity_text).unwrap_or_default(),
                known[0].local_id
            );
            return Err(Failure::new(Reason::LocalIdentityMismatch, text));
        };
        Ok(((**connection).clone(), id.clone()))
    }

    // ---- both ----

    fn come_up(&mut self, ctx: &mut Ctx<'_>, contact: Option<bool>) {
        self.state = State::Up;
        self.start_lifetime(ctx);
        ctx.effects.established = Some(contact.unwrap_or(false));
        let text =
            format!("{}, {}", self.peer_text(), self.choice.map(|c| c.to_string()).unwrap_or_default());
        self.event(ctx, EventKind::IkeUp, None, text);
    }

    /// Queues the children that ought to exist and do not.
    pub fn want_children(&mut self, ctx: &mut Ctx<'_>) {
        let Some(connection) = self.connection.clone() else { return };
        let wanted = std::mem::take(&mut self.wanted);
        for c in &connection.children {
            // A peer that began with one pair of networks goes on with the others.
            let begun = !self.initiator && self.children.iter().any(|one| one.config.name == c.name);
            let starts = c.start == Start::Now && !self.carried_elsewhere(ctx, &c.name, None);
            if !begun && (starts || wanted.contains(&c.name)) {
                self.want_child(ctx, &c.name, std::time::Duration::ZERO);
            }
        }
    }
}
