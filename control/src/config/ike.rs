//! The `ike` sections of the file as types: that of the gateway and that of each tunnel. The doc comment of a field is its
//! entry in `docs/configuration.md`. Defaults stand here, those of a suite in `penstock_ike::crypto::Suite`. RFC 7296.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ike_scalar::{Files, FragmentSize, IdentityText, KeyExchange, PatternText, Period, PeriodOrOff};

/// A peer that has been silent for so long is probed.
pub const DPD: Duration = Duration::from_secs(30);
/// Octets of the largest IP packet with an IKE message, as strongSwan sends them (RFC 7383 section 2.5.1).
pub const FRAGMENT_SIZE: u16 = 1280;

/// IKEv2 of the whole gateway: how requests are repeated, and how many strangers it listens to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IkeGlobal {
    /// Wait before a request is sent again for the first time (RFC 7296 section 2.4).
    pub retransmit_first: Period,
    /// Longest wait between two transmissions; each wait is 1.8 times the one before.
    pub retransmit_max: Period,
    /// Transmissions of a request before the peer counts as dead: 2 to 30.
    #[schemars(extend("x-unit" = "transmissions"))]
    pub transmissions: u32,
    /// Half-open IKE SAs above which an initiator must return a cookie before anything is computed for it (RFC 7296
    /// section 2.6).
    #[schemars(extend("x-unit" = "IKE SAs"))]
    pub cookie_threshold: u32,
    /// Half-open IKE SAs above which no more are begun.
    #[schemars(extend("x-unit" = "IKE SAs"))]
    pub max_half_open: u32,
    /// Interval of keepalives where this gateway is behind a NAT (RFC 3948 section 4).
    pub keepalive: Period,
    /// First wait before a connection that failed is tried again; it doubles up to `reconnect_max`.
    pub reconnect_first: Period,
    /// Longest wait before a connection that failed is tried again.
    pub reconnect_max: Period,
    /// File to which the keys of every IKE SA are appended, in the form of Wireshark's `ikev2_decryption_table`. Whoever
    /// reads it reads the negotiations, so it needs `lab: true`.
    #[schemars(extend("x-default" = "none"))]
    pub save_keys: Option<PathBuf>,
}

impl Default for IkeGlobal {
    fn default() -> IkeGlobal {
        IkeGlobal {
            retransmit_first: Period(Duration::from_millis(500)),
            retransmit_max: Period(Duration::from_secs(15)),
            transmissions: 8,
            cookie_threshold: 64,
            max_half_open: 4096,
            keepalive: Period(Duration::from_secs(20)),
            reconnect_first: Period(Duration::from_secs(1)),
            reconnect_max: Period(Duration::from_secs(60)),
            save_keys: None,
        }
    }
}

