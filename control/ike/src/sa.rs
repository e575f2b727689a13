//! One IKE SA: its state, its window of one request in each direction, its timers. Enters: datagrams and the passage
//! of time. Leaves: datagrams, and through the exchanges everything else. RFC 7296 sections 2.1 to 2.4 and 2.8.

use crate::auth::{HashAlgorithm, Identity};
use crate::child::{Child, ChildState};
use crate::config::{Connection, Settings};
use crate::connections::Connections;
use crate::crypto::keys::Salt;
use crate::crypto::{IkeChoice, IkeKeys, Rng};
use crate::exchange::Pair;
use crate::exchange::{Request, Task};
use crate::message::{ExchangeType, Header, Payload, PayloadType, WireError, decode_chain, encode_chain};
use crate::message::{Notify, NotifyType, Protocol};
use crate::output::{Datagram, Encapsulation, Event, EventKind, LabKeys, Output, Outputs, SpiSource};
use crate::protect::{OpenError, Opened, Reassembly, seal};
use crate::reason::{Failure, Reason};
use crate::time::{Instant, Now};
use crate::tunnels::{Key, Tunnels};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a call lends to the SA that it works on.
pub(crate) struct Ctx<'a> {
    pub now: Now,
    pub rng: &'a mut Rng,
    pub spis: &'a mut dyn SpiSource,
    pub out: &'a mut Outputs,
    pub settings: &'a Settings,
    pub connections: &'a Connections,
    pub tunnels: &'a mut Tunnels,
    pub effects: Effects,
}

/// What the work on one SA means for others; done by the endpoint afterwards.
#[derive(Default)]
pub(crate) struct Effects {
    /// IKE SAs made by a rekey.
    pub spawned: Vec<IkeSa>,
    /// Children and tasks that go to another IKE SA, by its local SPI.
    pub moves: Vec<(u64, Vec<Child>, VecDeque<Task>)>,
    /// IKE SAs to drop at a moment unless the peer deletes them before, by local SPI.
    pub reap: Vec<(u64, Instant)>,
    /// The SA was authenticated just now; the peer's INITIAL_CONTACT if it came with it.
    pub established: Option<bool>,
    /// A connection lost its IKE SA, or failed to get one.
    pub ended: Vec<(Arc<str>, Failure)>,
    /// Children whose place a new IKE SA is to take, because a rekey of theirs, or of this IKE SA, was refused.
    pub replace: Option<Vec<Arc<str>>>,
    /// Another IKE SA of this connection exists or is under way, so no INITIAL_CONTACT.
    pub others: bool,
}

/// Where an IKE SA is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// We initiated; not authenticated.
    Connecting,
    /// The peer initiated; not authenticated.
    HalfOpen,
    /// Authenticated.
    Up,
    /// Another IKE SA replaced it.
    Rekeyed,
    /// Our request to delete it is under way.
    Closing,
    /// To be forgotten.
    Dead,
}

/// Outer addresses and the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub encapsulated: bool,
}

/// Our outstanding request.
pub(crate) struct Pending {
    pub id: u32,
    pub datagrams: Vec<Vec<u8>>,
    pub sent: u32,
    pub next_at: Instant,
    pub request: Request,
}

/// What the peer announced.
#[derive(Default, Clone)]
pub(crate) struct PeerFeatures {
    pub fragmentation: bool,
    pub hashes: Option<Vec<HashAlgorithm>>,
}

