//! How a packet ends. Every frame that the data plane received ends in exactly one [`Verdict`]:
//! `received = sent + punted + sum of drops`, per worker, always. The list of reasons exists once, here.

macro_rules! named {
    ($(#[$meta:meta])* $enum:ident { $($variant:ident $name:literal $doc:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $enum { $(#[doc = $doc] $variant,)* }

        impl $enum {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [$enum] = &[$($enum::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = $enum::ALL.len();

            /// The word of counters, metrics and command line.
            pub const fn name(self) -> &'static str {
                match self { $($enum::$variant => $name,)* }
            }

            /// One line for people.
            pub const fn describe(self) -> &'static str {
                match self { $($enum::$variant => $doc,)* }
            }
        }
    };
}

named! {
    /// The end of one frame.
    Verdict {
        Sent "sent" "Handed to a port: ESP, plaintext, the kernel's own frames, or an ICMP answer made from the frame",
        Punted "punted" "Handed to the kernel through a twin",
        EthernetRunt "ethernet_runt" "Shorter than its Ethernet header",
        VlanOther "vlan_other" "Carries a VLAN tag that is not the port's",
        MacOther "mac_other" "Addressed to another station's MAC",
        Ipv4Malformed "ipv4_malformed" "IPv4 version, header length or total length is wrong",
        Ipv4Checksum "ipv4_checksum" "IPv4 header checksum is wrong",
        TtlExceeded "ttl_exceeded" "TTL ran out and no ICMP answer was due",
        NoRoute "no_route" "No route to the destination",
        RouteDiscard "route_discard" "The route says blackhole, unreachable or prohibit",
        NoNeighbour "no_neighbour" "The next hop did not answer ARP within a second, or too many packets waited for it already",
        PortDown "port_down" "The route leads to a port that is not there",
        ClearOnPublic "clear_on_public" "Plaintext that would have left by, or came in by, a public port",
        NoSa "no_sa" "The destination belongs to a tunnel that has no outbound SA now",
        SaOrphaned "sa_orphaned" "The SA's sequence state was lost; it must be rekeyed before it may be used",
        SequenceExhausted "sequence_exhausted" "The SA's hard limit of sequence numbers is reached",
        SelectorOutbound "selector_outbound" "Routed to a tunnel whose selectors do not cover it",
        TooBig "too_big" "Does not fit the tunnel's MTU and no ICMP answer was due",
        TunnelLoop "tunnel_loop" "Came out of a tunnel and was routed into the same one",
        SealFailed "seal_failed" "The engine refused to seal",
        EspTruncated "esp_truncated" "ESP packet shorter than header, IV, trailer and ICV, or not a multiple of 4",
        EspFragment "esp_fragment" "Fragment of an ESP packet; reassembly is not done",
        UnknownSpi "unknown_spi" "No inbound SA with this SPI",
        Replayed "replayed" "Sequence number was seen before",
        TooOld "too_old" "Sequence number lies left of the replay window: late, or sent again",
        AuthFailed "auth_failed" "Integrity check value is wrong: other keys, damage, or with ESN a packet from long before the replay window",
        EspTrailer "esp_trailer" "Padding or next header inside a valid ESP packet is wrong",
        EspDummy "esp_dummy" "Dummy packet of traffic flow confidentiality (next header 59)",
        InnerMalformed "inner_malformed" "What was decrypted is no whole IPv4 packet",
        EcnInvalid "ecn_invalid" "Outer header says congestion experienced, inner one cannot carry it (RFC 6040 4.2)",
        SelectorInbound "selector_inbound" "What was decrypted is not covered by the tunnel's selectors (RFC 4301 5.2)",
        Keepalive "keepalive" "NAT keepalive (RFC 3948 2.3)",
        PuntFull "punt_full" "The kernel did not take punted frames fast enough",
        PuntNoTwin "punt_no_twin" "Belongs to the kernel, but the port or tunnel has no twin now",
        NoHeadroom "no_headroom" "The buffer has no room for the outer headers and the trailer",
        TransmitFull "transmit_full" "The port did not take the frame",
    }
}

impl Verdict {
    /// Whether the frame was dropped.
    pub const fn is_drop(self) -> bool {
        !matches!(self, Verdict::Sent | Verdict::Punted)
    }

    /// Every reason to drop.
    pub fn drops() -> impl Iterator<Item = Verdict> {
        Verdict::ALL.iter().copied().filter(|verdict| verdict.is_drop())
    }
}

named! {
    /// What happened to frames besides their end; not part of the sum.
    Note {
        Sealed "sealed" "Frames encapsulated and sealed",
        Opened "opened" "Frames opened with a right tag",
        FromKernel "from_kernel" "Frames that came from the kernel through a twin (they are received frames too)",
        AnsweredTooBig "answered_too_big" "ICMP fragmentation needed sent (RFC 1191)",
        AnsweredTtl "answered_ttl" "ICMP time exceeded sent (RFC 792)",
        TransmitRetried "transmit_retried" "Bursts of which the port took a part at first",
        Handed "handed" "Frames that this worker received and handed to another worker to be sealed or opened",
        Returned "returned" "Of those, the ones that came back; the rest is with the other worker now",
        Helped "helped" "Frames that this worker sealed or opened for another one",
    }
}
