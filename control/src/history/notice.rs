//! What control itself notices: starts and ends of both processes, configurations, links, the way to peers. Changes of many
//! tunnels at once are one event.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use penstock_ike::Event;
use penstock_tables::StateView;

use crate::api::types::{Applied, LogEntry, TunnelState};
use crate::gateway::Gateway;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Tunnels of one change that have an event each; more are one event of the gateway.
const EACH: usize = 4;
/// Names in such an event.
const NAMES: usize = 5;
/// Changes of ways that are told in a minute; what flaps says no more by being told each time.
const A_MINUTE: u32 = 20;

/// What was noticed before.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    looked: Option<Instant>,
    lives: Option<bool>,
    /// By name of the port.
    links: BTreeMap<String, bool>,
    /// Tunnels by the state that they are in since the last look.
    changes: BTreeMap<TunnelState, Vec<String>>,
    /// Minute, changes told in it, changes left out.
    told: (u64, u32, u64),
}

impl Notices {
    /// A tunnel's way is another.
    pub fn tunnel_changed(&mut self, name: &str, before: TunnelState, now: TunnelState) {
        let of_way = |state| matches!(state, TunnelState::NoRoute | TunnelState::NoNeighbour);
        // What becomes of SAs is told by IKEv2.
        if of_way(now) || (of_way(before) && now == TunnelState::Up) {
            self.changes.entry(now).or_default().push(name.into());
        }
    }

    /// How many changes may be told; and how many were not, the minute before.
    fn may_tell(&mut self, minute: u64, wanted: u64) -> (bool, u64) {
        let mut left_out = 0;
        if self.told.0 != minute {
            left_out = std::mem::replace(&mut self.told, (minute, 0, 0)).2;
        }
        self.told.1 += 1;
        if self.told.1 > A_MINUTE {
            self.told.2 += wanted + left_out;
            return (false, 0);
        }
        (true, left_out)
    }
}

impl Gateway {
    /// Writes an event down.
    pub(crate) fn happened(&mut self, event: &str, tunnel: Option<&str>, text: &str) {
        let unix_seconds = self.moment().unix;
        let (event, tunnel) = (event.to_string(), tunnel.map(ToString::to_string));
        let text = format!("{event}: {text}");
        self.history.add(LogEntry {
            unix_seconds,
            event,
            child: tunnel.clone(),
            tunnel,
            reason: None,
            text,
            times: 1,
        });
    }

    /// Writes an event of IKEv2 down.
    pub(crate) fn negotiation_happened(&mut self, event: &Event) {
        if let Some(more) = self.ike.log(event) {
            let mut entry = entry_of(event);
            entry.text += &more;
            self.history.add(entry);
        }
    }

    /// What became of a configuration that was read again.
    pub(crate) fn applied(&mut self, result: &Result<Applied, String>) {
        match result {
            Ok(applied) => {
                let text = serde_json::to_value(applied.tunnels).map(|value| value.to_string());
                let text = text.unwrap_or_default().replace(['{', '}', '"'], "").replace(',', ", ");
                self.happened("applied", None, &format!("tunnels {text}"));
                let config = &self.checked.config;
                self.history.retain(|tunnel| config.tunnels.contains_key(tunnel));
            }
            Err(error) => self.happened("apply-refused", None, error),
        }
    }

    /// Looks at what may have changed, once a second.
    pub(crate) fn notice(&mut self) {
        if self.notices.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.notices.looked = Some(Instant::now());
        let lives = self.state.as_ref().is_some_and(StateView::data_plane_lives);
        match (self.notices.lives.replace(lives), lives) {
            (Some(false) | None, true) => {
                let pid = self.state.as_ref().map(StateView::pid).unwrap_or_default();
                self.happened("dataplane-up", None, &format!("process {pid}"));
            }
            (Some(true), false) => self.happened("dataplane-down", None, "it does not run any more"),
            _ => {}
        }
        if lives {
            self.notice_links();
        }
        self.notice_ways();
        let problem = self.history.problem();
        self.note("log", problem.into_iter().collect());
    }

    fn notice_links(&mut self) {
        for port in self.ports().into_iter().filter(|port| port.open) {
            let before = self.notices.links.insert(port.name.clone(), port.link_up);
            match (before, port.link_up) {
                (Some(true) | None, false) => {
                    self.happened("link-down", None, &format!("port {}", port.name))
                }
                (Some(false), true) => self.happened("link-up", None, &format!("port {}", port.name)),
                _ => {}
            }
        }
    }

    fn notice_ways(&mut self) {
        let changes = std::mem::take(&mut self.notices.changes);
        for (state, names) in changes {
            let (told, left_out) = self.notices.may_tell(self.moment().unix / 60, names.len() as u64);
            if left_out > 0 {
                self.happened("ways", None, &format!("{left_out} more changes of ways to peers"));
            }
            if !told {
                continue;
            }
            let (event, text) = match state {
                TunnelState::NoRoute => ("no-route", "no route leads to the peer"),
                TunnelState::NoNeighbour => ("no-neighbour", "the next hop towards the peer does not answer"),
                TunnelState::Up | TunnelState::NoSa => ("way-back", "the way to the peer is there again"),
            };
            if names.len() <= EACH {
                names.iter().for_each(|name| self.happened(event, Some(name), text));
                continue;
            }
            let first = names[..NAMES.min(names.len())].join(", ");
            self.happened(event, None, &format!("{text}: {} tunnels ({first}, ...)", names.len()));
        }
    }
}

/// An event of IKEv2 for people and files.
pub(crate) fn entry_of(event: &Event) -> LogEntry {
    LogEntry {
        unix_seconds: event.at.unix_seconds,
        event: event.kind.code().into(),
        tunnel: event.connection.as_deref().map(ToString::to_string),
        child: event.child.as_deref().map(ToString::to_string),
        reason: event.failure.as_ref().map(|failure| failure.reason.code().into()),
        text: event.to_string(),
        times: event.strangers.max(1),
    }
}
