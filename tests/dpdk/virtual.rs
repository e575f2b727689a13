//! Devices without a kernel behind them: net_null, net_ring, net_pcap, net_memif.

use penstock_dataplane::dpdk::{Carrier, Choice, Device, DeviceConfig, Error, Pool, PoolConfig, Rules};
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::port::memory::{MemoryPool, MemoryPort};
use penstock_dataplane::port::{BURST, Burst, Frame, Port};

use crate::lab;

pub fn null_gives_and_takes_without_a_leak() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (device, mut ports) = lab::start(&eal, &pool, "net_null0,size=300", 2);
    let info = device.info().unwrap();
    assert_eq!((info.driver.as_str(), info.interface_index), ("net_null", None));
    assert!(info.max_queues >= 2 && info.min_mtu <= 1500 && info.max_mtu >= 1500);
    let before = pool.in_use();
    let mut burst = Burst::new();
    for round in 0..1000 {
        let port = &mut ports[round % 2];
        let received = port.receive(&mut burst);
        assert!((1..=BURST).contains(&received) && received == burst.len());
        assert!(burst.iter().all(|frame| frame.len() == 300));
        assert_eq!(pool.in_use(), before + received);
        match round % 3 {
            0 => burst.clear(),
            1 => assert_eq!(port.send(&mut burst), received),
            _ => burst = Burst::new(),
        }
        assert!(burst.is_empty());
    }
    assert_eq!(pool.in_use(), before);
    let stats = device.stats().unwrap();
    assert_eq!((stats.rx_packets, stats.tx_packets), (64_000, 333 * 64));
    drop((device, ports));
    assert_eq!((pool.in_use(), pool.available()), (0, pool.capacity()));
}

pub fn ring_returns_every_frame_in_order() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (device, mut ports) = lab::start(&eal, &pool, "net_ring0", 1);
    let frames = lab::numbered_frames(5000);
    for some in frames.chunks(200) {
        lab::send_all(&mut ports[0], some);
        assert_eq!(lab::receive(&mut ports[0], some.len(), |_| true), some);
    }
    let stats = device.stats().unwrap();
    assert_eq!((stats.rx_packets, stats.tx_packets), (5000, 5000));
    // Frames that still lie in the ring are no leak: the device frees them.
    lab::send_all(&mut ports[0], &frames[..10]);
    assert_eq!(pool.in_use(), 10);
    let mut burst = Burst::new();
    ports[0].receive(&mut burst);
    drop((device, ports, burst));
    assert_eq!(pool.in_use(), 0);
}

pub fn ring_pushes_back_and_leaves_the_rest() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (device, mut ports) = lab::start(&eal, &pool, "net_ring0", 1);
    let port = &mut ports[0];
    let frames = lab::numbered_frames(2048);
    let mut numbers = frames.iter();
    let (mut taken, mut burst) = (0, Burst::new());
    loop {
        let room = burst.room();
        burst.extend(numbers.by_ref().take(room).map(|octets| lab::frame(port, octets)));
        let count = port.send(&mut burst);
        taken += count;
        let first_left = &frames[taken];
        assert_eq!(burst.first().map_or(first_left.as_slice(), |frame| frame.data()), first_left);
        if count < BURST {
            break;
        }
    }
    // A ring of 1024 holds one less. The rest of the last burst stayed ours.
    assert_eq!((taken, burst.len()), (1023, 1));
    assert_eq!(port.send(&mut burst), 0);
    assert_eq!(pool.in_use(), 1024);
    assert_eq!(lab::receive(port, taken, |_| true), frames[..taken]);
    assert_eq!(port.send(&mut burst), 1);
    assert_eq!(lab::receive(port, 1, |_| true), frames[taken..=taken]);
    drop((device, ports));
    assert_eq!(pool.in_use(), 0);
}

/// Writes a capture by the memory port.
fn capture(path: &std::path::Path, frames: &[Vec<u8>]) {
    let memory = MemoryPool::new(frames.len());
    let mut port = MemoryPort::new(memory);
    lab::send_all(&mut port, frames);
    port.write_pcap(path).unwrap();
}

