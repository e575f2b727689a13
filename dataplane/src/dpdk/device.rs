//! Devices: a name and settings enter, queue pairs leave; link, counters and MTU are read and set here. No RFC rules this file.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use penstock_dpdk_sys as sys;

use super::error::take_log;
use super::{Cause, DeviceName, Eal, Error, Pool, Rules, RxQueue, TxQueue, rules};

/// Ethernet header, two VLAN tags and the check sequence: what drivers count on top of the MTU.
pub const FRAME_OVERHEAD: u32 = 14 + 2 * 4 + 4;

/// How a device is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Queue pairs, one for each worker.
    pub queues: u16,
    /// Descriptors of each receive queue; adjusted to what the device can do.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; adjusted to what the device can do.
    pub tx_descriptors: u16,
    /// The longest IP packet, in octets; `None` leaves the device's own.
    pub mtu: Option<u16>,
    /// Whether the device may spread flows over its receive queues, where it can.
    pub rss: bool,
    /// Whether IPv4, UDP and TCP checksum offloads are switched on, where the device has them. Nothing reads their
    /// results yet, and soft NICs pay for them.
    pub checksum_offload: bool,
}

impl Default for DeviceConfig {
    fn default() -> DeviceConfig {
        let (rx_descriptors, tx_descriptors) = (1024, 1024);
        DeviceConfig {
            queues: 1,
            rx_descriptors,
            tx_descriptors,
            mtu: None,
            rss: true,
            checksum_offload: false,
        }
    }
}

/// What a device is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The driver's name.
    pub driver: String,
    /// The device's MAC address.
    pub mac: [u8; 6],
    /// Queue pairs at most.
    pub max_queues: u16,
    /// The least MTU.
    pub min_mtu: u16,
    /// The greatest MTU.
    pub max_mtu: u16,
    /// NUMA socket of the device, where it has one.
    pub socket: Option<u32>,
    /// Index of the kernel interface behind the device, where there is one.
    pub interface_index: Option<u32>,
    /// Receive offloads, as RTE_ETH_RX_OFFLOAD bits.
    pub rx_offloads: u64,
    /// Transmit offloads, as RTE_ETH_TX_OFFLOAD bits.
    pub tx_offloads: u64,
    /// What RSS can hash, as RTE_ETH_RSS bits; 0 without RSS.
    pub rss: u64,
    /// Whether RSS can hash the SPI of ESP packets (RTE_ETH_RSS_ESP).
    pub rss_by_spi: bool,
}

/// State of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether frames can pass.
    pub up: bool,
    /// Speed in Mbit/s, where it is known.
    pub speed_mbps: Option<u32>,
    /// Whether both directions run at once.
    pub full_duplex: bool,
}

/// Counters of a device since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Frames that the device dropped since its queues were full.
    pub rx_missed: u64,
    /// Frames that came in with errors.
    pub rx_errors: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Receptions that failed since the pool was empty.
    pub rx_no_mbuf: u64,
}

/// Ports that are open: each has one owner. Locked while devices come and go.
fn open_ports() -> MutexGuard<'static, Vec<u16>> {
    static OPEN: Mutex<Vec<u16>> = Mutex::new(vec![]);
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A port of DPDK that is open. It is stopped and closed when the last handle goes, before its pool.
#[derive(Debug)]
pub(super) struct OpenPort {
    id: u16,
    name: DeviceName,
    /// Whether [`Device::open`] made the device known to DPDK, which then forgets it again.
    plugged: bool,
    pool: OnceLock<Pool>,
    /// Whether flow rules were made.
    ruled: AtomicBool,
    /// Frames that came in several segments and could not be joined.
    multisegment: AtomicU64,
    _eal: Eal,
}

impl OpenPort {
    #[inline(always)]
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Counts frames that were lost since they could not be joined.
    #[cold]
    pub(super) fn lost_multisegment(&self, frames: u64) {
        self.multisegment.fetch_add(frames, Ordering::Relaxed);
    }

