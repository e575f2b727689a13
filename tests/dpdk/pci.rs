//! NICs on the PCI bus: two ports that are wired to each other, named by PENSTOCK_TEST_PCI (`0000:3b:00.0 0000:3b:00.1`).

use std::env;

use penstock_dataplane::dpdk::{DeviceName, Eal, EalConfig, Memory};

use crate::lab;

/// The ports to test with.
pub const PORTS: &str = "PENSTOCK_TEST_PCI";

pub fn two_ports_wired_to_each_other() {
    let names = env::var(PORTS).expect("this case runs only where ports are named");
    let devices: Vec<DeviceName> = names.split_whitespace().map(|name| name.parse().unwrap()).collect();
    let [one, two] = devices.as_slice() else { panic!("{PORTS} names two ports, not {names:?}") };
    assert!(one.is_pci() && two.is_pci());
    let memory = Memory::HugePages { reserve_mib: 64 };
    let eal = Eal::init(&EalConfig { memory, devices: devices.clone(), ..lab::config() }).unwrap();
    let pool = lab::pool(&eal);
    let (mut left, mut left_port) = lab::start(&eal, &pool, one.as_str(), 1);
    let (mut right, mut right_port) = lab::start(&eal, &pool, two.as_str(), 1);
    for device in [&mut left, &mut right] {
        device.set_promiscuous(true).unwrap();
        lab::wait("the link is up", || device.link().unwrap().up);
    }
    let frames = lab::numbered_frames(1000);
    for some in frames.chunks(50) {
        lab::send_all(&mut left_port[0], some);
        assert_eq!(lab::receive(&mut right_port[0], some.len(), lab::is_numbered), some);
        lab::send_all(&mut right_port[0], some);
        assert_eq!(lab::receive(&mut left_port[0], some.len(), lab::is_numbered), some);
    }
    for device in [&left, &right] {
        let (info, stats) = (device.info().unwrap(), device.stats().unwrap());
        println!("{}: {info:?} {:?} {stats:?}", device.name(), device.link().unwrap());
        assert!(stats.rx_packets >= 1000 && stats.tx_packets >= 1000, "{stats:?}");
        assert!(!device.xstats().unwrap().is_empty());
    }
    drop((left, right, left_port, right_port));
    assert_eq!(pool.in_use(), 0);
}
