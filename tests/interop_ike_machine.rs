//! IKEv2's protocol machine alone with strongSwan (RFC 7296): over real UDP sockets in a namespace of its own, charon in another
//! one, both roles, in a matrix of authentication, key exchange and cipher; ESP in both directions with the keys that came of
//! it; rekeys, probes and deletes from either side.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock, SystemTime};

use aes_gcm::aead::{Aead, KeyInit, Nonce, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20poly1305::ChaCha20Poly1305;
use penstock_ike::auth::{Identity, IdentityPattern, LocalCertificate, SharedKey, TrustStore};
use penstock_ike::crypto::{EspCipher, EspProposal, IkeProposal, Suite};
use penstock_ike::message::TrafficSelector;
use penstock_ike::*;
use penstock_suite::charon::{Auth, Charon, Offer, SECRET};
use penstock_suite::command::{script, succeed};
use penstock_suite::lab::{Lab, Site};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// SPIs as a data plane would give them.
#[derive(Default)]
struct Spis(u32);

impl SpiSource for Spis {
    fn allocate(&mut self) -> Option<u32> {
        self.0 += 1;
        Some(0xc000_0000 + self.0)
    }

    fn release(&mut self, _: u32) {}
}

/// The machine with two sockets and a clock.
struct Driver {
    endpoint: Endpoint,
    spis: Spis,
    sockets: [UdpSocket; 2],
    start: Clock,
    installed: Vec<ChildSa>,
    current: Option<u32>,
    events: Vec<String>,
    esp: Vec<Vec<u8>>,
    sequence: u64,
    received: u64,
}

impl Driver {
    fn new(lab: &Lab) -> Driver {
        let namespace = format!("/run/netns/{}", lab.gateway(Site::A));
        let bind = move || {
            let file = fs::File::open(namespace).expect("the namespace");
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .expect("into the namespace");
            [500, 4500].map(|port| UdpSocket::bind(("192.0.2.1", port)).expect("a socket"))
        };
        let sockets = std::thread::spawn(bind).join().expect("sockets in the namespace");
        sockets.iter().for_each(|s| s.set_nonblocking(true).expect("non-blocking"));
        let seed =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        Driver {
            endpoint: Endpoint::new(Settings::default(), Box::new(ChaCha20Rng::seed_from_u64(seed))),
            spis: Spis::default(),
            sockets,
            start: Clock::now(),
            installed: Vec::new(),
            current: None,
            events: Vec::new(),
            esp: Vec::new(),
            sequence: 0,
            received: 0,
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_secs();
        Now { at: Instant(self.start.elapsed()), unix_seconds: unix }
    }

    fn act<T>(&mut self, f: impl FnOnce(&mut Endpoint, Now, &mut Spis, &mut Outputs) -> T) -> T {
        let (now, mut out) = (self.now(), Outputs::new());
        let result = f(&mut self.endpoint, now, &mut self.spis, &mut out);
        for output in out {
            match output {
                Output::Send(d) => {
                    let _ = self.sockets[usize::from(d.encapsulated)].send_to(&d.bytes, d.remote);
                }
                Output::InstallInbound(sa) => self.installed.push(*sa),
                Output::SwitchOutbound { spi_in, .. } => self.current = Some(spi_in),
                Output::RemoveInbound { spi_in } => self.installed.retain(|s| s.spi_in != spi_in),
                Output::Event(e) => self.events.push(e.to_string()),
                _ => {}
            }
        }
        result
    }

    /// Serves sockets and timers until the condition holds; false if it does not within the time.
    fn until(&mut self, seconds: u64, mut holds: impl FnMut(&mut Driver) -> bool) -> bool {
        let end = Clock::now() + Duration::from_secs(seconds);
        let mut buffer = [0; 65536];
        while Clock::now() < end {
            for i in [0, 1] {
                match self.sockets[i].recv_from(&mut buffer) {
                    Ok((n, remote)) => self.receive(i == 1, remote, &buffer[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => panic!("{e}"),
                }
            }
            self.act(|e, now, spis, out| e.poll(now, spis, out));
            if holds(self) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    fn receive(&mut self, encapsulated: bool, remote: SocketAddr, bytes: &[u8]) {
        if encapsulated && bytes.len() > 8 && bytes[..4] != [0; 4] {
            let spi = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            self.received += 1;
            let usage = Usage { packets_in: self.received, ..Usage::default() };
            self.act(|e, now, spis, out| e.child_traffic(now, spi, usage, spis, out));
            return self.esp.push(bytes.to_vec());
        }
        let local = self.sockets[usize::from(encapsulated)].local_addr().expect("bound");
        let d = Datagram { local, remote, encapsulated, bytes: bytes.to_vec() };
        self.act(|e, now, spis, out| e.handle(now, &d, spis, out));
    }

    fn configure(&mut self, c: Connection) {
        self.act(|e, now, _, _| e.set_connection(now, c));
    }

    fn is_up(&self) -> bool {
        self.endpoint.status().iter().any(|c| c.up)
    }

    fn counts(&self) -> (usize, usize) {
        let status = self.endpoint.status();
        let ike = status.iter().flat_map(|c| &c.ike);
        (ike.clone().count(), ike.map(|i| i.children.len()).sum())
    }

    /// A ping through the current SA, sealed and opened here; true if the peer's gateway answered.
    fn ping(&mut self) -> bool {
        let Some(sa) = self.installed.iter().find(|s| Some(s.spi_in) == self.current).cloned() else {
            return false;
        };
        for _ in 0..3 {
            self.sequence += 1;
            let packet = seal(&sa, self.sequence, &echo(self.sequence as u16));
            self.sockets[1].send_to(&packet, "192.0.2.2:4500").expect("sent");
            let expected = self.sequence as u16;
            let spis: Vec<ChildSa> = self.installed.clone();
            let answered = self.until(1, |d| {
                d.esp
                    .drain(..)
                    .any(|p| spis.iter().any(|s| open(s, &p).is_some_and(|inner| is_reply(&inner, expected))))
            });
            if answered {
                return true;
            }
        }
        false
    }
}

fn sum(words: &[u8]) -> u16 {
    let mut total: u32 =
        words.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// An ICMP echo request from 10.1.0.1 to 10.2.0.1.
fn echo(sequence: u16) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34];
    icmp.extend(sequence.to_be_bytes());
    icmp.extend([0x5a; 24]);
    let check = sum(&icmp);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut ip = vec![0x45, 0, 0, 52, 0, 1, 0, 0, 64, 1, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1];
    let check = sum(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    [ip, icmp].concat()
}

fn is_reply(inner: &[u8], sequence: u16) -> bool {
    inner.len() >= 28
        && inner[9] == 1
        && inner[12..16] == [10, 2, 0, 1]
        && inner[20] == 0
        && inner[26..28] == sequence.to_be_bytes()
}

fn crypt(cipher: EspCipher, key: &[u8], nonce: &[u8], aad: &[u8], msg: &[u8], seal: bool) -> Option<Vec<u8>> {
    fn run<C: Aead + KeyInit>(key: &[u8], nonce: &[u8], p: Payload<'_, '_>, seal: bool) -> Option<Vec<u8>> {
        let (cipher, nonce) = (C::new_from_slice(key).ok()?, Nonce::<C>::try_from(nonce).ok()?);
        if seal { cipher.encrypt(&nonce, p).ok() } else { cipher.decrypt(&nonce, p).ok() }
    }
    let p = Payload { msg, aad };
    match cipher {
        EspCipher::AesGcm128 => run::<Aes128Gcm>(key, nonce, p, seal),
        EspCipher::AesGcm256 => run::<Aes256Gcm>(key, nonce, p, seal),
        EspCipher::ChaCha20Poly1305 => run::<ChaCha20Poly1305>(key, nonce, p, seal),
    }
}

/// RFC 4303 and 4106 for one packet without ESN.
fn seal(sa: &ChildSa, sequence: u64, inner: &[u8]) -> Vec<u8> {
    let mut out = sa.spi_out.to_be_bytes().to_vec();
    out.extend((sequence as u32).to_be_bytes());
    let iv = sequence.to_be_bytes();
    let pad = (4 - (inner.len() + 2) % 4) % 4;
    let mut plain = inner.to_vec();
    plain.extend((1..=pad as u8).collect::<Vec<u8>>());
    plain.extend([pad as u8, 4]);
    let nonce = [&sa.key_out.salt[..], &iv].concat();
    let sealed = crypt(sa.esp.cipher, &sa.key_out.key, &nonce, &out, &plain, true).expect("sealed");
    out.extend(iv);
    out.extend(sealed);
    out
}

fn open(sa: &ChildSa, packet: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = packet.split_at_checked(8)?;
    let (iv, sealed) = rest.split_at_checked(8)?;
    if head[..4] != sa.spi_in.to_be_bytes() {
        return None;
    }
    let nonce = [&sa.key_in.salt[..], iv].concat();
    crypt(sa.esp.cipher, &sa.key_in.key, &nonce, head, sealed, false)
}

/// The machine in gateway A's namespace, charon in gateway B's.
fn ends(lab: &Lab) -> (Charon, Driver) {
    succeed(Command::new(script("lab/topology")).args(["kernel", lab.prefix(), "a"]));
    (Charon::beside(lab), Driver::new(lab))
}

fn site(peer: &Charon, auth: Auth, ike: &str, esp: &str) -> Connection {
    let net = |t: &str| vec![TrafficSelector::network(t.parse().expect("an address"), 24)];
    let id = |t: &str| t.parse::<Identity>().expect("an identity");
    let secret = SharedKey::new(SECRET);
    let file = |name: &str| fs::read(peer.pki().join(name)).expect("made by the script");
    let (local_auth, remote_auth) = match auth {
        Auth::Psk => (LocalAuth::Psk(secret.clone()), RemoteAuth::Psk(secret)),
        kind => {
            let (chain, key) =
                (file(&format!("a-{}.pem", kind.word())), file(&format!("a-{}.key", kind.word())));
            let own = LocalCertificate::new(&chain, &key).expect("a certificate and its key");
            let own = if ike.contains("prfsha384") { own.with_pss() } else { own };
            let store = TrustStore::new(&[&file("ca.pem")], &[]).expect("a CA");
            (LocalAuth::Certificate(Box::new(own)), RemoteAuth::Certificate(Arc::new(store)))
        }
    };
    let child = ChildConfig {
        name: "net".into(),
        local_ts: net("10.1.0.0"),
        remote_ts: net("10.2.0.0"),
        esp: esp.split(',').map(|t| EspProposal::parse(t.trim()).expect("ESP")).collect(),
        lifetime: Lifetime::of(Duration::from_secs(3600)),
        start: Start::Wait,
        per_worker: 1,
    };
    Connection {
        name: "site".into(),
        local: "192.0.2.1".parse().expect("an address"),
        remote: Remote::Address("192.0.2.2".parse().expect("an address")),
        local_id: id("gw-a.example"),
        remote_id: IdentityPattern::Exact(id("gw-b.example")),
        local_auth,
        remote_auth,
        ike: ike.split(',').map(|t| IkeProposal::parse(t.trim()).expect("IKE")).collect(),
        children: vec![child.into()],
        lifetime: Lifetime::of(Duration::from_secs(14_400)),
        dpd: Some(Duration::from_secs(10)),
        force_encapsulation: false,
        fragment_bytes: Some(1232),
    }
}

/// Establishes in one role, pings, and closes from one side.
fn establish(driver: &mut Driver, peer: &Charon, initiate: bool, what: &str) {
    driver.events.clear();
    let mut swanctl = None;
    if initiate {
        assert!(driver.act(|e, now, spis, out| e.initiate(now, "site", None, spis, out)));
    } else {
        swanctl = Some(peer.spawn("--initiate --child net --timeout 10"));
    }
    let up = driver.until(10, |d| d.is_up());
    assert!(
        up,
        "{what}: not up: {:?}\n{}\n{}",
        driver.endpoint.why("site"),
        driver.events.join("\n"),
        peer.log()
    );
    swanctl
        .into_iter()
        .for_each(|mut s| assert!(driver.until(10, |_| s.try_wait().is_ok_and(|x| x.is_some()))));
    assert!(driver.ping(), "{what}: no answer to a ping\n{}\n{}", driver.events.join("\n"), peer.log());
}

fn close(driver: &mut Driver, peer: &Charon, from_here: bool, what: &str) {
    let mut swanctl = None;
    if from_here {
        driver.act(|e, now, spis, out| e.delete(now, "site", spis, out));
    } else {
        swanctl = Some(peer.spawn("--terminate --ike site --timeout 10"));
    }
    let gone = driver.until(10, |d| d.counts() == (0, 0));
    assert!(gone, "{what}: does not end: {}\n{}", driver.events.join("\n"), peer.log());
    swanctl
        .into_iter()
        .for_each(|mut s| assert!(driver.until(10, |_| s.try_wait().is_ok_and(|x| x.is_some()))));
    assert!(driver.until(10, |_| peer.list().trim().is_empty()), "{what}: {}", peer.list());
}

#[test]
#[ignore = "needs root, namespaces and strongSwan: scripts/test runs it"]
fn the_matrix_of_authentication_key_exchange_and_cipher() {
    let lab = Lab::make();
    let (peer, mut driver) = ends(&lab);
    let mut role = true;
    for auth in Auth::ALL {
        for (ike, group) in [
            ("aes256gcm16-prfsha384", "modp2048"),
            ("aes128-sha256", "ecp256"),
            ("aes128gcm16-prfsha256", "x25519"),
        ] {
            for esp in ["aes128gcm16", "aes256gcm16", "chacha20poly1305"] {
                let what = format!("{auth:?} {ike}-{group} {esp}");
                peer.configure(&Offer::new(auth, format!("{ike}-{group}"), esp));
                driver.configure(site(&peer, auth, &format!("{ike}-{group}"), esp));
                for initiate in [true, false] {
                    establish(&mut driver, &peer, initiate, &format!("{what}, initiator {initiate}"));
                    role = !role;
                    close(&mut driver, &peer, role, &what);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root, namespaces and strongSwan: scripts/test runs it"]
fn rekeys_probes_and_deletes_from_either_side() {
    let lab = Lab::make();
    let (peer, mut driver) = ends(&lab);
    let (ike, esp) = ("aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp256");
    peer.configure(&Offer::new(Auth::Ecdsa, ike, esp));
    driver.configure(site(&peer, Auth::Ecdsa, ike, esp));
    establish(&mut driver, &peer, true, "first");
    for round in 0..2 {
        let before = driver.current.expect("an SA");
        match round {
            0 => driver.act(|e, now, spis, out| e.rekey_child(now, before, spis, out)),
            _ => drop(peer.spawn("--rekey --child net").wait()),
        }
        let rekeyed = driver.until(10, |d| d.counts() == (1, 1) && d.current != Some(before) && d.ping());
        assert!(rekeyed, "child, round {round}: {}\n{}", driver.events.join("\n"), peer.log());
        let spis = |d: &Driver| d.endpoint.status()[0].ike.iter().map(|i| i.spis).collect::<Vec<_>>();
        let old = spis(&driver);
        match round {
            0 => driver.act(|e, now, spis, out| e.rekey_ike(now, "site", spis, out)),
            _ => drop(peer.spawn("--rekey --ike site")),
        }
        let rekeyed = driver.until(10, |d| d.counts() == (1, 1) && spis(d) != old && d.ping());
        assert!(rekeyed, "IKE, round {round}: {}\n{}", driver.events.join("\n"), peer.log());
    }
    driver.act(|e, now, spis, out| e.probe(now, "site", spis, out));
    assert!(driver.until(3, |d| d.ping()) && driver.counts() == (1, 1));
    // The PFS group was negotiated in the rekeys.
    assert!(peer.list().contains("ECP_256"), "{}", peer.list());
    close(&mut driver, &peer, true, "last");
}

#[test]
#[ignore = "needs root, namespaces and strongSwan: scripts/test runs it"]
fn what_azure_and_aws_publish() {
    let lab = Lab::make();
    let (peer, mut driver) = ends(&lab);
    // (our suite, their IKE, their ESP): parameters that the two publish for their gateways.
    let sides = [
        ("azure", "aes256-sha256-modp2048", "aes256gcm16"),
        ("azure", "aes256gcm16-prfsha384-ecp384", "aes256gcm16"),
        ("aws", "aes128-sha256-modp2048", "aes128gcm16-modp2048"),
        ("aws", "aes256gcm16-prfsha512-ecp384", "aes256gcm16-ecp384"),
    ];
    for (name, ike, esp) in sides {
        let suite = Suite::named(name).expect("a suite");
        peer.configure(&Offer::new(Auth::Psk, ike, esp));
        let mut c = site(&peer, Auth::Psk, "aes256gcm16-prfsha384-ecp384", "aes256gcm16");
        c.ike = suite.ike;
        Arc::make_mut(&mut c.children[0]).esp = suite.esp;
        driver.configure(c);
        for initiate in [true, false] {
            establish(&mut driver, &peer, initiate, &format!("{name} with {ike}, initiator {initiate}"));
            let before = driver.current.expect("an SA");
            driver.act(|e, now, spis, out| e.rekey_child(now, before, spis, out));
            let rekeyed = driver.until(10, |d| d.counts() == (1, 1) && d.current != Some(before) && d.ping());
            assert!(rekeyed, "{name}, {ike}: {}\n{}", driver.events.join("\n"), peer.log());
            close(&mut driver, &peer, initiate, name);
        }
    }
}

#[test]
#[ignore = "needs root, namespaces and strongSwan: scripts/test runs it"]
fn differences_are_explained_on_our_side() {
    let lab = Lab::make();
    let (peer, mut driver) = ends(&lab);
    let (ike, esp) = ("aes256gcm16-prfsha384-ecp384", "aes256gcm16");
    let mut expect = |theirs: (&str, &str), change: &dyn Fn(&mut Connection), initiate: bool, code: &str| {
        peer.configure(&Offer::new(Auth::Psk, theirs.0, theirs.1));
        let mut c = site(&peer, Auth::Psk, ike, esp);
        change(&mut c);
        driver.configure(c);
        let swanctl = if initiate {
            driver.act(|e, now, spis, out| e.initiate(now, "site", None, spis, out));
            None
        } else {
            Some(peer.spawn("--initiate --child net --timeout 3"))
        };
        let why = |d: &Driver| d.endpoint.why("site").map(|w| w.code).unwrap_or_default();
        let found = driver.until(8, |d| why(d) == code);
        assert!(found, "expected {code}: {:?}\n{}", driver.endpoint.why("site"), peer.log());
        swanctl
            .into_iter()
            .for_each(|mut s| assert!(driver.until(10, |_| s.try_wait().is_ok_and(|x| x.is_some()))));
        driver.act(|e, now, spis, out| e.remove_connection(now, "site", spis, out));
        driver.until(2, |d| d.counts() == (0, 0));
        let _ = peer.spawn("--terminate --ike site --force").wait();
    };
    let wrong_key = |c: &mut Connection| {
        (c.local_auth, c.remote_auth) =
            (LocalAuth::Psk(SharedKey::new(*b"another")), RemoteAuth::Psk(SharedKey::new(*b"another")));
    };
    let other_name = |c: &mut Connection| c.remote_id = "other.example".parse().expect("an identity");
    let other_net = |c: &mut Connection| {
        Arc::make_mut(&mut c.children[0]).remote_ts =
            vec![TrafficSelector::network("10.9.0.0".parse().expect("an address"), 16)];
    };
    let same = |_: &mut Connection| {};
    expect(("aes128-sha256-ecp256", esp), &same, true, "ike-proposal-refused");
    expect(("aes128-sha256-ecp256", esp), &same, false, "ike-proposal-mismatch");
    expect((ike, "aes128gcm16"), &same, true, "child-proposal-refused");
    expect((ike, "aes128gcm16"), &same, false, "child-proposal-mismatch");
    expect((ike, esp), &wrong_key, true, "authentication-refused");
    expect((ike, esp), &wrong_key, false, "psk-mismatch");
    expect((ike, esp), &other_name, false, "peer-identity-unknown");
    expect((ike, esp), &other_net, true, "selectors-refused");
    expect((ike, esp), &other_net, false, "selectors-mismatch");
}