    /// `result` of a call that tried to do `action`: negative is an error.
    fn check(&self, result: c_int, action: impl FnOnce() -> String) -> Result<c_int, Error> {
        if result >= 0 {
            return Ok(result);
        }
        let (device, cause) = (self.name.clone(), Cause::from_result(result));
        Err(Error::Refused { device, action: action(), cause })
    }

    fn raw_info(&self) -> Result<sys::rte_eth_dev_info, Error> {
        let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
        // SAFETY: the port is open; DPDK fills the structure.
        let result = unsafe { sys::rte_eth_dev_info_get(self.id, info.as_mut_ptr()) };
        self.check(result, || "read its capabilities".into())?;
        // SAFETY: all zero is valid for this structure of numbers and pointers, and DPDK filled it.
        Ok(unsafe { info.assume_init() })
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        let mut open = open_ports();
        let device = self.raw_info().map_or(ptr::null_mut(), |info| info.device);
        if self.ruled.load(Ordering::Relaxed) {
            rules::end(self.id);
        }
        // SAFETY: no queue handle is left, so nobody polls. The device pointer comes from the bus and outlives the port.
        unsafe {
            sys::rte_eth_dev_stop(self.id);
            sys::rte_eth_dev_close(self.id);
            if self.plugged && !device.is_null() {
                sys::rte_dev_remove(device);
            }
        }
        open.retain(|&id| id != self.id);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Configured { queues: u16 },
    Started { queues: u16 },
}

/// A device with its one port. Reads and settings go through this handle, from one thread at a time, while the queues
/// work on others.
#[derive(Debug)]
pub struct Device {
    port: Arc<OpenPort>,
    state: State,
    rss: u64,
    _not_sync: PhantomData<Cell<()>>,
}

impl Device {
    /// Opens a device: one on the PCI bus that [`super::EalConfig::devices`] lists, or a virtual one, which is made.
    ///
    /// # Errors
    /// [`Error::Open`] where no driver makes a port of it, [`Error::InUse`] where it is open already.
    pub fn open(eal: &Eal, name: &DeviceName) -> Result<Device, Error> {
        let failed = |result| Error::Open { device: name.clone(), cause: Cause::from_result(result) };
        let mut open = open_ports();
        let mut plugged = false;
        // SAFETY: DPDK runs; the strings have their NUL, and DPDK copies what it keeps.
        let id = unsafe {
            let mut id = sys::penstock_port_of(name.name_c().as_ptr());
            if id < 0 {
                match sys::rte_dev_probe(name.whole_c().as_ptr()) {
                    0 => plugged = true,
                    result => return Err(failed(result)),
                }
                id = sys::penstock_port_of(name.name_c().as_ptr());
            }
            id
        };
        let id = u16::try_from(id).map_err(|_| failed(id))?;
        if open.contains(&id) {
            return Err(Error::InUse { device: name.clone() });
        }
        open.push(id);
        take_log();
        let (pool, ruled) = (OnceLock::new(), AtomicBool::new(false));
        let port = OpenPort {
            id,
            name: name.clone(),
            plugged,
            pool,
            ruled,
            multisegment: AtomicU64::new(0),
            _eal: eal.clone(),
        };
        Ok(Device { port: Arc::new(port), state: State::Open, rss: 0, _not_sync: PhantomData })
    }

    /// Sets up the queues; frames come from `pool`.
    ///
    /// # Errors
    /// [`Error::Queues`], [`Error::Mtu`], [`Error::BufferRoom`] where the device or the pool cannot do what is asked,
    /// after which it may be configured otherwise; [`Error::Refused`] where the driver says no, [`Error::Order`] the
    /// second time.
    pub fn configure(&mut self, config: &DeviceConfig, pool: &Pool) -> Result<(), Error> {
        if self.state != State::Open || self.port.pool.get().is_some() {
            return Err(self.out_of_order());
        }
        let info = self.port.raw_info()?;
        let mtu = self.check_config(config, &info, pool)?;
        // From here on the device may hold the pool's frames.
        self.port.pool.set(pool.clone()).map_err(|_| self.out_of_order())?;
        self.configure_port(config, &info, mtu)?;
        self.set_up_queues(config, pool)?;
        if mtu != self.mtu()? || config.mtu.is_some() {
            self.apply_mtu(mtu)?;
        }
        self.state = State::Configured { queues: config.queues };
        Ok(())
    }

