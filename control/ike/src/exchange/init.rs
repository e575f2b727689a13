//! IKE_SA_INIT, both roles. Enters: a connection to initiate, or a first request. Leaves: an IKE SA with keys, or an
//! unprotected refusal. RFC 7296 sections 1.2, 2.6, 2.7 and 2.23.

use super::{NONCE_BYTES, Payloads, Request, refusal};
use crate::auth::HashAlgorithm;
use crate::config::{Connection, RemoteAuth};
use crate::crypto::choice::{accept_ike, choose_ike};
use crate::crypto::difference::explain_ike;
use crate::crypto::ke::Exchange;
use crate::crypto::{IkeChoice, IkeKeys, IkeProposal, Method};
use crate::message::CertEncoding;
use crate::message::{
    ExchangeType, Header, KeyExchangeData, Notify, NotifyType, Payload, Proposal, decode_chain,
};
use crate::message::{HEADER_BYTES, PayloadType, encode_chain};
use crate::nat;
use crate::output::EventKind;
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa, Path, State};
use std::sync::Arc;

/// Restarts of one IKE_SA_INIT because of cookies or groups.
const MAX_RESTARTS: u32 = 5;

/// Our IKE_SA_INIT request.
pub(crate) struct InitRequest {
    ke: Exchange,
    cookie: Option<Vec<u8>>,
    restarts: u32,
}

fn unprotected(header: Header, payloads: &[Payload]) -> Vec<u8> {
    let (next, body) = encode_chain(payloads);
    let header = Header { next, length: (HEADER_BYTES + body.len()) as u32, ..header };
    [&header.encode()[..], &body].concat()
}

/// An unprotected answer that carries one notify, for a request of which nothing is kept.
pub(crate) fn unprotected_notify(to: &Header, notify: Notify) -> Vec<u8> {
    let header = Header { from_initiator: !to.from_initiator, response: true, ..*to };
    unprotected(header, &[Payload::Notify(notify)])
}

impl IkeSa {
    /// Begins a negotiation.
    pub fn initiate(
        ctx: &mut Ctx<'_>,
        connection: &Arc<Connection>,
        path: Path,
        wanted: Vec<Arc<str>>,
    ) -> Option<IkeSa> {
        let group = *IkeProposal::groups(&connection.ike).first()?;
        let spi_i = ctx.rng.next_u64().max(1);
        let mut sa = IkeSa::new(true, spi_i, 0, path, ctx.now.at);
        sa.connection = Some(connection.clone());
        sa.fragment_bytes = connection.fragment_bytes;
        sa.wanted = wanted;
        let mut nonce = vec![0; NONCE_BYTES];
        ctx.rng.fill_bytes(&mut nonce);
        sa.salt.nonce_i = nonce;
        sa.event(ctx, EventKind::Initiating, None, format!("to {}", path.remote));
        let ke = group.start(ctx.rng);
        sa.send_init(ctx, InitRequest { ke, cookie: None, restarts: 0 });
        Some(sa)
    }

    fn send_init(&mut self, ctx: &mut Ctx<'_>, request: InitRequest) {
        let Some(connection) = self.connection.clone() else { return };
        let proposals: Vec<Proposal> =
            connection.ike.iter().zip(1..).map(|(p, n)| p.to_wire(n, &[])).collect();
        let mut payloads = Vec::new();
        if let Some(cookie) = &request.cookie {
            payloads.push(Payload::Notify(Notify::new(NotifyType::Cookie, cookie.clone())));
        }
        payloads.push(Payload::Sa(proposals));
        let (method, data) = (request.ke.method().id(), request.ke.public().to_vec());
        payloads.push(Payload::Ke(KeyExchangeData { method, data }));
        payloads.push(Payload::Nonce(self.salt.nonce_i.clone()));
        payloads.extend(self.announcements(connection.force_encapsulation));
        if IkeProposal::any_additional(&connection.ike) {
            payloads.push(Payload::Notify(Notify::new(NotifyType::IntermediateSupported, [])));
        }
        let header = Header {
            spi_i: self.spi_i,
            spi_r: 0,
            next: PayloadType::None,
            exchange: ExchangeType::Init,
            from_initiator: true,
            response: false,
            id: 0,
            length: 0,
        };
        let message = unprotected(header, &payloads);
        self.init.0 = message.clone();
        self.request_id = 1;
        self.await_answer(ctx, 0, vec![message], Request::Init(Box::new(request)));
    }

