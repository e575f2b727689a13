//! Why a tunnel is down, what happened to it, and what the operator wants of it: names enter, one or two lines, events, or
//! exchanges begun leave. RFC 7296 section 2.21 says what a peer tells; the rest is what this gateway sees itself.

use std::net::IpAddr;
use std::sync::Arc;

use penstock_ike::{Event, EventKind, Failure, Why};

use crate::answers::NO_DATA_PLANE;
use crate::api::types::{Answer, LogEntry, Response, WhyStatus};
use crate::gateway::Gateway;
use crate::history::entry_of;
use crate::publish::live::Live;
use crate::show::duration;

impl Gateway {
    /// Why packets do not pass through a tunnel.
    pub(crate) fn why(&self, name: &str) -> Response {
        let Some(live) = self.tunnels.get(name) else {
            return match self.config().tunnels.contains_key(name) {
                true => said(name, false, "not-installed", self.not_installed(name), None),
                false => unknown(name),
            };
        };
        let lives = self.state.as_ref().is_some_and(penstock_tables::StateView::data_plane_lives);
        if !lives {
            return said(name, false, "no-data-plane", format!("{name} is down: {NO_DATA_PLANE}"), None);
        }
        if let Some(problem) = &live.problem {
            return said(name, false, "no-room", format!("{name} is down: {problem}"), None);
        }
        let blocked = self.blocked(live).map(|(code, text)| (code, format!("{name} is down: {text}")));
        let answer = match (blocked, live.outbound(), live.is_negotiated()) {
            (Some((code, text)), ..) => said(name, false, code, text, None),
            (None, Some(_), true) => self.with_next_hops(live, self.why_up(name)),
            (None, Some(_), false) => {
                let text = format!("{name} is up, with lab keys");
                self.with_next_hops(live, said(name, true, "up", text, None))
            }
            (None, None, true) => self.why_not_negotiated(name, live),
            (None, None, false) => {
                said(name, false, "no-sa", format!("{name} is down: its SAs are being installed"), None)
            }
        };
        self.with_silence(live, answer)
    }

    /// Adds that nothing comes back, where a tunnel is up otherwise.
    fn with_silence(&self, live: &Live, answer: Response) -> Response {
        match (answer, live.watch.unanswered(self.moment())) {
            (Response::Ok(Answer::Why(why)), Some(silence)) if why.up => {
                let text = format!("{}\n{}", why.text, silence.sentence());
                let code = if why.code == "up" { "unanswered".into() } else { why.code };
                Response::Ok(Answer::Why(WhyStatus { code, text, ..why }))
            }
            (answer, _) => answer,
        }
    }

    /// Adds the state of the next hops on both sides.
    fn with_next_hops(&self, live: &Live, response: Response) -> Response {
        match response {
            Response::Ok(Answer::Why(mut status)) => {
                self.next_hops(live).into_iter().for_each(|line| status.text += &format!("\n{line}"));
                Response::Ok(Answer::Why(status))
            }
            other => other,
        }
    }

    fn not_installed(&self, name: &str) -> String {
        match &self.state {
            None => format!("{name} is down: {NO_DATA_PLANE}"),
            Some(_) => {
                format!("{name} is down: it is not in the tables, see the problems of `penstock status`")
            }
        }
    }

    fn why_up(&self, name: &str) -> Response {
        let Some(one) = self.ike.connection_of(name) else { return unknown(name) };
        let now = self.ike.now();
        let status = self.ike.endpoint.connection(&one.connection.name);
        let found = status.iter().flat_map(|status| &status.ike).find_map(|ike| {
            let of_it = ike.children.iter().filter(|child| &*child.name == name);
            of_it.max_by_key(|child| (child.sending, child.established)).map(|child| (ike, child))
        });
        let Some((ike, child)) = found else {
            let text = format!(
                "{name} is up with SAs that were negotiated before control started; the IKE SA behind them is \
                 being made anew"
            );
            let failure = self.last_failure(&one.connection.name, name);
            let more =
                failure.map(|(_, failure)| format!("\nthe last attempt: {failure}")).unwrap_or_default();
            return said(name, true, "adopted", text + &more, None);
        };
        if let Some(refused) = status.as_ref().and_then(|status| status.refused(Some(name))) {
            let text = format!("{name} is {refused}; a new IKE SA is tried until then");
            return said(name, true, refused.failure.reason.code(), text, None);
        }
        let peer = ike.peer.as_ref().map(ToString::to_string).unwrap_or_default();
        let text = format!(
            "{name} is up: {peer} at {}, {}, {}, for {}, new keys in {}",
            ike.remote.ip(),
            ike.choice.map(|choice| choice.to_string()).unwrap_or_default(),
            child.esp,
            duration(now.at.since(child.established).as_secs()),
            duration(child.rekey_at.since(now.at).as_secs()),
        );
        let without = self.ike.endpoint.pairs_without_sa(&one.connection.name, name);
        let without: Vec<String> = without.iter().map(|(own, peers)| format!("{own} to {peers}")).collect();
        let text = match without.is_empty() {
            true => text,
            false => format!(
                "{text}\nno SA for {}: see `penstock log {name}`, the peer has not taken these",
                without.join(", ")
            ),
        };
        said(name, true, "up", text, None)
    }

