//! Independent eyes on files: what Penstock sealed, tshark, scapy and a plain AES-GCM open octet for octet; what scapy
//! sealed, Penstock opens octet for octet (RFC 4303, 4106, 3948). Inner packets of every size from 20 to 1500 octets, ESN
//! or not, in UDP or not, both key lengths. One worker on ports in memory: no root, no network.

use std::path::Path;
use std::process::{Command, Stdio};

use penstock_dataplane::port::memory::{MemoryPool, MemoryPort};
use penstock_dataplane::port::{Burst, Port};
use penstock_suite::command::succeed;
use penstock_suite::decrypt::{Sealing, octets};
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::{Note, TunnelSpec, Verdict};

/// Every inner size.
const SIZES: std::ops::RangeInclusive<usize> = 20..=1500;
/// As many as go through at once.
const BATCH: usize = 256;
/// A protocol that nobody dissects (RFC 3692).
const EXPERIMENT: u8 = 253;

/// Whether the tools are there; says what is missed where they are not.
fn tools() -> bool {
    let runs = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let scapy = runs("/usr/bin/python3", &["-c", "import cryptography, scapy.layers.ipsec"]);
    let tshark = runs("tshark", &["--version"]);
    if !(scapy && tshark) {
        eprintln!(
            "SKIPPED: no independent eyes here: `apt-get install tshark python3-scapy python3-cryptography`"
        );
    }
    scapy && tshark
}

/// A site at its end of the tunnel between sites 1 and 2, which takes inner packets of 1500 octets.
fn site(number: u8, change: impl Fn(Sa) -> Sa) -> Joined {
    let peer = 3 - number;
    let mut site = joined_with(Site::new(number), peer, Limits::default(), change);
    let spec = TunnelSpec { inner_mtu: 1500, ..site.gateway.tunnel_spec(peer) };
    site.gateway.writer.update_tunnel(site.tunnel, &spec).unwrap();
    site
}

fn sealing(sa: &Sa) -> Sealing {
    let hex: String = sa.key.iter().chain(&sa.salt).map(|octet| format!("{octet:02x}")).collect();
    Sealing { key: hex, spi: sa.spi, esn: sa.esn, udp: sa.udp }
}

/// The frames as a memory port writes them.
fn write(frames: &[Vec<u8>], file: &Path) {
    let mut port = MemoryPort::new(MemoryPool::new(frames.len()));
    frames.iter().for_each(|frame| assert!(port.inject(frame)));
    let mut burst = Burst::new();
    while port.receive(&mut burst) > 0 {
        port.send(&mut burst);
    }
    port.write_pcap(file).unwrap();
}

