//! What the tables should hold for each tunnel: a checked configuration enters (with the secrets that it names), plans
//! leave that can be compared with what is there. The outer headers follow RFC 4303 section 3.1.2 and RFC 3948.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use penstock_tables::sa::OuterTemplate;
use penstock_tables::{Cipher, DontFragment, KeyBlock, Selector, TunnelSpec};
use zeroize::Zeroizing;

use super::lab::{Chain, Material};
use crate::config::secret::{SecretError, read_key, read_secret};
use crate::config::{self, CipherChoice, Config, Encapsulation, FixedKey, LabKeys, Tunnel};

/// UDP port of encapsulated ESP (RFC 3948).
const ESP_PORT: u16 = 4500;
/// TTL of outer packets.
const TTL: u8 = 64;
const PROTOCOL_ESP: u8 = 50;
const PROTOCOL_UDP: u8 = 17;

/// Why no plan can be made. What the configuration check has found already cannot happen here, except that files changed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file with key material.
    #[error("tunnel {tunnel}: {path} {error}")]
    Secret {
        /// The tunnel.
        tunnel: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: SecretError,
    },
    /// The tunnel lacks something that the check asks for.
    #[error("tunnel {tunnel}: {what}: run `penstock check`")]
    Incomplete {
        /// The tunnel.
        tunnel: String,
        /// What it lacks.
        what: &'static str,
    },
}

/// Everything about a tunnel that is in the tables, except the numbers of its slots.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tunnel's own slot.
    pub spec: TunnelSpec,
    /// What its SAs have in common.
    pub form: Form,
    /// Where its keys come from.
    pub keys: Keys,
    /// Outer address of this side.
    pub local: Ipv4Addr,
    /// Outer address of the peer; 0.0.0.0 as long as only the peer knows it.
    pub peer: Ipv4Addr,
    /// Octets of the largest outer packet: with [`inner_mtu`], what a change of the encapsulation makes of the inner ones.
    pub outer_mtu: u16,
    /// Routes into the tunnel that the file asks for.
    pub routes: Vec<ipnet::Ipv4Net>,
}

/// What all SAs of a tunnel have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Cipher.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub udp: bool,
    /// Outer don't-fragment bit.
    pub dont_fragment: DontFragment,
    /// Replay window, in packets.
    pub window: u32,
    /// Outer headers.
    pub template: OuterTemplate,
}

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum Keys {
    /// Negotiated: SAs come and go with the IKE SA, and each has the cipher, the ESN and the encapsulation that was agreed
    /// upon for it. Until then what the tunnel should carry is dropped.
    Ike,
    /// Derived for each generation.
    Derived {
        /// The chain.
        chain: Chain,
        /// The generation to begin with where the journal knows none.
        first: u32,
    },
    /// Written down.
    Fixed {
        /// What this gateway sends with.
        outbound: Material,
        /// What it receives with.
        inbound: Material,
    },
}

impl Form {
    /// Expands a key of this form.
    ///
    /// # Errors
    /// Where the length is not the cipher's; the check has excluded it.
    pub fn expand(&self, material: &Material) -> Result<KeyBlock, penstock_tables::KeyError> {
        KeyBlock::expand(self.cipher, &material.key, material.salt)
    }
}

/// Makes the plans of all tunnels.
///
/// # Errors
/// [`PlanError`].
pub fn plans(config: &Config) -> Result<BTreeMap<String, Plan>, PlanError> {
    let mut secrets = HashMap::new();
    let plan =
        |(name, tunnel): (&String, &Tunnel)| Ok((name.clone(), plan(config, name, tunnel, &mut secrets)?));
    config.tunnels.iter().map(plan).collect()
}

fn plan(
    config: &Config,
    name: &str,
    tunnel: &Tunnel,
    secrets: &mut HashMap<PathBuf, Zeroizing<Vec<u8>>>,
) -> Result<Plan, PlanError> {
    let incomplete = |what| PlanError::Incomplete { tunnel: name.into(), what };
    let local = config.local_of(tunnel).ok_or_else(|| incomplete("no port leads to its peer"))?;
    let peer = tunnel.peer_address();
    let port = config.port_with_address(local).or_else(|| config.port_towards(tunnel.towards()?));
    let outer_mtu = tunnel.mtu.or(port.map(|(_, port)| port.mtu)).unwrap_or(1500);
    let udp = tunnel.encapsulation() == Encapsulation::Udp;
    let spec = TunnelSpec {
        name: name.into(),
        local: selectors(&tunnel.local_prefixes),
        remote: selectors(&tunnel.remote_prefixes),
        inner_mtu: inner_mtu(outer_mtu, udp),
        interface: tunnel.interface.clone().unwrap_or_default(),
        peer: peer.to_bits(),
    };
    let form = Form {
        cipher: cipher(tunnel.cipher()),
        esn: tunnel.esn(),
        udp,
        dont_fragment: match tunnel.dont_fragment {
            config::DontFragment::Copy => DontFragment::Copy,
            config::DontFragment::Set => DontFragment::Set,
            config::DontFragment::Clear => DontFragment::Clear,
        },
        window: tunnel.replay_window.unwrap_or(config.capacity.replay_window),
        template: template(local, peer, udp),
    };
    let keys = match (&tunnel.ike, &tunnel.lab_keys) {
        (Some(_), _) => Keys::Ike,
        (None, Some(lab)) => lab_keys(name, tunnel, lab, (local, peer), secrets)?,
        (None, None) => return Err(incomplete("has no keys")),
    };
    let routes = tunnel.remote_prefixes.iter().map(|prefix| prefix.0).collect();
    Ok(Plan { spec, form, keys, local, peer, outer_mtu, routes })
}

