//! Identities: what an operator writes, what the ID payload carries, what a certificate holds. Enters: text or an ID
//! payload. Leaves: a typed identity that can be compared. RFC 7296 section 3.5, RFC 4945 section 3.1.

use crate::message::{IdType, Identification};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use x509_cert::der::{Decode, Encode};
use x509_cert::name::Name;

/// Who an end says it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// An address.
    Address(IpAddr),
    /// A host name, compared without case.
    Fqdn(String),
    /// An e-mail address, its domain compared without case.
    Email(String),
    /// A distinguished name, DER.
    Dn(Vec<u8>),
    /// Opaque bytes.
    KeyId(Vec<u8>),
}

/// Text that is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no identity: write a host name, an address, user@host, `CN=..., O=...`, or keyid:HEX")]
pub struct IdentityError(pub String);

/// Which identities are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPattern {
    /// Every identity that proves itself (with a certificate of a configured CA).
    Any,
    /// Exactly this one.
    Exact(Identity),
    /// Host names below this domain.
    Below(String),
}

impl Identity {
    /// From an ID payload; None for types that are not supported or malformed content.
    pub fn from_wire(id: &Identification) -> Option<Identity> {
        let text = || String::from_utf8(id.data.clone()).ok().filter(|t| t.chars().all(|c| !c.is_control()));
        Some(match id.kind {
            IdType::Ipv4 => Identity::Address(<[u8; 4]>::try_from(&id.data[..]).ok()?.into()),
            IdType::Ipv6 => Identity::Address(<[u8; 16]>::try_from(&id.data[..]).ok()?.into()),
            IdType::Fqdn => Identity::Fqdn(text()?),
            IdType::Email => Identity::Email(text()?),
            IdType::Dn => {
                Name::from_der(&id.data).ok()?;
                Identity::Dn(id.data.clone())
            }
            IdType::KeyId => Identity::KeyId(id.data.clone()),
            IdType::Other(_) => return None,
        })
    }

    /// The ID payload's content.
    pub fn to_wire(&self) -> Identification {
        let (kind, data) = match self {
            Identity::Address(IpAddr::V4(a)) => (IdType::Ipv4, a.octets().to_vec()),
            Identity::Address(IpAddr::V6(a)) => (IdType::Ipv6, a.octets().to_vec()),
            Identity::Fqdn(t) => (IdType::Fqdn, t.clone().into_bytes()),
            Identity::Email(t) => (IdType::Email, t.clone().into_bytes()),
            Identity::Dn(der) => (IdType::Dn, der.clone()),
            Identity::KeyId(b) => (IdType::KeyId, b.clone()),
        };
        Identification { kind, data }
    }

    /// Whether both name the same. Distinguished names are compared attribute by attribute, in either order, because
    /// people write them in both.
    pub fn matches(&self, other: &Identity) -> bool {
        match (self, other) {
            (Identity::Fqdn(a), Identity::Fqdn(b)) => a.eq_ignore_ascii_case(b),
            (Identity::Email(a), Identity::Email(b)) => same_email(a, b),
            (Identity::Dn(a), Identity::Dn(b)) => a == b || same_dn(a, b),
            (a, b) => a == b,
        }
    }
}

fn same_email(a: &str, b: &str) -> bool {
    match (a.rsplit_once('@'), b.rsplit_once('@')) {
        (Some((u, d)), Some((v, e))) => u == v && d.eq_ignore_ascii_case(e),
        _ => a == b,
    }
}

/// One text per relative name, in the encoded order.
fn dn_parts(der: &[u8]) -> Option<Vec<String>> {
    let name = Name::from_der(der).ok()?;
    Some(name.iter_rdn().map(|rdn| rdn.to_string().to_lowercase()).collect())
}

