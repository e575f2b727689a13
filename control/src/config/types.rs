//! The configuration file as types: one struct a section, one field a key. The doc comment of a field is its entry in
//! `docs/configuration.md`, which a test holds equal to these types. Defaults stand here and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ike::{Ike, IkeGlobal};
use super::scalar::{Address, InterfaceAddress, KeyText, Network, Peer, Prefix, shown, text_form, unique};

/// The whole file.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this gateway. It names the run-time directory `/run/penstock/NAME` and the state directory
    /// `/var/lib/penstock/NAME`, so that several gateways can run on one machine.
    #[serde(default = "default_name")]
    pub name: String,
    /// Allows keys that do not come from IKEv2: `lab_keys` of the tunnels. Never set it on a gateway that protects
    /// something.
    #[serde(default)]
    pub lab: bool,
    /// Directory for what must survive a reboot: the generation of each tunnel's keys and the sequence numbers that
    /// were granted. `auto` is `/var/lib/penstock/NAME`. Losing it while a lab secret stays in use repeats nonces.
    #[serde(default)]
    #[schemars(extend("x-form" = "auto or a path"))]
    pub state_directory: Place,
    /// Memory of the data plane and of the region that both processes share.
    #[serde(default)]
    pub memory: Memory,
    /// Cores, engine and idling of the data plane.
    #[serde(default)]
    pub dataplane: Dataplane,
    /// Sizes of the tables, fixed while the region exists: changing one needs a restart of both processes.
    #[serde(default)]
    pub capacity: Capacity,
    /// The ports by name. The name is also that of the port's twin, the TAP device through which the kernel uses the
    /// port: at most 15 characters.
    #[serde(deserialize_with = "unique")]
    pub ports: BTreeMap<String, Port>,
    /// Routes that are installed in the kernel over the twins. Routes that something else installs there, such as FRR
    /// or `ip route`, are followed too.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// The tunnels by name.
    #[serde(default, deserialize_with = "unique")]
    pub tunnels: BTreeMap<String, Tunnel>,
    /// IKEv2 of the whole gateway: retransmission, load, keys for a laboratory's Wireshark.
    #[serde(default)]
    pub ike: IkeGlobal,
    /// Prometheus metrics.
    #[serde(default)]
    pub metrics: Metrics,
}

fn default_name() -> String {
    "penstock".into()
}

/// A path, or `auto` for the place that follows from the rest of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub enum Place {
    /// The place that the key's entry names.
    #[default]
    Auto,
    /// Just here.
    At(PathBuf),
}

impl From<String> for Place {
    fn from(text: String) -> Place {
        if text == "auto" { Place::Auto } else { Place::At(text.into()) }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        match place {
            Place::Auto => "auto".into(),
            Place::At(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl Place {
    /// The path, where one was written.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Place::Auto => None,
            Place::At(path) => Some(path),
        }
    }
}

/// Memory of the data plane and of the region that both processes share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Whether DPDK and the region use huge pages: `on` insists, `off` does without, `auto` uses them where the machine
    /// has enough reserved.
    pub hugepages: HugePages,
    /// Memory for DPDK: packet buffers, queues, drivers.
    #[schemars(extend("x-unit" = "megabytes"))]
    pub megabytes: u32,
    /// Directory of the region's two files. `auto` is `penstock/NAME` below the mounted hugetlbfs with huge
    /// pages, and `/dev/shm/penstock/NAME` without.
    #[schemars(extend("x-form" = "auto or a path"))]
    pub directory: Place,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { hugepages: HugePages::Auto, megabytes: 256, directory: Place::Auto }
    }
}

/// Whether huge pages are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum HugePages {
    /// Where the machine has them.
    Auto,
    /// Always: starting without them fails.
    On,
    /// Never (`--no-huge`).
    Off,
}

