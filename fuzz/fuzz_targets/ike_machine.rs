//! IKEv2's machine: two endpoints with a tunnel; the input decides who asks for what, what is lost or comes late, and which
//! messages, well-formed or not, one end finds behind the other's encryption. No panic, no SA installed or removed twice,
//! no SPI used that was not reserved, no growth without bound (RFC 7296).
#![no_main]

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use penstock_ike::auth::{IdentityPattern, SharedKey};
use penstock_ike::crypto::{EspProposal, IkeProposal};
use penstock_ike::message::{
    KeyExchangeData, Notify, NotifyType, Payload, Protocol, TrafficSelector, encode_chain,
};
use penstock_ike::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

#[derive(Default)]
struct Plane {
    next: u32,
    reserved: HashSet<u32>,
    inbound: HashSet<u32>,
    outbound: HashSet<u32>,
}

impl SpiSource for Plane {
    fn allocate(&mut self) -> Option<u32> {
        self.next += 1;
        (self.inbound.len() < 64).then(|| {
            self.reserved.insert(0x1000 + self.next);
            0x1000 + self.next
        })
    }

    fn release(&mut self, spi: u32) {
        assert!(self.reserved.remove(&spi));
    }
}

struct World {
    now: Now,
    ends: [(Endpoint, Plane); 2],
    flying: VecDeque<(usize, Datagram)>,
}

fn site(n: usize) -> Connection {
    let net = |n: usize| vec![TrafficSelector::network(format!("10.{n}.0.0").parse().unwrap(), 16)];
    let address = |n: usize| format!("192.0.2.{}", n + 1).parse().unwrap();
    let id = |n: usize| format!("gw-{n}.example").parse().unwrap();
    let child = ChildConfig {
        name: "net".into(),
        local_ts: net(n),
        remote_ts: net(1 - n),
        esp: vec![
            EspProposal::parse("aes128gcm16-x25519").unwrap(),
            EspProposal::parse("aes256gcm16").unwrap(),
        ],
        lifetime: Lifetime::of(Duration::from_secs(300)),
        start: if n == 0 { Start::Now } else { Start::Wait },
        per_worker: 2,
    };
    Connection {
        name: "site".into(),
        local: address(n),
        remote: Remote::Address(address(1 - n)),
        local_id: id(n),
        remote_id: IdentityPattern::Exact(id(1 - n)),
        local_auth: LocalAuth::Psk(SharedKey::new(*b"secret")),
        remote_auth: RemoteAuth::Psk(SharedKey::new(*b"secret")),
        ike: vec![IkeProposal::parse("aes128gcm16-prfsha256-x25519").unwrap()],
        children: vec![child.into()],
        lifetime: Lifetime::of(Duration::from_secs(900)),
        dpd: Some(Duration::from_secs(30)),
        force_encapsulation: false,
        fragment_bytes: Some(400),
    }
}

impl World {
    fn on(&mut self, n: usize, f: impl FnOnce(&mut Endpoint, Now, &mut Plane, &mut Outputs)) {
        let mut out = Outputs::new();
        let (endpoint, plane) = &mut self.ends[n];
        f(endpoint, self.now, plane, &mut out);
        for o in out {
            let p = &mut self.ends[n].1;
            match o {
                Output::Send(d) if self.flying.len() < 64 => self.flying.push_back((1 - n, d)),
                Output::InstallInbound(sa) => {
                    assert!(
                        p.reserved.remove(&sa.spi_in)
                            && p.inbound.insert(sa.spi_in)
                            && p.outbound.insert(sa.spi_in)
                    );
                }
                Output::SwitchOutbound { spi_in, .. } => assert!(p.outbound.contains(&spi_in)),
                Output::RemoveOutbound { spi_in, .. } => assert!(p.outbound.remove(&spi_in)),
                Output::RemoveInbound { spi_in } => {
                    assert!(p.inbound.remove(&spi_in) && !p.outbound.contains(&spi_in))
                }
                _ => {}
            }
        }
        assert!(self.ends[n].0.counts().0 < 64);
    }

