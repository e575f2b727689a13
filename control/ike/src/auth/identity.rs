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
#[error(
    "`{0}` is no identity: write a host name, an address, user@host, `CN=..., O=...` (RFC 4514), keyid:HEX, or one of \
     fqdn:TEXT, email:TEXT and asn1dn:HEX"
)]
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
        let plain = |t: &String| !t.is_empty() && !t.chars().any(char::is_control);
        let text = || String::from_utf8(id.data.clone()).ok().filter(plain);
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
        // The type written out, for what would be read as another type without it.
        if let Some((kind, value)) = text.split_once(':') {
            let kind = match kind {
                "keyid" => Some((IdType::KeyId, octets(value))),
                "asn1dn" => Some((IdType::Dn, octets(value))),
                "fqdn" => Some((IdType::Fqdn, Some(value.into()))),
                "email" => Some((IdType::Email, Some(value.into()))),
                _ => None,
            };
            if let Some((kind, data)) = kind {
                let id = data.filter(|data| !data.is_empty()).map(|data| Identification { kind, data });
                return id.and_then(|id| Identity::from_wire(&id)).ok_or_else(error);
            }
        }
        if text.contains('=') {
            let name = Name::from_str(&without_spaces_between(text)).map_err(|_| error())?;
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

/// Octets of a text of hexadecimal digits.
fn octets(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = hex.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// A distinguished name without the spaces that people write between its parts. Escaped ones belong to a value (RFC 4514
/// section 2.4).
fn without_spaces_between(text: &str) -> String {
    let (mut out, mut escaped, mut kept) = (String::new(), false, 0);
    for c in text.chars() {
        match c {
            ' ' if !escaped && (out.is_empty() || out.ends_with(',') && kept < out.len()) => continue,
            ',' if !escaped => out.truncate(kept.max(out.trim_end_matches(' ').len())),
            _ => {}
        }
        out.push(c);
        // Up to here nothing may be taken away: an escaped space or comma.
        if escaped {
            kept = out.len();
        }
        escaped = c == '\\' && !escaped;
    }
    out.truncate(kept.max(out.trim_end_matches(' ').len()));
    out
}

impl fmt::Display for Identity {
    /// Prints a text that reads back as the same identity, with its type where the plain text would be read as another.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = match self {
            Identity::Address(a) => return write!(f, "{a}"),
            Identity::Fqdn(t) | Identity::Email(t) => t.clone(),
            Identity::Dn(der) => Name::from_der(der).map(|name| name.to_string()).unwrap_or_default(),
            Identity::KeyId(_) => String::new(),
        };
        match plain.parse::<IdentityPattern>() {
            Ok(IdentityPattern::Exact(same)) if same.matches(self) => return f.write_str(&plain),
            _ => {}
        }
        let (kind, octets) = match self {
            Identity::Address(_) => return Ok(()),
            Identity::Fqdn(t) => return write!(f, "fqdn:{t}"),
            Identity::Email(t) => return write!(f, "email:{t}"),
            Identity::Dn(der) => ("asn1dn", der),
            Identity::KeyId(octets) => ("keyid", octets),
        };
        write!(f, "{kind}:")?;
        octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
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
    use proptest::prelude::*;

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
        let escaped = id("CN=gw-b, O=Widgets\\, Inc., C=US");
        assert_eq!(escaped.to_string(), "CN=gw-b,O=Widgets\\, Inc.,C=US");
        assert!(id(&escaped.to_string()).matches(&escaped));
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

    /// A relative distinguished name as DER: types that have short names, and one that has none; text of three kinds.
    fn rdn() -> impl Strategy<Value = Vec<u8>> {
        const TYPES: [&str; 6] = ["550403", "55040a", "550406", "55040b", "2a864886f70d010901", "2a03"];
        let value = prop_oneof![
            "[ ,+\"\\\\<>;=#a-zA-Z0-9.\u{e9}\u{4e2d}-]{0,12}",
            "[ #]{1,3}[a-z,]{0,3}[ ]{0,2}",
            "\\PC{0,8}",
        ];
        let attribute =
            (prop::sample::select(&TYPES[..]), value, prop::sample::select(&[0x0cu8, 0x13, 0x16][..]));
        prop::collection::vec(attribute, 1..3).prop_map(|attributes| {
            let tlv = |tag: u8, value: &[u8]| [&[tag, value.len() as u8], value].concat();
            let mut set: Vec<Vec<u8>> = attributes
                .iter()
                .map(|(oid, text, tag)| {
                    let tag = if text.is_ascii() { *tag } else { 0x0c };
                    tlv(0x30, &[tlv(6, &octets(oid).unwrap()), tlv(tag, text.as_bytes())].concat())
                })
                .collect();
            set.sort();
            set.dedup();
            tlv(0x31, &set.concat())
        })
    }

    proptest! {
        /// What is printed is what an operator copies into the file: it must mean the same identity, whatever the peer sent.
        #[test]
        fn every_printed_identity_reads_back(kind in 0u8..4, text in "\\PC{1,20}", octets in prop::collection::vec(any::<u8>(), 1..20)) {
            let (kind, data) = match kind {
                0 => (IdType::Fqdn, text.into_bytes()),
                1 => (IdType::Email, text.into_bytes()),
                2 => (IdType::KeyId, octets),
                _ => (IdType::Ipv6, octets.into_iter().cycle().take(16).collect()),
            };
            if let Some(sent) = Identity::from_wire(&Identification { kind, data }) {
                let pattern = sent.to_string().parse::<IdentityPattern>();
                prop_assert!(matches!(&pattern, Ok(IdentityPattern::Exact(read)) if read.matches(&sent)), "{sent}: {pattern:?}");
            }
        }

        #[test]
        fn every_printed_name_reads_back(rdns in prop::collection::vec(rdn(), 1..4)) {
            let der = rdns.concat();
            prop_assume!(der.len() < 256 && rdns.iter().all(|rdn| rdn.len() < 128));
            let data = match der.len() {
                len if len < 128 => [&[0x30, len as u8][..], &der].concat(),
                len => [&[0x30, 0x81, len as u8][..], &der].concat(),
            };
            if let Some(sent) = Identity::from_wire(&Identification { kind: IdType::Dn, data }) {
                let read = sent.to_string().parse::<Identity>();
                prop_assert!(read.as_ref().is_ok_and(|read| read.matches(&sent)), "{sent}: {read:?}");
            }
        }
    }

    #[test]
    fn what_reads_as_another_type_is_printed_with_its_own() {
        let fqdn = |text: &str| Identity::Fqdn(text.into());
        for text in ["192.0.2.1", "any", "*.example.org", "CN=gw", "keyid:00", "a@b", "a b"] {
            assert_eq!(fqdn(text).to_string(), format!("fqdn:{text}"));
        }
        assert_eq!(fqdn("gw.example").to_string(), "gw.example");
    }
}
