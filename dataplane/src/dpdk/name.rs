//! Device strings: text from the configuration enters, a checked [`DeviceName`] leaves. No RFC rules this file.

use std::ffi::{CStr, CString};
use std::fmt;
use std::str::FromStr;

use super::Error;

/// A device as DPDK names it: a PCI address (`0000:3b:00.0`, the domain may be left out) or a virtual device
/// (`net_tap0`), either followed by the driver's arguments (`net_tap0,iface=wan`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DeviceName {
    whole: CString,
    name: CString,
    pci: bool,
}

impl DeviceName {
    /// Name and arguments, as written; a PCI address has its domain.
    pub fn as_str(&self) -> &str {
        self.whole.to_str().unwrap_or_default()
    }

    /// The name without arguments.
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }

    /// Whether this is a device on the PCI bus.
    pub fn is_pci(&self) -> bool {
        self.pci
    }

    pub(super) fn whole_c(&self) -> &CStr {
        &self.whole
    }

    pub(super) fn name_c(&self) -> &CStr {
        &self.name
    }
}

/// `bus:device.function` with or without domain in front, all hexadecimal; the domain is added where it lacks.
fn pci_address(name: &str) -> Option<String> {
    let hex = |text: &str, least: usize, most: usize| {
        (least..=most).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let (rest, function) = name.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
    let is_address = hex(domain, 4, 8) && hex(bus, 2, 2) && hex(device, 2, 2) && hex(function, 1, 1);
    is_address.then(|| format!("{domain}:{bus}:{device}.{function}").to_lowercase())
}

impl FromStr for DeviceName {
    type Err = Error;

    /// # Errors
    /// [`Error::Name`] where the text is neither a PCI address nor a virtual device's name.
    fn from_str(text: &str) -> Result<DeviceName, Error> {
        let (name, args) = text.split_once(',').map_or((text, None), |(name, args)| (name, Some(args)));
        let address = pci_address(name);
        let pci = address.is_some();
        let name = address.unwrap_or_else(|| name.into());
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_vdev = name.starts_with(|first: char| first.is_ascii_alphabetic()) && name.bytes().all(word);
        let args_ok = args.is_none_or(|args| args.bytes().all(|byte| byte.is_ascii_graphic()));
        let whole = args.map_or_else(|| name.clone(), |args| format!("{name},{args}"));
        match (CString::new(whole), CString::new(name)) {
            (Ok(whole), Ok(name)) if (pci || is_vdev) && args_ok => Ok(DeviceName { whole, name, pci }),
            _ => Err(Error::Name { text: text.into() }),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceName({})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pci_addresses_and_virtual_devices() {
        for (text, whole, name, pci) in [
            ("0000:3b:00.0", "0000:3b:00.0", "0000:3b:00.0", true),
            ("3B:00.1", "0000:3b:00.1", "0000:3b:00.1", true),
            ("10000:3b:1f.7,rx_vec=1", "10000:3b:1f.7,rx_vec=1", "10000:3b:1f.7", true),
            ("net_tap0,iface=wan", "net_tap0,iface=wan", "net_tap0", false),
            (
                "net_pcap1,rx_pcap=/tmp/a.pcap,tx_pcap=b",
                "net_pcap1,rx_pcap=/tmp/a.pcap,tx_pcap=b",
                "net_pcap1",
                false,
            ),
            ("net_null-x", "net_null-x", "net_null-x", false),
        ] {
            let device: DeviceName = text.parse().unwrap();
            assert_eq!((device.as_str(), device.name(), device.is_pci()), (whole, name, pci), "{text}");
        }
    }

    #[test]
    fn refuses_other_text_and_says_what_is_expected() {
        for text in [
            "",
            ",",
            "eth 0",
            "3b:00",
            "0000:3b:00.g",
            "-m",
            "net_tap0,iface=a b",
            "net_tap0\0",
            "0,x=1",
            "größe",
        ] {
            let error = text.parse::<DeviceName>().unwrap_err().to_string();
            assert!(
                error.contains("PCI address") && error.contains("net_tap0,iface=wan"),
                "{text:?}: {error}"
            );
        }
    }
}
