//! What the fuzz targets do with octets, so that the same runs without a fuzzer in `tests/fuzz_regressions.rs`.
//!
//! Each function may be given anything: it fails by a panic where what must hold does not.

use std::path::Path;

use penstock_control::config::{Config, Machine};
use penstock_dataplane::path::PortFacts;
use penstock_dataplane::path::parse::{self, Parsed};
use penstock_dataplane::path::punt::Twin;
use penstock_dataplane::port::Frame;
use penstock_dataplane::port::memory::MemoryPool;
use penstock_dataplane::wire::{esp as wire_esp, ethernet, icmp, ipv4};
use penstock_ike::message::{
    HEADER_BYTES, Header, Payload, PayloadType, decode_chain, encode_chain, find_encrypted, intersect,
};
use penstock_tables::{Selector, TunnelSpec};

use crate::esp::Sa;
use crate::memory::*;
use crate::packets::{Packet, checksum, frame};

/// Every view of `wire` and the parse stage on one frame.
pub fn parse(octets: &[u8]) {
    headers(octets);
    let Some((choice, octets)) = octets.split_first() else { return };
    let pool = MemoryPool::new(1);
    let Some(mut frame) = pool.frame(octets) else { return };
    let mut port = PortFacts { mac: [2, 0, 0, 0, 1, 0], ..PortFacts::default() };
    port.spec.vlan = [0, 5, 4095][usize::from(choice % 3)];
    match parse::frame(&mut frame, &port) {
        Parsed::Ip(ip) => {
            assert_eq!(frame.len(), ethernet::HEADER + usize::from(ip.total_len()));
            assert_eq!(frame.data()[..6], port.mac);
            Packet::parse(&frame.data()[ethernet::HEADER..]);
        }
        Parsed::Other => assert!(octets.len() >= ethernet::HEADER),
        Parsed::Wrong(verdict) => assert!(verdict.is_drop()),
    }
}

fn headers(octets: &[u8]) {
    let _ = ethernet::parse(octets);
    assert_eq!(ipv4::checksum(octets), checksum(octets));
    if let Ok(ip) = ipv4::parse(octets) {
        let mut packet = octets[..usize::from(ip.total_len())].to_vec();
        let before = Packet::parse(&packet);
        assert_eq!((before.source, before.destination), (ip.source(), ip.destination()));
        assert_eq!(ip.dont_fragment(), before.fragment & 0x4000 != 0);
        ipv4::set_ecn(&mut packet, ip.ttl());
        ip.with_ecn(ip.ttl()).forward(&mut packet);
        let tos = (ip.tos() & !3) | (ip.ttl() & 3);
        assert_eq!(Packet::parse(&packet), Packet { tos, ttl: ip.ttl().wrapping_sub(1), ..before });
        let _ = icmp::may_answer(&ip, &packet[usize::from(ip.header_len())..]);
    }
    if let Some(esp) = wire_esp::parse(octets) {
        assert!(octets.len() >= 34 && octets.len().is_multiple_of(4));
        assert_eq!(octets[..4], esp.spi.to_be_bytes());
    }
    if let Some((payload, next)) = wire_esp::read_trailer(octets) {
        let padding = &octets[payload..octets.len() - 2];
        assert!(padding.iter().zip(1..).all(|(octet, step): (_, usize)| usize::from(*octet) == step));
        assert_eq!(octets[octets.len() - 1], next);
    }
}

/// A gateway with two tunnels: to site 2 with ESN, to site 3 in UDP with AES-256, no ESN and a TUN.
pub struct Decap {
    gateway: Gateway,
    tun: Twin,
    to_peers: [Sa; 2],
    from_peers: [Sa; 2],
    number: u64,
    kernels: Vec<Vec<u8>>,
}

