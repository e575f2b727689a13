//! Ten thousand first requests a second from forged addresses: cookies, bounded memory, live tunnels unhurt. And bytes of
//! every kind at every entrance.

mod common;
use common::*;
use penstock_ike::message::Header;
use penstock_ike::*;
use rand_core::Rng;

/// A world with a live tunnel, and the first request that A once sent.
fn alive() -> (World, Vec<u8>) {
    let mut w = World::new(21);
    w.capture = Some(Vec::new());
    for n in [A, B] {
        let mut c = site(n);
        if n == B {
            // B also takes peers from anywhere, or strangers would be turned away at once.
            let mut any = c.clone();
            (any.name, any.remote) = ("any".into(), Remote::Network(net("0.0.0.0/0")));
            w.configure(n, any);
        }
        c.dpd = Some(seconds(5));
        w.configure(n, c);
    }
    w.initiate(A);
    w.run(seconds(2));
    assert_eq!(w.children(A), 1);
    let first = w.capture.take().unwrap()[0].1.clone();
    (w, first)
}

fn forged(first: &[u8], n: u32) -> Datagram {
    let mut bytes = first.to_vec();
    bytes[..8].copy_from_slice(&(u64::from(n) + 1).to_be_bytes());
    let remote = std::net::SocketAddr::from(([198, 18, (n >> 8) as u8, n as u8], 500 + (n >> 16) as u16));
    Datagram { local: "192.0.2.2:500".parse().unwrap(), remote, encapsulated: false, bytes }
}

#[test]
fn a_flood_of_first_requests_is_answered_with_cookies() {
    let (mut w, first) = alive();
    let mut answers = 0u64;
    let mut bytes = (0usize, 0usize);
    for second in 0..3 {
        for n in 0..10_000u32 {
            let d = forged(&first, second * 10_000 + n);
            let mut out = Outputs::new();
            let now = w.now_of(B);
            let node = &mut w.nodes[B];
            node.endpoint.handle(now, &d, &mut node.plane, &mut out);
            bytes.0 += d.bytes.len();
            for o in out {
                if let Output::Send(d) = o {
                    answers += 1;
                    bytes.1 += d.bytes.len();
                }
            }
        }
        let (_, half_open, _) = w.nodes[B].endpoint.counts();
        assert!(half_open <= settings().cookie_threshold, "{half_open} half-open");
        w.run(seconds(1));
    }
    assert_eq!(answers, 30_000);
    assert!(bytes.1 < bytes.0, "no amplification: {bytes:?}");
    // The live tunnel works on, and honest peers get in by returning a cookie.
    let spi = w.spis(A)[0];
    w.on(A, |e, now, p, out| e.rekey_child(now, spi, p, out));
    w.on(A, |e, now, p, out| e.delete(now, "site", p, out));
    w.run(seconds(2));
    w.initiate(A);
    w.run(seconds(3));
    assert_eq!((w.children(A), w.lost), (1, 0));
    w.run(settings().half_open_timeout + seconds(5));
    assert_eq!(w.nodes[B].endpoint.counts().1, 0, "nothing half-open is left");
}

#[test]
fn nothing_is_kept_beyond_the_limit_even_with_cookies() {
    let mut w = World::with(22, Settings { cookie_threshold: usize::MAX, max_half_open: 100, ..settings() });
    let (_, first) = alive();
    let mut c = site(B);
    c.remote = Remote::Network(net("0.0.0.0/0"));
    w.configure(B, c);
    for n in 0..1000 {
        let d = forged(&first, n);
        w.on(B, |e, now, p, out| e.handle(now, &d, p, out));
    }
    assert_eq!(w.nodes[B].endpoint.counts().0, 100);
    assert_eq!(w.nodes[B].endpoint.stray_failures(), [(Reason::TooManyHalfOpen, 900)]);
}

