//! The exchanges of IKEv2, one file each, as methods of [`IkeSa`]. Enters: decoded payloads or a task. Leaves: requests,
//! responses, and changes of the SA. RFC 7296 section 1.

mod accept_child;
mod auth;
mod create_child;
mod informational;
mod init;
mod intermediate;
mod pairs;
#[cfg(test)]
mod refusals;
mod rekey_ike;
mod replace;

use crate::auth::Identity;
use crate::config::ChildConfig;
use crate::crypto::EspProposal;
use crate::crypto::ke::Exchange;
use crate::message::{
    ExchangeType, Identification, KeyExchangeData, Notify, NotifyType, Payload, Proposal, Protocol,
    TrafficSelector,
};
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa, State};
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use init::{Acceptance, InitRequest, accept, unprotected_notify};
pub(crate) use pairs::Pair;
pub(crate) use rekey_ike::{Followup, FollowupWait, RekeyOffer};

/// Bytes of our nonces: as much as the largest PRF's key needs (RFC 7296 2.10: at least half of it).
pub(crate) const NONCE_BYTES: usize = 32;

/// How often a task that must wait for the peer is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What our outstanding request was.
pub(crate) enum Request {
    Init(Box<InitRequest>),
    Intermediate(Exchange),
    /// The child that was asked for with it, if any.
    Auth(Option<Box<ChildOffer>>),
    Child(Box<ChildOffer>),
    Rekey(Box<RekeyOffer>),
    Followup(Box<FollowupWait>),
    /// Inbound SPIs.
    DeleteChildren(Vec<u32>),
    DeleteIke,
    Probe,
}

impl Request {
    pub fn exchange(&self) -> ExchangeType {
        match self {
            Request::Init(_) => ExchangeType::Init,
            Request::Intermediate(_) => ExchangeType::Intermediate,
            Request::Auth(_) => ExchangeType::Auth,
            Request::Child(_) | Request::Rekey(_) => ExchangeType::CreateChild,
            Request::Followup(_) => ExchangeType::FollowupKe,
            Request::DeleteChildren(_) | Request::DeleteIke | Request::Probe => ExchangeType::Informational,
        }
    }
}

/// A child SA that we asked for.
pub(crate) struct ChildOffer {
    pub config: Arc<ChildConfig>,
    pub spi_in: u32,
    pub nonce: Vec<u8>,
    pub ke: Option<Exchange>,
    pub local_ts: Vec<TrafficSelector>,
    pub remote_ts: Vec<TrafficSelector>,
    /// Inbound SPI of the SA to be replaced.
    pub replaces: Option<u32>,
    pub resource: Option<u32>,
    /// What is asked for: the configuration's, with or without a key exchange as the peer wants it.
    pub esp: Vec<EspProposal>,
    /// NO_PROPOSAL_CHOSEN was followed once by the same with a key exchange, or without one.
    pub turned: bool,
    /// INVALID_KE_PAYLOAD was followed once.
    pub retried: bool,
    /// The peer deleted the SA to be replaced because its own replacement won: ours is redundant.
    pub superseded: bool,
}

/// What is to be done once the window is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A child of this name; the worker it is for.
    CreateChild(Arc<str>, Option<u32>),
    RekeyChild(u32),
    DeleteChild(u32),
    /// Tells the peer that we do not take what it agreed to, by the inbound SPI that we offered.
    DisownChild(u32),
    RekeyIke,
    DeleteIke(Reason),
    /// A new IKE SA, since a rekey was refused.
    Replace(Lack),
    Probe,
}

/// What a refusal leaves without a future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The IKE SA.
    Ike,
    /// A child, by inbound SPI.
    Rekey(u32),
    /// A child that does not exist.
    Child(Arc<str>),
}

/// A thing to do, not before a moment.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub not_before: Instant,
    pub what: What,
}

impl Task {
    pub fn new(at: Instant, what: What) -> Task {
        Task { not_before: at, what }
    }

    pub fn rekey_ike(at: Instant) -> Task {
        Task::new(at, What::RekeyIke)
    }

    pub fn rekey_child(at: Instant, spi_in: u32) -> Task {
        Task::new(at, What::RekeyChild(spi_in))
    }
}

