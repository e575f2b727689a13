//! The options of a benchmark run, named as testpmd names its own. Arguments in, options out.

use std::str::FromStr;

use clap::{Parser, ValueEnum};
use penstock_tables::Cipher;

use super::Failure;
use penstock_dataplane::dpdk::DeviceName;

const EXAMPLES: &str = "\
Ports are the devices that EAL's --vdev and -a name, in that order: port 0 is the private side, port 1 the public side. Without a \
device, packets come from a generator in memory and end in a sink, and what the generator costs by itself is measured and \
subtracted. A worker runs on each of the last --nb-cores lcores of EAL's -l or --lcores.

Packets of a feed of your own: to MAC 02:00:00:00:00:01, from 10.0.0.2 to 16.0.0.1 (of tunnel n: 16.0.0.1 + 256 n).

Examples:
  penstock-testpmd -l 1 --no-pci --in-memory -- --sizes 64,512,1420,imix --json
  penstock-testpmd -l 1 --no-pci --no-huge -m 256 -- --forward-mode loop --sas 10000 --cipher aes256gcm16
  penstock-testpmd -l 1 --no-pci --in-memory --vdev net_pcap0,rx_pcap=plain.pcap,infinite_rx=1 --vdev net_null0,no-rx=1 \\
      -- --forward-mode encap --duration 5 --stats-period 1
  penstock-testpmd -l 0,1 --no-pci --in-memory --vdev net_memif0,role=server,id=0 --vdev net_memif1,role=server,id=1 \\
      --vdev net_memif2,role=client,id=0 --vdev net_memif3,role=client,id=1 -- --forward-mode encap --rfc2544";

/// Benchmark of Penstock's packet path in testpmd's dialect. Everything before `--` is DPDK's.
#[derive(Clone, Debug, Parser)]
#[command(name = "penstock-testpmd EAL-OPTIONS --", version, after_help = EXAMPLES)]
pub struct BenchOptions {
    /// What is timed; a list runs one after the other.
    #[arg(long, value_name = "MODE", value_enum, value_delimiter = ',', default_values_t = [Mode::Encap, Mode::Decap])]
    pub forward_mode: Vec<Mode>,
    /// Tunnels with an SA in each direction; every packet is the next one's. A list runs one after the other.
    #[arg(long, value_name = "N", visible_alias = "tunnels", value_delimiter = ',', default_values_t = [1u32],
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sas: Vec<u32>,
    /// Each worker has its part of the --sas to itself, where all workers otherwise share all. In memory only.
    #[arg(long)]
    pub own_sas: bool,
    /// Octets of the inner IPv4 packets, or `imix` (7:4:1 of 64, 570, 1420). On ports the feed decides, and this is what the
    /// report says.
    #[arg(long, value_name = "OCTETS", value_delimiter = ',', default_value = "64,512,1420")]
    pub sizes: Vec<Size>,
    /// Packets a burst.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub burst: u16,
    /// Workers, each on an lcore of its own with a queue pair of every port; they share all SAs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nb_cores: u16,
    /// Receive queues of a port; as many as workers, or in `io` and `mac` more.
    #[arg(long, value_name = "N")]
    pub rxq: Option<u16>,
    /// Transmit queues of a port; as many as receive queues.
    #[arg(long, value_name = "N")]
    pub txq: Option<u16>,
    /// Mbufs of the pool; enough for all queues where none is given.
    #[arg(long, value_name = "N")]
    pub total_num_mbufs: Option<u32>,
    /// Print rates to stderr every so many seconds; 0 never does.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds)]
    pub stats_period: f64,
    /// Crypto engine; the best for this CPU where none is given.
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// Cipher of the SAs.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = CipherOption::Aes128gcm16)]
    pub cipher: CipherOption,
    /// Extended sequence numbers. Without them an SA ends after 2^32 packets.
    #[arg(long)]
    pub esn: bool,
    /// Replay window, in packets: a power of two.
    #[arg(long, value_name = "PACKETS", default_value_t = 1024)]
    pub replay_window: u32,
    /// UDP encapsulation.
    #[arg(long)]
    pub udp: bool,
    /// Seconds of each measurement.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub duration: f64,
    /// Tell cycles by stage too: rx, classify, decap, route, encap, tx, and the engine by itself. The clock is read after each,
    /// which the total shows. In memory only.
    #[arg(long)]
    pub stages: bool,
    /// While packets run, add so many tunnels with SAs and routes, take them out again, and so on. In memory only; needs an
    /// lcore that no worker runs on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub updates: u32,
    /// One worker receives everything, and the --nb-cores of them work on it, in order; what is told has the generator in it.
    /// In memory only.
    #[arg(long)]
    pub spread: bool,
    /// Search the rate at which nothing is lost, then tell latencies at 50 % and 90 % of it (RFC 2544). Needs four ports:
    /// ports 2 and 3 are the tester's, wired to 0 and 1; and an lcore for the tester. `--duration` is that of a trial.
    #[arg(long)]
    pub rfc2544: bool,
    /// Write JSON, one object a measurement.
    #[arg(long)]
    pub json: bool,
}

