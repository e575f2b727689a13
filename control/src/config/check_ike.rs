//! What can be wrong with `ike` sections: shares, proposals, lifetimes, identities. A parsed configuration enters,
//! complaints leave. Secrets and certificates have their own file.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use penstock_ike::crypto::{EspProposal, IkeProposal, Suite};

use super::check::Found;
use super::check_files::Files;
use super::ike::{Ike, StartWhen};
use super::ike_scalar::Period;
use super::scalar::Peer;
use super::types::{Config, Tunnel};

const MINUTE: Duration = Duration::from_secs(60);
/// A week: keys that live longer are an oversight.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Shortest lifetime of any SA in a laboratory.
const SHORTEST_LAB: Duration = Duration::from_secs(5);

/// Gives every tunnel that shares another one's peer that peer's address, so that the rest of the program finds it in both.
pub(super) fn take_shares(config: &mut Config, found: &mut Found) {
    let shares: Vec<(String, String)> = config
        .tunnels
        .iter()
        .filter_map(|(name, tunnel)| Some((name.clone(), tunnel.ike.as_ref()?.share.clone()?)))
        .collect();
    for (name, other) in shares {
        let owner = match owner(config, &name, &other) {
            Ok(owner) => (owner.local, owner.peer),
            Err(wrong) => {
                found.error(format!("tunnels.{name}.ike.share"), wrong);
                continue;
            }
        };
        let Some(tunnel) = config.tunnels.get_mut(&name) else { continue };
        for (key, written) in [("local", tunnel.local.is_some()), ("peer", tunnel.peer.is_some())] {
            if written {
                found.error(format!("tunnels.{name}.{key}"), of_the_peer(&other));
            }
        }
        (tunnel.local, tunnel.peer) = owner;
    }
}

fn of_the_peer(owner: &str) -> String {
    format!("belongs to the peer, so to tunnel {owner}, whose IKE SA this tunnel shares: remove it here")
}

/// The tunnel whose peer tunnel `name` shares.
fn owner<'a>(config: &'a Config, name: &str, other: &str) -> Result<&'a Tunnel, String> {
    let Some(owner) = config.tunnels.get(other) else {
        return Err(format!("there is no tunnel `{other}`: name one that has the same peer"));
    };
    match &owner.ike {
        _ if name == other => {
            Err("a tunnel cannot share with itself: name another one, or remove share".into())
        }
        None => Err(format!("tunnel {other} has no ike: name one that has")),
        Some(ike) => match &ike.share {
            Some(further) => {
                Err(format!("tunnel {other} shares the peer of {further} itself: name that one"))
            }
            None => Ok(owner),
        },
    }
}

/// Checks the `ike` sections.
pub(super) fn check(config: &Config, found: &mut Found) {
    global(config, found);
    let mut files = Files::new();
    let mut peers = HashMap::new();
    for (name, tunnel) in &config.tunnels {
        let Some(ike) = &tunnel.ike else { continue };
        let path = format!("tunnels.{name}");
        lab_words(&path, tunnel, found);
        let path = format!("{path}.ike");
        let owner = match &ike.share {
            Some(other) => {
                not_of_a_child(&path, other, ike, found);
                config.tunnels.get(other).and_then(|owner| owner.ike.as_ref()).unwrap_or(ike)
            }
            None => {
                files.authentication(&path, ike, found);
                distinct(config, &path, name, tunnel, ike, &mut peers, found);
                ike
            }
        };
        proposals(&path, ike, owner, found);
        times(config, &path, ike, owner, found);
        if matches!(tunnel.peer, Some(Peer::Network(_))) && !matches!(ike.start, None | Some(StartWhen::Wait))
        {
            let message = "the peer's address is not known, so only the peer can begin: write wait, or its address as peer";
            found.error(format!("{path}.start"), message);
        }
    }
}

fn global(config: &Config, found: &mut Found) {
    let ike = &config.ike;
    let ms = Duration::from_millis;
    between("ike.retransmit_first", ike.retransmit_first, ms(100), ms(10_000), found);
    between("ike.retransmit_max", ike.retransmit_max, ike.retransmit_first.0, 5 * MINUTE, found);
    between("ike.keepalive", ike.keepalive, ms(5000), 5 * MINUTE, found);
    between("ike.reconnect_first", ike.reconnect_first, ms(100), 60 * MINUTE, found);
    between("ike.reconnect_max", ike.reconnect_max, ike.reconnect_first.0, 60 * MINUTE, found);
    if !(2..=30).contains(&ike.transmissions) {
        found.error("ike.transmissions", format!("`{}`, expected 2 to 30", ike.transmissions));
    }
    if !(1..=100_000).contains(&ike.max_half_open) {
        found.error("ike.max_half_open", format!("`{}`, expected 1 to 100000 IKE SAs", ike.max_half_open));
    } else if ike.cookie_threshold > ike.max_half_open {
        let (cookies, most) = (ike.cookie_threshold, ike.max_half_open);
        let message =
            format!("`{cookies}` is more than ike.max_half_open, {most}: no cookie would ever be asked for");
        found.error("ike.cookie_threshold", message);
    }
    if ike.save_keys.is_some() && !config.lab {
        let message = "whoever has these keys reads the negotiations: they are for the lab, so write lab: true, or remove it";
        found.error("ike.save_keys", message);
    }
}

fn between(path: &str, period: Period, least: Duration, most: Duration, found: &mut Found) {
    if !(least..=most).contains(&period.0) {
        let (least, most) = (Period(least), Period(most));
        found.error(path, format!("`{period}`, expected {least} to {most}"));
    }
}

