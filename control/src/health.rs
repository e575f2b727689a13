//! `penstock status --check` and `why --check`: what the gateway answers enters, one line and an exit code leave, for
//! keepalived, monitoring plugins and scripts. No RFC rules this file.

use crate::api::types::{Status, TunnelState, TunnelStatus, WhyStatus};

/// Names that are told at most.
const NAMES: usize = 5;

/// Whether something is as it should be, and one line that says so.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// Exit code 0, otherwise 1.
    pub good: bool,
    /// The line.
    pub text: String,
}

/// The gateway as a whole: the data plane runs and every tunnel is up.
pub fn of_gateway(status: &Status, tunnels: &[TunnelStatus]) -> Health {
    if !status.dataplane.running {
        return Health { good: false, text: "the data plane does not run".into() };
    }
    let up = |tunnel: &&TunnelStatus| tunnel.state == TunnelState::Up;
    let down: Vec<&str> =
        tunnels.iter().filter(|tunnel| !up(tunnel)).map(|tunnel| tunnel.name.as_str()).collect();
    let missing = status.tunnels.saturating_sub(tunnels.len());
    let mut text = format!("{} of {} tunnels up", tunnels.iter().filter(up).count(), status.tunnels);
    if !down.is_empty() {
        text += &format!(", down: {}", down.iter().take(NAMES).copied().collect::<Vec<_>>().join(", "));
    }
    if down.len() > NAMES {
        text += &format!(" and {} more", down.len() - NAMES);
    }
    if missing > 0 {
        text += &format!(", {missing} not installed");
    }
    Health { good: down.is_empty() && missing == 0, text }
}

/// One tunnel.
pub fn of_tunnel(why: &WhyStatus) -> Health {
    let text = why.text.lines().next().unwrap_or_default().to_owned();
    Health { good: why.up, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{DataplaneStatus, Frames};

    fn status(running: bool, tunnels: usize) -> Status {
        let dataplane = DataplaneStatus { running, pid: None, restarts: 0, workers: 1 };
        Status {
            name: "a".into(),
            version: "1".into(),
            config: "a.yaml".into(),
            pid: 1,
            uptime_seconds: 1,
            dataplane,
            tunnels,
            tunnels_up: 0,
            ike: None,
            routes: 0,
            frames: Frames::default(),
            problems: Vec::new(),
            unanswered: Vec::new(),
        }
    }

    #[test]
    fn every_tunnel_must_be_up_and_those_that_are_not_are_named() {
        let good = |status: &Status, tunnels: &[TunnelStatus]| of_gateway(status, tunnels).good;
        assert!(good(&status(true, 0), &[]) && !good(&status(false, 0), &[]));
        assert_eq!(of_gateway(&status(true, 1), &[]).text, "0 of 1 tunnels up, 1 not installed");
        assert!(!good(&status(true, 1), &[]));
    }

    #[test]
    fn one_tunnel_is_told_in_one_line() {
        let why = |up| WhyStatus {
            tunnel: "t".into(),
            up,
            code: "c".into(),
            text: "t is down: x\nmore".into(),
            unix_seconds: None,
        };
        assert_eq!(of_tunnel(&why(false)), Health { good: false, text: "t is down: x".into() });
        assert!(of_tunnel(&why(true)).good);
    }
}