/// Keys negotiated with IKEv2: how the two gateways prove who they are, what they propose, when keys are replaced.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ike {
    /// Name of another tunnel to the same peer: this one is negotiated as one more child of that one's IKE SA. All that
    /// belongs to the peer (`peer`, `local`, identities, secrets, `suite`, `proposals`, `dpd`, ...) is written there.
    pub share: Option<String>,
    /// File with the pre-shared key, readable by its owner only. White space at either end does not count. Write this, or
    /// `certificate`, `key` and `ca`.
    pub psk_file: Option<PathBuf>,
    /// This gateway's certificate: PEM, followed by the intermediate certificates if there are any, or DER. ECDSA with P-256 or P-384,
    /// Ed25519, or RSA of at least 2048 bits.
    pub certificate: Option<PathBuf>,
    /// Its private key: PEM or DER, readable by its owner only, without a passphrase.
    pub key: Option<PathBuf>,
    /// Certificates of the CAs that the peer's certificate must come from.
    pub ca: Files,
    /// Revocation lists of these CAs. A certificate that is on one is refused; so is any while a list is out of date.
    pub crl: Files,
    /// Who this gateway says it is.
    #[schemars(extend("x-default" = "with a pre-shared key the address `local`, with a certificate its subject"))]
    pub local_id: Option<IdentityText>,
    /// Who the peer must prove to be. With certificates it must be written; `any` takes everyone whom the CA certified.
    #[schemars(extend("x-default" = "with a pre-shared key the address `peer`, or `any` where that is a network"))]
    pub remote_id: Option<PatternText>,
    /// Named set of proposals and lifetimes: `default`; `azure` and `aws` with what these two publish for their VPN
    /// gateways; `cnsa2` with ML-KEM-1024 beside P-384 (RFC 9370).
    #[schemars(extend("x-default" = "`default`"))]
    pub suite: Option<SuiteName>,
    /// Proposals for the IKE SA, best first, instead of the suite's: `cipher[-integrity][-prf]-group[-ke1_kem]`, several words
    /// of a kind allowed, such as `aes256gcm16-prfsha384-ecp384`.
    #[schemars(extend("x-default" = "those of the suite"))]
    pub proposals: Vec<String>,
    /// Proposals for ESP, best first, instead of the suite's: `cipher[-group][-esn][-noesn]`, such as
    /// `aes256gcm16-x25519-esn`. Neither `esn` nor `noesn` leaves it to the peer, with `esn` preferred.
    #[schemars(extend("x-default" = "those of the suite"))]
    pub esp_proposals: Vec<String>,
    /// Key exchange of each child's rekey (perfect forward secrecy), instead of the suite's; `off`: none is asked for. One
    /// that the peer asks for is taken in either case, if it is strong enough (RFC 8247); a rekey without any is refused
    /// where this, or the suite, names one. Not together with `esp_proposals`, which name it themselves.
    #[schemars(extend("x-default" = "as the suite says: none, but ecp384, ecp256 or modp2048 for `aws`"))]
    pub pfs: Option<KeyExchange>,
    /// When the tunnel is set up: `now` at once and again whenever it is down, `traffic` when there is a packet for it, `wait`
    /// when the peer or `penstock up` does it.
    #[schemars(extend("x-default" = "`now`; `wait` where `peer` is a network"))]
    pub start: Option<StartWhen>,
    /// Lifetime of the keys of ESP: 5m to 7d; with `lab: true` from 5s.
    #[schemars(extend("x-default" = "that of the suite: 1h, for `azure` 7h30m"))]
    pub lifetime: Option<Period>,
    /// New keys are negotiated this long before the end of the lifetime, or up to twice as long: chance decides, so that
    /// tunnels do not all do it at once.
    #[schemars(extend("x-default" = "a tenth of the lifetime"))]
    pub rekey_margin: Option<Period>,
    /// New keys are negotiated after this much in one direction: at least 1048576.
    #[schemars(extend("x-unit" = "octets"))]
    pub rekey_bytes: Option<u64>,
    /// New keys are negotiated after so many packets in one direction: at least 1000. Before the sequence numbers end they are in
    /// any case.
    #[schemars(extend("x-unit" = "packets"))]
    pub rekey_packets: Option<u64>,
    /// Lifetime of the IKE SA: 10m to 7d; with `lab: true` from 5s.
    #[schemars(extend("x-default" = "that of the suite: 4h, for `azure` and `aws` 8h"))]
    pub ike_lifetime: Option<Period>,
    /// The IKE SA is replaced this long before the end of its lifetime, or up to twice as long.
    #[schemars(extend("x-default" = "a tenth of `ike_lifetime`"))]
    pub ike_rekey_margin: Option<Period>,
    /// The peer is probed after it has been silent for so long, with traffic or without (dead peer detection): at least 1s.
    #[schemars(extend("x-default" = "`30s`"))]
    pub dpd: Option<PeriodOrOff>,
    /// Wraps ESP in UDP port 4500 also where no address translation is found on the way.
    #[schemars(extend("x-default" = "`false`"))]
    pub force_encapsulation: Option<bool>,
    /// Largest IP packet with an IKE message: what is larger is sent in fragments (RFC 7383) where the peer knows them: 576 to 9216, or `off`.
    #[schemars(extend("x-unit" = "octets", "x-default" = "`1280`"))]
    pub fragment_size: Option<FragmentSize>,
    /// One pair of ESP SAs for each core that moves packets (RFC 9611), where the peer wants them too.
    #[schemars(extend("x-default" = "`false`"))]
    pub per_worker: Option<bool>,
}

/// The named suites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SuiteName {
    /// AES-GCM, X25519 first.
    #[default]
    Default,
    /// Azure VPN Gateway.
    Azure,
    /// AWS Site-to-Site VPN.
    Aws,
    /// Commercial National Security Algorithm Suite 2.0.
    Cnsa2,
}

impl SuiteName {
    /// The word of the file.
    pub fn word(self) -> &'static str {
        match self {
            SuiteName::Default => "default",
            SuiteName::Azure => "azure",
            SuiteName::Aws => "aws",
            SuiteName::Cnsa2 => "cnsa2",
        }
    }
}

/// When a tunnel is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum StartWhen {
    /// At once.
    Now,
    /// With the first packet.
    Traffic,
    /// By the peer or the operator.
    Wait,
}
