//! Answers in words: the types of the local interface enter, tables for people leave.

use std::fmt::Write as _;

use crate::api::types::{
    Answer, Applied, CertificateEnd, Count, Frames, IkeSaStatus, IkeSummary, LogEntry, NegotiatedStatus,
    PortStatus, RekeyRefused, RouteStatus, SaStatus, Status, TunnelState, TunnelStatus, WorkerStatus,
};
use crate::publish::rekey::Stepped;

/// The text for an answer. `all` shows counters that are zero too.
pub fn text(answer: &Answer, all: bool) -> String {
    match answer {
        Answer::Status(status) => status_text(status),
        Answer::Tunnels(tunnels) => tunnels_text(&tunnels.rows),
        Answer::Sas(sas) => sas_text(&sas.rows),
        Answer::Routes(routes) => routes_text(&routes.rows),
        Answer::Drops(drops) => drops_text(drops, all),
        Answer::Ports(ports) => ports_text(ports),
        Answer::Workers(workers) => workers_text(workers),
        Answer::Applied(applied) => applied_text(applied),
        Answer::RekeyedAll(stepped) => stepped_text(stepped),
        Answer::Rekeyed { tunnel, generation } => {
            format!("tunnel {tunnel} seals with generation {generation}\n")
        }
        Answer::Started { tunnel, what } => {
            format!("tunnel {tunnel}: {what} begun; `penstock log {tunnel}` says what becomes of it\n")
        }
        Answer::Why(why) => format!("{}\n", why.text),
        Answer::Log(entries) => log_text(entries),
        Answer::Ike(sas) => ike_text(sas),
    }
}