    /// What both ends say in IKE_SA_INIT: NAT detection, fragmentation, signature hashes.
    fn announcements(&self, feign_nat: bool) -> Vec<Payload> {
        // A source that cannot be right makes the peer encapsulate (RFC 7296 2.23).
        let source = match feign_nat {
            true => vec![0; 20],
            false => nat::detection(self.spi_i, self.spi_r, self.path.local),
        };
        let destination = nat::detection(self.spi_i, self.spi_r, self.path.remote);
        [
            Notify::new(NotifyType::NatDetectionSourceIp, source),
            Notify::new(NotifyType::NatDetectionDestinationIp, destination),
            Notify::new(NotifyType::FragmentationSupported, []),
            Notify::new(NotifyType::SignatureHashAlgorithms, HashAlgorithm::announce()),
        ]
        .map(Payload::Notify)
        .into()
    }

    /// Reads the peer's announcements.
    fn learn(&mut self, p: &Payloads<'_>) {
        self.features.fragmentation = p.notify(NotifyType::FragmentationSupported).is_some();
        let hashes = p.notify(NotifyType::SignatureHashAlgorithms);
        self.features.hashes = hashes.map(|n| HashAlgorithm::announced(&n.data));
        let here = nat::detection(self.spi_i, self.wire_spi_r(), self.path.local);
        let there = nat::detection(self.spi_i, self.wire_spi_r(), self.path.remote);
        let destination = p.notify(NotifyType::NatDetectionDestinationIp);
        let mut sources = p.notifies().filter(|n| n.kind == NotifyType::NatDetectionSourceIp).peekable();
        let feigned = self.connection.as_ref().is_some_and(|c| c.force_encapsulation);
        self.nat.0 = destination.is_some_and(|n| n.data != here) || (feigned && destination.is_some());
        self.nat.1 = sources.peek().is_some() && !sources.any(|n| n.data == there);
    }

    /// A request's hashes are over a responder SPI of zero, an answer's over the real one.
    fn wire_spi_r(&self) -> u64 {
        if self.initiator { self.spi_r } else { 0 }
    }

    /// The answer to our IKE_SA_INIT.
    pub fn on_init_response(&mut self, ctx: &mut Ctx<'_>, header: &Header, bytes: &[u8]) {
        let waiting = matches!(&self.pending, Some(p) if matches!(p.request, Request::Init(_)));
        if self.state != State::Connecting || !waiting || header.id != 0 {
            return;
        }
        let payloads = match decode_chain(header.next, &bytes[HEADER_BYTES..]) {
            Ok(p) => p,
            Err(e) => {
                self.doubtful = Some(Failure::new(Reason::MalformedMessage, e.to_string()));
                return;
            }
        };
        let p = Payloads(&payloads);
        match self.read_init_response(ctx, header, bytes, &p) {
            Ok(()) => {}
            // Anybody may have sent this: wait for a better answer until the next retransmission is due.
            Err(failure) => self.doubtful = Some(failure),
        }
    }