    /// Returns the MTU that the device shall have.
    fn check_config(
        &self,
        config: &DeviceConfig,
        info: &sys::rte_eth_dev_info,
        pool: &Pool,
    ) -> Result<u16, Error> {
        let device = || self.port.name.clone();
        let (wanted, most) = (config.queues, info.max_rx_queues.min(info.max_tx_queues));
        if wanted == 0 || wanted > most {
            return Err(Error::Queues { device: device(), wanted, most });
        }
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => self.mtu()?,
        };
        let (least, most) = (info.min_mtu, max_mtu(info));
        if !(least..=most).contains(&mtu) {
            return Err(Error::Mtu { device: device(), wanted: mtu, least, most });
        }
        let (needed, room) = (u32::from(mtu) + FRAME_OVERHEAD, pool.data_room());
        if needed > u32::from(room) {
            return Err(Error::BufferRoom { device: device(), mtu, needed, room });
        }
        Ok(mtu)
    }

    fn configure_port(
        &mut self,
        config: &DeviceConfig,
        info: &sys::rte_eth_dev_info,
        mtu: u16,
    ) -> Result<(), Error> {
        // SAFETY: all zero is DPDK's default for this structure of numbers and pointers.
        let mut conf: sys::rte_eth_conf = unsafe { MaybeUninit::zeroed().assume_init() };
        conf.rxmode.mtu = u32::from(mtu);
        if config.checksum_offload {
            conf.rxmode.offloads = info.rx_offload_capa & sys::PENSTOCK_RX_CHECKSUM;
            conf.txmode.offloads = info.tx_offload_capa & sys::PENSTOCK_TX_CHECKSUM;
        }
        if config.rss && config.queues > 1 {
            self.rss = info.flow_type_rss_offloads & sys::PENSTOCK_RSS_WANTED;
        }
        if self.rss != 0 {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = self.rss;
        }
        // SAFETY: the port is open and not started; DPDK copies the structure.
        let result = unsafe {
            sys::rte_eth_dev_configure(self.port.id, config.queues, config.queues, &raw const conf)
        };
        self.port.check(result, || format!("configure {} queue pairs with MTU {mtu}", config.queues))?;
        Ok(())
    }