/// An IKE SA.
pub(crate) struct IkeSa {
    pub connection: Option<Arc<Connection>>,
    /// The connection that a half-open SA probably belongs to: where its failure is reported.
    pub likely: Option<Arc<str>>,
    /// We are the original initiator.
    pub initiator: bool,
    pub spi_i: u64,
    pub spi_r: u64,
    pub path: Path,
    /// A NAT before us, a NAT before the peer.
    pub nat: (bool, bool),
    pub state: State,
    pub keys: Option<IkeKeys>,
    pub choice: Option<IkeChoice>,
    pub salt: Salt,
    /// The two IKE_SA_INIT messages, for AUTH.
    pub init: (Vec<u8>, Vec<u8>),
    /// IntAuth_i and IntAuth_r (RFC 9242).
    pub intermediate: (Vec<u8>, Vec<u8>),
    pub features: PeerFeatures,
    pub peer_id: Option<Identity>,
    pub peer_certificate: Option<(String, u64)>,
    pub request_id: u32,
    pub expected_id: u32,
    pub pending: Option<Pending>,
    pub answered: Vec<Vec<u8>>,
    pub reassembly: (Reassembly, Reassembly),
    pub tasks: VecDeque<Task>,
    pub children: Vec<Child>,
    pub created: Instant,
    pub established: Instant,
    pub soft_at: Instant,
    pub hard_at: Instant,
    /// When something authentic last came from the peer, IKE or ESP.
    pub heard: Instant,
    /// When something was last sent to the peer, for keepalives.
    pub spoke: Instant,
    /// Dropped at this moment, whatever comes.
    pub reap_at: Option<Instant>,
    /// An unauthenticated error in the answer to IKE_SA_INIT: believed unless a better answer comes (RFC 7296 2.21.1).
    pub doubtful: Option<Failure>,
    /// The peer's rekey of this IKE SA while our own is under way: the new SA's local SPI and its lower nonce.
    pub replaced_by: Option<(u64, Vec<u8>)>,
    /// The peer made it to replace one that we are replacing too: until that is decided the children are elsewhere, and
    /// requests wait.
    pub contested: bool,
    /// The peer has a newer IKE SA with us: if it does not answer on this one, it has forgotten it.
    pub superseded: bool,
    /// It was begun because a rekey was refused on this older IKE SA (by local SPI), which is deleted once nothing is left that
    /// only it carries.
    pub replaces: Option<u64>,
    /// A newer IKE SA has all of its children: nothing new begins here.
    pub retiring: bool,
    /// Its rekey was refused, by the peer or by us.
    pub refused: Option<crate::Refused>,
    /// The child that the peer refused in IKE_AUTH.
    pub first_refused: Option<Arc<str>>,
    /// The lower nonce of the exchange that made it.
    pub nonce: Vec<u8>,
    /// The peer's rekey that waits for its additional key exchange.
    pub followup: Option<crate::exchange::Followup>,
    /// Largest UDP payload before fragmentation.
    pub fragment_bytes: Option<usize>,
    /// Children wanted once it is up.
    pub wanted: Vec<Arc<str>>,
    /// The peer takes one pair of networks a child (SINGLE_PAIR_REQUIRED).
    pub single_pair: bool,
    /// Pairs of networks that the peer refused, and when they may be asked for again.
    pub refused_pairs: Vec<(Arc<str>, Pair, Instant)>,
}

impl IkeSa {
    pub fn new(initiator: bool, spi_i: u64, spi_r: u64, path: Path, now: Instant) -> IkeSa {
        let far = now + std::time::Duration::from_secs(86_400 * 365);
        IkeSa {
            connection: None,
            likely: None,
            initiator,
            spi_i,
            spi_r,
            path,
            nat: (false, false),
            state: if initiator { State::Connecting } else { State::HalfOpen },
            keys: None,
            choice: None,
            salt: Salt { nonce_i: Vec::new(), nonce_r: Vec::new(), spi_i, spi_r },
            init: Default::default(),
            intermediate: Default::default(),
            features: PeerFeatures::default(),
            peer_id: None,
            peer_certificate: None,
            request_id: 0,
            expected_id: 0,
            pending: None,
            answered: Vec::new(),
            reassembly: Default::default(),
            tasks: VecDeque::new(),
            children: Vec::new(),
            created: now,
            established: now,
            soft_at: far,
            hard_at: far,
            heard: now,
            spoke: now,
            reap_at: None,
            doubtful: None,
            replaced_by: None,
            contested: false,
            superseded: false,
            replaces: None,
            retiring: false,
            refused: None,
            first_refused: None,
            nonce: Vec::new(),
            followup: None,
            fragment_bytes: None,
            wanted: Vec::new(),
            single_pair: false,
            refused_pairs: Vec::new(),
        }
    }