pub fn pcap_in_and_out() {
    let folder = std::env::current_dir().unwrap();
    let frames = lab::numbered_frames(700);
    capture(&folder.join("in.pcap"), &frames);
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let name = format!("net_pcap0,rx_pcap={0}/in.pcap,tx_pcap={0}/out.pcap", folder.display());
    let (device, mut ports) = lab::start(&eal, &pool, &name, 1);
    let (mut forwarded, mut burst) = (0, Burst::new());
    lab::wait("all frames are forwarded", || {
        ports[0].receive(&mut burst);
        forwarded += ports[0].send(&mut burst);
        forwarded == frames.len()
    });
    drop((device, ports));
    assert_eq!(pool.in_use(), 0);
    let mut out = MemoryPort::new(MemoryPool::new(frames.len()));
    assert_eq!(out.inject_pcap(&folder.join("out.pcap")).unwrap(), frames.len());
    assert_eq!(lab::receive(&mut out, frames.len(), |_| true), frames);
}

pub fn pcap_frames_of_many_segments_are_counted() {
    let folder = std::env::current_dir().unwrap();
    let long = |number: usize| vec![number as u8; 5000];
    let mut frames = lab::numbered_frames(9);
    (0..5).for_each(|number| frames.insert(number * 2, long(number)));
    let path = folder.join("in.pcap");
    // Longer than a frame in memory, so written by hand: file header and records, all little endian.
    let mut octets =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];
    for frame in &frames {
        let len = (frame.len() as u32).to_le_bytes();
        octets.extend([[0; 4], [0; 4], len, len].concat());
        octets.extend(frame);
    }
    std::fs::write(&path, octets).unwrap();
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let (device, mut ports) = lab::start(&eal, &pool, &format!("net_pcap0,rx_pcap={}", path.display()), 1);
    frames.retain(|frame| frame.len() != 5000);
    assert_eq!(lab::receive(&mut ports[0], 9, |_| true), frames);
    assert_eq!(device.rx_multisegment(), 5);
    assert_eq!(device.stats().unwrap().rx_packets, 14);
    drop((device, ports));
    assert_eq!(pool.in_use(), 0);
}

pub fn ring_carries_a_jumbo_mtu() {
    let eal = lab::eal();
    let config = PoolConfig { frames: 2048, data_room: 9216, ..PoolConfig::default() };
    let pool = Pool::new(&eal, "jumbo", &config).unwrap();
    let mut device = lab::open(&eal, "net_ring0");
    device.configure(&DeviceConfig { mtu: Some(9000), ..DeviceConfig::default() }, &pool).unwrap();
    let queues = device.start().unwrap();
    let mut port = DpdkPort::new(queues.into_iter().next().unwrap(), pool.clone());
    assert_eq!(device.mtu().unwrap(), 9000);
    let frames = [vec![0x5a; 9014], vec![0xa5; 9216]];
    lab::send_all(&mut port, &frames);
    assert_eq!(lab::receive(&mut port, 2, |_| true), frames);
    assert_eq!(device.rx_multisegment(), 0);
    let error = device.set_mtu(9200).unwrap_err();
    assert!(matches!(error, Error::BufferRoom { mtu: 9200, needed: 9226, room: 9216, .. }), "{error}");
    drop((device, port));
    assert_eq!(pool.in_use(), 0);
}

pub fn memif_pair() {
    let folder = std::env::current_dir().unwrap();
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let name = |number, role| {
        format!("net_memif{number},role={role},socket={}/memif.sock,socket-abstract=no", folder.display())
    };
    let (server, mut left) = lab::start(&eal, &pool, &name(0, "server"), 1);
    let (client, mut right) = lab::start(&eal, &pool, &name(1, "client"), 1);
    lab::wait("both ends are connected", || server.link().unwrap().up && client.link().unwrap().up);
    // The client lends the server its first buffers when it polls.
    assert_eq!(right[0].receive(&mut Burst::new()), 0);
    let frames = lab::numbered_frames(2000);
    for some in frames.chunks(100) {
        lab::send_all(&mut left[0], some);
        assert_eq!(lab::receive(&mut right[0], some.len(), |_| true), some);
        lab::send_all(&mut right[0], some);
        assert_eq!(lab::receive(&mut left[0], some.len(), |_| true), some);
    }
    drop((server, left));
    lab::wait("the client sees that the server has gone", || !client.link().unwrap().up);
    drop((client, right));
    assert_eq!(pool.in_use(), 0);
}

