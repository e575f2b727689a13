//! How a device brings ESP to its receive queues: what it offers and how it answers to flow rules enters, what it then does, in
//! words too, leaves. Rules are asked for in order of what they are worth; where all are refused, software spreads
//! (`path::spread`). ESP is told by its SPI (RFC 4303 section 2.1), in UDP too (RFC 3948).
//!
//! | Driver | Asked for |
//! |---|---|
//! | ice, iavf, i40e (Intel E800, their virtual functions, 700) | a rule that hashes the SPI over the device's table of queues |
//! | mlx5 (NVIDIA ConnectX) | a rule that hashes the SPI over a list of queues |
//! | any other that lists `RTE_ETH_RSS_ESP` (cnxk, for one) | nothing more than RSS, in which ESP stands already |
//! | any, where that is refused, and a power of two of queues | rules that take the last bits of the SPI for the queue's number |
//!
//! The last bits of an SPI that control chose are those of its slot, and slots are given out in turn: they are spread evenly.
//! A hash is asked for by name only: some drivers (ixgbe) read any rule with RSS as the setting of the whole device, and would
//! switch off the RSS of all other packets without complaint. All that is not ESP stays with RSS in every case.

use crate::dpdk::{Carrier, Choice, Rules};

/// What a device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Name of the port.
    pub port: String,
    /// Name of the driver.
    pub driver: String,
    /// Queue pairs at most.
    pub max_queues: u16,
    /// Whether its RSS says that it can hash the SPI of ESP.
    pub rss_by_spi: bool,
    /// Whether ESP arrives there.
    pub public: bool,
}

/// How ESP comes to the queues of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By RSS, which hashes the SPI.
    Rss,
    /// By flow rules.
    Rules {
        /// How they choose.
        choice: Choice,
        /// Whether there are some for ESP in UDP as well.
        in_udp: bool,
    },
    /// Without regard to its SPI.
    Blind {
        /// Why.
        why: String,
    },
}

/// Drivers (or how their names begin) that hash the SPI by a flow rule only, whatever their capabilities say, and how.
const BY_RULE: [(&str, Choice, Carrier); 4] = [
    // These take neither a list of queues nor a UDP port in the pattern.
    ("net_ice", Choice::HashOverTable, Carrier::UdpOfParser),
    ("net_iavf", Choice::HashOverTable, Carrier::UdpOfParser),
    ("net_i40e", Choice::HashOverTable, Carrier::UdpOfParser),
    ("mlx5", Choice::HashOverList, Carrier::Udp),
];

/// Finds the best way that a started device with so many queues agrees to. `ask` has it validate and make rules, all of them or
/// none, or says why it will not.
pub fn find(offer: &Offer, queues: u16, mut ask: impl FnMut(Rules) -> Result<(), String>) -> Steering {
    let by_rule = BY_RULE.iter().find(|(driver, ..)| offer.driver.starts_with(driver));
    if offer.rss_by_spi && by_rule.is_none() {
        return Steering::Rss;
    }
    let hash = by_rule.map(|&(_, choice, udp)| (choice, udp));
    let low_bits = queues.is_power_of_two().then_some((Choice::LowBits, Carrier::Udp));
    let mut why = vec!["no RSS by SPI".to_owned()];
    for (choice, udp) in hash.into_iter().chain(low_bits) {
        match ask(Rules { choice, carrier: Carrier::Ip }) {
            Ok(()) => {
                let in_udp = ask(Rules { choice, carrier: udp }).is_ok();
                return Steering::Rules { choice, in_udp };
            }
            Err(said) => why.push(format!("no flow rule by {}: {said}", kind(choice))),
        }
    }
    if low_bits.is_none() {
        why.push(format!("no flow rule by SPI's last bits: {queues} queues are no power of two"));
    }
    Steering::Blind { why: why.join("; ") }
}

fn kind(choice: Choice) -> &'static str {
    match choice {
        Choice::LowBits => "SPI's last bits",
        Choice::HashOverTable | Choice::HashOverList => "a hash of the SPI",
    }
}

impl Steering {
    /// Whether no packets of ESP, in UDP or not, go without regard to their SPI.
    pub fn is_whole(&self) -> bool {
        matches!(self, Steering::Rss | Steering::Rules { in_udp: true, .. })
    }

    /// What the queues get, for people.
    pub fn words(&self, queues: u16) -> String {
        let last = queues - 1;
        let (chosen, in_udp) = match self {
            Steering::Rss => return format!("queues 0-{last} get ESP by a hash of its SPI (RSS)"),
            Steering::Blind { why } => {
                return format!("queues 0-{last}, all SPIs between two addresses get the same queue ({why})");
            }
            Steering::Rules { choice: Choice::LowBits, in_udp } => (low_bits(queues), in_udp),
            Steering::Rules { in_udp, .. } => {
                (format!("queues 0-{last} get ESP by a hash of its SPI (flow rule)"), in_udp)
            }
        };
        let udp = if *in_udp { "in UDP too" } else { "in UDP by its addresses and ports" };
        format!("{chosen}, {udp}")
    }
}