fn same_dn(a: &[u8], b: &[u8]) -> bool {
    match (dn_parts(a), dn_parts(b)) {
        (Some(a), Some(b)) => a == b || a.iter().eq(b.iter().rev()),
        _ => false,
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Identity, IdentityError> {
        let error = || IdentityError(text.to_string());
        if let Ok(address) = text.parse() {
            return Ok(Identity::Address(address));
        }
        if let Some(hex) = text.strip_prefix("keyid:") {
            let digits: Vec<char> = hex.chars().collect();
            let byte =
                |c: &[char]| u8::from_str_radix(&c.iter().collect::<String>(), 16).map_err(|_| error());
            return match digits.len() {
                n if n > 0 && n % 2 == 0 => {
                    digits.chunks(2).map(byte).collect::<Result<_, _>>().map(Identity::KeyId)
                }
                _ => Err(error()),
            };
        }
        if text.contains('=') {
            let compact = text.split(',').map(str::trim).collect::<Vec<_>>().join(",");
            let name = Name::from_str(&compact).map_err(|_| error())?;
            return Ok(Identity::Dn(name.to_der().map_err(|_| error())?));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        match text.split_once('@') {
            Some((user, host)) if !user.is_empty() && !host.is_empty() => {
                Ok(Identity::Email(text.to_string()))
            }
            Some(("", host)) if !host.is_empty() && host.chars().all(plain) => {
                Ok(Identity::Fqdn(host.to_string()))
            }
            None if !text.is_empty() && text.chars().all(plain) => Ok(Identity::Fqdn(text.to_string())),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Address(a) => write!(f, "{a}"),
            Identity::Fqdn(t) | Identity::Email(t) => f.write_str(t),
            Identity::Dn(der) => match Name::from_der(der) {
                Ok(name) => write!(f, "{name}"),
                Err(_) => f.write_str("malformed DN"),
            },
            Identity::KeyId(b) => {
                f.write_str("keyid:")?;
                b.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

impl IdentityPattern {
    /// Whether the pattern accepts the identity.
    pub fn accepts(&self, id: &Identity) -> bool {
        match (self, id) {
            (IdentityPattern::Any, _) => true,
            (IdentityPattern::Exact(e), id) => e.matches(id),
            (IdentityPattern::Below(domain), Identity::Fqdn(name)) => {
                let (name, domain) = (name.to_ascii_lowercase(), domain.to_ascii_lowercase());
                name.strip_suffix(&domain).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
            }
            (IdentityPattern::Below(_), _) => false,
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<IdentityPattern, IdentityError> {
        match text.strip_prefix("*.") {
            _ if text == "any" || text == "%any" => Ok(IdentityPattern::Any),
            Some(domain) if matches!(domain.parse(), Ok(Identity::Fqdn(_))) => {
                Ok(IdentityPattern::Below(domain.to_string()))
            }
            _ => text.parse().map(IdentityPattern::Exact),
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityPattern::Any => f.write_str("any"),
            IdentityPattern::Exact(id) => write!(f, "{id}"),
            IdentityPattern::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(t: &str) -> Identity {
        t.parse().unwrap()
    }

    #[test]
    fn text_wire_and_back() {
        for t in
            ["gw.example", "192.0.2.1", "2001:db8::1", "admin@example.org", "CN=gw,O=lab,C=XX", "keyid:00ff"]
        {
            assert_eq!(Identity::from_wire(&id(t).to_wire()), Some(id(t)), "{t}");
            assert_eq!(id(t).to_string(), t);
        }
        for bad in ["", "a b", "@", "keyid:0", "keyid:zz", "x@", "a=b"] {
            assert!(Identity::from_str(bad).is_err(), "{bad}");
        }
        let control = Identification { kind: IdType::Fqdn, data: b"a\nb".to_vec() };
        assert_eq!(Identity::from_wire(&control), None);
    }

    #[test]
    fn comparison() {
        assert!(id("GW.example").matches(&id("gw.Example")));
        assert!(!id("gw.example").matches(&id("gw2.example")));
        assert!(id("me@EXAMPLE.org").matches(&id("me@example.org")));
        assert!(!id("Me@example.org").matches(&id("me@example.org")));
        assert!(id("C=XX, O=lab, CN=gw").matches(&id("CN=gw,O=lab,C=XX")));
        assert!(!id("C=XX, O=lab, CN=gw").matches(&id("CN=gx,O=lab,C=XX")));
        let p = |t: &str| t.parse::<IdentityPattern>().unwrap();
        assert!(p("*.example.org").accepts(&id("gw.example.org")));
        assert!(
            !p("*.example.org").accepts(&id("example.org"))
                && !p("*.example.org").accepts(&id("badexample.org"))
        );
        assert!(p("any").accepts(&id("1.2.3.4")) && !p("1.2.3.5").accepts(&id("1.2.3.4")));
    }
}