pub fn refuses_what_a_device_cannot_do() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let mut device = lab::open(&eal, "net_null0");
    let attempt =
        |device: &mut Device, config: DeviceConfig| device.configure(&config, &pool).unwrap_err().to_string();
    let most = device.info().unwrap().max_queues;
    let error = attempt(&mut device, DeviceConfig { queues: most + 1, ..DeviceConfig::default() });
    assert!(error.contains("it has at most") && error.contains("net_null0"), "{error}");
    let error = attempt(&mut device, DeviceConfig { queues: 0, ..DeviceConfig::default() });
    assert!(error.contains("0 queue pairs are wanted"), "{error}");
    let error = attempt(&mut device, DeviceConfig { mtu: Some(20), ..DeviceConfig::default() });
    assert!(error.contains("MTU 20 is outside"), "{error}");
    let error = attempt(&mut device, DeviceConfig { mtu: Some(9000), ..DeviceConfig::default() });
    assert!(error.contains("data_room") && error.contains("9026"), "{error}");

    assert!(matches!(device.start(), Err(Error::Order { .. })), "it is not configured");
    device.configure(&DeviceConfig::default(), &pool).unwrap();
    assert!(matches!(device.configure(&DeviceConfig::default(), &pool), Err(Error::Order { .. })));
    let queues = device.start().unwrap();
    assert_eq!((queues.len(), queues[0].0.number(), queues[0].1.number()), (1, 0, 0));
    assert!(matches!(device.start(), Err(Error::Order { .. })), "its queues are given away");
}

/// They are asked for flow rules, have none, and work as before.
pub fn soft_devices_leave_steering_to_software() {
    let folder = std::env::current_dir().unwrap();
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    let memif = format!("net_memif0,role=server,socket={}/memif.sock,socket-abstract=no", folder.display());
    for (name, queues) in [("net_null0", 2), ("net_ring0", 1), (memif.as_str(), 4)] {
        let (mut device, mut ports) = lab::start(&eal, &pool, name, queues);
        let words = lab::steering(&mut device, queues).words(queues);
        let refused = "(no RSS by SPI; no flow rule by SPI's last bits: ";
        assert!(words.contains(refused) && words.contains("Function not implemented"), "{name}: {words}");
        // Not even where it is asked for what only others are asked for.
        for choice in [Choice::HashOverTable, Choice::HashOverList, Choice::LowBits] {
            for carrier in [Carrier::Ip, Carrier::Udp, Carrier::UdpOfParser] {
                let error = device.steer(Rules { choice, carrier }).unwrap_err();
                assert!(matches!(error, Error::Refused { .. }), "{name}: {error}");
            }
        }
        if name == "net_null0" {
            assert_eq!(ports[1].receive(&mut Burst::new()), BURST);
        }
    }
    let mut closed = lab::open(&eal, "net_null1");
    let rules = Rules { choice: Choice::LowBits, carrier: Carrier::Ip };
    assert!(matches!(closed.steer(rules), Err(Error::Order { .. })), "it is not started");
    drop(closed);
    assert_eq!(pool.in_use(), 0);
}

pub fn says_what_is_wrong_with_a_device() {
    let eal = lab::eal();
    for (name, advice) in [
        ("net_bogus0", "check the driver's name (net_tap, "),
        ("net_af_packet0,iface=nowhere", "an interface or a file named there exists"),
        ("net_pcap0,rx_pcap=/nowhere/in.pcap", "an interface or a file named there exists"),
        ("0000:ff:1f.7", "dpdk-devbind.py --status"),
    ] {
        let error = Device::open(&eal, &name.parse().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("device {name}: ")) && error.contains(advice), "{error}");
    }
}

pub fn opens_a_device_again_after_it_was_closed() {
    let eal = lab::eal();
    let pool = lab::pool(&eal);
    for _ in 0..5 {
        let (device, mut ports) = lab::start(&eal, &pool, "net_null7", 1);
        let mut burst = Burst::new();
        assert_eq!(ports[0].receive(&mut burst), BURST);
        let twice = Device::open(&eal, device.name()).unwrap_err();
        assert!(matches!(twice, Error::InUse { .. }), "{twice}");
        drop((device, burst));
        let still = Device::open(&eal, &"net_null7".parse().unwrap()).unwrap_err();
        assert!(matches!(still, Error::InUse { .. }), "its queues hold it: {still}");
        drop(ports);
    }
    assert_eq!(pool.in_use(), 0);
}
