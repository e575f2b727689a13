//! The forms of single values in `ike` sections: text of the file enters, times, identities, lists of files leave, each
//! with a message that shows the expected form.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use penstock_ike::auth::{Identity, IdentityPattern};
use penstock_ike::crypto::Method;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::ser::Serializer;

use super::scalar::{shown, shown_as_field, text_form};

const PERIOD: &str = "a time such as 500ms, 30s, 45m, 8h or 1d";

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);
text_form!(Period, PERIOD);
shown!(Period);

/// Units, the longest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (unit, size) =
            UNITS.into_iter().find(|(_, size)| millis.is_multiple_of(u128::from(*size))).unwrap_or(("ms", 1));
        match millis {
            0 => f.write_str("0s"),
            _ => write!(f, "{}{unit}", millis / u128::from(size)),
        }
    }
}

impl FromStr for Period {
    type Err = String;
    /// Numbers with units, the longest first, such as `1h30m`; a number alone is seconds, as other gateways have it.
    fn from_str(text: &str) -> Result<Period, String> {
        let wrong = || format!("`{text}` is not a time, expected {PERIOD}");
        if let Ok(seconds) = text.parse::<u32>() {
            return Ok(Period(Duration::from_secs(seconds.into())));
        }
        let (mut rest, mut millis, mut before) = (text, 0_u64, u64::MAX);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let size = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            let number = u64::from(number.parse::<u32>().map_err(|_| wrong())?);
            if size >= before {
                return Err(wrong());
            }
            (millis, before, rest) = (millis.saturating_add(number * size), size, tail);
        }
        if before == u64::MAX { Err(wrong()) } else { Ok(Period(Duration::from_millis(millis))) }
    }
}

/// A span of time, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodOrOff(pub Option<Duration>);
text_form!(PeriodOrOff, "off or a time such as 30s");
shown!(PeriodOrOff);

impl fmt::Display for PeriodOrOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(period) => Period(period).fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for PeriodOrOff {
    type Err = String;
    fn from_str(text: &str) -> Result<PeriodOrOff, String> {
        match text {
            "off" => Ok(PeriodOrOff(None)),
            _ => match text.parse() {
                Ok(Period(period)) => Ok(PeriodOrOff(Some(period))),
                Err(_) => Err(format!("`{text}`, expected off or a time such as 30s")),
            },
        }
    }
}

/// Octets of the largest IP packet, or any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentSize(pub Option<u16>);
text_form!(FragmentSize, "off or a number from 576 to 9216");
shown!(FragmentSize);

impl fmt::Display for FragmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(octets) => octets.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for FragmentSize {
    type Err = String;
    fn from_str(text: &str) -> Result<FragmentSize, String> {
        match text.parse::<u16>() {
            Ok(octets) if (576..=9216).contains(&octets) => Ok(FragmentSize(Some(octets))),
            Err(_) if text == "off" => Ok(FragmentSize(None)),
            _ => Err(format!("`{text}`, expected off or a number of octets from 576 to 9216")),
        }
    }
}

/// The key exchange of a child's rekey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyExchange(pub Option<Method>);
text_form!(KeyExchange, "off, x25519, ecp256, ecp384 or modp2048");
shown!(KeyExchange);

impl fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("off", Method::name))
    }
}

impl FromStr for KeyExchange {
    type Err = String;
    fn from_str(text: &str) -> Result<KeyExchange, String> {
        let known = [Method::X25519, Method::P256, Method::P384, Method::Modp2048];
        match known.into_iter().find(|method| method.name() == text) {
            None if text != "off" => {
                Err(format!("`{text}`, expected off, x25519, ecp256, ecp384 or modp2048"))
            }
            found => Ok(KeyExchange(found)),
        }
    }
}

/// Who one end says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityText(pub Identity);
text_form!(
    IdentityText,
    "a host name, an address, an e-mail address, a distinguished name such as `CN=gw, O=Example` (RFC 4514), or `keyid:` with hexadecimal digits; with `fqdn:`, `email:` or `asn1dn:` (hexadecimal digits) before it what would be read as another type"
);
shown_as_field!(IdentityText);

impl FromStr for IdentityText {
    type Err = String;
    fn from_str(text: &str) -> Result<IdentityText, String> {
        text.parse().map(IdentityText).map_err(|_| not_an_identity(text))
    }
}

/// Who the other end may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternText(pub IdentityPattern);
text_form!(PatternText, "an identity as in `local_id`, `*.DOMAIN` for all host names below it, or `any`");
shown_as_field!(PatternText);

impl FromStr for PatternText {
    type Err = String;
    fn from_str(text: &str) -> Result<PatternText, String> {
        text.parse().map(PatternText).map_err(|_| not_an_identity(text))
    }
}

fn not_an_identity(text: &str) -> String {
    format!(
        "`{text}` is no identity, expected a host name, an address, user@host, a name such as `CN=gw, O=Example`, or keyid:HEX"
    )
}

/// One file or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(pub Vec<PathBuf>);

impl serde::Serialize for Files {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Files, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Files;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file or a list of files")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Files, E> {
                Ok(Files(vec![text.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Files, A::Error> {
                let mut files = Vec::new();
                while let Some(file) = access.next_element::<PathBuf>()? {
                    files.push(file);
                }
                Ok(Files(files))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

impl schemars::JsonSchema for Files {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Files".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "x-form": "a path or a list of paths" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, seconds, shown) in [
            ("30s", 30, "30s"),
            ("3600", 3600, "1h"),
            ("1h30m", 5400, "90m"),
            ("1d", 86_400, "1d"),
            ("90s", 90, "90s"),
            ("0", 0, "0s"),
        ] {
            let period: Period = text.parse().expect(text);
            assert_eq!((period.0.as_secs(), period.to_string().as_str()), (seconds, shown));
        }
        assert_eq!("500ms".parse(), Ok(Period(Duration::from_millis(500))));
        for wrong in ["", "h", "5 m", "-1s", "1.5h", "30m1h", "1h1h", "1w", "99999999999s", "1h30"] {
            let message = format!("`{wrong}` is not a time, expected {PERIOD}");
            assert_eq!(wrong.parse::<Period>(), Err(message));
        }
    }

    #[test]
    fn off_is_a_value() {
        assert_eq!("off".parse(), Ok(PeriodOrOff(None)));
        assert_eq!("10s".parse(), Ok(PeriodOrOff(Some(Duration::from_secs(10)))));
        assert_eq!("off".parse(), Ok(FragmentSize(None)));
        assert!("575".parse::<FragmentSize>().is_err() && "9217".parse::<FragmentSize>().is_err());
        assert_eq!("ecp384".parse(), Ok(KeyExchange(Some(Method::P384))));
        assert!("modp1024".parse::<KeyExchange>().is_err());
    }
}