/// Cores, engine and idling of the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dataplane {
    /// Cores that move packets, one worker thread pinned to each.
    #[schemars(extend("x-unit" = "core numbers as in /proc/cpuinfo"))]
    pub cores: Vec<u16>,
    /// Core for the data plane's start-up and housekeeping. It may be shared with other programs.
    #[schemars(extend("x-unit" = "core number"))]
    pub control_core: u16,
    /// What a worker does while its queues are empty: `poll` never sleeps (appliances, benchmarks), `adaptive` backs
    /// off (virtual machines, CI).
    pub idle: Idle,
    /// Implementation of the ciphers. `auto` takes the fastest that this CPU has.
    pub engine: EngineChoice,
    /// Whether several cores work on what one of them receives, so that one tunnel uses them all. `auto` where a port
    /// has fewer queues than there are cores (then one core receives, and order is kept), or where a public
    /// port does not choose queues by the SPI of ESP (RSS or flow rules, asked for at the start); `on` in any case, with
    /// one core that receives; `off` never.
    pub spread: SpreadChoice,
}

impl Default for Dataplane {
    fn default() -> Dataplane {
        let (idle, engine, spread) = (Idle::Adaptive, EngineChoice::Auto, SpreadChoice::Auto);
        Dataplane { cores: vec![1], control_core: 0, idle, engine, spread }
    }
}

/// What a worker does while its queues are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Idle {
    /// Backs off.
    Adaptive,
    /// Never sleeps.
    Poll,
}

impl Idle {
    /// The word of the file, which is also the data plane's argument.
    pub fn word(self) -> &'static str {
        match self {
            Idle::Adaptive => "adaptive",
            Idle::Poll => "poll",
        }
    }
}

/// Whether cores share what one of them receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SpreadChoice {
    /// Where the devices do not spread tunnels.
    Auto,
    /// In any case.
    On,
    /// Never.
    Off,
}

impl SpreadChoice {
    /// The word of the file, which is also the data plane's argument.
    pub fn word(self) -> &'static str {
        match self {
            SpreadChoice::Auto => "auto",
            SpreadChoice::On => "on",
            SpreadChoice::Off => "off",
        }
    }
}

/// Implementation of the ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EngineChoice {
    /// The fastest that this CPU has.
    Auto,
    /// The portable one.
    Reference,
    /// AES-NI.
    Aesni,
    /// VAES and AVX-512.
    Vaes,
}

impl EngineChoice {
    /// The word of the file, which is also the data plane's argument.
    pub fn word(self) -> &'static str {
        match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Reference => "reference",
            EngineChoice::Aesni => "aesni",
            EngineChoice::Vaes => "vaes",
        }
    }
}

/// Sizes of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Most tunnels. Where a peer makes a child for each pair of networks, each further pair counts as a tunnel.
    #[schemars(extend("x-unit" = "tunnels"))]
    pub tunnels: u32,
    /// Largest replay window of any tunnel: a power of two from 64 to 65536.
    #[schemars(extend("x-unit" = "packets"))]
    pub replay_window: u32,
    /// Most routes: those of the kernel and the remote prefixes of the tunnels together.
    #[schemars(extend("x-unit" = "routes"))]
    pub routes: u32,
    /// Most neighbours (ARP entries) and gateways in use.
    #[schemars(extend("x-unit" = "neighbours"))]
    pub neighbours: u32,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity { tunnels: 1024, replay_window: 1024, routes: 16384, neighbours: 4096 }
    }
}

/// One port: a DPDK device and its twin in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The device as DPDK names it: a PCI address such as `0000:3b:00.1`, or a virtual device with its arguments such
    /// as `net_tap0,iface=tlan`.
    pub device: String,
    /// The gateway's addresses on this port, put on its twin.
    #[serde(default)]
    pub addresses: Vec<InterfaceAddress>,
    /// Largest IPv4 packet that the port takes, without Ethernet header: 576 to 9216.
    #[serde(default = "default_mtu")]
    #[schemars(extend("x-unit" = "octets"))]
    pub mtu: u16,
    /// 802.1Q tag of every packet on this port: 1 to 4094; without it, untagged.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// Takes packets that are addressed to other stations too.
    #[serde(default)]
    pub promiscuous: bool,
    /// A public port carries ESP and the gateway's own traffic: packets that are forwarded in the clear neither enter nor
    /// leave by it. Without this key, a port is public where a tunnel's outer address is on it and another port is there.
    #[serde(default)]
    pub public: Option<bool>,
}