    pub fn local_spi(&self) -> u64 {
        if self.initiator { self.spi_i } else { self.spi_r }
    }

    pub fn name(&self) -> Option<Arc<str>> {
        self.connection.as_ref().map(|c| c.name.clone())
    }

    /// ESP in UDP: only if there is a NAT, or one is feigned.
    pub fn encapsulation(&self) -> Option<Encapsulation> {
        let nat = self.nat.0 || self.nat.1;
        nat.then(|| Encapsulation {
            local_port: self.path.local.port(),
            remote_port: self.path.remote.port(),
            follow: self.follows(),
        })
    }

    /// Whether the peer may move to another address: it is behind a NAT, and we are not (RFC 7296 section 2.23: a host
    /// behind one would open itself to denial of service).
    fn follows(&self) -> bool {
        self.nat.1 && !self.nat.0
    }

    /// The newest authentic ESP packet came from `remote`.
    pub fn on_moved_esp(&mut self, ctx: &mut Ctx<'_>, remote: SocketAddr) {
        if self.state == State::Up && self.path.encapsulated && self.follows() {
            self.follow_peer(ctx, Path { remote, ..self.path });
        }
    }

    pub fn event(
        &self,
        ctx: &mut Ctx<'_>,
        kind: EventKind,
        failure: Option<Failure>,
        text: impl Into<String>,
    ) {
        let connection = self.name().or_else(|| self.likely.clone());
        // Whoever began has not proved anything yet.
        let strangers = u64::from(!self.initiator && self.peer_id.is_none());
        let text = text.into();
        let event = Event { at: ctx.now, connection, child: None, kind, failure, text, strangers };
        ctx.out.push(Output::Event(event));
    }

    pub fn child_event(
        &self,
        ctx: &mut Ctx<'_>,
        child: &Arc<str>,
        kind: EventKind,
        failure: Option<Failure>,
        text: String,
    ) {
        let child = Some(child.clone());
        ctx.out.push(Output::Event(Event {
            at: ctx.now,
            connection: self.name(),
            child,
            kind,
            failure,
            text,
            strangers: 0,
        }));
    }

    /// The tunnel that a child with these selectors belongs to. Peers are told apart only where a connection takes many.
    pub fn tunnel(&self, child: &Arc<str>, selectors: &str, resource: Option<u32>) -> Key {
        let many =
            self.connection.as_ref().is_some_and(|c| matches!(c.remote, crate::config::Remote::Network(_)));
        let peer = if many {
            self.peer_id.as_ref().map(ToString::to_string).unwrap_or_default()
        } else {
            String::new()
        };
        (self.name().unwrap_or_default(), child.clone(), format!("{selectors}{peer}"), resource)
    }

    // ---- sending ----

    pub fn transmit(&mut self, ctx: &mut Ctx<'_>, datagrams: &[Vec<u8>]) {
        self.spoke = ctx.now.at;
        for d in datagrams {
            let Path { local, remote, encapsulated } = self.path;
            let bytes = if encapsulated { [&[0; 4], &d[..]].concat() } else { d.clone() };
            ctx.out.push(Output::Send(Datagram { local, remote, encapsulated, bytes }));
        }
    }

    fn header(&self, exchange: ExchangeType, id: u32, response: bool) -> Header {
        let (spi_i, spi_r, from_initiator) = (self.spi_i, self.spi_r, self.initiator);
        Header { spi_i, spi_r, next: PayloadType::None, exchange, from_initiator, response, id, length: 0 }
    }

    /// Seals and gives header, first payload type and plain bytes too, for IntAuth.
    fn seal(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: Header,
        payloads: &[Payload],
    ) -> (Vec<Vec<u8>>, PayloadType, Vec<u8>) {
        let (first, plain) = encode_chain(payloads);
        let limit = self.fragment_bytes.filter(|_| self.features.fragmentation);
        let Some(keys) = &mut self.keys else { return (Vec::new(), first, plain) };
        let key = if self.initiator { &mut keys.initiator } else { &mut keys.responder };
        (seal(key, header, first, &plain, limit, ctx.rng), first, plain)
    }

