//! What the cases share: starting DPDK, waiting, shell commands, frames.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use penstock_dataplane::dpdk::{Device, DeviceConfig, Eal, EalConfig, Memory, Pool, PoolConfig};
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::port::{Burst, Frame, Port};
use penstock_dataplane::steering::{self, Offer, Steering};

/// DPDK on ordinary pages, as every machine has them.
pub fn eal() -> Eal {
    Eal::init(&config()).expect("DPDK starts on ordinary pages")
}

pub fn config() -> EalConfig {
    let file_prefix = format!("penstock-test-{}", std::process::id());
    EalConfig { memory: Memory::Ordinary { mib: 256 }, file_prefix, ..EalConfig::default() }
}

pub fn pool(eal: &Eal) -> Pool {
    Pool::new(eal, "test", &PoolConfig { frames: 8192, ..PoolConfig::default() }).expect("8192 frames")
}

pub fn open(eal: &Eal, name: &str) -> Device {
    Device::open(eal, &name.parse().expect("a device's name")).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens, configures and starts a device with so many queue pairs.
pub fn start(eal: &Eal, pool: &Pool, name: &str, queues: u16) -> (Device, Vec<DpdkPort>) {
    let mut device = open(eal, name);
    let config = DeviceConfig { queues, rx_descriptors: 256, tx_descriptors: 256, ..DeviceConfig::default() };
    device.configure(&config, pool).unwrap_or_else(|error| panic!("{error}"));
    let queues = device.start().unwrap_or_else(|error| panic!("{error}"));
    (device, queues.into_iter().map(|pair| DpdkPort::new(pair, pool.clone())).collect())
}

/// How a started device with so many queues steers ESP, when it is asked as the data plane asks.
pub fn steering(device: &mut Device, queues: u16) -> Steering {
    let info = device.info().unwrap();
    let (port, max_queues, rss_by_spi) = ("wan".into(), info.max_queues, info.rss_by_spi);
    let offer = Offer { port, driver: info.driver, max_queues, rss_by_spi, public: true };
    steering::find(&offer, queues, |rules| device.steer(rules).map_err(|error| error.to_string()))
}

/// A frame with these octets.
pub fn frame<P: Port>(port: &mut P, octets: &[u8]) -> P::Frame {
    let mut frame = port.allocate().expect("the pool has frames");
    frame.append(octets.len()).expect("the frame has room").copy_from_slice(octets);
    frame
}

/// Sends all these frames, in bursts, within 10 s.
pub fn send_all<P: Port>(port: &mut P, frames: &[Vec<u8>]) {
    for some in frames.chunks(32) {
        let mut burst = Burst::new();
        burst.extend(some.iter().map(|octets| frame(port, octets)));
        wait("the port takes frames", || {
            port.send(&mut burst);
            burst.is_empty()
        });
    }
}

/// Receives until `enough` frames that `wanted` likes are here, within 10 s; others are freed.
pub fn receive<P: Port>(port: &mut P, enough: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    wait("frames are received", || {
        let mut burst = Burst::new();
        port.receive(&mut burst);
        frames.extend(burst.iter().map(|frame| frame.data().to_vec()).filter(|octets| wanted(octets)));
        frames.len() >= enough
    });
    frames
}

/// Waits until something is so, for 10 s at most.
pub fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "10 s passed before {what}");
        std::thread::yield_now();
    }
}

/// Frames that nobody else sends: a local experimental EtherType, a number, and a length that varies.
pub fn numbered_frames(count: usize) -> Vec<Vec<u8>> {
    let numbered = |number: usize| {
        let mut octets = vec![0x02; 60 + number * 7 % 1400];
        octets[12..14].copy_from_slice(&[0x88, 0xb5]);
        octets[14..18].copy_from_slice(&(number as u32).to_be_bytes());
        octets
    };
    (0..count).map(numbered).collect()
}

/// Whether this is one of [`numbered_frames`].
pub fn is_numbered(octets: &[u8]) -> bool {
    octets.get(12..14) == Some(&[0x88, 0xb5])
}

/// Output of a shell command, which must succeed.
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("there is a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder that is removed when this goes.
pub struct Folder(PathBuf);

impl Folder {
    /// A folder in which everybody may write.
    pub fn shared(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("penstock-dpdk-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for the test");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("the folder is ours");
        Folder(path)
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the test's folder can be removed");
    }
}
