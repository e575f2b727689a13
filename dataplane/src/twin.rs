//! The twins' thread: moves frames between the rings of the workers and the kernel's devices (a TAP for each port, a
//! TUN for each tunnel that names one), so that no worker makes a system call.
//!
//! Control makes the devices, persistent, and gives them their addresses; this thread attaches to them by name, now
//! or when they appear, and again when they were made anew. It sleeps in poll(2), at most a millisecond, so that a
//! worker need not wake it. No RFC rules this file.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use penstock_tables::adjacency::MAX_PORTS;
use penstock_tables::{TablesView, TwinReport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netdevice;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::path::punt::{Twin, Twins};
use crate::port::Frame;

/// Frames moved each way before the other is looked at.
const BATCH: usize = 64;
/// Longest frame that a device gives, in octets.
const LONGEST: usize = 65536;
/// How often devices are looked for.
const SEARCH: Duration = Duration::from_millis(200);
/// How long the thread sleeps first when nothing moves, doubled each time up to [`LONG_NAP`].
const NAP: Duration = Duration::from_micros(50);
/// A punted frame waits no longer.
const LONG_NAP: Duration = Duration::from_millis(1);

/// What the twins' thread moved and lost, twin by twin of the ports, and at the interfaces of all tunnels together.
#[derive(Clone, Debug)]
pub struct TwinBooks(Arc<[TwinCounters]>);

impl TwinBooks {
    fn new() -> TwinBooks {
        TwinBooks((0..=MAX_PORTS).map(|_| TwinCounters::default()).collect())
    }

    /// Of the port with an index; without a port, of the tunnels' interfaces.
    pub fn at(&self, port: Option<usize>) -> &TwinCounters {
        &self.0[port.unwrap_or(MAX_PORTS).min(MAX_PORTS)]
    }

    fn of(&self, twin: Twin) -> &TwinCounters {
        match twin {
            Twin::Port(port) => self.at(Some(usize::from(port))),
            Twin::Tunnel(_) => self.at(None),
        }
    }
}

/// What passed one twin. Written by the twins' thread, read by anybody.
#[derive(Debug, Default)]
pub struct TwinCounters {
    /// Frames that the kernel took.
    pub to_kernel: AtomicU64,
    /// Frames lost since their device was not attached.
    pub detached: AtomicU64,
    /// Frames that the kernel refused: the device is down, or the frame is no frame.
    pub refused: AtomicU64,
    /// Frames of the kernel that were handed to the workers.
    pub from_kernel: AtomicU64,
    /// Frames of the kernel lost since the pool was empty, or since they were larger than a buffer.
    pub no_frame: AtomicU64,
    /// How often a device was attached.
    pub attached: AtomicU64,
}

impl TwinCounters {
    /// The values as they stand.
    pub fn report(&self) -> TwinReport {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TwinReport {
            to_kernel: load(&self.to_kernel),
            detached: load(&self.detached),
            refused: load(&self.refused),
            from_kernel: load(&self.from_kernel),
            no_frame: load(&self.no_frame),
            attached: load(&self.attached),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A device of the kernel that this process is attached to.
struct Attached {
    name: String,
    /// The kernel's number of it: another one under the same name is another device.
    number: u32,
    device: SyncDevice,
    /// The kernel took it away.
    gone: bool,
}

/// Lists the devices that should be attached, with their names.
type Wanted = Box<dyn FnMut() -> Vec<(Twin, String)> + Send>;

/// Everything that the twins' thread owns.
pub struct TwinThread<F, A> {
    wanted: Wanted,
    twins: Twins<F>,
    allocate: A,
    attached: HashMap<Twin, Attached>,
    counters: TwinBooks,
    buffer: Vec<u8>,
    /// Any socket: names of devices are looked up through it, in this process's network namespace.
    lookup: Option<UnixDatagram>,
}

impl<F: Frame, A: FnMut() -> Option<F>> TwinThread<F, A> {
    /// `ports` are the names of the ports' twins by index; `allocate` gives empty frames.
    pub fn new(
        ports: Vec<String>,
        tables: Arc<TablesView>,
        twins: Twins<F>,
        allocate: A,
    ) -> TwinThread<F, A> {
        let wanted = move || {
            let ports = ports.iter().enumerate().map(|(index, name)| (Twin::Port(index as u8), name.clone()));
            let tunnels =
                tables.tunnels().filter(|(slot, tunnel)| tunnel.has_interface() && tunnel.group() == *slot);
            let tunnels = tunnels.map(|(_, tunnel)| (Twin::Tunnel(tunnel.device()), tunnel.spec().interface));
            ports.chain(tunnels).collect()
        };
        TwinThread::with(Box::new(wanted), twins, allocate)
    }

    /// As [`TwinThread::new`], for the twins that `wanted` lists each time it is asked.
    pub fn with(wanted: Wanted, twins: Twins<F>, allocate: A) -> TwinThread<F, A> {
        let lookup = UnixDatagram::unbound().ok();
        let (attached, counters, buffer) = (HashMap::new(), TwinBooks::new(), vec![0; LONGEST]);
        TwinThread { wanted, twins, allocate, attached, counters, buffer, lookup }
    }

    /// What is moved and lost from now on.
    pub fn counters(&self) -> TwinBooks {
        self.counters.clone()
    }

    /// Runs until `stop`.
    pub fn run(&mut self, stop: &AtomicBool) {
        let mut nap = NAP;
        let mut searched: Option<Instant> = None;
        while !stop.load(Ordering::Relaxed) {
            if searched.is_none_or(|searched| searched.elapsed() >= SEARCH) {
                self.search();
                searched = Some(Instant::now());
            }
            if self.deliver() + self.collect() > 0 {
                nap = NAP;
            } else {
                self.wait(nap);
                nap = (2 * nap).min(LONG_NAP);
            }
        }
    }

    /// Attaches to the devices that there are and lets go of those that went away.
    fn search(&mut self) {
        let mut wanted: HashMap<Twin, String> = (self.wanted)().into_iter().collect();
        let Some(lookup) = &self.lookup else { return };
        self.attached.retain(|twin, it| {
            let same = wanted.get(twin) == Some(&it.name);
            let stays = same && !it.gone && number(lookup, &it.name) == Some(it.number);
            if stays {
                // It need not be sought.
                wanted.remove(twin);
            } else {
                self.twins.set_present(*twin, false);
            }
            stays
        });
        for (twin, name) in wanted {
            // Not there yet, or still held by a process that ends: tried again at the next search.
            if let Ok(attached) = attach(lookup, twin, name) {
                count(&self.counters.of(twin).attached);
                self.attached.insert(twin, attached);
                self.twins.set_present(twin, true);
            }
        }
    }

    fn deliver(&mut self) -> usize {
        let mut moved = 0;
        while moved < BATCH {
            let Some((twin, frame)) = self.twins.to_kernel.pop() else { break };
            moved += 1;
            let counters = self.counters.of(twin);
            let Some(attached) = self.attached.get_mut(&twin) else {
                count(&counters.detached);
                continue;
            };
            // A kernel that takes no more loses the frame, as a full queue of any NIC would.
            match attached.device.send(frame.data()) {
                Ok(_) => count(&counters.to_kernel),
                Err(error) => {
                    attached.gone |= is_gone(&error);
                    count(&counters.refused);
                }
            }
        }
        moved
    }

    fn collect(&mut self) -> usize {
        let mut moved = 0;
        for (&twin, attached) in &mut self.attached {
            for _ in 0..BATCH {
                // What the workers have no room for waits in the kernel's queue, that counts what it drops.
                if self.twins.from_kernel.is_full() {
                    return moved;
                }
                let len = match attached.device.recv(&mut self.buffer) {
                    Ok(len) => len,
                    Err(error) => {
                        attached.gone |= is_gone(&error);
                        break;
                    }
                };
                moved += 1;
                let frame = (self.allocate)().and_then(|mut frame| {
                    frame.append(len)?.copy_from_slice(self.buffer.get(..len)?);
                    Some(frame)
                });
                let handed = frame.is_some_and(|frame| self.twins.from_kernel.push((twin, frame)).is_ok());
                let counters = self.counters.of(twin);
                count(if handed { &counters.from_kernel } else { &counters.no_frame });
            }
        }
        moved
    }

    /// Sleeps until the kernel has something, at most `nap`.
    fn wait(&self, nap: Duration) {
        let living = self.attached.values().filter(|it| !it.gone);
        let mut fds: Vec<PollFd<'_>> = living.map(|it| PollFd::new(&it.device, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(nap.subsec_nanos()) };
        // A device that has gone answers at once, always, and what cannot be taken stays; the nap must be had
        // otherwise.
        let ready = poll(&mut fds, Some(&timeout)).unwrap_or(0);
        let useful = fds.iter().any(|fd| fd.revents().contains(PollFlags::IN));
        if ready > 0 && (!useful || self.twins.from_kernel.is_full()) {
            std::thread::sleep(nap);
        }
    }
}

/// Whether an error says that the device is no more (its fd is in a bad state), not merely down or busy.
fn is_gone(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::BADFD)
}

/// The kernel's number of a network device.
fn number(lookup: impl AsFd, name: &str) -> Option<u32> {
    netdevice::name_to_index(lookup, name).ok()
}

/// Attaches to a device that exists. It must be a TAP or TUN as `twin` says, and nobody else may be attached.
fn attach(lookup: &UnixDatagram, twin: Twin, name: String) -> io::Result<Attached> {
    // Without a device of this name, opening would make one, that no address belongs to.
    let found = number(lookup, &name).ok_or(ErrorKind::NotFound)?;
    let layer = match twin {
        Twin::Port(_) => Layer::L2,
        Twin::Tunnel(_) => Layer::L3,
    };
    let device = DeviceBuilder::new().name(&name).layer(layer).inherit_enable_state().build_sync()?;
    device.set_nonblocking(true)?;
    let number = device.if_index()?;
    // It went away in between, and this is a new one: it goes when this handle does.
    if number != found {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(Attached { name, number, device, gone: false })
}
