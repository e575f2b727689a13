//! Captures: tcpdump on the wire writes a file; its ESP packets (RFC 4303, RFC 3948) leave as SPI, sequence number, IV.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};

use pcap_file::pcap::PcapReader;
use rustix::process::Signal;

use super::command::{self, inside};

/// tcpdump under way. It is stopped where it is dropped.
pub struct Capture {
    child: Child,
    said: BufReader<ChildStderr>,
    path: PathBuf,
}

/// What tcpdump counted when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Packets in the file.
    pub captured: u64,
    /// Packets that tcpdump was too slow for.
    pub missed: u64,
}

impl Capture {
    /// Captures the first 128 octets of the frames of `device` in `namespace` into `path`, once it returns; `filter` as tcpdump
    /// has it. That is all that [`see`] looks at, and keeps up with TCP at full speed beside two polling workers.
    pub fn start(namespace: &str, device: &str, path: &Path, filter: &str) -> Capture {
        Capture::octets("128", namespace, device, path, filter)
    }

    /// As [`Capture::start`], of whole frames.
    pub fn whole(namespace: &str, device: &str, path: &Path, filter: &str) -> Capture {
        Capture::octets("0", namespace, device, path, filter)
    }

    fn octets(of_each: &str, namespace: &str, device: &str, path: &Path, filter: &str) -> Capture {
        let mut child = inside(namespace, "tcpdump")
            .args(["-i", device, "-n", "-s", of_each, "-B", "131072", "-Z", "root", "-w"])
            .arg(path)
            .args(filter.split_whitespace())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("tcpdump is installed");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(said.read_line(&mut line).expect("text") > 0, "tcpdump ended: {:?}", child.wait());
        }
        Capture { child, said, path: path.to_path_buf() }
    }

    /// Ends the capture. Returns the file and what tcpdump counted.
    pub fn stop(mut self) -> (PathBuf, Counts) {
        // The kernel hands its last packets over within a second.
        std::thread::sleep(std::time::Duration::from_millis(1200));
        assert!(command::end(&mut self.child, Signal::INT), "tcpdump did not end");
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("text");
        let figure = |what: &str| -> u64 {
            let line = said.lines().find(|line| line.contains(what));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("tcpdump said: {said}"))
        };
        (self.path.clone(), Counts { captured: figure("captured"), missed: figure("dropped by kernel") })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            command::end(&mut self.child, Signal::KILL);
        }
    }
}

/// One ESP packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspSeen {
    /// Outer source.
    pub source: [u8; 4],
    /// SPI.
    pub spi: u32,
    /// Low half of the sequence number.
    pub sequence: u32,
    /// Explicit IV.
    pub iv: u64,
    /// In UDP.
    pub in_udp: bool,
}

/// The Ethernet frames of a capture file, as far as they were kept.
pub fn frames(path: &Path) -> Vec<Vec<u8>> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = PcapReader::new(BufReader::new(file)).expect("a capture file");
    let mut frames = vec![];
    // As it stands: the crate takes a frame of which only the head was kept for an error.
    while let Some(packet) = reader.next_raw_packet() {
        frames.push(packet.unwrap_or_else(|error| panic!("{}: {error}", path.display())).data.into_owned());
    }
    frames
}

/// What an Ethernet frame of the wire carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// ESP, plain or in UDP 4500.
    Esp(EspSeen),
    /// NAT keepalive (RFC 3948 section 2.3).
    Keepalive,
    /// IKE, by the octets of its UDP payload, on port 500 or behind its marker on port 4500.
    Ike(usize),
    /// ARP.
    Arp,
    /// ICMP between the gateways, by type.
    Icmp(u8),
    /// Anything else.
    Other(Vec<u8>),
}

/// Reads one frame.
pub fn see(frame: &[u8]) -> Seen {
    let other = || Seen::Other(frame.to_vec());
    let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let esp = |at: usize, in_udp: bool| {
        let (spi, sequence) = (word(at)?, word(at + 4)?);
        let iv = u64::from(word(at + 8)?) << 32 | u64::from(word(at + 12)?);
        Some(Seen::Esp(EspSeen { source: frame[26..30].try_into().ok()?, spi, sequence, iv, in_udp }))
    };
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x06, ..] => Seen::Arp,
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, 0x45, ..] if frame.len() >= 42 => match frame[23] {
            50 => esp(34, false).unwrap_or_else(other),
            17 if frame[36..38] == [0x11, 0x94] && frame[42..] == [0xff] => Seen::Keepalive,
            17 if frame[36..38] == [0x11, 0x94] && frame.get(42..46) != Some(&[0; 4]) => {
                esp(42, true).unwrap_or_else(other)
            }
            17 if [[0x11, 0x94], [0x01, 0xf4]].contains(&[frame[36], frame[37]]) => {
                Seen::Ike(usize::from(u16::from_be_bytes([frame[38], frame[39]])).saturating_sub(8))
            }
            1 => Seen::Icmp(frame[34]),
            _ => other(),
        },
        _ => other(),
    }
}

/// The ESP packets of a capture file.
pub fn esp_packets(path: &Path) -> Vec<EspSeen> {
    let seen = frames(path).into_iter().map(|frame| see(&frame));
    seen.filter_map(|seen| if let Seen::Esp(esp) = seen { Some(esp) } else { None }).collect()
}

/// Pairs of SPI and IV that stand on more than one packet: a key was used twice with a nonce.
pub fn repeated_nonces(packets: &[EspSeen]) -> Vec<([u8; 4], u32, u64)> {
    let mut times: HashMap<([u8; 4], u32, u64), u32> = HashMap::new();
    packets.iter().for_each(|esp| *times.entry((esp.source, esp.spi, esp.iv)).or_default() += 1);
    times.into_iter().filter(|(_, times)| *times > 1).map(|(nonce, _)| nonce).collect()
}
