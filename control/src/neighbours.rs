//! Which neighbours the kernel keeps for the data plane. What enters is what the data plane asks for, what stands in its tables
//! and what the kernel knows; what leaves are requests to the kernel by the mirror. RFC 826 is what the kernel does then.
//!
//! The kernel collects neighbours that it does not use itself, and it never sees the data plane's packets. Workers do not
//! say whom they send to either: a stamp for each packet would be paid on the path. So every neighbour that stands in the
//! tables counts as in use: it is guarded from the kernel's collection and probed when it grows stale, and leaves the
//! tables when it does not answer. What may stand there is bounded (`publish::routes`), and so is what may be asked for.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::netlink::{self, Kernel, Mirror, Nud};
use crate::publish::routes::Neighbour;
use crate::publish::view::TwinIndex;

/// How long after the last packet to it a neighbour that is not known is asked for. The kernel gives up after three seconds.
const ASKED: Duration = Duration::from_secs(5);
/// Most neighbours of one port that are asked for at once,
const MOST_ASKED: usize = 256;
/// unless those before had so long to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often what is kept is compared with what is wanted, where nothing changes.
const KEEPING: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Neighbours {
    asked: HashMap<Neighbour, Instant>,
    /// What the kernel knows of the ports' links.
    known: HashMap<Neighbour, netlink::Neighbour>,
    /// Names of the interfaces in this network namespace.
    links: HashSet<String>,
    kept_at: Option<Instant>,
}

impl Neighbours {
    /// The kernel changed.
    pub fn follow(&mut self, twins: &TwinIndex, kernel: &Kernel) {
        self.known = twins.neighbours(kernel).collect();
        self.links = kernel.links().values().map(|link| link.name.clone()).collect();
    }

    /// Whether there is an interface of this name.
    pub fn has_link(&self, name: &str) -> bool {
        self.links.contains(name)
    }

    /// The kernel's entry of a neighbour.
    pub fn entry(&self, hop: Neighbour) -> Option<netlink::Neighbour> {
        self.known.get(&hop).copied()
    }

    /// The neighbours of a port that were asked for lately and did not answer, by address.
    pub fn silent(&self, port: u8) -> Vec<Ipv4Addr> {
        let usable = |hop: &Neighbour| self.entry(*hop).is_some_and(|entry| entry.usable().is_some());
        let silent = self.asked.keys().filter(|hop| hop.0 == port && !usable(hop)).map(|hop| hop.1);
        let mut silent: Vec<Ipv4Addr> = silent.collect();
        silent.sort_unstable();
        silent
    }

    /// The data plane has packets for these; asks the kernel for those that there is room for.
    pub fn ask(&mut self, news: HashSet<Neighbour>, twins: &TwinIndex, mirror: &mut Mirror) {
        let now = Instant::now();
        for hop in news {
            let Some(interface) = twins.interface_of(hop.0) else { continue };
            if self.admit(hop, now) {
                mirror.resolve(interface, hop.1);
            }
        }
    }

    /// These were reached until now. The kernel is asked again for those that it has forgotten; the others it asked in vain.
    pub fn lose(&mut self, lost: Vec<Neighbour>, twins: &TwinIndex, mirror: &mut Mirror) {
        let forgotten = lost.into_iter().filter(|hop| !self.known.contains_key(hop)).collect();
        self.ask(forgotten, twins, mirror);
    }

    /// Whether this one may be asked for.
    fn admit(&mut self, hop: Neighbour, now: Instant) -> bool {
        let of_port =
            |asked: &HashMap<Neighbour, Instant>| asked.keys().filter(|other| other.0 == hop.0).count();
        if !self.asked.contains_key(&hop) && of_port(&self.asked) >= MOST_ASKED {
            self.asked.retain(|other, since| other.0 != hop.0 || now.duration_since(*since) < PATIENCE);
            if of_port(&self.asked) >= MOST_ASKED {
                return false;
            }
        }
        self.asked.insert(hop, now);
        true
    }

    /// What was asked for lately.
    pub fn asked(&self) -> HashSet<Neighbour> {
        self.asked.keys().copied().collect()
    }

    /// Whether [`Neighbours::keep`] is due though nothing changed.
    pub fn is_due(&self) -> bool {
        self.kept_at.is_none_or(|at| at.elapsed() >= KEEPING)
    }

