//! The SAs of one outbound burst: each with a run of sequence numbers, reserved by one `fetch_add` before any of them is used
//! (RFC 4303 section 3.3.3), and with the headers that all of its packets share (RFC 4303 section 3.1.2, RFC 3948 section 2.1).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::sequence::Run;
use penstock_tables::{Adjacency, DontFragment, KeyBlock, Note, OutboundSa, Verdict};

use super::Context;
use super::batch::{Batch, Meta, Picks};
use super::slots::Slots;
use crate::crypto::Aad;
use crate::port::{AREA, BURST, Frame};
use crate::wire::{esp, ethernet, ipv4};

/// Octets of header in front of an inner packet at most: a tag, UDP.
pub const LONGEST: usize =
    ethernet::HEADER + ethernet::TAG + ipv4::HEADER + esp::UDP_HEADER + esp::HEADER + esp::IV;

/// Where ESP starts in the area before the packet.
const ESP: usize = AREA - esp::HEADER - esp::IV;

/// The headers that packets of one SA share, at the end of the area before the packet, and what is written into them.
pub struct Head {
    octets: [u8; AREA],
    /// Sum of the outer IPv4 header as it stands in `octets`.
    sum: u64,
    spi: u32,
    len: u8,
    udp: bool,
    esn: bool,
    dont_fragment: u8,
}

impl Head {
    fn new(sa: &OutboundSa, spi: u32, next: Adjacency, mac: [u8; 6], vlan: u16) -> Head {
        let mut octets = [0; AREA];
        let outer = if sa.udp() { ipv4::HEADER + esp::UDP_HEADER } else { ipv4::HEADER };
        let l2 = ethernet::header_len(vlan);
        let start = ESP - outer - l2;
        ethernet::write(&mut octets[start..start + l2], next.mac, mac, vlan);
        octets[ESP - outer..ESP].copy_from_slice(&sa.template()[..outer]);
        octets[ESP..ESP + 4].copy_from_slice(&spi.to_be_bytes());
        let mut ip = [0; ipv4::HEADER];
        ip.copy_from_slice(&sa.template()[..ipv4::HEADER]);
        Head {
            octets,
            sum: ipv4::template_sum(&ip),
            spi,
            len: (AREA - start) as u8,
            udp: sa.udp(),
            esn: sa.esn(),
            dont_fragment: sa.dont_fragment(),
        }
    }

    /// Octets of all headers.
    #[inline(always)]
    pub fn total(&self) -> u8 {
        self.len
    }

    /// Writes the headers of a packet of `inner` octets; returns what is authenticated of them.
    #[inline(always)]
    pub fn write(&self, area: &mut [u8; AREA], tos: u8, inner_df: bool, inner: usize, number: u64) -> Aad {
        const UDP: usize = ESP - esp::UDP_HEADER;
        *area = self.octets;
        let dont_fragment = match self.dont_fragment {
            set if set == DontFragment::Set as u8 => true,
            clear if clear == DontFragment::Clear as u8 => false,
            _ => inner_df,
        };
        let behind = esp::sealed_len(inner);
        let id = number as u16;
        let (before, esp_header) = area.split_at_mut(ESP);
        if self.udp {
            let len = behind + esp::UDP_HEADER;
            before[UDP + 4..UDP + 6].copy_from_slice(&(len as u16).to_be_bytes());
            if let Some(ip) = before[..UDP].last_chunk_mut() {
                ipv4::complete(ip, self.sum, tos, (len + ipv4::HEADER) as u16, id, dont_fragment);
            }
        } else if let Some(ip) = before.last_chunk_mut() {
            ipv4::complete(ip, self.sum, tos, (behind + ipv4::HEADER) as u16, id, dont_fragment);
        }
        esp_header[4..8].copy_from_slice(&(number as u32).to_be_bytes());
        esp_header[8..].copy_from_slice(&number.to_be_bytes());
        if self.esn { Aad::with_esn(self.spi, number) } else { Aad::new(self.spi, number as u32) }
    }
}

/// One SA in a burst.
pub struct SaRun<'a> {
    slot: u32,
    numbers: Run,
    key: &'a KeyBlock,
    /// Its headers.
    pub head: Head,
    next: Adjacency,
    /// Why there are no numbers, where there are none.
    refusal: Verdict,
    packets: u32,
    bytes: u64,
}

/// Where the numbers of an SA come from.
enum Numbers {
    /// So many are to be reserved.
    Reserve(u32),
    /// These were reserved before; why there are none where there are none.
    Reserved(Run, Verdict),
}