impl IkeSa {
    /// Starts the next task if no request is outstanding. Deletion of the IKE SA goes before everything else.
    pub fn next_task(&mut self, ctx: &mut Ctx<'_>) {
        while self.pending.is_none()
            && !self.contested
            && matches!(self.state, State::Up | State::Rekeyed | State::Closing)
        {
            let now = ctx.now.at;
            let ready = |t: &Task| t.not_before <= now;
            let last = self.tasks.iter().position(|t| ready(t) && matches!(t.what, What::DeleteIke(_)));
            // The peer is about to finish its rekey of this IKE SA: what would begin now might end in neither.
            let promised = self.followup.as_ref().is_some_and(|f| f.until > now);
            let first = if promised { None } else { self.tasks.iter().position(ready) };
            let Some(at) = last.or(first) else { return };
            let Some(task) = self.tasks.remove(at) else { return };
            if let Some(until) = self.unconfirmed(&task.what, now) {
                self.tasks.push_back(Task::new(until, task.what));
                continue;
            }
            match task.what {
                What::DeleteIke(reason) => self.delete_ike(ctx, reason),
                _ if self.state != State::Up => {}
                What::CreateChild(..) | What::RekeyChild(_) | What::RekeyIke | What::Replace(_)
                    if self.retiring => {}
                What::Replace(lack) => self.replace(ctx, lack),
                What::CreateChild(name, resource) => self.create_child(ctx, &name, resource),
                What::RekeyChild(spi_in) => self.rekey_child(ctx, spi_in),
                What::DeleteChild(spi_in) => self.delete_children(ctx, spi_in),
                What::DisownChild(spi_in) => {
                    let (protocol, spis) = (Protocol::Esp, vec![spi_in.to_be_bytes().to_vec()]);
                    let delete = [Payload::Delete { protocol, spis }];
                    self.request(
                        ctx,
                        ExchangeType::Informational,
                        &delete,
                        Request::DeleteChildren(Vec::new()),
                    );
                }
                What::RekeyIke => self.rekey_ike(ctx),
                What::Probe => self.request(ctx, ExchangeType::Informational, &[], Request::Probe),
            }
        }
    }
}

impl IkeSa {
    /// When to look again at a task about a child that the peer may not have yet.
    fn unconfirmed(&self, what: &What, now: Instant) -> Option<Instant> {
        let (What::RekeyChild(spi) | What::DeleteChild(spi)) = what else { return None };
        let until = self.children.iter().find(|c| c.spi_in == *spi)?.unconfirmed.filter(|t| *t > now)?;
        Some(until.min(now + LOOK_AGAIN))
    }

    /// The peer began a new exchange, so it has our last answer (window of one, RFC 7296 2.3).
    pub fn confirm_children(&mut self, ctx: &mut Ctx<'_>) {
        self.children.iter_mut().for_each(|c| c.unconfirmed = None);
        self.switch_children(ctx, |_| true);
    }

    /// Sends with those children that waited for the peer to have them.
    pub fn switch_children(&mut self, ctx: &mut Ctx<'_>, which: impl Fn(&crate::child::Child) -> bool) {
        let drained = ctx.now.at + ctx.settings.drain;
        for c in self.children.iter_mut().filter(|c| c.switch_at.is_some() && which(c)) {
            c.switch_at = None;
            ctx.tunnels.switch(ctx.out, c.spi_in, drained);
        }
    }
}

/// Access to payloads by kind; the first of each counts.
pub(crate) struct Payloads<'a>(pub &'a [Payload]);

impl<'a> Payloads<'a> {
    fn find<T>(&self, f: impl Fn(&'a Payload) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(f)
    }

    pub fn sa(&self) -> Option<&'a [Proposal]> {
        self.find(|p| if let Payload::Sa(s) = p { Some(&s[..]) } else { None })
    }