    fn set_up_queues(&self, config: &DeviceConfig, pool: &Pool) -> Result<(), Error> {
        let id = self.port.id;
        let (mut rx, mut tx) = (config.rx_descriptors, config.tx_descriptors);
        // SAFETY: the port is configured; DPDK writes two numbers.
        let result = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut rx, &raw mut tx) };
        self.port.check(result, || format!("use {rx} and {tx} descriptors"))?;
        // All ones is any socket.
        let socket = socket_of(id).unwrap_or(u32::MAX);
        for queue in 0..config.queues {
            // SAFETY: the queue was configured; no settings of its own; the port holds its pool until it is closed.
            let result =
                unsafe { sys::rte_eth_rx_queue_setup(id, queue, rx, socket, ptr::null(), pool.as_ptr()) };
            self.port.check(result, || format!("set up receive queue {queue} of {rx} descriptors"))?;
            // SAFETY: as above.
            let result = unsafe { sys::rte_eth_tx_queue_setup(id, queue, tx, socket, ptr::null()) };
            self.port.check(result, || format!("set up transmit queue {queue} of {tx} descriptors"))?;
        }
        Ok(())
    }

    /// Starts the device and hands out its queue pairs, queue 0 first. The link may come up later.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no, [`Error::Order`] where it is not configured or started already.
    pub fn start(&mut self) -> Result<Vec<(RxQueue, TxQueue)>, Error> {
        let State::Configured { queues } = self.state else { return Err(self.out_of_order()) };
        // SAFETY: the port is configured, and no queue handle exists.
        let result = unsafe { sys::rte_eth_dev_start(self.port.id) };
        self.port.check(result, || "start".into())?;
        self.state = State::Started { queues };
        let pair = |queue| (RxQueue::new(self.port.clone(), queue), TxQueue::new(self.port.clone(), queue));
        Ok((0..queues).map(pair).collect())
    }

    /// Has the device choose the queue of received ESP by these flow rules, until it is closed.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver cannot, after which everything is as before; [`Error::Order`] before the start.
    pub fn steer(&mut self, rules: Rules) -> Result<(), Error> {
        let State::Started { queues } = self.state else { return Err(self.out_of_order()) };
        rules::make(self.port.id, rules, queues).map_err(|cause| {
            let (device, action) = (self.port.name.clone(), "choose queues by SPI".into());
            Error::Refused { device, action, cause }
        })?;
        self.port.ruled.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn out_of_order(&self) -> Error {
        Error::Order { device: self.port.name.clone() }
    }

    /// The name that the device was opened by.
    pub fn name(&self) -> &DeviceName {
        &self.port.name
    }

    /// Whether the device spreads flows over its receive queues by itself; otherwise software must.
    pub fn has_rss(&self) -> bool {
        self.rss != 0
    }

    /// What the device is and can do.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn info(&self) -> Result<Info, Error> {
        let info = self.port.raw_info()?;
        let mut mac = sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: the port is open; DPDK fills the structure.
        let result = unsafe { sys::rte_eth_macaddr_get(self.port.id, &raw mut mac) };
        self.port.check(result, || "read its MAC address".into())?;
        let driver = if info.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: the driver's static name, with NUL.
            unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
        };
        Ok(Info {
            driver,
            mac: mac.addr_bytes,
            max_queues: info.max_rx_queues.min(info.max_tx_queues),
            min_mtu: info.min_mtu,
            max_mtu: max_mtu(&info),
            socket: socket_of(self.port.id),
            interface_index: Some(info.if_index).filter(|&index| index != 0),
            rx_offloads: info.rx_offload_capa,
            tx_offloads: info.tx_offload_capa,
            rss: info.flow_type_rss_offloads,
            rss_by_spi: info.flow_type_rss_offloads & sys::PENSTOCK_RSS_BY_SPI != 0,
        })
    }

    /// State of the link, without waiting for it.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn link(&self) -> Result<Link, Error> {
        let mut link = sys::penstock_link::default();
        // SAFETY: the port is open; the shim fills the structure.
        let result = unsafe { sys::penstock_link(self.port.id, &raw mut link) };
        self.port.check(result, || "read the link's state".into())?;
        let known = |&speed: &u32| speed != 0 && speed != u32::MAX;
        let speed_mbps = Some(link.speed_mbps).filter(known);
        Ok(Link { up: link.up, speed_mbps, full_duplex: link.full_duplex })
    }

    /// Whether frames for other MAC addresses are received too.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn promiscuous(&self) -> Result<bool, Error> {
        // SAFETY: the port is open.
        let result = unsafe { sys::rte_eth_promiscuous_get(self.port.id) };
        Ok(self.port.check(result, || "read whether it is promiscuous".into())? == 1)
    }

    /// Sets whether frames for other MAC addresses are received too.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn set_promiscuous(&mut self, on: bool) -> Result<(), Error> {
        // SAFETY: the port is open.
        let result = unsafe {
            match on {
                true => sys::rte_eth_promiscuous_enable(self.port.id),
                false => sys::rte_eth_promiscuous_disable(self.port.id),
            }
        };
        self.port.check(result, || format!("become {}promiscuous", if on { "" } else { "not " }))?;
        Ok(())
    }

    /// The longest IP packet, in octets.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn mtu(&self) -> Result<u16, Error> {
        let mut mtu = 0;
        // SAFETY: the port is open; DPDK writes a number.
        let result = unsafe { sys::rte_eth_dev_get_mtu(self.port.id, &raw mut mtu) };
        self.port.check(result, || "read its MTU".into())?;
        Ok(mtu)
    }

    /// Sets the longest IP packet, in octets. Some devices refuse this once they are started.
    ///
    /// # Errors
    /// [`Error::Mtu`] and [`Error::BufferRoom`] where the device or its pool cannot do that, [`Error::Refused`] where
    /// the driver says no.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), Error> {
        if let Some(pool) = self.port.pool.get() {
            let config = DeviceConfig { mtu: Some(mtu), ..DeviceConfig::default() };
            self.check_config(&config, &self.port.raw_info()?, pool)?;
        }
        self.apply_mtu(mtu)
    }

    fn apply_mtu(&mut self, mtu: u16) -> Result<(), Error> {
        const ENOTSUP: c_int = 95;
        // SAFETY: the port is open.
        let result = unsafe { sys::rte_eth_dev_set_mtu(self.port.id, mtu) };
        // Drivers without a setter have no limit of their own: what was configured holds.
        if result == -ENOTSUP && self.mtu()? == mtu {
            return Ok(());
        }
        self.port.check(result, || format!("set its MTU to {mtu}"))?;
        Ok(())
    }

    /// Frames that came in several segments and could not be joined: freed before anybody saw them.
    pub fn rx_multisegment(&self) -> u64 {
        self.port.multisegment.load(Ordering::Relaxed)
    }

    /// The device's counters.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn stats(&self) -> Result<Stats, Error> {
        let mut raw = MaybeUninit::<sys::rte_eth_stats>::zeroed();
        // SAFETY: the port is open; DPDK fills the structure of numbers, for which all zero is valid.
        let (result, raw) =
            unsafe { (sys::rte_eth_stats_get(self.port.id, raw.as_mut_ptr()), raw.assume_init()) };
        self.port.check(result, || "read its counters".into())?;
        Ok(Stats {
            rx_packets: raw.ipackets,
            tx_packets: raw.opackets,
            rx_bytes: raw.ibytes,
            tx_bytes: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            tx_errors: raw.oerrors,
            rx_no_mbuf: raw.rx_nombuf,
        })
    }

    /// All counters that the driver has, by DPDK's names.
    ///
    /// # Errors
    /// [`Error::Refused`] where the driver says no.
    pub fn xstats(&self) -> Result<Vec<(String, u64)>, Error> {
        let id = self.port.id;
        let refused = || "read its extended counters".to_owned();
        // SAFETY: with no room DPDK only returns how many there are.
        let count = unsafe { sys::rte_eth_xstats_get_names(id, ptr::null_mut(), 0) };
        let count = self.port.check(count, refused)?;
        let mut names = vec![sys::rte_eth_xstat_name { name: [0; 64] }; count as usize];
        let mut values = vec![sys::rte_eth_xstat { id: 0, value: 0 }; count as usize];
        // SAFETY: both lists have room for `count` entries.
        let (named, valued) = unsafe {
            let named = sys::rte_eth_xstats_get_names(id, names.as_mut_ptr(), count as u32);
            (named, sys::rte_eth_xstats_get(id, values.as_mut_ptr(), count as u32))
        };
        self.port.check(named, refused)?;
        let valued = self.port.check(valued, refused)?;
        values.truncate(valued as usize);
        let text = |entry: &sys::rte_eth_xstat_name| {
            let octets = entry.name.iter().map(|&letter| letter as u8).take_while(|&letter| letter != 0);
            String::from_utf8_lossy(&octets.collect::<Vec<_>>()).into_owned()
        };
        let named = |value: sys::rte_eth_xstat| Some((text(names.get(value.id as usize)?), value.value));
        Ok(values.into_iter().filter_map(named).collect())
    }
}

/// The greatest MTU that DPDK lets the device have: drivers limit the MTU, the frame's length, or both.
fn max_mtu(info: &sys::rte_eth_dev_info) -> u16 {
    let says_both = info.max_mtu != u16::MAX && info.max_rx_pktlen > u32::from(info.max_mtu);
    let overhead = if says_both { info.max_rx_pktlen - u32::from(info.max_mtu) } else { 14 + 4 };
    let by_frame = info.max_rx_pktlen.saturating_sub(overhead);
    info.max_mtu.min(u16::try_from(by_frame).unwrap_or(u16::MAX))
}

fn socket_of(id: u16) -> Option<u32> {
    // SAFETY: reads a number; a port that does not exist or has no socket gives -1.
    u32::try_from(unsafe { sys::rte_eth_dev_socket_id(id) }).ok()
}