impl<'a> SaRun<'a> {
    fn new(slot: u32, next: Adjacency, numbers: Numbers, cx: &Context<'a>) -> SaRun<'a> {
        let tables = cx.tables;
        let key = tables.outbound_key(slot);
        let run =
            |numbers, head, refusal| SaRun { slot, numbers, key, head, next, refusal, packets: 0, bytes: 0 };
        let none =
            Head { octets: [0; AREA], sum: 0, spi: 0, len: 0, udp: false, esn: false, dont_fragment: 0 };
        let Some((sa, spi)) = tables.outbound(slot) else { return run(Run::empty(), none, Verdict::NoSa) };
        if sa.epoch() != cx.state.epoch() {
            cx.events.push(Event::Orphaned { tunnel: sa.tunnel() });
            return run(Run::empty(), none, Verdict::SaOrphaned);
        }
        let Some(facts) = cx.ports.get(usize::from(next.port)) else {
            return run(Run::empty(), none, Verdict::PortDown);
        };
        let (numbers, refusal) = match numbers {
            Numbers::Reserved(numbers, refusal) => (numbers, refusal),
            Numbers::Reserve(packets) => {
                let numbers = cx.state.outbound(slot).reserve(packets, sa.offset(), sa.hard_limit());
                if numbers.passes(sa.soft_limit()) {
                    cx.events.push(Event::SoftLimit { outbound: slot });
                }
                (numbers, Verdict::SequenceExhausted)
            }
        };
        run(numbers, Head::new(sa, spi, next, facts.mac, facts.spec.vlan), refusal)
    }

    /// The next sequence number.
    #[inline(always)]
    pub fn take(&mut self) -> Result<u64, Verdict> {
        self.numbers.take().ok_or(self.refusal)
    }

    /// Its key.
    #[inline(always)]
    pub fn key(&self) -> &'a KeyBlock {
        self.key
    }

    /// Counts a packet of `inner` octets.
    #[inline(always)]
    pub fn count(&mut self, inner: usize) {
        self.packets += 1;
        self.bytes += inner as u64;
    }
}

/// Numbers of one SA that are reserved and not used yet.
pub struct Reserved {
    slot: u32,
    next: Adjacency,
    numbers: Run,
    refusal: Verdict,
}

/// The SAs of a burst.
pub struct Runs<'a> {
    runs: ArrayVec<SaRun<'a>, BURST>,
}

impl<'a> Runs<'a> {
    /// Tells every picked packet its run, and reserves numbers.
    #[inline(always)]
    pub fn reserve<F: Frame>(picks: Picks, batch: &mut Batch<F>, cx: &mut Context<'a>) -> Runs<'a> {
        let mut slots = Slots::new();
        let mut counts = [(0u32, Adjacency { port: 0, mac: [0; 6] }); BURST];
        for index in picks {
            let meta = batch.meta_mut(index);
            let at = slots.place(meta.sa);
            meta.run = at as u8;
            let count = &mut counts[at];
            count.0 += 1;
            count.1 = meta.next;
        }
        let mut runs = ArrayVec::new();
        for (slot, (count, next)) in slots.iter().zip(counts) {
            runs.push(SaRun::new(slot, next, Numbers::Reserve(count), cx));
        }
        Runs { runs }
    }

    /// What is reserved, for [`Runs::again`].
    pub fn numbers(self) -> ArrayVec<Reserved, BURST> {
        let reserved = |run: SaRun<'a>| Reserved {
            slot: run.slot,
            next: run.next,
            numbers: run.numbers,
            refusal: run.refusal,
        };
        self.runs.into_iter().map(reserved).collect()
    }

    /// The runs of a burst whose numbers were reserved before, by whatever worker; takes the numbers.
    pub fn again(reserved: &mut ArrayVec<Reserved, BURST>, cx: &Context<'a>) -> Runs<'a> {
        let run = |it: Reserved| SaRun::new(it.slot, it.next, Numbers::Reserved(it.numbers, it.refusal), cx);
        Runs { runs: reserved.drain(..).map(run).collect() }
    }

    /// The run of a packet.
    #[inline(always)]
    pub fn of(&mut self, meta: &Meta) -> &mut SaRun<'a> {
        &mut self.runs[usize::from(meta.run)]
    }

    /// Counts a packet off that was not sealed.
    #[cold]
    pub fn take_back(&mut self, meta: &Meta) {
        let run = self.of(meta);
        run.packets -= 1;
        run.bytes -= u64::from(meta.ip.total_len());
    }

    /// Adds what was sealed to the counters: of each SA, and of the worker.
    #[inline(always)]
    pub fn close(&self, cx: &mut Context<'_>) {
        for run in self.runs.iter().filter(|run| run.packets > 0) {
            cx.state.outbound(run.slot).account(u64::from(run.packets), run.bytes, cx.now);
            cx.tally.note(Note::Sealed, u64::from(run.packets));
        }
    }
}
