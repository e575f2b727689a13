//! The command line of `penstock-dataplane`: what control hands over from the configuration. Arguments in, options out.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::dpdk::{DeviceName, FRAME_OVERHEAD, PoolConfig};
use crate::plan::SpreadOption;
use crate::worker::Idle;

/// Penstock's data plane: polls ports, seals and opens ESP. `penstock up` starts it; on its own it waits for the tables
/// that `penstock control` writes.
#[derive(Debug, Parser)]
#[command(name = "penstock-dataplane", version)]
pub struct Options {
    /// Directory of the region that both processes share.
    #[arg(long, value_name = "DIR")]
    pub region: PathBuf,
    /// A port: its name, which is also its twin's, and its device as DPDK names it. In the order of the configuration.
    #[arg(long = "port", value_name = "NAME=DEVICE", required = true, value_parser = parse_port)]
    pub ports: Vec<PortOption>,
    /// Largest IPv4 packet of a port, in octets.
    #[arg(long = "mtu", value_name = "NAME=OCTETS", value_parser = parse_mtu)]
    pub mtus: Vec<(String, u16)>,
    /// Ports that take frames for other stations too (they are counted and dropped).
    #[arg(long, value_name = "NAME")]
    pub promiscuous: Vec<String>,
    /// CPUs of the workers, one worker each.
    #[arg(long = "core", value_name = "CPU", required = true, value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// CPU of everything that is no worker.
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    pub control_core: usize,
    /// Crypto engine; the best for this CPU where none is given.
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// What a worker does while its queues stay empty.
    #[arg(long, value_enum, default_value_t = IdleOption::Poll)]
    pub idle: IdleOption,
    /// Whether workers share what one of them receives: `auto` where the devices do not spread tunnels over their queues.
    #[arg(long, value_enum, default_value_t = SpreadOption::Auto)]
    pub spread: SpreadOption,
    /// Whether packet buffers lie in huge pages; `auto` takes them where there are enough.
    #[arg(long, value_enum, default_value_t = HugePages::Auto)]
    pub hugepages: HugePages,
    /// Memory for packet buffers, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub memory: u32,
    /// Sets this instance apart from others in DPDK.
    #[arg(long, value_name = "NAME", default_value = "penstock")]
    pub file_prefix: String,
}

/// One `--port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOption {
    /// Name of the port and of its twin.
    pub name: String,
    /// Its device.
    pub device: DeviceName,
}

/// One `--idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdleOption {
    /// Never sleeps.
    Poll,
    /// Backs off while queues stay empty.
    Adaptive,
}

impl From<IdleOption> for Idle {
    fn from(option: IdleOption) -> Idle {
        match option {
            IdleOption::Poll => Idle::Poll,
            IdleOption::Adaptive => Idle::Adaptive,
        }
    }
}

/// One `--hugepages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HugePages {
    /// Where there are enough.
    Auto,
    /// Or an error.
    On,
    /// Ordinary pages.
    Off,
}

fn parse_port(text: &str) -> Result<PortOption, String> {
    let (name, device) = text.split_once('=').ok_or("expected NAME=DEVICE, like lan=0000:3b:00.0")?;
    let device = device.parse::<DeviceName>().map_err(|error| error.to_string())?;
    Ok(PortOption { name: name.to_owned(), device })
}

fn parse_mtu(text: &str) -> Result<(String, u16), String> {
    let (name, octets) = text.split_once('=').ok_or("expected NAME=OCTETS, like lan=1500")?;
    let octets = octets.parse().map_err(|_| format!("{octets} is no number of octets"))?;
    Ok((name.to_owned(), octets))
}

impl Options {
    /// What the arguments say of one port's MTU.
    pub fn mtu_of(&self, port: &str) -> Option<u16> {
        self.mtus.iter().rev().find(|(name, _)| name == port).map(|(_, octets)| *octets)
    }

    /// Octets of a packet buffer: a frame of the port with the largest MTU fits, with two VLAN tags.
    pub fn data_room(&self) -> u16 {
        let least = PoolConfig::default().data_room;
        let frames = self.mtus.iter().map(|(_, octets)| u32::from(*octets) + FRAME_OVERHEAD);
        let largest = frames.max().unwrap_or(0).next_multiple_of(64);
        u16::try_from(largest).unwrap_or(u16::MAX).max(least)
    }

    /// Checks what clap cannot.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let known = |name: &String| self.ports.iter().any(|port| port.name == *name);
        if let Some(name) =
            self.mtus.iter().map(|(name, _)| name).chain(&self.promiscuous).find(|name| !known(name))
        {
            return Err(format!("there is no --port {name}"));
        }
        if self.ports.len() > penstock_tables::adjacency::MAX_PORTS {
            return Err(format!("at most {} ports", penstock_tables::adjacency::MAX_PORTS));
        }
        let available = core_affinity::get_core_ids().unwrap_or_default();
        for core in self.cores.iter().chain([&self.control_core]) {
            if !available.iter().any(|id| id.id == *core) {
                return Err(format!("there is no CPU {core} here, or this process may not use it"));
            }
        }
        let mut cores = self.cores.clone();
        cores.sort_unstable();
        cores.dedup();
        if cores.len() != self.cores.len() {
            return Err("a CPU is named twice by --core: one worker each".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_names_and_devices() {
        let parse = |arguments: &[&str]| {
            let base = ["penstock-dataplane", "--region", "/tmp/r", "--core", "0"];
            Options::try_parse_from(base.iter().chain(arguments).copied())
        };
        let options =
            parse(&["--port", "lan=net_tap0,iface=x", "--port", "wan=3b:00.0", "--mtu", "wan=9000"]).unwrap();
        assert_eq!(options.ports[0].name, "lan");
        assert_eq!(options.ports[0].device.as_str(), "net_tap0,iface=x");
        assert_eq!((options.mtu_of("wan"), options.mtu_of("lan")), (Some(9000), None));
        assert_eq!(options.data_room(), 9088, "9000 octets, Ethernet with two tags, in lines of 64");
        assert_eq!(options.check(), Ok(()));
        assert!(parse(&["--port", "lan"]).unwrap_err().to_string().contains("expected NAME=DEVICE"));
        let stray = parse(&["--port", "lan=net_null0", "--mtu", "dmz=1500"]).unwrap();
        assert_eq!(stray.check().unwrap_err(), "there is no --port dmz");
        let twice = parse(&["--port", "lan=net_null0", "--core", "0"]).unwrap();
        assert!(twice.check().unwrap_err().contains("twice"));
        let tester = parse(&["--port", "lan=net_null0", "--", "--forward-mode", "io"]);
        assert!(tester.is_err(), "no argument makes a tester of the process that holds keys");
        let absent = parse(&["--port", "lan=net_null0", "--core", "4095"]).unwrap();
        assert!(absent.check().unwrap_err().contains("no CPU 4095"));
    }
}