    /// Sends a protected request. There is none outstanding when this is called.
    pub fn request(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchange: ExchangeType,
        payloads: &[Payload],
        request: Request,
    ) {
        let id = self.request_id;
        self.request_id += 1;
        let header = self.header(exchange, id, false);
        let (datagrams, first, plain) = self.seal(ctx, header, payloads);
        if exchange == ExchangeType::Intermediate {
            self.mix_intermediate(header, first, &plain);
        }
        self.await_answer(ctx, id, datagrams, request);
    }

    pub fn await_answer(&mut self, ctx: &mut Ctx<'_>, id: u32, datagrams: Vec<Vec<u8>>, request: Request) {
        self.transmit(ctx, &datagrams);
        let next_at = ctx.now.at + ctx.settings.wait(0);
        self.pending = Some(Pending { id, datagrams, sent: 1, next_at, request });
    }

    /// Sends and keeps a protected response.
    pub fn respond(&mut self, ctx: &mut Ctx<'_>, to: &Header, payloads: &[Payload]) {
        let header = self.header(to.exchange, to.id, true);
        let (datagrams, first, plain) = self.seal(ctx, header, payloads);
        if to.exchange == ExchangeType::Intermediate {
            self.mix_intermediate(header, first, &plain);
        }
        self.transmit(ctx, &datagrams);
        self.answered = datagrams;
    }

    pub fn refuse(&mut self, ctx: &mut Ctx<'_>, to: &Header, kind: NotifyType) {
        self.respond(ctx, to, &[Payload::Notify(Notify::new(kind, []))]);
    }

    // ---- receiving ----

    /// A datagram for this SA that is not IKE_SA_INIT; `bytes` without marker.
    pub fn on_protected(&mut self, ctx: &mut Ctx<'_>, header: Header, bytes: &[u8], path: Path) {
        let relevant = match (header.response, &self.pending) {
            (true, Some(p)) => p.id == header.id,
            (true, None) => false,
            // The responder is up before we are; it will ask again once we have its answer.
            (false, _) if self.state == State::Connecting => false,
            (false, _) => header.id == self.expected_id || header.id.wrapping_add(1) == self.expected_id,
        };
        let (Some(keys), true) = (&self.keys, relevant && header.from_initiator != self.initiator) else {
            return;
        };
        let key = if self.initiator { &keys.responder } else { &keys.initiator };
        let reassembly = if header.response { &mut self.reassembly.1 } else { &mut self.reassembly.0 };
        let opened = match reassembly.open(key, &header, bytes) {
            Ok(opened) => opened,
            Err(OpenError::NotAuthentic | OpenError::Wire(_)) => return,
        };
        (self.heard, self.superseded) = (ctx.now.at, false);
        let repeated = !header.response && header.id != self.expected_id;
        match opened {
            Opened::Fragment { number } if repeated && number == 1 => self.repeat_answer(ctx),
            Opened::Fragment { .. } => {}
            Opened::Whole(..) if repeated => self.repeat_answer(ctx),
            Opened::Whole(first, plain) => self.on_plain(ctx, header, first, &plain, path),
        }
    }

    /// An authentic message that is not a repetition.
    pub fn on_plain(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: Header,
        first: PayloadType,
        plain: &[u8],
        path: Path,
    ) {
        let payloads = decode_chain(first, plain);
        let delete = |p: &Payload| matches!(p, Payload::Delete { protocol: Protocol::Ike, .. });
        if self.contested && !header.response && !payloads.iter().flatten().any(delete) {
            return;
        }
        self.follow_peer(ctx, path);
        if header.exchange == ExchangeType::Intermediate {
            self.mix_intermediate(header, first, plain);
        }
        match payloads {
            Ok(payloads) if header.response => self.on_response(ctx, header, payloads),
            Ok(payloads) => self.on_request(ctx, header, payloads),
            Err(e) => self.on_malformed(ctx, header, e),
        }
    }

