//! The twins' thread: moves frames between the rings of the workers and the kernel's devices (a TAP for each port, a TUN for
//! each tunnel that names one), so that no worker makes a system call.
//!
//! Control makes the devices, persistent, and gives them their addresses; this thread attaches to them by name, now or
//! when they appear, and again when they were made anew.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use penstock_tables::TablesView;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::path::punt::{Twin, Twins};
use crate::port::Frame;

/// Frames moved each way before the other is looked at.
const BATCH: usize = 64;
/// Longest frame that a device gives, in octets.
const LONGEST: usize = 65536;
/// How often devices are looked for.
const SEARCH: Duration = Duration::from_millis(200);
/// How long the thread sleeps at most while nothing moves: a punted frame waits no longer.
const NAP: Duration = Duration::from_micros(200);
/// The same, after a while of silence.
const LONG_NAP: Duration = Duration::from_millis(1);
/// Empty rounds until it sleeps longer.
const ROUNDS_TO_LONG_NAP: u32 = 2000;

/// A device of the kernel that this process is attached to.
struct Attached {
    twin: Twin,
    name: String,
    /// The kernel's number of it: another one under the same name is another device.
    number: u32,
    device: SyncDevice,
}

/// Everything that the twins' thread owns.
pub struct TwinThread<F, A> {
    ports: Vec<String>,
    tables: Arc<TablesView>,
    twins: Twins<F>,
    allocate: A,
    attached: Vec<Attached>,
    searched: Option<Instant>,
    buffer: Vec<u8>,
}

impl<F: Frame, A: FnMut() -> Option<F>> TwinThread<F, A> {
    /// `ports` are the names of the ports' twins by index; `allocate` gives empty frames.
    pub fn new(
        ports: Vec<String>,
        tables: Arc<TablesView>,
        twins: Twins<F>,
        allocate: A,
    ) -> TwinThread<F, A> {
        let buffer = vec![0; LONGEST];
        TwinThread { ports, tables, twins, allocate, attached: Vec::new(), searched: None, buffer }
    }

    /// Runs until `stop`.
    pub fn run(&mut self, stop: &AtomicBool) {
        let mut quiet = 0u32;
        while !stop.load(Ordering::Relaxed) {
            if self.searched.is_none_or(|searched| searched.elapsed() >= SEARCH) {
                self.search();
                self.searched = Some(Instant::now());
            }
            let moved = self.deliver() + self.collect();
            quiet = if moved > 0 { 0 } else { quiet.saturating_add(1) };
            if moved == 0 {
                self.wait(if quiet > ROUNDS_TO_LONG_NAP { LONG_NAP } else { NAP });
            }
        }
    }

    /// Attaches to the devices that there are and lets go of those that went away.
    fn search(&mut self) {
        let ports =
            self.ports.iter().enumerate().map(|(index, name)| (Twin::Port(index as u8), name.clone()));
        let tunnels = self.tables.tunnels().filter(|(_, tunnel)| tunnel.has_interface());
        let tunnels = tunnels.map(|(slot, tunnel)| (Twin::Tunnel(slot), tunnel.spec().interface));
        let wanted: Vec<(Twin, String)> = ports.chain(tunnels).collect();
        let twins = &self.twins;
        self.attached.retain(|it| {
            let stays = wanted.iter().any(|(twin, name)| *twin == it.twin && *name == it.name)
                && number(&it.name) == Some(it.number);
            if !stays {
                twins.set_present(it.twin, false);
            }
            stays
        });
        for (twin, name) in wanted {
            let here = self.attached.iter().any(|it| it.twin == twin);
            if let (false, Some(number)) = (here, number(&name)) {
                // Not there yet, or still held by a process that ends: tried again at the next search.
                if let Ok(device) = attach(twin, &name) {
                    self.attached.push(Attached { twin, name, number, device });
                    self.twins.set_present(twin, true);
                }
            }
        }
    }

    fn deliver(&mut self) -> usize {
        let mut moved = 0;
        while moved < BATCH {
            let Some((twin, frame)) = self.twins.to_kernel.pop() else { break };
            moved += 1;
            if let Some(attached) = self.attached.iter().find(|it| it.twin == twin) {
                // A kernel that takes no more loses the frame, as a full queue of any NIC would.
                let _ = attached.device.send(frame.data());
            }
        }
        moved
    }

    fn collect(&mut self) -> usize {
        let mut moved = 0;
        for attached in &self.attached {
            for _ in 0..BATCH {
                let Ok(len) = attached.device.recv(&mut self.buffer) else { break };
                moved += 1;
                let Some(mut frame) = (self.allocate)() else { continue };
                let Some(room) = frame.append(len) else { continue };
                room.copy_from_slice(&self.buffer[..len]);
                if self.twins.from_kernel.push((attached.twin, frame)).is_err() {
                    break;
                }
            }
        }
        moved
    }

    /// Sleeps until the kernel has something, at most `nap`.
    fn wait(&self, nap: Duration) {
        let mut fds: Vec<PollFd<'_>> =
            self.attached.iter().map(|it| PollFd::new(&it.device, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(nap.subsec_nanos()) };
        // A device that is down answers at once, always; then the nap must be had otherwise.
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) if ready > 0 && !fds.iter().any(|fd| fd.revents().contains(PollFlags::IN)) => {
                std::thread::sleep(nap);
            }
            _ => {}
        }
    }
}

/// The kernel's number of a network device.
fn number(name: &str) -> Option<u32> {
    std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifindex")).ok()?.trim().parse().ok()
}

fn attach(twin: Twin, name: &str) -> io::Result<SyncDevice> {
    // Without this file it is no TUN or TAP, and opening it by name would fail or take another's device.
    if !Path::new("/sys/class/net").join(name).join("tun_flags").exists() {
        return Err(io::Error::new(ErrorKind::NotFound, format!("{name} is no TUN or TAP device")));
    }
    let layer = match twin {
        Twin::Port(_) => Layer::L2,
        Twin::Tunnel(_) => Layer::L3,
    };
    let device = DeviceBuilder::new().name(name).layer(layer).inherit_enable_state().build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}