impl Default for Decap {
    fn default() -> Decap {
        let mut gateway = Gateway::new(Site::new(1));
        let other = |sa: Sa| Sa { udp: true, esn: false, ..sa.with_aes256() };
        let to_peers = [sa_between(1, 2), other(sa_between(1, 3))];
        let from_peers = [sa_between(2, 1), other(sa_between(3, 1))];
        let mut tun = Twin::Port(0);
        for (peer, (to, from)) in [2, 3].into_iter().zip(to_peers.iter().zip(&from_peers)) {
            let mut spec = TunnelSpec { interface: format!("tun{peer}"), ..gateway.tunnel_spec(peer) };
            spec.local.push(Selector::prefix(crate::packets::ip(10, 0, 0, 0), 8));
            let tunnel = gateway.tunnel_with(peer, &spec);
            gateway.seal_with(tunnel, peer, to, Limits::default());
            gateway.open_with(tunnel, from, 64);
            tun = Twin::Tunnel(tunnel);
        }
        gateway.worker.twins.set_present(tun, true);
        Decap { gateway, tun, to_peers, from_peers, number: 0, kernels: vec![] }
    }
}

/// Most frames of one input.
const FRAMES: usize = 24;

impl Decap {
    /// Takes the octets apart into frames and what is to be done with each, and sends them through the gateway.
    pub fn feed(&mut self, mut octets: &[u8]) {
        self.kernels.clear();
        for _ in 0..FRAMES {
            let [how, high, low, rest @ ..] = octets else { break };
            let len = (usize::from(*high) << 8 | usize::from(*low)) % 1900;
            let (chunk, rest) = rest.split_at(len.min(rest.len()));
            self.offer(*how, chunk);
            octets = rest;
        }
        self.gateway.now += 1 << 20;
        let outcome = self.gateway.run();
        outcome.sent[PUBLIC].iter().for_each(|frame| self.no_plaintext(frame));
        let inner = |frame: &&Vec<u8>| !self.kernels.contains(frame);
        for frame in outcome.sent[PRIVATE].iter().filter(inner) {
            Packet::parse(&frame[14..]);
        }
    }

    fn offer(&mut self, how: u8, chunk: &[u8]) {
        let peer = usize::from(how >> 7);
        match how & 0x7f {
            0 => self.gateway.inject(PRIVATE, chunk),
            1 => self.gateway.inject(PUBLIC, chunk),
            2 => self.gateway.from_host(chunk),
            3 => self.gateway.from_internet(chunk),
            4 => self.gateway.from_host(&packet(1, 2 + peer as u8, chunk)),
            5 => self.gateway.from_internet(&packet(2 + peer as u8, 1, chunk)),
            6 => self.sealed(peer, |sa, number| sa.seal_text(number, chunk)),
            7 => self.sealed(peer, |sa, number| sa.seal(number, chunk)),
            8 => self.sealed(peer, |sa, number| sa.seal(number, &packet(2 + peer as u8, 1, chunk))),
            9 => self.sealed(peer, |sa, number| sa.seal(number, &packet(2, 3, chunk))),
            10 => self.sealed(peer, |sa, number| {
                let mut esp = sa.seal(number, &packet(2 + peer as u8, 1, &[0; 40]));
                esp.iter_mut().zip(chunk).for_each(|(octet, change)| *octet ^= change);
                esp
            }),
            11 => self.kernel(Twin::Port(peer as u8), chunk),
            12 => self.kernel(Twin::Port(1), &frame(mac(9, 9), mac(1, 1), None, &packet(1, 3, chunk))),
            13 => self.kernel(self.tun, chunk),
            _ => self.kernel(self.tun, &packet(1, 3, chunk)),
        }
    }

    fn kernel(&mut self, twin: Twin, octets: &[u8]) {
        self.gateway.from_kernel(twin, octets);
        self.kernels.push(octets.to_vec());
    }

    fn sealed(&mut self, peer: usize, seal: impl Fn(&Sa, u64) -> Vec<u8>) {
        self.number += 1;
        let sa = &self.from_peers[peer];
        let esp = seal(sa, self.number);
        let packet = outer(2 + peer as u8, 1, sa, &esp).octets();
        if packet.len() <= 1900 {
            self.gateway.from_internet(&packet);
        }
    }

