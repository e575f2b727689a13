//! The SAs of one outbound burst: each with a run of sequence numbers, reserved by one `fetch_add` before any of them is used
//! (RFC 4303 section 3.3.3), and with the headers that all of its packets share (RFC 4303 section 3.1.2, RFC 3948 section 2.1).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::sequence::Run;
use penstock_tables::{Adjacency, DontFragment, KeyBlock, Note, OutboundSa, Verdict};

use super::Context;
use super::batch::{Meta, Picks};
use super::slots::Slots;
use crate::crypto::Aad;
use crate::port::{AREA, BURST};
use crate::wire::{esp, ethernet, ipv4};

/// Octets of header in front of an inner packet at most: a tag, UDP.
pub const LONGEST: usize =
    ethernet::HEADER + ethernet::TAG + ipv4::HEADER + esp::UDP_HEADER + esp::HEADER + esp::IV;

/// Where ESP starts in the area before the packet.
const ESP: usize = AREA - esp::HEADER - esp::IV;

/// The packets of a burst that are to be sealed, and the SAs that seal them, each with the next hop of its outer packets.
pub struct Leaving {
    picks: Picks,
    slots: Slots,
    /// By place of the SA.
    ways: ArrayVec<Way, BURST>,
}

struct Way {
    next: Adjacency,
    packets: u32,
}

impl Leaving {
    /// None yet.
    #[inline(always)]
    pub fn new() -> Leaving {
        Leaving { picks: Picks::default(), slots: Slots::new(), ways: ArrayVec::new() }
    }

    /// The packets.
    #[inline(always)]
    pub fn picks(&self) -> Picks {
        self.picks
    }

    /// Place of the SA in slot `sa`, for a packet that is to be added.
    #[inline(always)]
    pub fn place(&mut self, sa: u32, next: Adjacency) -> u8 {
        let place = self.slots.place(sa);
        if place == self.ways.len() {
            self.ways.push(Way { next, packets: 0 });
        }
        place as u8
    }

    /// Adds packet `index` of the batch, whose SA is at `place`.
    #[inline(always)]
    pub fn add(&mut self, index: usize, place: u8) {
        self.picks.insert(index);
        self.ways[usize::from(place)].packets += 1;
    }
}

/// The headers that packets of one SA share, at the end of the area before the packet, and what is written into them.
pub struct Head {
    octets: [u8; AREA],
    /// Sum of the outer IPv4 header as it stands in `octets`.
    sum: u64,
    spi: u32,
    len: u8,
    udp: bool,
    esn: bool,
    /// Don't-fragment is that of the inner packet where the first says so, or set where the second does.
    copy_df: bool,
    set_df: bool,
}

impl Head {
    const NONE: Head = Head {
        octets: [0; AREA],
        sum: 0,
        spi: 0,
        len: 0,
        udp: false,
        esn: false,
        copy_df: false,
        set_df: false,
    };

    #[inline(always)]
    fn new(sa: &OutboundSa, spi: u32, next: Adjacency, mac: [u8; 6], vlan: u16) -> Head {
        let mut octets = [0; AREA];
        let (template, udp) = (sa.template(), sa.udp());
        let outer = if udp { ipv4::HEADER + esp::UDP_HEADER } else { ipv4::HEADER };
        if udp {
            octets[ESP - ipv4::HEADER - esp::UDP_HEADER..ESP].copy_from_slice(template);
        } else {
            octets[ESP - ipv4::HEADER..ESP].copy_from_slice(&template[..ipv4::HEADER]);
        }
        let l2 = ethernet::header_len(vlan);
        let start = ESP - outer - l2;
        ethernet::write(&mut octets[start..start + l2], next.mac, mac, vlan);
        octets[ESP..ESP + 4].copy_from_slice(&spi.to_be_bytes());
        let mut ip = [0; ipv4::HEADER];
        ip.copy_from_slice(&template[..ipv4::HEADER]);
        Head {
            octets,
            sum: ipv4::template_sum(&ip),
            spi,
            len: (AREA - start) as u8,
            udp,
            esn: sa.esn(),
            copy_df: sa.dont_fragment() == DontFragment::Copy as u8,
            set_df: sa.dont_fragment() == DontFragment::Set as u8,
        }
    }