impl BenchOptions {
    /// Checks what clap cannot. `devices` is how many DPDK was given.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self, devices: usize) -> Result<(), Failure> {
        let forwards = self.forward_mode.iter().all(|mode| !mode.seals());
        let queues = self.queues();
        if self.txq.is_some_and(|txq| txq != queues) {
            return Err(format!("--rxq {queues} and --txq must be the same: workers own queue pairs").into());
        }
        if queues < self.nb_cores || (queues != self.nb_cores && !(forwards && devices > 0)) {
            let least = self.nb_cores;
            return Err(format!(
                "--rxq {queues} does not suit --nb-cores {least}: every worker takes one queue pair of each \
                                port, and only io and mac on ports can poll more"
            )
            .into());
        }
        if !self.replay_window.is_power_of_two() || !(64..=65536).contains(&self.replay_window) {
            return Err(format!(
                "--replay-window {} must be a power of two from 64 to 65536",
                self.replay_window
            )
            .into());
        }
        if devices > 0 && (self.stages || self.updates > 0) {
            return Err("--stages and --updates are for the generator in memory: give EAL no device".into());
        }
        if self.spread && (devices > 0 || self.stages || self.updates > 0) {
            return Err(
                "--spread is for the generator in memory, without --stages and --updates: give EAL no device"
                    .into(),
            );
        }
        if self.spread && !self.forward_mode.iter().all(|mode| matches!(mode, Mode::Encap | Mode::Decap)) {
            return Err("--spread measures --forward-mode encap and decap".into());
        }
        if self.own_sas && (devices > 0 || self.spread) {
            return Err(
                "--own-sas is for the generator in memory, without --spread: give EAL no device".into()
            );
        }
        if let Some(few) = self.sas.iter().find(|sas| self.own_sas && **sas < u32::from(self.nb_cores)) {
            return Err(format!(
                "--sas {few} is too few for --own-sas: each of the {} workers needs one",
                self.nb_cores
            )
            .into());
        }
        if devices == 1 && !forwards {
            return Err(
                "encap, decap and loop need two ports, the private one first: give EAL a second --vdev or -a"
                    .into(),
            );
        }
        if devices > 1 && devices % 2 == 1 {
            return Err(format!("ports come in pairs, and EAL was given {devices}").into());
        }
        if devices > 2 && !forwards && !self.rfc2544 {
            return Err(format!("encap, decap and loop need two ports, and EAL was given {devices}").into());
        }
        if devices > 0 && (self.forward_mode.len() > 1 || self.sas.len() > 1) {
            return Err("on ports, one --forward-mode and one --sas at a time".into());
        }
        if self.rfc2544 && self.nb_cores != 1 {
            return Err("--rfc2544 has one flow and one tester: leave --nb-cores at 1".into());
        }
        if self.rfc2544 && self.sizes.iter().any(|size| size.pattern.iter().any(|octets| *octets < 36)) {
            return Err("--rfc2544 writes a time into every packet: --sizes must be 36 or more".into());
        }
        if self.rfc2544 && devices != 4 {
            return Err(format!(
                "--rfc2544 needs four ports and EAL was given {devices}: private, public, and the two of the \
                                tester that are wired to them (see the example in --help)"
            )
            .into());
        }
        if self.rfc2544 && self.forward_mode.contains(&Mode::Decap) {
            return Err(
                "--rfc2544 cannot offer decap what nobody sealed: take encap, or loop, which does both"
                    .into(),
            );
        }
        if self.rfc2544 && self.sas != [1] {
            return Err(
                "--rfc2544 tells packets apart by the sequence numbers of one SA: leave --sas out".into()
            );
        }
        if self.duration <= 0.0 {
            return Err("--duration must be more than 0 seconds".into());
        }
        Ok(())
    }

    /// Queue pairs of a port.
    pub fn queues(&self) -> u16 {
        self.rxq.or(self.txq).unwrap_or(self.nb_cores)
    }

    /// Workers.
    pub fn workers(&self) -> usize {
        usize::from(self.nb_cores)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, from 0 to 86400".into()),
    }
}