    fn repeat_answer(&mut self, ctx: &mut Ctx<'_>) {
        // The peer lacks the answer, and with it the child that the answer may have made.
        let until = ctx.now.at + ctx.settings.retransmit_max * 2;
        self.children.iter_mut().filter_map(|c| c.unconfirmed.as_mut()).for_each(|t| *t = until);
        let switch = ctx.now.at + ctx.settings.drain / crate::child::SWITCH_PART;
        self.children.iter_mut().filter_map(|c| c.switch_at.as_mut()).for_each(|t| *t = switch);
        let datagrams = std::mem::take(&mut self.answered);
        self.transmit(ctx, &datagrams);
        self.answered = datagrams;
    }

    /// The peer speaks from elsewhere: follow, if it was authentic and we are not behind a NAT ourselves
    /// (RFC 7296 2.23). Before authentication the peer may move to port 4500 only.
    fn follow_peer(&mut self, ctx: &mut Ctx<'_>, path: Path) {
        if path == self.path
            || (self.state == State::Up && !self.follows() && path.remote.ip() != self.path.remote.ip())
        {
            return;
        }
        let moved = self.state == State::Up && path.remote != self.path.remote;
        self.path = path;
        if moved {
            self.event(ctx, EventKind::PeerMoved, None, format!("now at {}", path.remote));
            let spis_in = self.children.iter().map(|c| c.spi_in).collect();
            ctx.out.push(Output::UpdateOuter { spis_in, remote: path.remote });
        }
    }

    fn on_malformed(&mut self, ctx: &mut Ctx<'_>, header: Header, error: WireError) {
        if header.response {
            return self.fail(ctx, Failure::new(Reason::MalformedMessage, error.to_string()));
        }
        self.expected_id = self.expected_id.wrapping_add(1);
        match error {
            WireError::UnknownCritical(n) => {
                let notify = Notify::new(NotifyType::UnsupportedCriticalPayload, [n]);
                self.respond(ctx, &header, &[Payload::Notify(notify)]);
            }
            _ => {
                self.refuse(ctx, &header, NotifyType::InvalidSyntax);
                self.fail(ctx, Failure::new(Reason::MalformedMessage, error.to_string()));
            }
        }
    }

    fn on_request(&mut self, ctx: &mut Ctx<'_>, header: Header, payloads: Vec<Payload>) {
        self.expected_id = self.expected_id.wrapping_add(1);
        self.confirm_children(ctx);
        match (header.exchange, self.state) {
            (ExchangeType::Intermediate, State::HalfOpen) => {
                self.on_intermediate_request(ctx, &header, &payloads)
            }
            (ExchangeType::Auth, State::HalfOpen) => self.on_auth_request(ctx, &header, payloads),
            (_, State::HalfOpen | State::Connecting | State::Dead) => {
                self.refuse(ctx, &header, NotifyType::InvalidSyntax);
                self.fail(ctx, Failure::new(Reason::MalformedMessage, "exchange out of order"));
            }
            (ExchangeType::CreateChild, _) => self.on_create_child_request(ctx, &header, &payloads),
            (ExchangeType::FollowupKe, _) => self.on_followup_request(ctx, &header, &payloads),
            (ExchangeType::Informational, _) => self.on_informational_request(ctx, &header, &payloads),
            _ => self.refuse(ctx, &header, NotifyType::InvalidSyntax),
        }
        self.next_task(ctx);
    }

