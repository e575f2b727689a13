//! Two endpoints of the unit tests with a wire between them that a test holds in its hands: what one says is kept until the
//! test hands it over, looks into it, or replaces it.

use crate::endpoint::Endpoint;
use crate::message::{Header, Payload, decode_chain};
use crate::output::{Datagram, Output, Outputs, SpiSource};
use crate::protect::{Opened, Reassembly};
use crate::reason::Reason;
use crate::sa::{Ctx, IkeSa};
use crate::testing::{connection, rng};
use crate::time::{Instant, Now};
use crate::{Settings, Why};
use std::time::Duration;

/// The initiator.
pub const ME: usize = 0;
/// The responder.
pub const PEER: usize = 1;

struct Counter(u32);

impl SpiSource for Counter {
    fn allocate(&mut self) -> Option<u32> {
        self.0 += 1;
        Some(self.0)
    }

    fn release(&mut self, _: u32) {}
}

/// Two endpoints that know each other as `site`.
pub struct Ends {
    endpoints: [Endpoint; 2],
    spis: [Counter; 2],
    wire: [Vec<Datagram>; 2],
    reasons: [Vec<Reason>; 2],
    now: Now,
    /// What was said so far and could be read: the payloads of each message.
    pub seen: Vec<Vec<Payload>>,
}

impl Ends {
    pub fn new() -> Ends {
        let endpoint = |n| Endpoint::new(Settings::default(), Box::new(rng(n)));
        let mut endpoints = [endpoint(1), endpoint(2)];
        let (here, there) = ("192.0.2.1", "192.0.2.2");
        let site = |a, b, c, d| connection("site", a, b, c, d);
        endpoints[ME].set_connection(START, site(here, there, "10.1.0.0/16", "10.2.0.0/16"));
        endpoints[PEER].set_connection(START, site(there, here, "10.2.0.0/16", "10.1.0.0/16"));
        Ends {
            endpoints,
            spis: [Counter(0x1000), Counter(0x2000)],
            wire: Default::default(),
            reasons: Default::default(),
            now: START,
            seen: Vec::new(),
        }
    }

    fn on(&mut self, n: usize, work: impl FnOnce(&mut Endpoint, Now, &mut Counter, &mut Outputs)) {
        let mut out = Outputs::new();
        work(&mut self.endpoints[n], self.now, &mut self.spis[n], &mut out);
        for output in out {
            match output {
                Output::Send(datagram) => self.wire[n].push(datagram),
                Output::Event(event) => self.reasons[n].extend(event.failure.map(|failure| failure.reason)),
                _ => {}
            }
        }
    }

    /// `ME` begins.
    pub fn initiate(&mut self) {
        self.on(ME, |e, now, spis, out| assert!(e.initiate(now, "site", None, spis, out)));
    }

    /// Both are up.
    pub fn connect(&mut self) {
        self.initiate();
        self.deliver();
        assert_eq!(self.up(), [true, true]);
    }

    /// Makes the only IKE SA of an end do something.
    pub fn make(&mut self, n: usize, work: impl FnOnce(&mut IkeSa, &mut Ctx<'_>)) {
        let spi = self.sa(n).local_spi();
        self.on(n, |e, now, spis, out| e.with_sa(now, spi, spis, out, work));
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        self.now.at = self.now.at + time;
        [ME, PEER].iter().for_each(|&n| self.on(n, |e, now, spis, out| e.poll(now, spis, out)));
    }

    /// The only IKE SA of an end.
    pub fn sa(&self, n: usize) -> &IkeSa {
        assert_eq!(self.endpoints[n].sas.len(), 1);
        self.endpoints[n].sas.values().next().unwrap()
    }

    /// Takes away what an end has said.
    pub fn take(&mut self, n: usize) -> Vec<Datagram> {
        std::mem::take(&mut self.wire[n])
    }

    /// Gives an end a datagram as if the other had said it.
    pub fn give(&mut self, n: usize, bytes: Vec<u8>) {
        let [local, remote] = ["192.0.2.1:500", "192.0.2.2:500"].map(|a| a.parse().unwrap());
        let (local, remote) = if n == ME { (local, remote) } else { (remote, local) };
        let datagram = Datagram { local, remote, encapsulated: false, bytes };
        self.on(n, |e, now, spis, out| e.handle(now, &datagram, spis, out));
    }

    /// Hands over what one end has said.
    pub fn one_way(&mut self, from: usize) {
        for datagram in self.take(from) {
            self.seen.extend(self.read(from, &datagram.bytes));
            self.give(1 - from, datagram.bytes);
        }
    }

    /// Hands over in both directions until both are silent; gives the payloads of the last message.
    pub fn deliver(&mut self) -> Vec<Payload> {
        while self.wire.iter().any(|wire| !wire.is_empty()) {
            self.one_way(ME);
            self.one_way(PEER);
        }
        self.seen.last().cloned().unwrap_or_default()
    }

    /// The payloads of the one message that an end has said, which stays on the wire.
    pub fn open(&self, from: usize) -> Vec<Payload> {
        assert_eq!(self.wire[from].len(), 1);
        self.read(from, &self.wire[from][0].bytes).expect("a message that can be read")
    }

    /// Decrypts with the keys of the initiator's IKE SA; None where it has none, or the message is a fragment.
    fn read(&self, from: usize, bytes: &[u8]) -> Option<Vec<Payload>> {
        let header = Header::decode(bytes).ok()?;
        if header.exchange == crate::message::ExchangeType::Init {
            return decode_chain(header.next, &bytes[28..]).ok();
        }
        let keys = self.endpoints[ME].sas.values().next()?.keys.as_ref()?;
        let key = if from == ME { &keys.initiator } else { &keys.responder };
        match Reassembly::default().open(key, &header, bytes).ok()? {
            Opened::Whole(first, plain) => decode_chain(first, &plain).ok(),
            Opened::Fragment { .. } => None,
        }
    }

    /// Which ends are up.
    pub fn up(&self) -> [bool; 2] {
        [ME, PEER].map(|n| self.endpoints[n].status().iter().all(|c| c.up))
    }

    /// Every failure that an end told of.
    pub fn reasons(&self, n: usize) -> Vec<Reason> {
        self.reasons[n].clone()
    }

    pub fn why(&self, n: usize) -> Why {
        self.endpoints[n].why("site").unwrap()
    }
}

/// Time stands still unless a test lets it pass.
const START: Now = Now { at: Instant(Duration::from_secs(100)), unix_seconds: 1_800_000_000 };