    /// What leaves by the public port is sealed, with a whole packet inside, or the kernel's own as it was.
    fn no_plaintext(&self, frame: &[u8]) {
        let opens = |(peer, sa): (usize, &Sa)| {
            let at = 14 + 20 + if sa.udp { 8 } else { 0 };
            let (_, inner) = sa.open(frame.get(at..)?)?;
            Packet::parse(&inner);
            self.gateway.esp_of(2 + peer as u8, sa, frame);
            Some(())
        };
        if self.to_peers.iter().enumerate().find_map(opens).is_none() {
            let own = |octets: &Vec<u8>| octets.starts_with(frame);
            assert!(self.kernels.iter().any(own), "plaintext on the public port: {frame:02x?}");
        }
    }
}

/// A packet with a right header whose fields follow from the first octets of `chunk`; the others are its payload.
fn packet(from: u8, to: u8, chunk: &[u8]) -> Vec<u8> {
    let mut fields = [0u8; 8];
    fields.iter_mut().zip(chunk).for_each(|(field, octet)| *field = *octet);
    let [tos, ttl, protocol, fragment, low, last, more, options] = fields;
    let base = Packet::new(host(from), host(to), protocol, 20);
    let source = base.source & !0xff | u32::from(last);
    let places = [base.destination, private(to), public(to), 0xe000_0005, base.destination + u32::from(more)];
    Packet {
        tos,
        ttl,
        fragment: u16::from(fragment) << 8 | u16::from(low),
        source: if last == 0 { base.source } else { source },
        destination: places[usize::from(more) % places.len()],
        options: vec![1; usize::from(options % 11) * 4],
        payload: chunk.get(8..).unwrap_or_default().to_vec(),
        ..base
    }
    .octets()
}

/// A configuration, as octets.
pub fn config(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let machine = Machine { cores: (0..8).collect(), interfaces: vec!["eth0".into()] };
    match Config::parse(Path::new("a.yaml"), text, &machine) {
        Ok(checked) => {
            let config = checked.config;
            assert!(!config.ports.is_empty());
            assert_eq!(config.public_ports().len(), config.ports.len());
            for tunnel in config.tunnels.values() {
                assert!(config.local_of(tunnel).is_some(), "a tunnel without an outer address was accepted");
            }
            let _ = config.state_directory();
        }
        Err(error) => {
            assert!(!error.complaints.is_empty());
            assert!(error.complaints.iter().all(|complaint| !complaint.message.is_empty()));
            assert!(error.to_string().starts_with("a.yaml:"));
        }
    }
}

/// IKEv2's parser: whatever octets come, decoding ends without a panic, and what was decoded encodes to something that
/// decodes to the same (RFC 7296 section 3).
pub fn ike_message(octets: &[u8]) {
    match Header::decode(octets) {
        Ok(header) => {
            let body = &octets[HEADER_BYTES..];
            assert_eq!(Header::decode(&[&header.encode()[..], body].concat()), Ok(header));
            let _ = find_encrypted(header.next, body);
            ike_chain(header.next, body);
        }
        Err(_) => {
            let Some((first, body)) = octets.split_first() else { return };
            ike_chain((*first).into(), body);
        }
    }
}

fn ike_chain(first: PayloadType, bytes: &[u8]) {
    let Ok(payloads) = decode_chain(first, bytes) else { return };
    // Unknown payloads lose their content, foreign attributes their value, selectors of foreign types themselves: they are not
    // sent again.
    let ours = |p: &Payload| match p {
        Payload::Unknown(_) => false,
        Payload::Sa(s) => s.iter().flat_map(|p| &p.transforms).all(|t| !t.foreign_attribute),
        Payload::TsI(ts) | Payload::TsR(ts) => !ts.is_empty(),
        _ => true,
    };
    let kept: Vec<Payload> = payloads.into_iter().filter(ours).collect();
    let (again, encoded) = encode_chain(&kept);
    assert_eq!(decode_chain(again, &encoded).as_ref(), Ok(&kept));
    for p in &kept {
        if let Payload::TsI(ts) | Payload::TsR(ts) = p {
            let same = intersect(ts, ts);
            assert!(ts.iter().all(|t| same.iter().any(|s| s.contains(t))));
        }
    }
}
