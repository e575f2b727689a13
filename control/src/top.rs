//! Live rates: readings of the running gateway enter, one screen (or one line of JSON) a reading leaves.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::client::{Client, ClientError};
use crate::api::types::{Answer, PortStatus, Request, Select, TunnelStatus, WorkerStatus};
use crate::publish::live::Traffic;
use crate::show::{busy, table};

/// Tunnels that a screen shows: the busiest.
const SHOWN: usize = 20;

/// One reading of all counters.
struct Reading {
    at: Instant,
    ports: Vec<PortStatus>,
    tunnels: Vec<TunnelStatus>,
    workers: Vec<WorkerStatus>,
}

impl Reading {
    fn take(client: &mut Client) -> Result<Reading, ClientError> {
        let (mut ports, mut tunnels, mut workers) = (Vec::new(), Vec::new(), Vec::new());
        for request in [Request::Ports, Request::Tunnels { select: Select::default() }, Request::Workers] {
            match client.ask_all(&request)? {
                Answer::Ports(answer) => ports = answer,
                Answer::Tunnels(answer) => tunnels = answer.rows,
                Answer::Workers(answer) => workers = answer,
                _ => return Err(io::Error::other("it answered something else").into()),
            }
        }
        Ok(Reading { at: Instant::now(), ports, tunnels, workers })
    }
}

/// Packets and bits a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
struct Rate {
    packets_per_second: f64,
    bits_per_second: f64,
}

fn rate(before: Traffic, now: Traffic, seconds: f64) -> Rate {
    // A counter that went back began anew.
    let gained = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now) as f64 / seconds;
    Rate {
        packets_per_second: gained(before.packets, now.packets),
        bits_per_second: gained(before.bytes, now.bytes) * 8.0,
    }
}

/// A name with the rates of both directions.
#[derive(serde::Serialize)]
struct Line {
    name: String,
    received: Rate,
    sent: Rate,
}

/// Shows rates every `interval` until `readings` are shown.
///
/// # Errors
/// The gateway went away, or the output did.
pub fn run(client: &mut Client, interval: f64, readings: Option<u64>, json: bool) -> Result<(), ClientError> {
    let mut before = Reading::take(client)?;
    let mut shown = 0;
    while readings.is_none_or(|readings| shown < readings) {
        std::thread::sleep(Duration::from_secs_f64(interval));
        let now = Reading::take(client)?;
        let text = if json { json_of(&before, &now) } else { screen(&before, &now) };
        let mut out = io::stdout().lock();
        if !json && out.is_terminal() {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        writeln!(out, "{text}")?;
        out.flush()?;
        before = now;
        shown += 1;
    }
    Ok(())
}

fn ports(before: &Reading, now: &Reading, seconds: f64) -> Vec<Line> {
    let old = |name: &str| before.ports.iter().find(|port| port.name == name);
    let line = |port: &PortStatus| {
        let (received, sent) =
            old(&port.name).map_or((port.received, port.sent), |old| (old.received, old.sent));
        let name = port.name.clone();
        Line { name, received: rate(received, port.received, seconds), sent: rate(sent, port.sent, seconds) }
    };
    now.ports.iter().map(line).collect()
}

fn tunnels(before: &Reading, now: &Reading, seconds: f64) -> Vec<Line> {
    let old: std::collections::HashMap<&str, &TunnelStatus> =
        before.tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel)).collect();
    let line = |tunnel: &TunnelStatus| {
        let (received, sent) = old
            .get(tunnel.name.as_str())
            .map_or((tunnel.received, tunnel.sent), |old| (old.received, old.sent));
        let name = tunnel.name.clone();
        Line {
            name,
            received: rate(received, tunnel.received, seconds),
            sent: rate(sent, tunnel.sent, seconds),
        }
    };
    now.tunnels.iter().map(line).collect()
}

/// Share of cycles with frames since the last reading, in per cent.
fn load(before: &Reading, now: &Reading) -> Vec<f64> {
    let pairs = now.workers.iter().enumerate().map(|(index, worker)| (before.workers.get(index), worker));
    let load = |(old, new): (Option<&WorkerStatus>, &WorkerStatus)| match old {
        Some(old) if old.total_cycles <= new.total_cycles => {
            busy(new.busy_cycles.saturating_sub(old.busy_cycles), new.total_cycles - old.total_cycles)
        }
        _ => busy(new.busy_cycles, new.total_cycles),
    };
    pairs.map(load).collect()
}

fn seconds_between(before: &Reading, now: &Reading) -> f64 {
    (now.at - before.at).as_secs_f64().max(1e-3)
}

fn json_of(before: &Reading, now: &Reading) -> String {
    let seconds = seconds_between(before, now);
    json!({
        "seconds": seconds,
        "ports": ports(before, now, seconds),
        "tunnels": tunnels(before, now, seconds),
        "worker_load_per_cent": load(before, now),
    })
    .to_string()
}

fn screen(before: &Reading, now: &Reading) -> String {
    let seconds = seconds_between(before, now);
    let cells = |line: Line| {
        let Line { name, received, sent } = line;
        vec![
            name,
            scaled(received.packets_per_second, "pps"),
            scaled(received.bits_per_second, "bit/s"),
            scaled(sent.packets_per_second, "pps"),
            scaled(sent.bits_per_second, "bit/s"),
        ]
    };
    let mut busiest = tunnels(before, now, seconds);
    let total = |line: &Line| line.received.bits_per_second + line.sent.bits_per_second;
    busiest.sort_by(|one, other| total(other).total_cmp(&total(one)));
    busiest.truncate(SHOWN);
    let head = |name| [name, "RECEIVED", "", "SENT", ""];
    let load = load(before, now).iter().map(|load| format!("{load:.1} %")).collect::<Vec<_>>().join("  ");
    format!(
        "{}\n{}\nworker load  {load}\n",
        table(&head("PORT"), ports(before, now, seconds).into_iter().map(cells).collect()),
        table(&head("TUNNEL"), busiest.into_iter().map(cells).collect()),
    )
}

/// Three digits and a prefix.
fn scaled(value: f64, unit: &str) -> String {
    let (scaled, prefix) = match value {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if prefix.is_empty() || scaled >= 100.0 { 0 } else { 2 - usize::from(scaled >= 10.0) };
    format!("{scaled:.digits$} {prefix}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let traffic = |packets, bytes| Traffic { packets, bytes };
        let found = rate(traffic(10, 1000), traffic(30, 5000), 2.0);
        assert_eq!(found, Rate { packets_per_second: 10.0, bits_per_second: 16_000.0 });
        assert_eq!(rate(traffic(10, 1000), traffic(4, 0), 1.0).packets_per_second, 4.0);
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 12.0, 1234.0, 56_789.0, 123_456_789.0, 2.5e9].map(|value| scaled(value, "pps"));
        assert_eq!(
            shown,
            ["0 pps", "12 pps", "1.23 kpps", "56.8 kpps", "123 Mpps", "2.50 Gpps"].map(String::from)
        );
    }
}
