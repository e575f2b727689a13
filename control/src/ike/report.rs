//! IKE SAs and negotiated tunnels as clients and metrics see them: the protocol machine's status enters, the types of the
//! local interface leave. No keys.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use penstock_ike::{ConnectionStatus, IkeStatus, Now, Reason};

use super::configured::Configured;
use crate::api::types::{
    Answer, CertificateEnd, IkeChild, IkeSaStatus, IkeSummary, NegotiatedStatus, RekeyRefused, Response,
};
use crate::gateway::Gateway;

/// Certificates that end so soon are warned of.
const EXPIRY_AHEAD_SECONDS: u64 = 30 * 86_400;

/// What metrics tell of IKEv2.
#[derive(Debug, Default)]
pub struct IkeMetrics {
    /// IKE SAs that are up or being replaced.
    pub sas: u64,
    /// Peers that began and are not authenticated yet.
    pub half_open: u64,
    /// Child SAs in use or draining.
    pub children: u64,
    /// Rekeys so far: of IKE SAs, of child SAs.
    pub rekeys: (u64, u64),
    /// Failures and ends so far, by reason.
    pub failures: BTreeMap<Reason, u64>,
}

impl Gateway {
    /// The IKE SAs, of one tunnel or of all.
    pub(crate) fn ike_sas(&self, only: Option<&str>) -> Response {
        let owner = match only {
            Some(name) => match self.ike.owners.get(name) {
                Some(owner) => Some(owner),
                None => {
                    let text =
                        format!("there is no tunnel {name} with ike: `penstock show tunnels` lists them");
                    return Response::Error(text);
                }
            },
            None => None,
        };
        let now = self.ike.now();
        let names = self.ike.connections.keys().filter(|name| owner.is_none_or(|owner| owner == *name));
        let of_one = |status: ConnectionStatus| {
            status.ike.iter().map(|ike| ike_sa(&status.name, ike, now)).collect::<Vec<_>>()
        };
        let all = names.filter_map(|name| self.ike.endpoint.connection(name)).flat_map(of_one);
        Response::Ok(Answer::Ike(all.collect()))
    }

    /// What is known of each negotiated tunnel, by name.
    pub(crate) fn negotiated(&self) -> HashMap<String, NegotiatedStatus> {
        let now = self.ike.now();
        let mut out = HashMap::new();
        for (name, one) in &self.ike.connections {
            let status = self.ike.endpoint.connection(name);
            for child in one.children.keys() {
                out.insert(child.to_string(), negotiated_one(name, child, status.as_ref(), now));
            }
        }
        out
    }

    /// Age and time to the next rekey of each child SA, in seconds, by inbound SPI.
    pub(crate) fn ages(&self) -> HashMap<u32, (u64, u64)> {
        let now = self.ike.now();
        let names = self.ike.connections.keys();
        let statuses = names.filter_map(|name| self.ike.endpoint.connection(name));
        let children = statuses.flat_map(|status| status.ike).flat_map(|ike| ike.children);
        let age = |child: penstock_ike::ChildStatus| {
            let (age, left) = (now.at.since(child.established), child.rekey_at.since(now.at));
            (child.spis.0, (age.as_secs(), left.as_secs()))
        };
        children.map(age).collect()
    }

    /// How many SAs there are, where a tunnel has IKEv2.
    pub(crate) fn ike_summary(&self) -> Option<IkeSummary> {
        if self.ike.connections.is_empty() {
            return None;
        }
        let (sas, half_open, children) = self.ike.endpoint.counts();
        let soon = self.ike.now().unix_seconds + EXPIRY_AHEAD_SECONDS;
        Some(IkeSummary {
            sas: (sas - half_open) as u64,
            half_open: half_open as u64,
            children: children as u64,
            refused: self.refused(),
            ending: self.certificates().into_iter().filter(|one| one.not_after < soon).collect(),
        })
    }

    /// Tunnels whose rekey was refused, and that nothing has taken the place of yet.
    fn refused(&self) -> Vec<RekeyRefused> {
        let of_one = |(name, one): (&Arc<str>, &Configured)| {
            let status = self.ike.endpoint.connection(name)?;
            Some(one.children.keys().filter_map(|child| refused(child, &status)).collect::<Vec<_>>())
        };
        self.ike.connections.iter().filter_map(of_one).flatten().collect()
    }

    /// The certificates in use.
    fn certificates(&self) -> Vec<CertificateEnd> {
        self.ike.connections.keys().flat_map(|name| self.certificates_of(name)).collect()
    }

