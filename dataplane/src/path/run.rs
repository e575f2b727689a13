//! The SAs of one outbound burst: each with a run of sequence numbers, reserved by one `fetch_add` before any of them is used
//! (RFC 4303 section 3.3.3), and with the headers that all of its packets share (RFC 4303 section 3.1.2, RFC 3948 section 2.1).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::sequence::Run;
use penstock_tables::{DontFragment, KeyBlock, NextHop, Note, OutboundSa, Verdict};

use super::Context;
use super::batch::Meta;
use super::exit::{EXITS, Leaving};
use crate::crypto::Aad;
use crate::port::AREA;
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
    sum: u32,
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

    /// `self` holds zeros.
    #[inline(always)]
    fn fill(&mut self, sa: &OutboundSa, spi: u32, next: NextHop, mac: [u8; 6], vlan: u16) {
        let (template, udp) = (sa.template(), sa.udp());
        let outer = if udp {
            self.octets[ESP - ipv4::HEADER - esp::UDP_HEADER..ESP].copy_from_slice(template);
            ipv4::HEADER + esp::UDP_HEADER
        } else {
            self.octets[ESP - ipv4::HEADER..ESP].copy_from_slice(&template[..ipv4::HEADER]);
            ipv4::HEADER
        };
        let l2 = ethernet::header_len(vlan);
        let start = ESP - outer - l2;
        ethernet::write(&mut self.octets[start..start + l2], next.mac(), mac, vlan);
        self.octets[ESP..ESP + 4].copy_from_slice(&spi.to_be_bytes());
        self.sum = template.first_chunk().map_or(0, ipv4::template_sum);
        (self.spi, self.len, self.udp, self.esn) = (spi, (AREA - start) as u8, udp, sa.esn());
        self.copy_df = sa.dont_fragment() == DontFragment::Copy as u8;
        self.set_df = sa.dont_fragment() == DontFragment::Set as u8;
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
    numbers: Run,
    packets: u32,
    bytes: u64,
    key: Option<&'a KeyBlock>,
    /// Its headers.
    pub head: Head,
    slot: u32,
    /// Why there are no numbers, where there are none.
    refusal: Verdict,
}

const _: () = assert!(size_of::<SaRun<'_>>() == 128);

/// Where the numbers of an SA come from.
enum Numbers {
    /// So many are to be reserved, for packets of a tunnel.
    Reserve { packets: u32, tunnel: u32 },
    /// These were reserved before; why there are none where there are none.
    Reserved(Run, Verdict),
}

impl<'a> SaRun<'a> {
    /// Of no SA, to be filled where it stands: what is written in pieces must not be copied at once.
    const EMPTY: SaRun<'a> = SaRun {
        numbers: Run::empty(),
        packets: 0,
        bytes: 0,
        key: None,
        head: Head::NONE,
        slot: 0,
        refusal: Verdict::NoSa,
    };

    #[inline(always)]
    fn fill(&mut self, slot: u32, next: NextHop, numbers: Numbers, cx: &Context<'a>) {
        self.slot = slot;
        let Some((sa, spi)) = cx.tables.outbound(slot) else {
            if let Numbers::Reserve { tunnel, .. } = numbers {
                cx.events.push(Event::NoSa { tunnel });
            }
            return;
        };
        if sa.epoch() != cx.state.epoch() {
            cx.events.push(Event::Orphaned { tunnel: sa.tunnel() });
            self.refusal = Verdict::SaOrphaned;
            return;
        }
        let Some(facts) = cx.ports.get(usize::from(next.port())) else {
            self.refusal = Verdict::PortDown;
            return;
        };
        (self.numbers, self.refusal) = match numbers {
            Numbers::Reserved(numbers, refusal) => (numbers, refusal),
            Numbers::Reserve { packets, .. } => {
                let numbers = cx.state.outbound(slot).reserve(packets, sa.offset(), sa.hard_limit());
                if numbers.passes(sa.soft_limit()) {
                    cx.events.push(Event::SoftLimit { outbound: slot });
                }
                (numbers, Verdict::SequenceExhausted)
            }
        };
        self.key = Some(cx.tables.outbound_key(slot));
        self.head.fill(sa, spi, next, facts.mac, facts.spec.vlan);
    }

    /// The next sequence number.
    #[inline(always)]
    pub fn take(&mut self) -> Result<u64, Verdict> {
        self.numbers.take().ok_or(self.refusal)
    }

    /// Its key, where there are numbers.
    #[inline(always)]
    pub fn key(&self) -> Result<&'a KeyBlock, Verdict> {
        self.key.ok_or(self.refusal)
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
    way: Option<(u32, NextHop)>,
    numbers: Run,
    refusal: Verdict,
}

/// The SAs of a burst.
pub struct Runs<'a> {
    runs: ArrayVec<SaRun<'a>, EXITS>,
}

impl<'a> Runs<'a> {
    /// None yet: a list of this size is filled where it stands.
    #[inline(always)]
    pub fn new() -> Runs<'a> {
        Runs { runs: ArrayVec::new() }
    }

    #[inline(always)]
    fn add(&mut self, way: Option<(u32, NextHop)>, numbers: Numbers, cx: &Context<'a>) {
        self.runs.push(SaRun::EMPTY);
        if let (Some((slot, next)), Some(run)) = (way, self.runs.last_mut()) {
            run.fill(slot, next, numbers, cx);
        }
    }

    /// Reserves numbers for all packets that leave.
    #[inline(always)]
    pub fn reserve(&mut self, leaving: &Leaving<'_>, cx: &Context<'a>) {
        for exit in leaving.exits() {
            let way = exit.way.filter(|_| exit.packets > 0);
            self.add(way, Numbers::Reserve { packets: exit.packets, tunnel: exit.slot }, cx);
        }
    }

    /// What is reserved, for [`Runs::again`].
    pub fn numbers(&mut self, leaving: &Leaving<'_>, reserved: &mut ArrayVec<Reserved, EXITS>) {
        let all = self.runs.drain(..).zip(leaving.exits());
        reserved.extend(all.map(|(run, exit)| Reserved {
            way: exit.way,
            numbers: run.numbers,
            refusal: run.refusal,
        }));
    }

    /// The runs of a burst whose numbers were reserved before, by whatever worker; takes the numbers.
    pub fn again(&mut self, reserved: &mut ArrayVec<Reserved, EXITS>, cx: &Context<'a>) {
        for it in reserved.drain(..) {
            self.add(it.way, Numbers::Reserved(it.numbers, it.refusal), cx);
        }
    }

    /// The run of a packet.
    #[inline(always)]
    pub fn of(&mut self, meta: &Meta) -> &mut SaRun<'a> {
        &mut self.runs[usize::from(meta.sa)]
    }

    /// Counts a drop at the tunnel of the SA, too.
    #[cold]
    pub fn refuse(&mut self, meta: &Meta, verdict: Verdict, cx: &Context<'_>) {
        if let Some((sa, _)) = cx.tables.outbound(self.of(meta).slot) {
            cx.count_at(sa.tunnel(), verdict);
        }
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
        let mut sealed = 0;
        for run in self.runs.iter().filter(|run| run.packets > 0) {
            cx.state.outbound(run.slot).account(u64::from(run.packets), run.bytes, cx.now);
            sealed += u64::from(run.packets);
        }
        cx.tally.note(Note::Sealed, sealed);
    }
}