/// Keys that the file itself names.
fn lab_keys(
    name: &str,
    tunnel: &Tunnel,
    lab: &LabKeys,
    (local, peer): (Ipv4Addr, Ipv4Addr),
    secrets: &mut HashMap<PathBuf, Zeroizing<Vec<u8>>>,
) -> Result<Keys, PlanError> {
    Ok(match (&lab.secret_file, &lab.outbound, &lab.inbound) {
        (Some(path), ..) => {
            if !secrets.contains_key(path) {
                let unread = |error| PlanError::Secret { tunnel: name.into(), path: path.clone(), error };
                secrets.insert(path.clone(), read_secret(path).map_err(unread)?);
            }
            let context = lab.context.as_deref().unwrap_or_default();
            let chain = Chain::new(&secrets[path], local, peer, context, tunnel.cipher());
            Keys::Derived { chain, first: lab.generation.unwrap_or(1).max(1) }
        }
        (None, Some(outbound), Some(inbound)) => {
            Keys::Fixed { outbound: fixed(name, outbound)?, inbound: fixed(name, inbound)? }
        }
        _ => return Err(PlanError::Incomplete { tunnel: name.into(), what: "has no keys" }),
    })
}

fn fixed(tunnel: &str, key: &FixedKey) -> Result<Material, PlanError> {
    let incomplete = || PlanError::Incomplete { tunnel: tunnel.into(), what: "has no keys" };
    let material = match (&key.key, &key.key_file) {
        (Some(written), _) => Material::new(key.spi, written.octets()),
        (None, Some(path)) => {
            let unread = |error| PlanError::Secret { tunnel: tunnel.into(), path: path.clone(), error };
            Material::new(key.spi, read_key(path).map_err(unread)?.octets())
        }
        (None, None) => None,
    };
    material.ok_or_else(incomplete)
}

/// No prefix at all means any.
fn selectors(prefixes: &[config::scalar::Prefix]) -> Vec<Selector> {
    if prefixes.is_empty() {
        return vec![Selector::ANY];
    }
    let range = |prefix: &config::scalar::Prefix| {
        Selector::prefix(prefix.0.network().to_bits(), prefix.0.prefix_len())
    };
    Selector::merged(prefixes.iter().map(range))
}

fn cipher(choice: CipherChoice) -> Cipher {
    match choice {
        CipherChoice::Aes128Gcm16 => Cipher::Aes128Gcm16,
        CipherChoice::Aes256Gcm16 => Cipher::Aes256Gcm16,
        CipherChoice::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305,
    }
}

/// The largest inner packet whose ESP packet fits `outer` octets: IPv4 header, UDP header, SPI and sequence number, IV,
/// padding to a multiple of 4 with its two octets of trailer, ICV (RFC 4303 section 2).
pub fn inner_mtu(outer: u16, udp: bool) -> u16 {
    let fixed = 20 + if udp { 8 } else { 0 } + 8 + 8 + 16;
    (outer.saturating_sub(fixed) & !3).saturating_sub(2)
}

/// Outer headers with ports of 4500 where ESP is in UDP.
pub(super) fn template(local: Ipv4Addr, peer: Ipv4Addr, udp: bool) -> OuterTemplate {
    let mut octets = [0; 28];
    octets[0] = 0x45;
    octets[8] = TTL;
    octets[9] = if udp { PROTOCOL_UDP } else { PROTOCOL_ESP };
    octets[12..16].copy_from_slice(&local.octets());
    octets[16..20].copy_from_slice(&peer.octets());
    if udp {
        octets[20..22].copy_from_slice(&ESP_PORT.to_be_bytes());
        octets[22..24].copy_from_slice(&ESP_PORT.to_be_bytes());
    }
    octets
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Machine;

    const TEXT: &str = "
lab: true
ports:
  wan: {device: net_null0, addresses: [192.0.2.1/24]}
tunnels:
  a:
    peer: 192.0.2.2
    encapsulation: udp
    cipher: aes256gcm16
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.2.0.0/16]
    lab_keys:
      outbound: {spi: 257, key: 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223}
      inbound: {spi: 258, key: 100102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223}
";

    #[test]
    fn a_plan_holds_what_the_file_says() {
        let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
        let config = Config::parse(Path::new("a.yaml"), TEXT, &machine).expect("good").config;
        let plan = &plans(&config).expect("complete")["a"];
        assert_eq!(plan.spec.local, [Selector::prefix(0x0a01_0000, 16)]);
        assert_eq!((plan.spec.inner_mtu, plan.form.window, plan.form.udp), (1438, 1024, true));
        assert_eq!(plan.form.template[20..], [0x11, 0x94, 0x11, 0x94, 0, 0, 0, 0]);
        let Keys::Fixed { outbound, .. } = &plan.keys else { panic!("fixed keys") };
        assert_eq!((outbound.spi, outbound.key.len(), outbound.salt), (257, 32, [0x20, 0x21, 0x22, 0x23]));
        assert!(plan.form.expand(outbound).is_ok());
    }

    #[test]
    fn the_largest_inner_packet_just_fits() {
        for udp in [false, true] {
            for outer in 576..=9216_u16 {
                let esp =
                    |inner: u16| 20 + if udp { 8 } else { 0 } + 16 + (inner + 2).next_multiple_of(4) + 16;
                let inner = inner_mtu(outer, udp);
                assert!(esp(inner) <= outer && esp(inner + 1) > outer, "{outer} {inner}");
            }
        }
    }
}