/// Lines of cells, as wide as their widest; numbers to the right.
pub fn table(head: &[&str], lines: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let number =
        |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains(['.', ':', '/']);
    let numeric: Vec<bool> = (0..head.len())
        .map(|column| {
            lines.iter().all(|line| line.get(column).is_some_and(|cell| number(cell) || cell == "-"))
        })
        .collect();
    let mut out = String::new();
    let head = head.iter().map(|cell| (*cell).to_string()).collect();
    for line in std::iter::once(&head).chain(&lines) {
        let mut text = String::new();
        for ((cell, width), right) in line.iter().zip(&widths).zip(&numeric) {
            let _ = if *right { write!(text, "{cell:>width$}  ") } else { write!(text, "{cell:<width$}  ") };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

fn frames_text(frames: &Frames) -> String {
    let Frames { received, sent, punted, dropped } = frames;
    format!("{received} received, {sent} sent, {punted} to the kernel, {dropped} dropped")
}

fn status_text(status: &Status) -> String {
    let mut out =
        format!("gateway    {} (version {}, {})\n", status.name, status.version, status.config.display());
    let _ =
        writeln!(out, "control    running as process {} for {}", status.pid, duration(status.uptime_seconds));
    let dataplane = &status.dataplane;
    let _ = match (dataplane.running, dataplane.pid) {
        (true, Some(pid)) => writeln!(
            out,
            "data plane running as process {pid}, {} workers, restarted {} times",
            dataplane.workers, dataplane.restarts
        ),
        _ => writeln!(out, "data plane not running"),
    };
    let _ = writeln!(out, "tunnels    {} of {} up", status.tunnels_up, status.tunnels);
    for tunnel in &status.unanswered {
        let _ =
            writeln!(out, "warning    nothing comes back through tunnel {tunnel}: `penstock why {tunnel}`");
    }
    if let Some(ike) = &status.ike {
        let IkeSummary { sas, half_open, children, ending, .. } = ike;
        let _ = writeln!(out, "IKE        {sas} SAs, {half_open} half-open, {children} child SAs");
        for CertificateEnd { tunnel, role, subject, not_after } in ending {
            let end = moment(*not_after);
            let _ = writeln!(out, "warning    {role} certificate {subject} of tunnel {tunnel} ends {end}");
        }
    }
    for RekeyRefused { tunnel, text, .. } in status.ike.iter().flat_map(|ike| &ike.refused) {
        let _ = writeln!(out, "warning    tunnel {tunnel} is {text}");
    }
    let _ = writeln!(out, "routes     {}", status.routes);
    let _ = writeln!(out, "frames     {}", frames_text(&status.frames));
    for problem in &status.problems {
        let _ = writeln!(out, "problem    {problem}");
    }
    out
}

/// A length of time in its two largest units.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A moment in UTC, by Howard Hinnant's `civil_from_days`.
fn moment(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86400 + 719_468, unix_seconds % 86400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

fn log_text(entries: &[LogEntry]) -> String {
    if entries.is_empty() {
        return "nothing has happened yet\n".into();
    }
    let times = |times| if times > 1 { format!(" ({times} times, unauthenticated)") } else { String::new() };
    let line = |entry: &LogEntry| {
        let of = entry.tunnel.as_ref().map(|tunnel| format!("{tunnel} ")).unwrap_or_default();
        format!("{} {of}{}{}\n", moment(entry.unix_seconds), entry.text, times(entry.times))
    };
    entries.iter().map(line).collect()
}

fn ike_text(sas: &[IkeSaStatus]) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let line = |sa: &IkeSaStatus| {
        let children: Vec<&str> = sa.children.iter().map(|child| child.tunnel.as_str()).collect();
        let role = if sa.initiator { "initiator" } else { "responder" };
        vec![
            sa.connection.clone(),
            sa.state.clone(),
            role.into(),
            sa.local.to_string(),
            sa.remote.to_string(),
            or_dash(&sa.identity),
            or_dash(&sa.algorithms),
            sa.nat.clone(),
            duration(sa.age_seconds),
            duration(sa.rekey_in_seconds),
            sa.certificate_end.map_or_else(|| "-".into(), moment),
            if children.is_empty() { "-".into() } else { children.join(",") },
        ]
    };
    let head = [
        "PEER OF",
        "STATE",
        "ROLE",
        "LOCAL",
        "REMOTE",
        "IDENTITY",
        "ALGORITHMS",
        "NAT",
        "AGE",
        "REKEY IN",
        "CERTIFICATE ENDS",
        "TUNNELS",
    ];
    table(&head, sas.iter().map(line).collect())
}

/// Whether packets pass, and where they do not, how far the negotiation is.
fn tunnel_state(tunnel: &TunnelStatus) -> String {
    match (&tunnel.problem, &tunnel.ike, tunnel.state) {
        (Some(problem), ..) => problem.clone(),
        (None, Some(ike), TunnelState::NoSa) => match (ike.state.as_str(), ike.retry_in_seconds) {
            ("retrying", Some(seconds)) => format!("no SA, retry in {}", duration(seconds)),
            (state, _) => format!("no SA, {state}"),
        },
        (None, Some(NegotiatedStatus { refused: Some(refused), .. }), TunnelState::Up) => {
            format!("up until {}", penstock_ike::clock(refused.until_unix_seconds))
        }
        (None, _, TunnelState::Up) if tunnel.unanswered.is_some() => "up, unanswered".into(),
        (None, _, state) => state.word().into(),
    }
}

fn tunnel_keys(tunnel: &TunnelStatus) -> String {
    match &tunnel.ike {
        Some(ike) => ike.esp.clone().unwrap_or_else(|| "ike".into()),
        None if tunnel.generation == 0 => "fixed".into(),
        None => format!("lab {}", tunnel.generation),
    }
}

fn tunnels_text(tunnels: &[TunnelStatus]) -> String {
    let line = |tunnel: &TunnelStatus| {
        let identity = tunnel.ike.as_ref().and_then(|ike| ike.identity.clone());
        let times = tunnel.ike.as_ref().and_then(|ike| ike.age_seconds.zip(ike.rekey_in_seconds));
        let (age, left) = times.unzip();
        let time = |seconds: Option<u64>| seconds.map_or_else(|| "-".into(), duration);
        vec![
            tunnel.name.clone(),
            tunnel_state(tunnel),
            tunnel.local.to_string(),
            tunnel.peer.to_string(),
            identity.unwrap_or_else(|| "-".into()),
            tunnel_keys(tunnel),
            time(age),
            time(left),
            tunnel.interface.clone().unwrap_or_else(|| "-".into()),
            tunnel.inner_mtu.to_string(),
            tunnel.sent.packets.to_string(),
            tunnel.sent.bytes.to_string(),
            tunnel.received.packets.to_string(),
            tunnel.received.bytes.to_string(),
        ]
    };
    let head = [
        "TUNNEL",
        "STATE",
        "LOCAL",
        "PEER",
        "IDENTITY",
        "KEYS",
        "AGE",
        "REKEY IN",
        "INTERFACE",
        "MTU",
        "SENT",
        "OCTETS",
        "RECEIVED",
        "OCTETS",
    ];
    table(&head, tunnels.iter().map(line).collect())
}

fn sas_text(sas: &[SaStatus]) -> String {
    let line = |sa: &SaStatus| {
        let worker = sa.worker.map(|worker| format!("worker {worker}"));
        let options = [sa.esn.then_some("esn"), sa.udp.then_some("udp"), worker.as_deref()];
        vec![
            sa.tunnel.clone(),
            sa.direction.clone(),
            format!("{:#010x}", sa.spi),
            sa.cipher.clone(),
            options.into_iter().flatten().collect::<Vec<_>>().join(","),
            sa.generation.to_string(),
            sa.sequence.to_string(),
            sa.limit.map_or_else(|| "-".into(), |limit| limit.to_string()),
            sa.window.map_or_else(|| "-".into(), |window| window.to_string()),
            sa.refused.map_or_else(|| "-".into(), |refused| refused.to_string()),
            sa.age_seconds.map_or_else(|| "-".into(), duration),
            sa.rekey_in_seconds.map_or_else(|| "-".into(), duration),
            sa.traffic.packets.to_string(),
            sa.traffic.bytes.to_string(),
        ]
    };
    let head = [
        "TUNNEL",
        "DIRECTION",
        "SPI",
        "CIPHER",
        "OPTIONS",
        "GENERATION",
        "SEQUENCE",
        "LIMIT",
        "WINDOW",
        "REFUSED",
        "AGE",
        "REKEY IN",
        "PACKETS",
        "OCTETS",
    ];
    table(&head, sas.iter().map(line).collect())
}

fn routes_text(routes: &[RouteStatus]) -> String {
    table(
        &["DESTINATION", "TARGET"],
        routes.iter().map(|route| vec![route.prefix.clone(), route.target.clone()]).collect(),
    )
}

fn drops_text(drops: &[Count], all: bool) -> String {
    let shown: Vec<&Count> = drops.iter().filter(|drop| all || drop.frames > 0).collect();
    if shown.is_empty() {
        return "nothing was dropped\n".into();
    }
    let line = |drop: &&Count| vec![drop.name.clone(), drop.frames.to_string(), drop.meaning.clone()];
    table(&["REASON", "FRAMES", "MEANING"], shown.iter().map(line).collect())
}

fn ports_text(ports: &[PortStatus]) -> String {
    let line = |port: &PortStatus| {
        let link = match (port.open, port.link_up, port.speed_mbit) {
            (false, ..) => "closed".into(),
            (_, false, _) => "down".into(),
            (_, true, 0 | u32::MAX) => "up".into(),
            (_, true, speed) => format!("up {speed} Mbit/s"),
        };
        vec![
            port.name.clone(),
            port.device.clone(),
            port.driver.clone(),
            link,
            port.mac.clone(),
            port.addresses.join(","),
            if port.public { "public".into() } else { "private".into() },
            port.received.packets.to_string(),
            port.received.bytes.to_string(),
            port.sent.packets.to_string(),
            port.sent.bytes.to_string(),
            port.missed.to_string(),
            (port.receive_errors + port.send_errors).to_string(),
            (port.multisegment + port.twin.lost()).to_string(),
            format!("{}/{}", port.buffers_in_use, port.buffers),
        ]
    };
    let head = [
        "PORT",
        "DEVICE",
        "DRIVER",
        "LINK",
        "MAC",
        "ADDRESSES",
        "SIDE",
        "RECEIVED",
        "OCTETS",
        "SENT",
        "OCTETS",
        "MISSED",
        "ERRORS",
        "LOST",
        "BUFFERS",
    ];
    table(&head, ports.iter().map(line).collect())
}

/// Part of the cycles that went into loops with frames, in per cent.
pub fn busy(busy_cycles: u64, total_cycles: u64) -> f64 {
    if total_cycles == 0 { 0.0 } else { busy_cycles as f64 / total_cycles as f64 * 100.0 }
}

/// A figure that may not be known yet.
fn shown(figure: Option<f64>, places: usize, unit: &str) -> String {
    figure.map_or_else(|| "-".into(), |figure| format!("{figure:.places$}{unit}"))
}

fn stepped_text(stepped: &Stepped) -> String {
    let Stepped { stepped, behind, fixed, negotiated, problems } = stepped;
    let mut out = format!("{stepped} tunnels seal with their next generation\n");
    if *behind > 0 {
        let _ = writeln!(
            out,
            "{behind} were left: their peer may not have followed the last step (--force steps them)"
        );
    }
    if *fixed > 0 {
        let _ = writeln!(out, "{fixed} have fixed keys");
    }
    if *negotiated > 0 {
        let _ = writeln!(out, "{negotiated} have no lab keys: IKEv2 negotiates theirs");
    }
    problems.iter().for_each(|problem| out.push_str(&format!("problem: {problem}\n")));
    out
}

fn workers_text(workers: &[WorkerStatus]) -> String {
    let line = |worker: &WorkerStatus| {
        vec![
            worker.worker.to_string(),
            worker.core.map_or_else(|| "-".into(), |core| core.to_string()),
            format!("{:.1} %", busy(worker.busy_cycles, worker.total_cycles)),
            shown(worker.headroom(), 1, "x"),
            shown(worker.frames_per_burst(), 1, ""),
            shown(worker.cycles_per_frame(), 0, ""),
            format!("{} us", worker.longest_gap_micros),
            format!("{} us", worker.recent_gap_micros),
            worker.frames.received.to_string(),
            worker.frames.sent.to_string(),
            worker.frames.punted.to_string(),
            worker.frames.dropped.to_string(),
            worker.handed.to_string(),
            worker.helped.to_string(),
        ]
    };
    let head = [
        "WORKER",
        "CORE",
        "BUSY",
        "HEADROOM",
        "BURST",
        "CYCLES",
        "LONGEST GAP",
        "RECENT GAP",
        "RECEIVED",
        "SENT",
        "TO KERNEL",
        "DROPPED",
        "HANDED",
        "HELPED",
    ];
    table(&head, workers.iter().map(line).collect())
}

fn applied_text(applied: &Applied) -> String {
    let tunnels = applied.tunnels;
    let mut out = format!(
        "applied: {} tunnels added, {} replaced, {} changed in place, {} removed, {} untouched\n",
        tunnels.added, tunnels.replaced, tunnels.updated, tunnels.removed, tunnels.untouched
    );
    applied.warnings.iter().for_each(|warning| out.push_str(&format!("warning: {warning}\n")));
    applied.problems.iter().for_each(|problem| out.push_str(&format!("problem: {problem}\n")));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let lines =
            vec![vec!["a".into(), "5".into(), "x".into()], vec!["long".into(), "1234".into(), String::new()]];
        assert_eq!(table(&["NAME", "N", "REST"], lines), "NAME     N  REST\na        5  x\nlong  1234\n");
    }

    #[test]
    fn what_never_happened_is_not_shown() {
        let count = |name: &str, frames| Count { name: name.into(), frames, meaning: "words".into() };
        let drops = [count("replayed", 0), count("too_old", 2)];
        assert_eq!(drops_text(&drops, false), "REASON   FRAMES  MEANING\ntoo_old       2  words\n");
        assert!(drops_text(&drops, true).contains("replayed"));
        assert_eq!(drops_text(&drops[..1], false), "nothing was dropped\n");
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(moment(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(moment(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(
            [5, 65, 3661, 90_000].map(duration),
            ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"].map(String::from)
        );
    }
}