    pub fn ke(&self) -> Option<&'a KeyExchangeData> {
        self.find(|p| if let Payload::Ke(k) = p { Some(k) } else { None })
    }

    pub fn nonce(&self) -> Option<&'a [u8]> {
        self.find(|p| if let Payload::Nonce(n) = p { Some(&n[..]) } else { None })
    }

    pub fn ts_i(&self) -> Option<&'a [TrafficSelector]> {
        self.find(|p| if let Payload::TsI(t) = p { Some(&t[..]) } else { None })
    }

    pub fn ts_r(&self) -> Option<&'a [TrafficSelector]> {
        self.find(|p| if let Payload::TsR(t) = p { Some(&t[..]) } else { None })
    }

    pub fn id_i(&self) -> Option<&'a Identification> {
        self.find(|p| if let Payload::IdI(i) = p { Some(i) } else { None })
    }

    pub fn id_r(&self) -> Option<&'a Identification> {
        self.find(|p| if let Payload::IdR(i) = p { Some(i) } else { None })
    }

    pub fn auth(&self) -> Option<(u8, &'a [u8])> {
        self.find(|p| if let Payload::Auth { method, data } = p { Some((*method, &data[..])) } else { None })
    }

    pub fn certificates(&self) -> Vec<Vec<u8>> {
        use crate::message::CertEncoding;
        let x509 = |p: &Payload| match p {
            Payload::Cert { encoding: CertEncoding::X509, data } => Some(data.clone()),
            _ => None,
        };
        self.0.iter().filter_map(x509).collect()
    }

    pub fn has_eap(&self) -> bool {
        self.0.iter().any(|p| matches!(p, Payload::Eap(_)))
    }

    pub fn notifies(&self) -> impl Iterator<Item = &'a Notify> {
        self.0.iter().filter_map(|p| if let Payload::Notify(n) = p { Some(n) } else { None })
    }

    pub fn notify(&self, kind: NotifyType) -> Option<&'a Notify> {
        self.notifies().find(|n| n.kind == kind)
    }

    pub fn error(&self) -> Option<&'a Notify> {
        self.notifies().find(|n| n.kind.is_error())
    }
}

/// What an error notify means that answers a negotiation; for children and IKE SAs alike.
pub(crate) fn refusal(notify: &Notify, child: bool) -> Failure {
    let reason = match notify.kind {
        NotifyType::NoProposalChosen if child => Reason::ChildProposalRefused,
        NotifyType::NoProposalChosen => Reason::IkeProposalRefused,
        NotifyType::InvalidKePayload => Reason::KeGroupRefused,
        NotifyType::TsUnacceptable => Reason::SelectorsRefused,
        NotifyType::SinglePairRequired => Reason::SinglePairRequired,
        NotifyType::AuthenticationFailed => Reason::AuthenticationRefused,
        NotifyType::NoAdditionalSas => Reason::NoAdditionalSas,
        NotifyType::TemporaryFailure => Reason::TemporaryFailure,
        NotifyType::ChildSaNotFound => Reason::ChildNotFound,
        NotifyType::InvalidMajorVersion => Reason::VersionMismatch,
        NotifyType::InvalidSyntax => Reason::MalformedMessage,
        NotifyType::UnsupportedCriticalPayload => Reason::UnsupportedCritical,
        _ => Reason::PeerError,
    };
    match reason {
        Reason::KeGroupRefused => Failure::new(reason, format!("it wants {}", group_name(&notify.data))),
        _ => Failure::new(reason, notify.kind.to_string()),
    }
}

fn group_name(data: &[u8]) -> String {
    let id = data.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
    match id.and_then(crate::crypto::Method::from_id) {
        Some(m) => m.name().to_string(),
        None => id.map_or("none".into(), |i| format!("group {i}")),
    }
}

/// An identity for people, whatever it holds.
pub(crate) fn identity_text(id: &Identification) -> String {
    match Identity::from_wire(id) {
        Some(i) => i.to_string(),
        None => format!("identity of type {} ({} bytes)", u8::from(id.kind), id.data.len()),
    }
}

pub(crate) fn nonce(ctx: &mut Ctx<'_>) -> Vec<u8> {
    let mut n = vec![0; NONCE_BYTES];
    ctx.rng.fill_bytes(&mut n);
    n
}

pub(crate) fn lower<'a>(a: &'a [u8], b: &'a [u8]) -> Vec<u8> {
    a.min(b).to_vec()
}