/// What tshark says of an inner packet: header fields and payload.
fn tshark(sa: &Sa, file: &Path) -> Vec<String> {
    let sealing = sealing(sa);
    let key = format!(
        "uat:esp_sa:\"IPv4\",\"192.0.2.1\",\"192.0.2.2\",\"{:#010x}\",\"AES-GCM with 16 octet ICV [RFC4106]\",\"0x{}\",\
         \"NULL\",\"\"",
        sa.spi, sealing.key
    );
    let mut tshark = Command::new("tshark");
    tshark.args(["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]);
    tshark.args(["-o", &key, "-T", "fields", "-r"]).arg(file);
    for field in ["ip.src", "ip.dst", "ip.len", "ip.id", "ip.ttl", "ip.checksum", "esp.icv_good", "data.data"]
    {
        tshark.args(["-e", field]);
    }
    let inner = |field: &str| field.rsplit(',').next().unwrap_or_default().to_owned();
    let line = |line: &str| line.split('\t').map(inner).collect::<Vec<_>>().join(" ").trim_end().to_owned();
    succeed(&mut tshark).lines().map(line).collect()
}

/// The same of a packet that we have.
fn told(packet: &Packet, tag_is_right: bool) -> String {
    let octets = packet.octets();
    let address = |address: u32| std::net::Ipv4Addr::from(address).to_string();
    let (source, destination) = (address(packet.source), address(packet.destination));
    let sum = u16::from_be_bytes([octets[10], octets[11]]);
    let payload: String = packet.payload.iter().map(|octet| format!("{octet:02x}")).collect();
    let (id, ttl, right) = (packet.id, packet.ttl, u8::from(tag_is_right));
    let line =
        format!("{source} {destination} {} {id:#06x} {ttl} {sum:#06x} {right} {payload}", octets.len());
    line.trim_end().to_owned()
}

fn seals_for_others(change: impl Fn(Sa) -> Sa) {
    if !tools() {
        return;
    }
    let mut site = site(1, change);
    let packets: Vec<Packet> = SIZES
        .map(|size| Packet { id: size as u16, ..Packet::new(host(1), host(2), EXPERIMENT, size) })
        .collect();
    let mut frames = vec![];
    for batch in packets.chunks(BATCH) {
        batch.iter().for_each(|packet| site.gateway.from_host(&packet.octets()));
        let outcome = site.gateway.run();
        let count = batch.len() as u64;
        outcome.expect(&[(Verdict::Sent, count)], &[(Note::Sealed, count)]);
        frames.extend(outcome.sent.into_iter().nth(PUBLIC).unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("penstock.pcap");
    write(&frames, &file);
    let expected: Vec<Packet> = packets.iter().map(Packet::forwarded).collect();
    let opened = sealing(&site.to_peer).open_by_scapy(&file);
    assert_eq!(opened.len(), expected.len());
    for (opened, packet) in opened.iter().zip(&expected) {
        assert_eq!(*opened, packet.octets(), "by scapy");
    }
    let opened = tshark(&site.to_peer, &file);
    assert_eq!(opened.len(), expected.len());
    for (opened, packet) in opened.iter().zip(&expected) {
        // tshark 4.0 leaves the high half of the number out of what the tag covers.
        assert_eq!(*opened, told(packet, !site.to_peer.esn), "by tshark");
    }
}

fn opens_of_others(change: impl Fn(Sa) -> Sa) {
    if !tools() {
        return;
    }
    let mut site = site(2, change);
    let folder = tempfile::tempdir().unwrap();
    let mac = |site, station| mac(site, station).map(|octet| format!("{octet:02x}")).join(":");
    let (file, inner) =
        sealing(&site.from_peer).make_by_scapy(folder.path(), &mac(1, 1), &mac(2, 1), *SIZES.end());
    assert_eq!(inner.len(), SIZES.count());
    let frames = penstock_suite::capture::frames(&file);
    for (frames, packets) in frames.chunks(BATCH).zip(inner.chunks(BATCH)) {
        frames.iter().for_each(|frame| site.gateway.inject(PUBLIC, frame));
        let outcome = site.gateway.run();
        let count = frames.len() as u64;
        outcome.expect(&[(Verdict::Sent, count)], &[(Note::Opened, count)]);
        for (frame, packet) in outcome.sent[PRIVATE].iter().zip(packets) {
            assert_eq!(frame[14..], Packet::parse(packet).forwarded().octets());
        }
    }
}

macro_rules! modes {
    ($($mode:ident $aes256:literal $esn:literal $udp:literal,)*) => {
        mod seals_for_others {
            $(#[test] fn $mode() { super::seals_for_others(|sa| super::changed(sa, $aes256, $esn, $udp)) })*
        }
        mod opens_of_others {
            $(#[test] fn $mode() { super::opens_of_others(|sa| super::changed(sa, $aes256, $esn, $udp)) })*
        }
    };
}

fn changed(sa: Sa, aes256: bool, esn: bool, udp: bool) -> Sa {
    let sa = Sa { esn, udp, ..sa };
    if aes256 { sa.with_aes256() } else { sa }
}

modes! {
    aes128 false false false,
    aes128_esn false true false,
    aes128_udp false false true,
    aes128_udp_esn false true true,
    aes256 true false false,
    aes256_esn true true false,
    aes256_udp true false true,
    aes256_udp_esn true true true,
}

#[test]
fn the_hexadecimal_key_is_key_and_salt() {
    let sa = changed(sa_between(1, 2), true, true, false);
    assert_eq!(octets(&sealing(&sa).key), [&sa.key[..], &sa.salt].concat());
}