    /// Has the kernel keep what stands in the tables, and for a while what was asked for.
    pub fn keep(
        &mut self,
        in_tables: impl Iterator<Item = Neighbour>,
        twins: &TwinIndex,
        mirror: &mut Mirror,
    ) {
        let now = Instant::now();
        self.kept_at = Some(now);
        self.asked.retain(|_, since| now.duration_since(*since) < ASKED);
        let hops = in_tables.chain(self.asked.keys().copied());
        let wanted: HashSet<(u32, Ipv4Addr)> =
            hops.filter_map(|(port, address)| Some((twins.interface_of(port)?, address))).collect();
        // The mirror may be a new one.
        let kept: HashSet<(u32, Ipv4Addr)> = mirror.kept().collect();
        wanted.difference(&kept).for_each(|(interface, address)| mirror.resolve(*interface, *address));
        // An earlier control may have left some.
        let guarded = self.known.iter().filter(|(_, entry)| entry.guarded && entry.state != Nud::Permanent);
        let left = guarded.filter_map(|((port, address), _)| Some((twins.interface_of(*port)?, *address)));
        let leaving: HashSet<(u32, Ipv4Addr)> = kept.into_iter().chain(left).collect();
        leaving.difference(&wanted).for_each(|(interface, address)| mirror.release(*interface, *address));
    }
}

/// Where the kernel keeps the limits of its table of IPv4 neighbours. They hold for all network namespaces and can be set in
/// the first one only.
pub const LIMITS: &str = "/proc/sys/net/ipv4/neigh/default";

/// Raises the kernel's limits to what `neighbours` of the data plane need; lowers none. Below the first nothing is
/// collected, above the second what is older than five seconds, and no more than the third are there.
///
/// # Errors
/// A sentence that says what to set instead.
pub fn raise_limits(folder: &Path, neighbours: u32) -> Result<(), String> {
    let wanted = [1, 2, 4].map(|times| neighbours.saturating_mul(times).min(1 << 30));
    // From the last on, so that they are in order at any time.
    for (number, wanted) in [1, 2, 3].into_iter().zip(wanted).rev() {
        let file = folder.join(format!("gc_thresh{number}"));
        let told = |error: &dyn std::fmt::Display| {
            format!(
                "the kernel's limits of neighbours cannot be raised ({}: {error}): where more than 128 hosts are on all links \
                 of this machine, set net.ipv4.neigh.default.gc_thresh1, 2 and 3 to {}, {} and {} in its first network \
                 namespace",
                file.display(),
                neighbours,
                neighbours.saturating_mul(2),
                neighbours.saturating_mul(4)
            )
        };
        let now = std::fs::read_to_string(&file).map_err(|error| told(&error))?;
        let now: u32 = now.trim().parse().map_err(|error| told(&error))?;
        if now < wanted {
            std::fs::write(&file, wanted.to_string()).map_err(|error| told(&error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_and_never_lowered() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let limits = |values: [&str; 3]| {
            for (number, value) in (1..=3).zip(values) {
                std::fs::write(folder.path().join(format!("gc_thresh{number}")), value).expect("written");
            }
            raise_limits(folder.path(), 4096).expect("there");
            [1, 2, 3].map(|number| {
                let file = folder.path().join(format!("gc_thresh{number}"));
                std::fs::read_to_string(file).expect("there").trim().to_string()
            })
        };
        assert_eq!(limits(["128\n", "512\n", "1024\n"]), ["4096", "8192", "16384"]);
        assert_eq!(limits(["128\n", "100000\n", "100000\n"]), ["4096", "100000", "100000"]);
        let error = raise_limits(&folder.path().join("none"), 4096).expect_err("a namespace without them");
        assert!(error.contains("gc_thresh1, 2 and 3 to 4096, 8192 and 16384"), "{error}");
    }

    #[test]
    fn a_scan_does_not_keep_others_from_being_asked_for() {
        let mut neighbours = Neighbours::default();
        let (begin, host) = (Instant::now(), |at: u32| (0, Ipv4Addr::from_bits(0x0a01_0000 + at)));
        let admitted = (0..5000).filter(|at| neighbours.admit(host(*at), begin)).count();
        assert_eq!(admitted, MOST_ASKED);
        assert!(neighbours.admit((1, Ipv4Addr::LOCALHOST), begin), "another port has its own bound");
        assert!(neighbours.admit(host(0), begin), "who is asked for is asked for on");
        assert!(!neighbours.admit(host(9999), begin));
        assert!(neighbours.admit(host(9999), begin + PATIENCE), "the scanned ones had their time");
        assert_eq!(neighbours.asked().len(), 2);
    }
}
