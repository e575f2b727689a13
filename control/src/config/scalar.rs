//! The forms of single values: text of the file enters, addresses, prefixes, keys and names leave, each with a message
//! that shows the expected form. IPv6 is recognised so that it can be refused by name.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use zeroize::Zeroizing;

/// Reads a type by its `FromStr`, writes it by its `Display`, and says in the schema what it looks like.
macro_rules! text_form {
    ($type:ident, $form:expr) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($form)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "x-form": $form })
            }
        }
    };
}

/// Writes a type as its only field is written.
macro_rules! shown_as_field {
    ($type:ident) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
        shown!($type);
    };
}

macro_rules! shown {
    ($type:ident) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

pub(super) use {shown, shown_as_field, text_form};

const ADDRESS: &str = "an IPv4 address such as 192.0.2.1";

/// One IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub Ipv4Addr);
text_form!(Address, ADDRESS);
shown_as_field!(Address);

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Address, String> {
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => Ok(Address(address)),
            Ok(IpAddr::V6(_)) => Err(no_ipv6(text, ADDRESS)),
            Err(_) => Err(format!("`{text}` is not an address, expected {ADDRESS}")),
        }
    }
}

const PEER: &str =
    "an IPv4 address such as 192.0.2.1, or with ike also a network such as 203.0.113.0/24, or any";

/// Where the other gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// At this address.
    Address(Ipv4Addr),
    /// Somewhere in this network.
    Network(Ipv4Net),
}
text_form!(Peer, PEER);
shown!(Peer);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Address(address) => address.fmt(f),
            Peer::Network(net) if net.prefix_len() == 0 => f.write_str("any"),
            Peer::Network(net) => net.fmt(f),
        }
    }
}

impl FromStr for Peer {
    type Err = String;
    fn from_str(text: &str) -> Result<Peer, String> {
        if text == "any" || text == "%any" {
            return Ok(Peer::Network(Ipv4Net::default()));
        }
        match (text.parse::<IpAddr>(), text.contains('/')) {
            (Ok(IpAddr::V4(address)), _) => Ok(Peer::Address(address)),
            (Ok(IpAddr::V6(_)), _) => Err(no_ipv6(text, PEER)),
            (Err(_), true) => match text.parse::<Prefix>()?.0 {
                net if net.prefix_len() == 32 => Ok(Peer::Address(net.addr())),
                net => Ok(Peer::Network(net)),
            },
            (Err(_), false) => Err(format!("`{text}` is not an address, expected {PEER}")),
        }
    }
}

const NETWORK: &str = "a prefix such as 10.1.0.0/16 or 2001:db8::/32";

/// A network of either family: no bit set behind the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);
text_form!(Network, NETWORK);
shown_as_field!(Network);

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Network, String> {
        let host = text.parse::<IpAddr>().map(IpNet::from);
        let net: IpNet = text.parse().or(host).map_err(|_| format!("`{text}`, expected {NETWORK}"))?;
        if net.addr() != net.network() {
            return Err(format!("`{text}` has bits set behind its prefix length: write {}", net.trunc()));
        }
        Ok(Network(net))
    }
}

const PREFIX: &str = "an IPv4 prefix such as 10.1.0.0/16";

/// A network: no bit set behind the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(pub Ipv4Net);
text_form!(Prefix, PREFIX);
shown_as_field!(Prefix);

impl FromStr for Prefix {
    type Err = String;
    fn from_str(text: &str) -> Result<Prefix, String> {
        let net = net_of(text, PREFIX)?;
        if net.addr() != net.network() {
            return Err(format!("`{text}` has bits set behind its prefix length: write {}", net.trunc()));
        }
        Ok(Prefix(net))
    }
}

const INTERFACE: &str = "an IPv4 address with its prefix length such as 192.0.2.1/24";

/// An address of the gateway with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress(pub Ipv4Net);
text_form!(InterfaceAddress, INTERFACE);
shown_as_field!(InterfaceAddress);

impl InterfaceAddress {
    /// The address itself.
    pub fn address(&self) -> Ipv4Addr {
        self.0.addr()
    }

    /// The network that is on link.
    pub fn network(&self) -> Ipv4Net {
        self.0.trunc()
    }
}

impl FromStr for InterfaceAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<InterfaceAddress, String> {
        net_of(text, INTERFACE).map(InterfaceAddress)
    }
}

fn net_of(text: &str, form: &str) -> Result<Ipv4Net, String> {
    if let Ok(net) = text.parse::<Ipv4Net>() {
        return Ok(net);
    }
    if text.parse::<Ipv6Net>().is_ok() || text.parse::<Ipv6Addr>().is_ok() {
        return Err(no_ipv6(text, form));
    }
    if text.parse::<Ipv4Addr>().is_ok() {
        return Err(format!("`{text}` lacks its prefix length, expected {form}"));
    }
    Err(format!("`{text}` is not an address with a prefix length, expected {form}"))
}

fn no_ipv6(text: &str, form: &str) -> String {
    format!("`{text}` is IPv6, which this release does not carry yet: use {form}")
}

/// Key material written in the file or read from one: wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<Vec<u8>>);
text_form!(KeyText, "hexadecimal digits: the key, then the 4 octets of salt");

impl KeyText {
    /// Key and salt (RFC 4106 section 8.1).
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyText({} octets)", self.0.len())
    }
}

impl FromStr for KeyText {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<KeyText, &'static str> {
        let digits = text.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits).as_bytes();
        if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(
                "not a key, expected an even number of hexadecimal digits: the key, then the 4 octets of salt",
            );
        }
        let nibble = |digit: u8| (digit as char).to_digit(16).map_or(0, |value| value as u8);
        let octets = digits.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect();
        Ok(KeyText(Zeroizing::new(octets)))
    }
}

/// Reads named things and refuses a name that stands twice, where YAML would let the last one win.
pub(super) fn unique<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    struct Named<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Named<T> {
        type Value = BTreeMap<String, T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("names with keys below each")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<BTreeMap<String, T>, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((name, value)) = access.next_entry::<String, T>()? {
                if all.contains_key(&name) {
                    return Err(A::Error::custom(format!("duplicate name `{name}`: give each its own")));
                }
                all.insert(name, value);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_map(Named(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_never_shown() {
        let key: KeyText = "0x00ff10".parse().expect("hex");
        assert_eq!(key.octets(), [0, 0xff, 0x10]);
        assert_eq!(format!("{key:?}"), "KeyText(3 octets)");
        for wrong in ["", "0x", "abc", "0g", "é0"] {
            assert!(wrong.parse::<KeyText>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn forms_are_told_apart() {
        assert!("10.1.0.0/16".parse::<Prefix>().is_ok());
        assert_eq!(
            "10.1.0.1/16".parse::<Prefix>(),
            Err("`10.1.0.1/16` has bits set behind its prefix length: write 10.1.0.0/16".into())
        );
        let gateway: InterfaceAddress = "192.0.2.1/24".parse().expect("address");
        assert_eq!(gateway.network().to_string(), "192.0.2.0/24");
        assert!("2001:db8::/32".parse::<Prefix>().is_err_and(|message| message.contains("IPv6")));
    }
}