    /// Octets of all headers.
    #[inline(always)]
    pub fn total(&self) -> u8 {
        self.len
    }

    /// Writes the headers of a packet of which `text` octets are sealed; returns what is authenticated of them.
    #[inline(always)]
    pub fn write(&self, area: &mut [u8; AREA], inner: &ipv4::Ipv4, text: usize, number: u64) -> Aad {
        const UDP: usize = ESP - esp::UDP_HEADER;
        *area = self.octets;
        let dont_fragment = inner.dont_fragment() & self.copy_df | self.set_df;
        // ESP with its header, IV and ICV.
        let len = text + esp::HEADER + esp::IV + crate::crypto::TAG_LEN;
        let id = number as u16;
        let (before, esp_header) = area.split_at_mut(ESP);
        if self.udp {
            let len = len + esp::UDP_HEADER;
            before[UDP + 4..UDP + 6].copy_from_slice(&(len as u16).to_be_bytes());
            if let Some(ip) = before[..UDP].last_chunk_mut() {
                ipv4::complete(ip, self.sum, inner.tos(), (len + ipv4::HEADER) as u16, id, dont_fragment);
            }
        } else if let Some(ip) = before.last_chunk_mut() {
            ipv4::complete(ip, self.sum, inner.tos(), (len + ipv4::HEADER) as u16, id, dont_fragment);
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
    #[inline(always)]
    fn new(slot: u32, next: Adjacency, numbers: Numbers, cx: &Context<'a>) -> SaRun<'a> {
        let tables = cx.tables;
        let key = tables.outbound_key(slot);
        let run =
            |numbers, head, refusal| SaRun { slot, numbers, key, head, next, refusal, packets: 0, bytes: 0 };
        let Some((sa, spi)) = tables.outbound(slot) else {
            return run(Run::empty(), Head::NONE, Verdict::NoSa);
        };
        if sa.epoch() != cx.state.epoch() {
            cx.events.push(Event::Orphaned { tunnel: sa.tunnel() });
            return run(Run::empty(), Head::NONE, Verdict::SaOrphaned);
        }
        let Some(facts) = cx.ports.get(usize::from(next.port)) else {
            return run(Run::empty(), Head::NONE, Verdict::PortDown);
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
    /// None yet: a list of this size is filled where it stands.
    #[inline(always)]
    pub fn new() -> Runs<'a> {
        Runs { runs: ArrayVec::new() }
    }

    /// Reserves numbers for all packets that leave.
    #[inline(always)]
    pub fn reserve(&mut self, leaving: &Leaving, cx: &Context<'a>) {
        for (slot, way) in leaving.slots.iter().zip(&leaving.ways) {
            self.runs.push(SaRun::new(slot, way.next, Numbers::Reserve(way.packets), cx));
        }
    }

    /// What is reserved, for [`Runs::again`].
    pub fn numbers(&mut self, reserved: &mut ArrayVec<Reserved, BURST>) {
        reserved.extend(self.runs.drain(..).map(|run| Reserved {
            slot: run.slot,
            next: run.next,
            numbers: run.numbers,
            refusal: run.refusal,
        }));
    }

    /// The runs of a burst whose numbers were reserved before, by whatever worker; takes the numbers.
    pub fn again(&mut self, reserved: &mut ArrayVec<Reserved, BURST>, cx: &Context<'a>) {
        for it in reserved.drain(..) {
            self.runs.push(SaRun::new(it.slot, it.next, Numbers::Reserved(it.numbers, it.refusal), cx));
        }
    }

    /// The run of a packet.
    #[inline(always)]
    pub fn of(&mut self, meta: &Meta) -> &mut SaRun<'a> {
        &mut self.runs[usize::from(meta.sa)]
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
