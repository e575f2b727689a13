//! How many tunnels a core negotiates, and what a tunnel costs in memory. Enters: `TUNNELS` (1,000). Leaves: a line per
//! figure. Time is the machine's, measured around each end's calls; the network between the ends costs nothing.

use penstock_ike::auth::{IdentityPattern, SharedKey};
use penstock_ike::crypto::{EspProposal, IkeProposal};
use penstock_ike::message::TrafficSelector;
use penstock_ike::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::collections::VecDeque;
use std::time::{Duration, Instant as Clock};

#[derive(Default)]
struct Spis(u32);

impl SpiSource for Spis {
    fn allocate(&mut self) -> Option<u32> {
        self.0 += 1;
        Some(0x1000 + self.0)
    }

    fn release(&mut self, _: u32) {}
}

struct End {
    endpoint: Endpoint,
    spis: Spis,
    busy: Duration,
    installed: usize,
}

fn tunnel(n: usize, i: u32, ike: &str) -> Connection {
    let address = |n: usize| [[192, 0, 2, 1], [198, 18, (i >> 8) as u8, i as u8]][n].into();
    let id = |n: usize| format!("gw-{n}-{i}.example").parse().expect("an identity");
    let net =
        |n: usize| vec![TrafficSelector::network([10 + n as u8, (i >> 8) as u8, i as u8, 0].into(), 24)];
    let child = ChildConfig {
        name: "net".into(),
        local_ts: net(n),
        remote_ts: net(1 - n),
        esp: vec![EspProposal::parse("aes256gcm16").expect("ESP")],
        lifetime: Lifetime::of(Duration::from_secs(3600)),
        start: Start::Wait,
        per_worker: 1,
    };
    Connection {
        name: format!("t{i}").into(),
        local: address(n),
        remote: Remote::Address(address(1 - n)),
        local_id: id(n),
        remote_id: IdentityPattern::Exact(id(1 - n)),
        local_auth: LocalAuth::Psk(SharedKey::new(*b"a shared secret")),
        remote_auth: RemoteAuth::Psk(SharedKey::new(*b"a shared secret")),
        ike: vec![IkeProposal::parse(ike).expect("IKE")],
        children: vec![child.into()],
        lifetime: Lifetime::of(Duration::from_secs(14_400)),
        dpd: None,
        force_encapsulation: false,
        fragment_bytes: Some(1232),
    }
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|w| w.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn work(
    ends: &mut [End; 2],
    n: usize,
    flying: &mut VecDeque<(usize, Datagram)>,
    f: impl FnOnce(&mut Endpoint, &mut Spis, &mut Outputs),
) {
    let mut out = Outputs::new();
    let end = &mut ends[n];
    let start = Clock::now();
    f(&mut end.endpoint, &mut end.spis, &mut out);
    end.busy += start.elapsed();
    for o in out {
        match o {
            Output::Send(d) => flying.push_back((1 - n, Datagram { local: d.remote, remote: d.local, ..d })),
            Output::InstallInbound(_) => end.installed += 1,
            _ => {}
        }
    }
}

fn drain(ends: &mut [End; 2], now: Now, flying: &mut VecDeque<(usize, Datagram)>) {
    while let Some((to, d)) = flying.pop_front() {
        work(ends, to, flying, |e, s, out| e.handle(now, &d, s, out));
    }
}

fn measure(ike: &str, tunnels: u32) {
    let settings =
        || Settings { cookie_threshold: usize::MAX, max_half_open: usize::MAX, ..Settings::default() };
    let end = |n| End {
        endpoint: Endpoint::new(settings(), Box::new(ChaCha20Rng::seed_from_u64(n))),
        spis: Spis::default(),
        busy: Duration::ZERO,
        installed: 0,
    };
    let before = resident();
    let mut ends = [end(1), end(2)];
    let now = Now { at: Instant(Duration::from_secs(1)), unix_seconds: 1_800_000_000 };
    for i in 0..tunnels {
        (0..2).for_each(|n| ends[n].endpoint.set_connection(now, tunnel(n, i, ike)));
    }
    let mut flying = VecDeque::new();
    for i in 0..tunnels {
        let name = format!("t{i}");
        work(&mut ends, 0, &mut flying, |e, s, out| {
            assert!(e.initiate(now, &name, None, s, out));
        });
        drain(&mut ends, now, &mut flying);
    }
    assert_eq!((ends[0].installed, ends[1].installed), (tunnels as usize, tunnels as usize));
    let rate = |d: Duration| f64::from(tunnels) / d.as_secs_f64();
    let memory = resident().saturating_sub(before) as f64 / 2.0 / f64::from(tunnels) / 1024.0;
    println!(
        "{ike}: {:.0} a second as initiator, {:.0} as responder, {memory:.1} KiB a tunnel and end",
        rate(ends[0].busy),
        rate(ends[1].busy)
    );
    ends.iter_mut().for_each(|e| e.busy = Duration::ZERO);
    for i in 0..tunnels {
        let name = format!("t{i}");
        work(&mut ends, 0, &mut flying, |e, s, out| e.rekey_ike(now, &name, s, out));
        drain(&mut ends, now, &mut flying);
    }
    let rekeys = (rate(ends[0].busy), rate(ends[1].busy));
    for i in 0..tunnels {
        let name = format!("t{i}");
        work(&mut ends, 0, &mut flying, |e, s, out| e.delete(now, &name, s, out));
        drain(&mut ends, now, &mut flying);
    }
    let left = (ends[0].endpoint.counts().0, ends[1].endpoint.counts().0);
    println!(
        "{ike}: {:.0} rekeys of IKE SAs a second as initiator, {:.0} as responder; {left:?} left after deleting all",
        rekeys.0, rekeys.1
    );
}

fn main() {
    let tunnels = std::env::var("TUNNELS").ok().and_then(|v| v.parse().ok()).unwrap_or(1000);
    for ike in [
        "aes256gcm16-prfsha384-x25519",
        "aes256gcm16-prfsha384-ecp384",
        "aes128gcm16-prfsha256-ecp256",
        "aes128gcm16-prfsha256-modp2048",
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
    ] {
        measure(ike, tunnels);
    }
}