fn default_mtu() -> u16 {
    1500
}

/// One route over a twin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination.
    pub to: Prefix,
    /// Gateway; it must be in the network of one of the ports.
    pub via: Address,
}

/// One tunnel: a pair of ESP security associations with a peer.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tunnel {
    /// Outer address of this gateway; it must be an address of a port. Without it, the first address of the port that
    /// leads to the peer.
    #[serde(default)]
    pub local: Option<Address>,
    /// Outer address of the other gateway. With `ike` it may be a network, or `any`, for peers whose address is not known:
    /// then only the peer begins. Required, except with `ike.share`.
    #[serde(default)]
    #[schemars(extend("x-default" = "required"))]
    pub peer: Option<Peer>,
    /// Networks on this side (traffic selectors, RFC 4301 section 4.4.1). Required without `interface`; with it, the
    /// default is any.
    #[serde(default)]
    pub local_prefixes: Vec<Prefix>,
    /// Networks behind the peer (traffic selectors). What is written here is routed into the tunnel. Required without
    /// `interface`; with it, the default is any, and only kernel routes over the interface lead into the tunnel.
    #[serde(default)]
    pub remote_prefixes: Vec<Prefix>,
    /// Name of the tunnel's own kernel interface (a TUN device, at most 15 characters): kernel routes over it lead into
    /// the tunnel, and the gateway itself can talk through it.
    #[serde(default)]
    pub interface: Option<String>,
    /// Addresses of that interface.
    #[serde(default)]
    pub interface_addresses: Vec<InterfaceAddress>,
    /// How packets travel with `lab_keys`: `esp` is IP protocol 50 (RFC 4303), `udp` is ESP in UDP port 4500 (RFC 3948), for a
    /// path with address translation. IKEv2 finds it out.
    #[serde(default)]
    #[schemars(extend("x-default" = "`esp`"))]
    pub encapsulation: Option<Encapsulation>,
    /// Cipher (RFC 4106, RFC 7634), with a 16-octet tag, with `lab_keys`. IKEv2 negotiates it: `ike.esp_proposals`.
    #[serde(default)]
    #[schemars(extend("x-default" = "`aes128gcm16`"))]
    pub cipher: Option<CipherChoice>,
    /// Extended sequence numbers (RFC 4303 section 2.2.1) with `lab_keys`. Both gateways must agree. IKEv2 negotiates them:
    /// `ike.esp_proposals`.
    #[serde(default)]
    #[schemars(extend("x-default" = "`true`"))]
    pub esn: Option<bool>,
    /// Replay window: a power of two from 64 to 65536, at most `capacity.replay_window`. Without it, that.
    #[serde(default)]
    #[schemars(extend("x-unit" = "packets"))]
    pub replay_window: Option<u32>,
    /// The don't-fragment bit of the outer header: `copy` it from the inner one, or always `set` or `clear` it.
    #[serde(default)]
    pub dont_fragment: DontFragment,
    /// Largest outer packet on the way to the peer: 576 to 9216, at most the port's MTU. Without it, that.
    #[serde(default)]
    #[schemars(extend("x-unit" = "octets"))]
    pub mtu: Option<u16>,
    /// Keys negotiated with IKEv2. A tunnel has either this or `lab_keys`.
    #[serde(default)]
    pub ike: Option<Ike>,
    /// Keys without IKEv2, for the lab; needs `lab: true`.
    #[serde(default)]
    pub lab_keys: Option<LabKeys>,
}