fn low_bits(queues: u16) -> String {
    const LISTED: u16 = 8;
    let bits = queues.trailing_zeros() as usize;
    if queues > LISTED {
        let last = queues - 1;
        return format!(
            "each queue gets SPIs that end in its number in {bits} binary digits, up to queue {last} in {last:b}"
        );
    }
    let others: Vec<String> =
        (1..queues).map(|queue| format!(", queue {queue} in {queue:0bits$b}")).collect();
    format!("queue 0 gets SPIs that end in binary {:0bits$b}{}", 0, others.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(driver: &str, rss_by_spi: bool) -> Offer {
        Offer { port: "wan".into(), driver: driver.into(), max_queues: 64, rss_by_spi, public: true }
    }

    /// What comes of a device that agrees to these rules, and what it was asked for.
    fn asked(offer: &Offer, queues: u16, agrees: &[(Choice, Carrier)]) -> (Steering, Vec<(Choice, Carrier)>) {
        let mut list = vec![];
        let steering = find(offer, queues, |Rules { choice, carrier }| {
            list.push((choice, carrier));
            if agrees.contains(&(choice, carrier)) { Ok(()) } else { Err("not supported".into()) }
        });
        (steering, list)
    }

    #[test]
    fn rss_is_believed_where_it_can_be() {
        let (steering, list) = asked(&offer("net_cnxk", true), 3, &[]);
        assert_eq!((&steering, list), (&Steering::Rss, vec![]));
        assert_eq!(steering.words(3), "queues 0-2 get ESP by a hash of its SPI (RSS)");
        assert!(steering.is_whole());
    }

    #[test]
    fn drivers_that_hash_by_rule_get_the_rule_that_they_know() {
        let (table, list) = (Choice::HashOverTable, Choice::HashOverList);
        for (driver, choice, udp) in [
            ("net_ice", table, Carrier::UdpOfParser),
            ("net_iavf", table, Carrier::UdpOfParser),
            ("net_i40e", table, Carrier::UdpOfParser),
            ("mlx5_pci", list, Carrier::Udp),
            ("mlx5_auxiliary", list, Carrier::Udp),
        ] {
            // What the capabilities say does not matter.
            for rss_by_spi in [false, true] {
                let wanted = [(choice, Carrier::Ip), (choice, udp)];
                let (steering, list) = asked(&offer(driver, rss_by_spi), 4, &wanted);
                assert_eq!(list, wanted, "{driver}");
                assert_eq!(steering, Steering::Rules { choice, in_udp: true });
                assert_eq!(
                    steering.words(4),
                    "queues 0-3 get ESP by a hash of its SPI (flow rule), in UDP too"
                );
            }
        }
    }

    #[test]
    fn esp_in_udp_may_stay_behind() {
        let (steering, _) = asked(&offer("net_ice", false), 6, &[(Choice::HashOverTable, Carrier::Ip)]);
        assert_eq!(
            steering.words(6),
            "queues 0-5 get ESP by a hash of its SPI (flow rule), in UDP by its addresses and ports"
        );
        assert!(!steering.is_whole());
    }

    #[test]
    fn low_bits_are_the_last_that_is_asked_for() {
        let agrees = [(Choice::LowBits, Carrier::Ip), (Choice::LowBits, Carrier::Udp)];
        let (steering, list) = asked(&offer("mlx5_pci", true), 4, &agrees);
        assert_eq!(list, [(Choice::HashOverList, Carrier::Ip), agrees[0], agrees[1]]);
        assert_eq!(
            steering.words(4),
            "queue 0 gets SPIs that end in binary 00, queue 1 in 01, queue 2 in 10, queue 3 in 11, in UDP too"
        );
        // Others are never asked for a hash.
        let (steering, list) = asked(&offer("net_ixgbe", false), 2, &agrees);
        assert_eq!((list.as_slice(), steering.is_whole()), (agrees.as_slice(), true));
        assert_eq!(steering.words(2), "queue 0 gets SPIs that end in binary 0, queue 1 in 1, in UDP too");
        assert!(steering.words(64).contains("in 6 binary digits, up to queue 63 in 111111"));
    }

    #[test]
    fn software_is_left_where_all_is_refused() {
        let (steering, list) = asked(&offer("net_tap", false), 2, &[]);
        assert_eq!(list, [(Choice::LowBits, Carrier::Ip)]);
        assert_eq!(
            steering.words(2),
            "queues 0-1, all SPIs between two addresses get the same queue (no RSS by SPI; no flow rule by SPI's last bits: not \
             supported)"
        );
        let (steering, list) = asked(&offer("net_ixgbe", false), 3, &[]);
        assert!(list.is_empty() && !steering.is_whole());
        assert!(steering.words(3).contains("3 queues are no power of two"));
        let (steering, list) = asked(&offer("net_iavf", true), 2, &[]);
        assert_eq!(list, [(Choice::HashOverTable, Carrier::Ip), (Choice::LowBits, Carrier::Ip)]);
        assert!(!steering.is_whole(), "its capabilities are not believed");
    }
}