    fn deliver(&mut self, most: usize) {
        for _ in 0..most {
            let Some((to, d)) = self.flying.pop_front() else { return };
            let d = Datagram { local: d.remote, remote: d.local, ..d };
            self.on(to, |e, now, p, out| e.handle(now, &d, p, out));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.at = self.now.at + time;
        self.now.unix_seconds += time.as_secs();
        [0, 1].into_iter().for_each(|n| self.on(n, |e, now, p, out| e.poll(now, p, out)));
    }

    /// An IKE SA's local SPI, and a child's two SPIs.
    fn pick(&self, n: usize, which: u8) -> Option<(u64, (u32, u32))> {
        let status = self.ends[n].0.status();
        let ike = &status[0].ike;
        let i = ike.get(usize::from(which) % ike.len().max(1))?;
        let child =
            i.children.get(usize::from(which >> 4) % i.children.len().max(1)).map_or((0, 0), |c| c.spis);
        Some((if i.initiator { i.spis.0 } else { i.spis.1 }, child))
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// A payload that makes sense somewhere.
    fn payload(&mut self, child: (u32, u32)) -> Payload {
        let esp = |text, spi| Payload::Sa(vec![EspProposal::parse(text).unwrap().to_wire(1, spi, true)]);
        let ts = |n: u8| vec![TrafficSelector::network([10, n % 3, 0, 0].into(), 16)];
        let notify = |kind: NotifyType, spi: Vec<u8>, data: Vec<u8>| {
            let protocol = if spi.is_empty() { Protocol::None } else { Protocol::Esp };
            Payload::Notify(Notify { protocol, spi, kind, data })
        };
        match self.byte() % 16 {
            0 => esp("aes128gcm16-x25519-esn", 0x5000),
            1 => esp("aes256gcm16-noesn", 0x6000),
            2 => Payload::Sa(vec![
                IkeProposal::parse("aes128gcm16-prfsha256-x25519").unwrap().to_wire(1, &[self.byte(); 8]),
            ]),
            3 => Payload::Nonce(vec![self.byte(); 32]),
            4 => Payload::Ke(KeyExchangeData { method: 31, data: vec![9; 32] }),
            5 => Payload::TsI(ts(self.byte())),
            6 => Payload::TsR(ts(self.byte())),
            7 => notify(NotifyType::RekeySa, child.1.to_be_bytes().to_vec(), vec![]),
            8 => notify(NotifyType::RekeySa, self.take(4).to_vec(), vec![]),
            9 => Payload::Delete { protocol: Protocol::Esp, spis: vec![child.1.to_be_bytes().to_vec()] },
            10 => Payload::Delete { protocol: Protocol::Ike, spis: vec![] },
            11 => {
                let kind = u16::from_be_bytes([0, self.byte()]);
                notify(kind.into(), vec![], self.take(2).to_vec())
            }
            12 => {
                let kind = 16384 + u16::from(self.byte());
                let n = usize::from(self.byte() % 8);
                notify(kind.into(), vec![], self.take(n).to_vec())
            }
            13 => {
                Payload::Ke(KeyExchangeData { method: u16::from(self.byte()), data: self.take(32).to_vec() })
            }
            14 => Payload::Vendor(self.take(3).to_vec()),
            _ => Payload::Nonce(vec![self.byte(); 16]),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let end = |n: u64| {
        let rng = Box::new(ChaCha20Rng::seed_from_u64(n));
        (Endpoint::new(Settings::default(), rng), Plane::default())
    };
    let now = Now { at: Instant(Duration::from_secs(100)), unix_seconds: 1_800_000_000 };
    let mut w = World { now, ends: [end(1), end(2)], flying: VecDeque::new() };
    [0, 1].into_iter().for_each(|n| w.on(n, |e, now, _, _| e.set_connection(now, site(n))));
    w.pass(Duration::from_millis(1));
    let mut input = Input(data);
    // Now and then the input meddles from the very first message on.
    if data.first().is_some_and(|b| b % 8 != 7) {
        w.deliver(20);
    }
    for _ in 0..48 {
        if input.0.is_empty() {
            break;
        }
        step(&mut w, &mut input);
    }
    // Whatever happened: with the network gone, everything ends.
    for n in [0, 1] {
        w.on(n, |e, now, p, out| e.remove_connection(now, "site", p, out));
    }
    for _ in 0..40 {
        w.flying.clear();
        w.pass(Duration::from_secs(20));
    }
    for (endpoint, plane) in &w.ends {
        assert_eq!(endpoint.counts(), (0, 0, 0));
        assert!(plane.inbound.is_empty() && plane.outbound.is_empty() && plane.reserved.is_empty());
    }
});

fn step(w: &mut World, input: &mut Input<'_>) {
    let op = input.byte();
    let n = usize::from(op >> 7);
    let which = input.byte();
    let Some((ike, child)) = w.pick(n, which) else { return w.pass(Duration::from_secs(2)) };
    match op % 14 {
        0 => w.deliver(1 + usize::from(which % 8)),
        1 => drop(w.flying.pop_front()),
        2 => {
            if let Some(d) = w.flying.pop_front() {
                w.flying.push_back(d);
            }
        }
        3 => w.pass(Duration::from_millis(u64::from(which) * 40)),
        4 => w.on(n, |e, now, p, out| e.rekey_child(now, child.0, p, out)),
        5 => w.on(n, |e, now, p, out| e.rekey_ike(now, "site", p, out)),
        6 => w.on(n, |e, now, p, out| e.delete_child(now, child.0, p, out)),
        7 => w.on(n, |e, now, p, out| {
            e.initiate(now, "site", None, p, out);
        }),
        8 => w.on(n, |e, now, p, out| {
            let usage = Usage { packets_in: u64::from(which), ..Usage::default() };
            e.child_traffic(now, child.0, usage, p, out);
        }),
        9 => {
            w.on(n, |e, now, p, out| e.initiate_for_worker(now, "site", "net", u32::from(which % 4), p, out))
        }
        10 => {
            // Bytes of any kind behind the encryption.
            let (exchange, length) = (34 + input.byte() % 12, usize::from(input.byte()));
            let (next, plain) = (input.byte(), input.take(length).to_vec());
            w.on(n, |e, now, p, out| {
                e.handle_plain(now, ike, (exchange, which & 1 == 1, next), &plain, p, out)
            });
        }
        _ => {
            // Well-formed payloads in any order.
            let (exchange, count) =
                ([35, 36, 36, 36, 37, 37, 43, 44][usize::from(input.byte() % 8)], input.byte() % 7);
            let payloads: Vec<Payload> = (0..count).map(|_| input.payload(child)).collect();
            let (next, plain) = encode_chain(&payloads);
            let kind = (exchange, which & 1 == 1, next.into());
            w.on(n, |e, now, p, out| e.handle_plain(now, ike, kind, &plain, p, out));
        }
    }
}