    pub(crate) fn why_not_negotiated(&self, name: &str, live: &Live) -> Response {
        let Some(one) = self.ike.connection_of(name) else { return unknown(name) };
        if let Some(problem) = self.ike.problems.get(&one.local) {
            return said(name, false, "no-socket", format!("{name} is down: {problem}"), None);
        }
        if self.ike.held.contains(name) {
            let text = format!("{name} was taken down by the operator: `penstock initiate {name}`");
            return said(name, false, "held", text, None);
        }
        let connection = &one.connection.name;
        let refused = self.ike.sockets.refusal(IpAddr::V4(live.peer()));
        let refused = refused.map(|word| format!("\nthe kernel does not send to {}: {word}", live.peer()));
        if let Some((at, failure)) = self.last_failure(connection, name) {
            let text = format!("{name} is down: {failure}{}", refused.unwrap_or_default());
            return said(name, false, failure.reason.code(), text, Some(at));
        }
        let Some(Why { code, text, .. }) = self.ike.endpoint.why(connection) else {
            return said(name, false, "starting", format!("{name} is about to be set up"), None);
        };
        let (code, text) = match text.strip_prefix(&**connection) {
            // Another tunnel of the same IKE SA is up; this one is not.
            _ if code == "up" => ("waiting", format!("{name} waits for traffic, the operator or the peer")),
            Some(rest) => (code, format!("{name}{rest}")),
            None => (code, text),
        };
        said(name, false, code, text + &refused.unwrap_or_default(), None)
    }

    /// The last thing that went wrong with a tunnel since it was up last.
    fn last_failure(&self, connection: &str, tunnel: &str) -> Option<(u64, Failure)> {
        let log = self.ike.endpoint.log(connection);
        let of_it = |event: &&Event| event.child.as_deref().is_none_or(|child| child == tunnel);
        let up = |event: &Event| {
            event.child.as_deref() == Some(tunnel)
                && matches!(event.kind, EventKind::ChildUp | EventKind::ChildRekeyed)
        };
        let since = log.iter().rev().take_while(|event| !up(event)).filter(of_it);
        let mut failed = since.filter(|event| event.kind != EventKind::Warning).filter_map(|event| {
            let failure = event.failure.clone()?;
            (failure.reason != penstock_ike::Reason::Replaced).then_some((event.at.unix_seconds, failure))
        });
        failed.next()
    }

    /// What happened lately, to the gateway or to one tunnel.
    pub(crate) fn log_of(&self, name: Option<&str>, lines: Option<usize>) -> Response {
        let mut entries: Vec<LogEntry> = match name {
            None => self.history.all().cloned().collect(),
            Some(name) if !self.config().tunnels.contains_key(name) => return unknown(name),
            Some(name) => self.log_of_tunnel(name),
        };
        let surplus = entries.len().saturating_sub(lines.unwrap_or(usize::MAX));
        entries.drain(..surplus);
        Response::Ok(Answer::Log(entries))
    }

    /// Of IKEv2 the machine itself knows best what happened since it knows the connection: it has summed up what strangers
    /// send. What was before, and all else, is kept.
    fn log_of_tunnel(&self, name: &str) -> Vec<LogEntry> {
        let connection = self.ike.owners.get(name).map_or(name, |owner| &**owner);
        let of_it = |entry: &LogEntry| entry.child.as_deref().is_none_or(|child| child == name);
        let known = self.ike.endpoint.log(connection);
        let known: Vec<LogEntry> = known.iter().map(entry_of).filter(of_it).collect();
        let begin = known.first().map_or(u64::MAX, |first| first.unix_seconds);
        let is_negotiation = |entry: &LogEntry| EventKind::ALL.iter().any(|kind| kind.code() == entry.event);
        let mut kept = self.history.of(connection);
        if connection != name {
            kept.extend(self.history.of(name).into_iter().filter(|entry| entry.tunnel.is_some()));
        }
        let kept = kept.into_iter().filter(|entry| of_it(entry));
        let before = kept.filter(|entry| entry.unix_seconds < begin || !is_negotiation(entry)).cloned();
        let mut entries: Vec<LogEntry> = before.chain(known).collect();
        entries.sort_by_key(|entry| entry.unix_seconds);
        entries
    }