    fn read_init_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: &Header,
        bytes: &[u8],
        p: &Payloads<'_>,
    ) -> Result<(), Failure> {
        let connection = self.connection.clone().ok_or(Reason::NoConnection)?;
        if let Some(cookie) = p.notify(NotifyType::Cookie) {
            return self.restart_init(ctx, |_, r, _| {
                r.cookie = Some(cookie.data.clone());
                Ok(())
            });
        }
        if let Some(n) = p.notify(NotifyType::InvalidKePayload) {
            let group = n.data.first_chunk().and_then(|b| Method::from_id(u16::from_be_bytes(*b)));
            let allowed = IkeProposal::groups(&connection.ike);
            let group = group.filter(|g| allowed.contains(g)).ok_or_else(|| refusal(n, false))?;
            return self.restart_init(ctx, move |ctx, r, _| {
                if r.ke.method() == group {
                    return Err(Failure::from(Reason::KeGroupRefused));
                }
                r.ke = group.start(ctx.rng);
                Ok(())
            });
        }
        if p.notify(NotifyType::Redirect).is_some() {
            return Err(Reason::RedirectRefused.into());
        }
        if let Some(n) = p.error() {
            return Err(refusal(n, false));
        }
        let malformed = || Failure::new(Reason::MalformedMessage, "the answer to IKE_SA_INIT is incomplete");
        let (sa, ke, nonce) =
            (p.sa().ok_or_else(malformed)?, p.ke().ok_or_else(malformed)?, p.nonce().ok_or_else(malformed)?);
        if header.spi_r == 0 {
            return Err(malformed());
        }
        let foreign = || Failure::new(Reason::IkeProposalMismatch, "the peer chose what was not offered");
        let choice = accept_ike(&connection.ike, sa).ok_or_else(foreign)?;
        let pending = self.pending.take().ok_or(Reason::MalformedMessage)?;
        let (id, sent, next_at, datagrams) = (pending.id, pending.sent, pending.next_at, pending.datagrams);
        let Request::Init(request) = pending.request else { return Err(malformed()) };
        if ke.method != choice.ke.id() || request.ke.method() != choice.ke {
            let request = Request::Init(request);
            self.pending = Some(crate::sa::Pending { id, datagrams, sent, next_at, request });
            return Err(malformed());
        }
        let Ok(secret) = request.ke.finish(&ke.data) else {
            self.fail(ctx, Reason::KeInvalid.into());
            return Ok(());
        };
        self.doubtful = None;
        self.spi_r = header.spi_r;
        self.salt.spi_r = header.spi_r;
        self.salt.nonce_r = nonce.to_vec();
        self.init.1 = bytes.to_vec();
        self.learn(p);
        self.begin_keys(ctx, choice, &secret);
        if self.nat.0 || self.nat.1 {
            self.float(ctx);
        }
        match choice.additional {
            Some(method) => self.send_intermediate(ctx, method),
            None => self.send_auth(ctx),
        }
        Ok(())
    }

    /// The same request again with a cookie or another group (RFC 7296 2.6, 1.2).
    fn restart_init(
        &mut self,
        ctx: &mut Ctx<'_>,
        change: impl FnOnce(&mut Ctx<'_>, &mut InitRequest, &mut IkeSa) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let Request::Init(mut request) = pending.request else { return Ok(()) };
        request.restarts += 1;
        let result = match request.restarts {
            n if n > MAX_RESTARTS => Err(Reason::CookieLoop.into()),
            _ => change(ctx, &mut request, self),
        };
        match result {
            Ok(()) => self.send_init(ctx, *request),
            Err(failure) => self.fail(ctx, failure),
        }
        Ok(())
    }

    fn begin_keys(&mut self, ctx: &mut Ctx<'_>, choice: IkeChoice, secret: &[u8]) {
        self.keys = Some(IkeKeys::initial(choice, &self.salt, secret));
        self.choice = Some(choice);
        self.nonce = super::lower(&self.salt.nonce_i, &self.salt.nonce_r);
        self.export_keys(ctx);
    }

    /// Changes to the ports of encapsulation.
    fn float(&mut self, ctx: &mut Ctx<'_>) {
        let (plain, encapsulated) = ctx.settings.ports;
        let who = match self.nat {
            (true, true) => "before both ends",
            (true, false) => "before us",
            _ => "before the peer",
        };
        self.event(ctx, EventKind::NatFound, None, who);
        if !self.path.encapsulated {
            self.path.local.set_port(encapsulated);
            if self.path.remote.port() == plain {
                self.path.remote.set_port(encapsulated);
            }
            self.path.encapsulated = true;
        }
    }
}