#[test]
fn changed_and_random_datagrams_change_nothing() {
    let (mut w, _) = alive();
    w.capture = Some(Vec::new());
    let spi = w.spis(A)[0];
    w.on(A, |e, now, p, out| e.rekey_child(now, spi, p, out));
    w.run(seconds(6));
    let seen = w.capture.take().unwrap();
    let before = (w.pairs(A), w.pairs(B));
    for (from, bytes) in &seen {
        for at in 0..bytes.len() {
            for bit in [0, 3, 7] {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                deliver(&mut w, 1 - from, changed);
            }
        }
        for n in 0..bytes.len() {
            deliver(&mut w, 1 - from, bytes[..n].to_vec());
        }
    }
    for _ in 0..20_000 {
        let mut bytes = vec![0; w.rng.next_u32() as usize % 200];
        w.rng.fill_bytes(&mut bytes);
        if let (Some((_, real)), true) = (seen.first(), bytes.len() > 28) {
            bytes[..28].copy_from_slice(&real[..28]);
            let length = (bytes.len() as u32).to_be_bytes();
            bytes[24..28].copy_from_slice(&length);
        }
        let to = w.rng.next_u32() as usize % 2;
        deliver(&mut w, to, bytes);
    }
    w.run(seconds(30));
    assert_eq!((w.pairs(A), w.pairs(B)), before);
    assert_eq!((w.ike(A), w.lost), (1, 0));
}

fn deliver(w: &mut World, to: usize, bytes: Vec<u8>) {
    // Truncations and changes of IKE_SA_INIT itself may open new half-open SAs; those are not the matter here.
    if Header::decode(&bytes).is_ok_and(|h| h.exchange == penstock_ike::message::ExchangeType::Init) {
        return;
    }
    let (local, remote) = (w.nodes[to].address, w.nodes[1 - to].address);
    let d = Datagram { local: (local, 500).into(), remote: (remote, 500).into(), encapsulated: false, bytes };
    w.on(to, |e, now, p, out| e.handle(now, &d, p, out));
}

/// What anybody can send in the name of a peer: an unknown version, proposals that nobody takes.
fn noise(first: &[u8], n: u32) -> [Datagram; 2] {
    let mut version = forged(first, n);
    version.bytes[17] = 0x30;
    let mut proposal = forged(first, n);
    // The transforms of the one proposal: all of types that are not known.
    let (at, end) = (28 + 4 + 8, 28 + 36);
    proposal.bytes[at..end].iter_mut().for_each(|octet| *octet |= 0x40);
    let lies = |mut d: Datagram| {
        d.remote = "192.0.2.1:500".parse().unwrap();
        d
    };
    [version, proposal].map(lies)
}

#[test]
fn noise_in_the_name_of_a_peer_is_one_line_and_says_nothing_of_it() {
    let (mut w, first) = alive();
    let before: Vec<String> = w.nodes[B].endpoint.log("site").iter().map(ToString::to_string).collect();
    assert!(before.iter().any(|line| line.starts_with("ike-up")), "{before:?}");
    for n in 0..500 {
        for d in noise(&first, n) {
            w.on(B, |e, now, p, out| e.handle(now, &d, p, out));
        }
        // Half-open SAs, which end after a while.
        let mut half = forged(&first, n);
        half.remote = "192.0.2.1:500".parse().unwrap();
        w.on(B, |e, now, p, out| e.handle(now, &half, p, out));
        w.run(std::time::Duration::from_millis(100));
    }
    w.run(settings().half_open_timeout + seconds(5));
    let log = w.nodes[B].endpoint.log("site");
    let after: Vec<String> = log.iter().map(ToString::to_string).collect();
    assert!(before.iter().all(|line| after.contains(line)), "what happened is still there: {after:?}");
    let noise: Vec<&Event> = log.iter().filter(|event| event.strangers > 0).collect();
    assert!((1..=6).contains(&noise.len()), "{after:?}");
    let version = noise.iter().find(|event| {
        event.failure.as_ref().is_some_and(|failure| failure.reason == Reason::VersionMismatch)
    });
    assert_eq!(version.map(|event| event.strangers), Some(500), "{after:?}");
    assert_eq!(w.nodes[B].endpoint.why("site").unwrap().code, "up", "{}", w.why(B).1);
}