    /// Those that one connection uses.
    pub(crate) fn certificates_of(&self, name: &str) -> Vec<CertificateEnd> {
        // One that several IKE SAs of a peer use is told once.
        let mut certificates = BTreeMap::new();
        for one in self.ike.endpoint.certificates_of(name) {
            certificates.insert((one.connection, one.role, one.subject), one.not_after);
        }
        let certificate = |((tunnel, role, subject), not_after): ((Arc<str>, &str, String), u64)| {
            CertificateEnd { tunnel: tunnel.to_string(), role: role.into(), subject, not_after }
        };
        certificates.into_iter().map(certificate).collect()
    }

    /// What metrics tell of all connections together.
    pub(crate) fn ike_metrics(&self) -> IkeMetrics {
        let (sas, half_open, children) = self.ike.endpoint.counts();
        let mut failures: BTreeMap<Reason, u64> = Reason::ALL.iter().map(|reason| (*reason, 0)).collect();
        for (reason, count) in self.ike.endpoint.failures() {
            *failures.entry(reason).or_default() += count;
        }
        IkeMetrics {
            sas: (sas - half_open) as u64,
            half_open: half_open as u64,
            children: children as u64,
            rekeys: self.ike.rekeys,
            failures,
        }
    }
}

fn negotiated_one(
    connection: &str,
    tunnel: &str,
    status: Option<&ConnectionStatus>,
    now: Now,
) -> NegotiatedStatus {
    let all = || status.into_iter().flat_map(|status| &status.ike);
    let carrying = all().find_map(|ike| {
        let of_it = ike.children.iter().filter(|child| &*child.name == tunnel);
        of_it.max_by_key(|child| (child.sending, child.established)).map(|child| (ike, child))
    });
    let ike = carrying.map(|(ike, _)| ike).or_else(|| all().find(|ike| ike.state == "up"));
    let ike = ike.or_else(|| all().next());
    let child = carrying.map(|(_, child)| child);
    let retry = status.and_then(|status| status.retry_at);
    let state = match (ike, retry) {
        (Some(ike), _) => ike.state,
        (None, Some(_)) => "retrying",
        (None, None) => "waiting",
    };
    NegotiatedStatus {
        connection: connection.into(),
        state: state.into(),
        identity: ike.and_then(|ike| ike.peer.as_ref()).map(ToString::to_string),
        ike: ike.and_then(|ike| ike.choice).map(|choice| choice.to_string()),
        esp: child.map(|child| child.esp.to_string()),
        nat: nat(ike).into(),
        age_seconds: child.map(|child| now.at.since(child.established).as_secs()),
        rekey_in_seconds: child.map(|child| child.rekey_at.since(now.at).as_secs()),
        refused: status.and_then(|status| refused(tunnel, status)),
        retry_in_seconds: retry.map(|at| at.since(now.at).as_secs()),
        certificate_end: ike.and_then(|ike| ike.peer_certificate.as_ref()).map(|(_, end)| *end),
    }
}

fn refused(tunnel: &str, status: &ConnectionStatus) -> Option<RekeyRefused> {
    status.refused(Some(tunnel)).map(|refused| RekeyRefused {
        tunnel: tunnel.into(),
        reason: refused.failure.reason.code().into(),
        text: refused.to_string(),
        until_unix_seconds: refused.until_unix_seconds,
    })
}

fn nat(ike: Option<&IkeStatus>) -> &'static str {
    match ike.map(|ike| ike.nat) {
        Some((true, true)) => "both",
        Some((true, false)) => "here",
        Some((false, true)) => "peer",
        _ => "none",
    }
}

fn ike_sa(connection: &str, ike: &IkeStatus, now: Now) -> IkeSaStatus {
    let child = |child: &penstock_ike::ChildStatus| IkeChild {
        tunnel: child.name.to_string(),
        spi_in: child.spis.0,
        spi_out: child.spis.1,
        esp: child.esp.to_string(),
        local: child.local_ts.iter().map(ToString::to_string).collect(),
        remote: child.remote_ts.iter().map(ToString::to_string).collect(),
        sending: child.sending,
        age_seconds: now.at.since(child.established).as_secs(),
        rekey_in_seconds: child.rekey_at.since(now.at).as_secs(),
        worker: child.resource,
    };
    IkeSaStatus {
        connection: connection.into(),
        state: ike.state.into(),
        initiator: ike.initiator,
        spi_initiator: format!("{:016x}", ike.spis.0),
        spi_responder: format!("{:016x}", ike.spis.1),
        local: ike.local,
        remote: ike.remote,
        identity: ike.peer.as_ref().map(ToString::to_string),
        algorithms: ike.choice.map(|choice| choice.to_string()),
        nat: nat(Some(ike)).into(),
        age_seconds: now.at.since(ike.established).as_secs(),
        rekey_in_seconds: ike.rekey_at.since(now.at).as_secs(),
        certificate_end: ike.peer_certificate.as_ref().map(|(_, end)| *end),
        children: ike.children.iter().map(child).collect(),
    }
}