    /// Sets a tunnel up.
    pub(crate) fn initiate(&mut self, name: &str) -> Response {
        let (connection, child) = match self.negotiable(name) {
            Ok(found) => found,
            Err(response) => return response,
        };
        if let Some(problem) = self.ike.connection_of(name).and_then(|one| self.ike.problems.get(&one.local))
        {
            return Response::Error(format!("tunnel {name}: {problem}"));
        }
        self.ike.held.remove(&child);
        let begun = self.negotiate(|endpoint, now, spis, out| {
            endpoint.initiate(now, &connection, Some(&child), spis, out)
        });
        match begun {
            true => started(name, "initiate"),
            false if self.ike.waiting.contains(&connection) => {
                Response::Error(format!("tunnel {name} is being read in: try again in a second"))
            }
            false => Response::Error(format!(
                "tunnel {name}: the peer's address is not known, so only the peer can begin: write its address as peer"
            )),
        }
    }

    /// Takes a tunnel down: its SAs, and with the last one or where it is asked for the IKE SA.
    pub(crate) fn terminate(&mut self, name: &str, ike: bool) -> Response {
        let (connection, child) = match self.negotiable(name) {
            Ok(found) => found,
            Err(response) => return response,
        };
        let alone = self.ike.connection_of(name).is_some_and(|one| one.children.len() == 1);
        if ike || alone {
            self.negotiate(|endpoint, now, spis, out| endpoint.delete(now, &connection, spis, out));
            return started(name, "terminate");
        }
        self.ike.held.insert(child);
        for spi_in in self.spis_of(name) {
            self.negotiate(|endpoint, now, spis, out| endpoint.delete_child(now, spi_in, spis, out));
        }
        started(name, "terminate")
    }

    /// Has new keys negotiated: of the tunnel, or of the IKE SA behind it.
    pub(crate) fn rekey_negotiated(&mut self, name: &str, ike: bool) -> Response {
        let (connection, _) = match self.negotiable(name) {
            Ok(found) => found,
            Err(response) => return response,
        };
        let status = self.ike.endpoint.connection(&connection);
        let up =
            |state: &'static str| status.iter().flat_map(|status| &status.ike).any(|ike| ike.state == state);
        if !up("up") {
            return Response::Error(format!("tunnel {name} has no IKE SA: `penstock why {name}` says why"));
        }
        if ike {
            self.negotiate(|endpoint, now, spis, out| endpoint.rekey_ike(now, &connection, spis, out));
            return started(name, "rekey of the IKE SA");
        }
        let children = self.tunnels.get(name).into_iter().flat_map(Live::children);
        let sealing: Vec<u32> =
            children.filter_map(|child| child.outbound.as_ref()).map(|sa| sa.pair).collect();
        if sealing.is_empty() {
            return Response::Error(format!("tunnel {name} has no SA: `penstock initiate {name}`"));
        }
        for spi_in in sealing {
            self.negotiate(|endpoint, now, spis, out| endpoint.rekey_child(now, spi_in, spis, out));
        }
        started(name, "rekey")
    }

    /// Connection and child of a tunnel with `ike`.
    fn negotiable(&self, name: &str) -> Result<(Arc<str>, Arc<str>), Response> {
        if !self.config().tunnels.contains_key(name) {
            return Err(unknown(name));
        }
        if self.state.is_none() {
            return Err(Response::Error(NO_DATA_PLANE.into()));
        }
        match self.ike.owners.get_key_value(name) {
            Some((child, connection)) => Ok((connection.clone(), child.clone())),
            None => {
                Err(Response::Error(format!("tunnel {name} has lab keys: IKEv2 does not negotiate them")))
            }
        }
    }

    /// Inbound SPIs of a tunnel.
    pub(super) fn spis_of(&self, name: &str) -> Vec<u32> {
        self.tunnels.get(name).map(|live| live.inbound.keys().copied().collect()).unwrap_or_default()
    }
}

fn said(tunnel: &str, up: bool, code: &str, text: String, at: Option<u64>) -> Response {
    let status = WhyStatus { tunnel: tunnel.into(), up, code: code.into(), text, unix_seconds: at };
    Response::Ok(Answer::Why(status))
}

fn started(tunnel: &str, what: &str) -> Response {
    Response::Ok(Answer::Started { tunnel: tunnel.into(), what: what.into() })
}

fn unknown(name: &str) -> Response {
    Response::Error(format!("there is no tunnel {name}: `penstock show tunnels` lists them"))
}