impl Tunnel {
    /// Outer address of the peer; 0.0.0.0 where only the peer knows it.
    pub fn peer_address(&self) -> Ipv4Addr {
        match self.peer {
            Some(Peer::Address(address)) => address,
            Some(Peer::Network(_)) | None => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// An address of the peer's side: its own, or the first one of the network that it may be in.
    pub fn towards(&self) -> Option<Ipv4Addr> {
        self.peer.map(|peer| match peer {
            Peer::Address(address) => address,
            Peer::Network(network) => network.network(),
        })
    }

    /// How packets travel before IKEv2 has found out.
    pub fn encapsulation(&self) -> Encapsulation {
        let forced = self.ike.as_ref().is_some_and(|ike| ike.force_encapsulation == Some(true));
        self.encapsulation.unwrap_or(if forced { Encapsulation::Udp } else { Encapsulation::Esp })
    }

    /// Cipher with lab keys.
    pub fn cipher(&self) -> CipherChoice {
        self.cipher.unwrap_or_default()
    }

    /// Extended sequence numbers with lab keys.
    pub fn esn(&self) -> bool {
        self.esn.unwrap_or(true)
    }
}

/// How ESP packets travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Encapsulation {
    /// IP protocol 50.
    #[default]
    Esp,
    /// UDP port 4500 (RFC 3948).
    Udp,
}

/// The cipher of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum CipherChoice {
    /// AES-128-GCM (RFC 4106).
    #[default]
    Aes128Gcm16,
    /// AES-256-GCM (RFC 4106).
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
}

impl CipherChoice {
    /// The word of the file.
    pub fn word(self) -> &'static str {
        match self {
            CipherChoice::Aes128Gcm16 => "aes128gcm16",
            CipherChoice::Aes256Gcm16 => "aes256gcm16",
            CipherChoice::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }

    /// Octets of key, without the 4 of salt.
    pub fn key_len(self) -> usize {
        match self {
            CipherChoice::Aes128Gcm16 => 16,
            CipherChoice::Aes256Gcm16 | CipherChoice::ChaCha20Poly1305 => 32,
        }
    }
}

/// The don't-fragment bit of the outer header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum DontFragment {
    /// From the inner header.
    #[default]
    Copy,
    /// Always set.
    Set,
    /// Always clear.
    Clear,
}

/// Keys without IKEv2: either derived from a secret that both gateways hold (`secret_file`), or written down for each
/// direction (`outbound` and `inbound`).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabKeys {
    /// File with the lab secret, at least 32 octets, the same on both gateways and readable by its owner only. Keys and
    /// SPIs are derived from it, the two outer addresses, `context` and the generation (HKDF with SHA-256).
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// Told apart by this word, several tunnels between the same two addresses can use one secret. The same on both
    /// gateways. Default: empty.
    #[serde(default)]
    pub context: Option<String>,
    /// Generation of the keys to begin with where the state directory knows none yet; `penstock rekey` steps it.
    /// Default: 1.
    #[serde(default)]
    pub generation: Option<u32>,
    /// SPI and key of what this gateway sends.
    #[serde(default)]
    pub outbound: Option<FixedKey>,
    /// SPI and key of what this gateway receives.
    #[serde(default)]
    pub inbound: Option<FixedKey>,
}

/// SPI and key of one direction. Its twin on the other gateway has the directions exchanged.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FixedKey {
    /// Security parameters index: 256 to 4294967295; the inbound ones are unique on this gateway.
    pub spi: u32,
    /// Key and 4 octets of salt in hexadecimal digits: 20 octets for aes128gcm16, 36 for the other ciphers.
    #[serde(default, skip_serializing)]
    pub key: Option<KeyText>,
    /// File with the same digits, readable by its owner only.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// Prometheus metrics.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address and TCP port of the HTTP server, or `off`. Any other address than a loopback one needs `allow`.
    pub listen: Listen,
    /// Networks whose hosts are answered besides this machine itself; all others are hung up on before a request is read. What
    /// is served is not encrypted.
    pub allow: Vec<Network>,
    /// Whether there are series of each tunnel (`penstock_tunnel_...`); those of all tunnels together are always there.
    pub tunnels: bool,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let listen = Listen::At(SocketAddr::from(([127, 0, 0, 1], 9464)));
        Metrics { listen, allow: Vec::new(), tunnels: true }
    }
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}
text_form!(Listen, "off or an address and port such as 127.0.0.1:9464");
shown!(Listen);

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Listen, String> {
        match text.parse() {
            Ok(address) => Ok(Listen::At(address)),
            Err(_) if text == "off" => Ok(Listen::Off),
            Err(_) => Err(format!("`{text}`, expected off or an address and port such as 127.0.0.1:9464")),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::At(address) => address.fmt(f),
        }
    }
}
