//! What can be wrong with `ike` sections. A parsed configuration enters, complaints leave.

use super::check::Found;
use super::types::{Config, Tunnel};

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
                let message = format!("belongs to the peer, so to tunnel {other}: remove it here");
                found.error(format!("tunnels.{name}.{key}"), message);
            }
        }
        (tunnel.local, tunnel.peer) = owner;
    }
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
    for (name, tunnel) in &config.tunnels {
        let Some(ike) = tunnel.ike.as_ref().filter(|ike| ike.share.is_none()) else { continue };
        if ike.psk_file.is_some() == ike.certificate.is_some() {
            found.error(format!("tunnels.{name}.ike"), "expected psk_file, or certificate, key and ca");
        }
    }
}