    fn on_response(&mut self, ctx: &mut Ctx<'_>, header: Header, payloads: Vec<Payload>) {
        let Some(pending) = self.pending.take_if(|p| p.request.exchange() == header.exchange) else { return };
        match pending.request {
            Request::Init(_) => {}
            Request::Intermediate(ke) => self.on_intermediate_response(ctx, ke, &payloads),
            Request::Auth(offer) => self.on_auth_response(ctx, offer, payloads),
            Request::Child(offer) => self.on_child_response(ctx, *offer, &payloads),
            Request::Rekey(offer) => self.on_rekey_response(ctx, *offer, &payloads),
            Request::Followup(wait) => self.on_followup_response(ctx, *wait, &payloads),
            Request::DeleteChildren(spis) => self.on_delete_children_response(ctx, &spis),
            Request::DeleteIke => self.on_deleted(ctx),
            Request::Probe => {}
        }
        self.next_task(ctx);
    }

    // ---- ends ----

    /// The SA is gone at once, with its children; the connection hears of it.
    pub fn fail(&mut self, ctx: &mut Ctx<'_>, failure: Failure) {
        if self.state == State::Dead {
            return;
        }
        let quiet = matches!(self.state, State::Rekeyed | State::Closing);
        // The peer's replacement that was to be decided about goes too: nobody else would end it.
        ctx.effects.reap.extend(self.replaced_by.take().map(|(spi, _)| (spi, ctx.now.at)));
        let was_up = self.state == State::Up;
        self.drop_children(ctx, failure.reason, false);
        self.release_offer(ctx);
        self.state = State::Dead;
        if quiet {
            return;
        }
        let kind = if was_up { EventKind::IkeDown } else { EventKind::Failed };
        self.event(ctx, kind, Some(failure.clone()), self.peer_text());
        if let Some(name) = self.name() {
            ctx.effects.ended.push((name, failure));
        }
    }

    /// Removes all children; `drain` if the peer still may send on them.
    pub fn drop_children(&mut self, ctx: &mut Ctx<'_>, reason: Reason, drain: bool) {
        let end = if drain { Tunnels::drain_end(ctx.now.at, ctx.settings.drain) } else { None };
        for child in std::mem::take(&mut self.children) {
            ctx.tunnels.remove(ctx.out, child.spi_in, end);
            if child.state != ChildState::Replaced {
                self.child_event(
                    ctx,
                    &child.config.name,
                    EventKind::ChildDown,
                    Some(reason.into()),
                    format!("spi {:08x}", child.spi_in),
                );
            }
        }
    }

    pub fn release_offer(&mut self, ctx: &mut Ctx<'_>) {
        let spi = match self.pending.take().map(|p| p.request) {
            Some(Request::Auth(offer)) => offer.map(|o| o.spi_in),
            Some(Request::Child(offer)) => Some(offer.spi_in),
            _ => None,
        };
        spi.into_iter().for_each(|s| ctx.spis.release(s));
    }

    pub fn peer_text(&self) -> String {
        match &self.peer_id {
            Some(id) => format!("peer {id} at {}", self.path.remote),
            None => format!("peer at {}", self.path.remote),
        }
    }

    pub fn export_keys(&self, ctx: &mut Ctx<'_>) {
        let (true, Some(keys), Some(choice)) = (ctx.settings.export_keys, &self.keys, self.choice) else {
            return;
        };
        let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let [ei, er, ai, ar] = keys.export_for_lab().map(hex);
        let encryption = match choice.cipher.id() {
            (20, bits) => format!("AES-GCM-{bits} with 16 octet ICV [RFC5282]"),
            (_, bits) => format!("AES-CBC-{bits} [RFC3602]"),
        };
        let integrity = match choice.integrity {
            None => "NONE [RFC4306]".to_string(),
            Some(i) => format!("HMAC_SHA2_{}_{} [RFC4868]", i.key_bytes() * 8, i.tag_bytes() * 8),
        };
        let line = format!(
            "{:016x},{:016x},{ei},{er},\"{encryption}\",{ai},{ar},\"{integrity}\"",
            self.spi_i, self.spi_r
        );
        ctx.out.push(Output::LabKeys(Box::new(LabKeys { line })));
    }

    pub fn queue(&mut self, task: Task) {
        if !self.tasks.iter().any(|t| t.what == task.what) {
            self.tasks.push_back(task);
        }
    }
}