/// What IKEv2 negotiates or finds out by itself.
fn lab_words(path: &str, tunnel: &Tunnel, found: &mut Found) {
    for (key, written) in [("cipher", tunnel.cipher.is_some()), ("esn", tunnel.esn.is_some())] {
        if written {
            let message = "belongs to lab_keys: with ike, write esp_proposals there, such as aes256gcm16-esn";
            found.error(format!("{path}.{key}"), message);
        }
    }
    if tunnel.encapsulation.is_some() {
        let message = "belongs to lab_keys: IKEv2 finds out whether there is a NAT; ike.force_encapsulation wraps ESP in any case";
        found.error(format!("{path}.encapsulation"), message);
    }
}

/// What belongs to the peer cannot be said again by a tunnel that shares it.
fn not_of_a_child(path: &str, owner: &str, ike: &Ike, found: &mut Found) {
    let written = [
        ("psk_file", ike.psk_file.is_some()),
        ("certificate", ike.certificate.is_some()),
        ("key", ike.key.is_some()),
        ("ca", !ike.ca.0.is_empty()),
        ("crl", !ike.crl.0.is_empty()),
        ("local_id", ike.local_id.is_some()),
        ("remote_id", ike.remote_id.is_some()),
        ("suite", ike.suite.is_some()),
        ("proposals", !ike.proposals.is_empty()),
        ("ike_lifetime", ike.ike_lifetime.is_some()),
        ("ike_rekey_margin", ike.ike_rekey_margin.is_some()),
        ("dpd", ike.dpd.is_some()),
        ("force_encapsulation", ike.force_encapsulation.is_some()),
        ("fragment_size", ike.fragment_size.is_some()),
    ];
    for (key, _) in written.iter().filter(|(_, written)| *written) {
        found.error(format!("{path}.{key}"), of_the_peer(owner));
    }
}

/// What tells two peers apart: outer addresses, identities, and the certificate that the own one may come from.
type Ends = (Ipv4Addr, Option<Peer>, [Option<String>; 3]);

fn distinct<'a>(
    config: &Config,
    path: &str,
    name: &'a str,
    tunnel: &Tunnel,
    ike: &Ike,
    peers: &mut HashMap<Ends, &'a str>,
    found: &mut Found,
) {
    let Some(local) = config.local_of(tunnel) else { return };
    let identities = [
        ike.local_id.as_ref().map(ToString::to_string),
        ike.remote_id.as_ref().map(ToString::to_string),
        ike.certificate.as_ref().map(|file| file.display().to_string()),
    ];
    if let Some(other) = peers.insert((local, tunnel.peer, identities), name) {
        let message = format!(
            "tunnel {other} has the same gateways and identities, so its IKE SA would replace this one's: write \
             share: {other}, which makes this tunnel one more child of it"
        );
        found.error(path, message);
    }
}

fn proposals(path: &str, ike: &Ike, owner: &Ike, found: &mut Found) {
    for (index, text) in ike.proposals.iter().enumerate() {
        if let Err(wrong) = IkeProposal::parse(text) {
            found.error(format!("{path}.proposals[{index}]"), wrong.to_string());
        }
    }
    for (index, text) in ike.esp_proposals.iter().enumerate() {
        if let Err(wrong) = EspProposal::parse(text) {
            found.error(format!("{path}.esp_proposals[{index}]"), wrong.to_string());
        }
    }
    if ike.pfs.is_some() && !(ike.esp_proposals.is_empty() && owner.esp_proposals.is_empty()) {
        let message =
            "esp_proposals name their key exchange themselves: write it there, such as aes256gcm16-x25519";
        found.error(format!("{path}.pfs"), message);
    }
}

fn times(config: &Config, path: &str, ike: &Ike, owner: &Ike, found: &mut Found) {
    let shortest = |minutes: u32| if config.lab { SHORTEST_LAB } else { minutes * MINUTE };
    let asked = ike.rekey_margin.is_some() || ike.ike_rekey_margin.is_some();
    let suite = asked.then(|| Suite::named(owner.suite.unwrap_or_default().word()).ok()).flatten();
    let child = ike.lifetime.or(owner.lifetime).map(|period| period.0);
    let own = [
        ("", 5, ike.lifetime, ike.rekey_margin, child.or(suite.as_ref().map(|suite| suite.child_lifetime))),
        (
            "ike_",
            10,
            ike.ike_lifetime,
            ike.ike_rekey_margin,
            ike.ike_lifetime.map(|period| period.0).or(suite.as_ref().map(|suite| suite.ike_lifetime)),
        ),
    ];
    for (prefix, minutes, written, margin, lifetime) in own {
        if let Some(period) = written {
            between(&format!("{path}.{prefix}lifetime"), period, shortest(minutes), LONGEST, found);
        }
        let (Some(margin), Some(lifetime)) = (margin, lifetime) else { continue };
        if margin.0.is_zero() || margin.0 * 2 >= lifetime {
            let message = format!(
                "`{margin}`, expected more than 0 and less than half of the lifetime, {}, for it is drawn from once to twice this",
                Period(lifetime)
            );
            found.error(format!("{path}.{prefix}rekey_margin"), message);
        }
    }
    for (key, written, least, unit) in [
        ("rekey_bytes", ike.rekey_bytes, 1 << 20, "octets"),
        ("rekey_packets", ike.rekey_packets, 1000, "packets"),
    ] {
        if let Some(few) = written.filter(|written| *written < least) {
            found.error(format!("{path}.{key}"), format!("`{few}`, expected at least {least} {unit}"));
        }
    }
    if let Some(period) = ike.dpd.and_then(|dpd| dpd.0) {
        between(&format!("{path}.dpd"), Period(period), Duration::from_secs(1), 60 * MINUTE, found);
    }
}