/// The devices that EAL's arguments name, in their order.
///
/// # Errors
/// [`penstock_dataplane::dpdk::Error::Name`] where one is no device's name.
pub fn devices(eal: &[String]) -> Result<Vec<DeviceName>, Failure> {
    let mut names = Vec::new();
    let mut arguments = eal.iter();
    while let Some(argument) = arguments.next() {
        let text = match argument.as_str() {
            "--vdev" | "-a" | "--allow" => arguments.next().map(String::as_str),
            other => {
                ["--vdev=", "--allow="].iter().find_map(|option| other.strip_prefix(option)).or_else(|| {
                    other
                        .strip_prefix("-a")
                        .filter(|rest| rest.starts_with(|first: char| first.is_ascii_hexdigit()))
                })
            }
        };
        if let Some(text) = text {
            names.push(text.parse::<DeviceName>()?);
        }
    }
    Ok(names)
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Plaintext in, ESP out.
    Encap,
    /// ESP in, plaintext out.
    Decap,
    /// Both, one after the other in one worker: plaintext in and out.
    Loop,
    /// Frames from one port of a pair to the other, untouched.
    Io,
    /// As io, with new MAC addresses.
    Mac,
}

impl Mode {
    /// The word of reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Encap => "encap",
            Mode::Decap => "decap",
            Mode::Loop => "loop",
            Mode::Io => "io",
            Mode::Mac => "mac",
        }
    }

    /// Whether there is ESP in it.
    pub fn seals(self) -> bool {
        matches!(self, Mode::Encap | Mode::Decap | Mode::Loop)
    }
}

/// The ciphers by the configuration's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CipherOption {
    /// AES-GCM, 128-bit key.
    Aes128gcm16,
    /// AES-GCM, 256-bit key.
    Aes256gcm16,
    /// ChaCha20-Poly1305.
    Chacha20poly1305,
}

impl CipherOption {
    /// The cipher.
    pub fn cipher(self) -> Cipher {
        match self {
            CipherOption::Aes128gcm16 => Cipher::Aes128Gcm16,
            CipherOption::Aes256gcm16 => Cipher::Aes256Gcm16,
            CipherOption::Chacha20poly1305 => Cipher::ChaCha20Poly1305,
        }
    }

    /// The word of reports.
    pub fn name(self) -> &'static str {
        match self {
            CipherOption::Aes128gcm16 => "aes128gcm16",
            CipherOption::Aes256gcm16 => "aes256gcm16",
            CipherOption::Chacha20poly1305 => "chacha20poly1305",
        }
    }
}

/// Sizes of inner packets, in octets: those of one round of the generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The word of the command line.
    pub word: String,
    /// Sizes that the generator repeats.
    pub pattern: Vec<usize>,
}