/// What a first request leads to.
pub(crate) enum Accepted {
    /// A half-open IKE SA; its answer is among the outputs.
    Sa(Box<IkeSa>),
    /// An unprotected answer, nothing kept.
    Refused(Vec<u8>, Option<Failure>),
}

/// Answers a first request whose cookie, if one was needed, is right.
pub(crate) fn accept(
    ctx: &mut Ctx<'_>,
    header: &Header,
    bytes: &[u8],
    payloads: &[Payload],
    path: Path,
) -> Accepted {
    let p = Payloads(payloads);
    let refuse = |kind, data: &[u8], failure| {
        Accepted::Refused(unprotected_notify(header, Notify::new(kind, data)), failure)
    };
    let (Some(offer), Some(ke), Some(nonce)) = (p.sa(), p.ke(), p.nonce()) else {
        return refuse(NotifyType::InvalidSyntax, &[], Some(Reason::MalformedMessage.into()));
    };
    let candidates = ctx.connections.by_address(path.local.ip(), path.remote.ip());
    if candidates.is_empty() {
        let text = format!("{} to {}", path.remote.ip(), path.local.ip());
        return refuse(NotifyType::NoProposalChosen, &[], Some(Failure::new(Reason::NoConnection, text)));
    }
    let chosen =
        candidates.iter().find_map(|c| choose_ike(&c.ike, offer).map(|(choice, answer)| (c, choice, answer)));
    let Some((connection, choice, mut answer)) = chosen else {
        let text = explain_ike(&candidates[0].ike, offer);
        return refuse(
            NotifyType::NoProposalChosen,
            &[],
            Some(Failure::new(Reason::IkeProposalMismatch, text)),
        );
    };
    if ke.method != choice.ke.id() {
        return refuse(NotifyType::InvalidKePayload, &choice.ke.id().to_be_bytes(), None);
    }
    let Ok((public, secret)) = choice.ke.respond(&ke.data, ctx.rng) else {
        return refuse(NotifyType::InvalidSyntax, &[], Some(Reason::KeInvalid.into()));
    };
    let mut sa = IkeSa::new(false, header.spi_i, ctx.rng.next_u64().max(1), path, ctx.now.at);
    sa.salt.nonce_i = nonce.to_vec();
    let mut own = vec![0; NONCE_BYTES];
    ctx.rng.fill_bytes(&mut own);
    sa.salt.nonce_r = own;
    (sa.fragment_bytes, sa.likely) = (connection.fragment_bytes, Some(connection.name.clone()));
    sa.init.0 = bytes.to_vec();
    sa.learn(&p);
    let feign = connection.force_encapsulation;
    sa.nat.0 |= feign && p.notify(NotifyType::NatDetectionDestinationIp).is_some();
    answer.spi.clear();
    let mut reply = vec![
        Payload::Sa(vec![answer]),
        Payload::Ke(KeyExchangeData { method: choice.ke.id(), data: public }),
        Payload::Nonce(sa.salt.nonce_r.clone()),
    ];
    reply.extend(sa.announcements(feign));
    // Without it some peers keep their certificates to themselves.
    let stores = candidates.iter().filter_map(|c| match &c.remote_auth {
        RemoteAuth::Certificate(store) => Some(store.authorities()),
        RemoteAuth::Psk(_) => None,
    });
    let authorities = stores.collect::<Vec<_>>().concat();
    if !authorities.is_empty() {
        reply.push(Payload::CertReq { encoding: CertEncoding::X509, authorities });
    }
    if choice.additional.is_some() {
        reply.push(Payload::Notify(Notify::new(NotifyType::IntermediateSupported, [])));
    }
    let answer = Header { spi_r: sa.spi_r, from_initiator: false, response: true, ..*header };
    let message = unprotected(answer, &reply);
    sa.init.1 = message.clone();
    sa.expected_id = 1;
    sa.begin_keys(ctx, choice, &secret);
    sa.transmit(ctx, std::slice::from_ref(&message));
    sa.answered = vec![message];
    Accepted::Sa(Box::new(sa))
}

pub(crate) use Accepted as Acceptance;
