//! Other people's tools on ESP: tshark, scapy and Python's `cryptography` open captures, scapy makes packets to open.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::command::succeed;

/// How a direction of a tunnel is sealed.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// Hexadecimal AES key and 4 octets of salt.
    pub key: String,
    /// SPI.
    pub spi: u32,
    /// Extended sequence numbers.
    pub esn: bool,
    /// In UDP 4500.
    pub udp: bool,
}

impl Sealing {
    fn mode(&self) -> &'static str {
        match (self.udp, self.esn) {
            (false, false) => "esp",
            (false, true) => "esn",
            (true, false) => "udp",
            (true, true) => "udp-esn",
        }
    }

    fn helper(&self, command: &str) -> Command {
        // Debian's Python, which has Debian's scapy.
        let mut python = Command::new("/usr/bin/python3");
        python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/esp.py"));
        python.args([command, &self.key, &format!("{:#x}", self.spi), self.mode()]);
        python
    }

    /// What scapy and an independent AES-GCM find in the capture, each packet checked for header, padding and tag: inner
    /// packets in order.
    pub fn open_by_scapy(&self, capture: &Path) -> Vec<Vec<u8>> {
        let said = succeed(self.helper("open").arg(capture));
        let opened: Vec<Value> = serde_json::from_str(&said).expect("the helper prints JSON");
        opened.iter().map(|packet| octets(packet["inner"].as_str().expect("hexadecimal digits"))).collect()
    }

    /// Makes ESP packets from 192.0.2.1 to 192.0.2.2 with inner packets of each size from 20 octets to `largest`,
    /// from 10.1.0.2 to 10.2.0.2. Returns the capture file with the frames, and the inner packets.
    pub fn make_by_scapy(
        &self,
        folder: &Path,
        source: &str,
        destination: &str,
        largest: usize,
    ) -> (PathBuf, Vec<Vec<u8>>) {
        let (file, inner) = (folder.join("scapy.pcap"), folder.join("scapy.json"));
        succeed(
            self.helper("make").args([source, destination]).arg(&file).arg(&inner).arg(largest.to_string()),
        );
        let text = std::fs::read_to_string(inner).expect("the helper wrote it");
        let inner: Vec<String> = serde_json::from_str(&text).expect("a list of hexadecimal digits");
        (file, inner.iter().map(|digits| octets(digits)).collect())
    }

    /// What tshark says of the packets of this SA from `source` to `destination`.
    pub fn open_by_tshark(&self, capture: &Path, source: &str, destination: &str) -> Vec<Dissected> {
        let spi = format!("0x{:08x}", self.spi);
        let association = format!(
            "uat:esp_sa:\"IPv4\",\"{source}\",\"{destination}\",\"{spi}\",\"AES-GCM with 16 octet ICV [RFC4106]\",\
             \"0x{}\",\"NULL\",\"\"",
            self.key
        );
        let mut tshark = Command::new("tshark");
        tshark.args([
            "-o",
            "esp.enable_encryption_decode:TRUE",
            "-o",
            "esp.enable_authentication_check:TRUE",
        ]);
        tshark
            .args(["-o", &association, "-Y", &format!("esp.spi == {spi}"), "-T", "fields", "-r"])
            .arg(capture);
        for field in ["esp.icv_good", "esp.protocol", "ip.src", "ip.dst", "ip.len", "ip.ttl"] {
            tshark.args(["-e", field]);
        }
        succeed(&mut tshark).lines().map(Dissected::read).collect()
    }
}

/// tshark's word on one ESP packet. Empty where it could not decrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dissected {
    /// The tag is right. tshark calls it wrong wherever sequence numbers are extended.
    pub tag_is_right: bool,
    /// Next header 4: an IPv4 packet.
    pub is_ipv4: bool,
    /// Source of the inner packet.
    pub source: String,
    /// Destination of the inner packet.
    pub destination: String,
    /// Total length of the inner packet.
    pub length: String,
    /// TTL of the inner packet.
    pub ttl: String,
}

impl Dissected {
    fn read(line: &str) -> Dissected {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap_or_default();
        // Fields of several layers stand in the order of the layers. Random payload may look like another protocol to tshark,
        // so what counts is the first ESP header, and the second IP header, which is the inner one.
        let layer = |field: &str, number| field.split(',').nth(number).unwrap_or_default().to_owned();
        let inner = |field: &str| layer(field, 1);
        Dissected {
            tag_is_right: ["1", "True"].contains(&layer(next(), 0).as_str()),
            is_ipv4: layer(next(), 0) == "0x04",
            source: inner(next()),
            destination: inner(next()),
            length: inner(next()),
            ttl: inner(next()),
        }
    }
}

/// Hexadecimal digits as octets.
pub fn octets(digits: &str) -> Vec<u8> {
    let octet = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits");
    (0..digits.len()).step_by(2).map(octet).collect()
}