impl Size {
    /// Inner octets of a packet on average.
    pub fn mean(&self) -> f64 {
        self.pattern.iter().sum::<usize>() as f64 / self.pattern.len() as f64
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(word: &str) -> Result<Size, String> {
        let pattern = if word == "imix" {
            // 7:4:1, spread so that no burst is of one size.
            vec![64, 570, 64, 64, 570, 64, 1420, 64, 570, 64, 64, 570]
        } else {
            match word.parse() {
                Ok(octets @ 28..=1900) => vec![octets],
                _ => return Err("expected 28 to 1900 octets, or imix".into()),
            }
        };
        Ok(Size { word: word.to_owned(), pattern })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<BenchOptions, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        BenchOptions::try_parse_from(words).map_err(|error| error.to_string())
    }

    fn refused(line: &str, devices: usize) -> String {
        parse(line).unwrap().check(devices).unwrap_err().to_string()
    }

    #[test]
    fn imix_is_seven_four_one() {
        let size: Size = "imix".parse().unwrap();
        let count = |octets| size.pattern.iter().filter(|size| **size == octets).count();
        assert_eq!((count(64), count(570), count(1420)), (7, 4, 1));
        assert!("27".parse::<Size>().is_err() && "x".parse::<Size>().is_err());
    }

    #[test]
    fn lists_run_one_after_the_other() {
        let options = parse("--forward-mode=encap,loop --tunnels 1,10 --sizes 64,imix --nb-cores 2").unwrap();
        assert_eq!(options.forward_mode, [Mode::Encap, Mode::Loop]);
        assert_eq!((&options.sas[..], options.queues(), options.workers()), (&[1, 10][..], 2, 2));
        assert_eq!(options.sizes.iter().map(|size| size.word.as_str()).collect::<Vec<_>>(), ["64", "imix"]);
        options.check(0).unwrap();
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_what_can() {
        for line in
            ["--forward-mode=bridge", "--sas 0", "--burst 65", "--sizes 20", "--duration x", "--duration -1"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(refused("--rxq 2 --txq 1 --nb-cores 2", 0).contains("must be the same"));
        assert!(refused("--rxq 2", 2).contains("only io and mac"));
        parse("--rxq 2 --forward-mode io").unwrap().check(2).unwrap();
        assert!(refused("--nb-cores 2 --rxq 1", 2).contains("--nb-cores 2"));
        assert!(refused("--replay-window 100", 0).contains("power of two"));
        assert!(refused("--stages", 2).contains("no device"));
        assert!(refused("--updates 9", 2).contains("no device"));
        assert!(
            refused("--own-sas", 2).contains("no device")
                && refused("--own-sas --spread", 0).contains("--spread")
        );
        assert!(refused("--own-sas --nb-cores 3 --sas 9,2", 0).contains("--sas 2 is too few"));
        parse("--own-sas --nb-cores 3 --sas 9,3").unwrap().check(0).unwrap();
        assert!(refused("--forward-mode encap", 1).contains("need two ports"));
        assert!(refused("--forward-mode encap --rfc2544", 2).contains("four ports"));
        assert!(refused("--forward-mode decap --rfc2544", 4).contains("loop"));
        assert!(refused("--forward-mode loop --rfc2544 --sas 2", 4).contains("--sas"));
        assert!(refused("--forward-mode io", 3).contains("in pairs"));
        assert!(refused("--forward-mode encap", 4).contains("need two ports"));
        assert!(refused("", 2).contains("one --forward-mode"));
        assert!(refused("--forward-mode loop --rfc2544 --sizes 30", 4).contains("36"));
        assert!(refused("--forward-mode loop --rfc2544 --nb-cores 2", 4).contains("--nb-cores at 1"));
        assert!(refused("--duration 0", 0).contains("more than 0"));
    }

    #[test]
    fn devices_are_those_of_eal_in_order() {
        let eal = "p -l 1 --vdev net_null0,size=64 -a 3b:00.0 --vdev=net_ring1 --allow 0000:3b:00.1 -a3b:00.2 --no-pci";
        let eal: Vec<String> = eal.split_whitespace().map(str::to_owned).collect();
        let names: Vec<_> = devices(&eal).unwrap().iter().map(|name| name.as_str().to_owned()).collect();
        let expected = ["net_null0,size=64", "0000:3b:00.0", "net_ring1", "0000:3b:00.1", "0000:3b:00.2"];
        assert_eq!(names, expected);
        assert!(devices(&["--vdev".into(), "1 2".into()]).is_err());
    }
}
