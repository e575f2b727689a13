//! The mirror's socket: multicast news and dumps enter by rtnetlink, debounced batches of [`Changes`] leave, and
//! requests to resolve neighbours go to the kernel. RFC 3549 describes netlink; RFC 826 what resolution does on the
//! wire.
//!
//! News and dumps share one socket, so that they come in the kernel's own order. Where the kernel lost news
//! (ENOBUFS), the socket is opened anew and everything is dumped; where it is known to say nothing (routes that go
//! with a link, an address or a nexthop object), everything is dumped too. A dump fills a second model, that takes
//! the first one's place when it is complete.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::Ipv4Addr;
use std::task::{Context, Poll};
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep_until};

use super::kernel::Kernel;
use super::message::{DUMPS, Incoming, dump_request, forget_request, read, use_request};
use super::types::{Changes, Event, Nud};

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Neigh,
    MulticastGroup::Nexthop,
];

/// Octets that may wait in the socket: some 100,000 routes' news.
const RECEIVE_BUFFER: usize = 32 << 20;

/// Octets of the largest datagram: the kernel fills dumps up to 32 KiB, a link with many virtual functions is larger.
const DATAGRAM: usize = 256 << 10;

/// A batch ends when nothing came for so long,
const QUIET: Duration = Duration::from_millis(5);

/// or when its first change is so old.
const PATIENCE: Duration = Duration::from_millis(50);

/// Datagrams that are read before timers are looked at again.
const TURN: usize = 256;

/// Silent removals are waited for this long before the dump that finds them.
const SETTLING: Duration = Duration::from_millis(20);

/// Wait before a dump that follows a lost or refused one, doubled each time up to the second value.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// How often neighbours in use are looked at. The kernel's own delays (5 s of DELAY, 3 probes) make more pointless.
const KEEPING: Duration = Duration::from_secs(1);

/// Least and largest wait between two requests for a neighbour that does not answer.
const ASKING: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(16));

/// Most neighbours that are kept resolved.
const MOST_KEPT: usize = 1 << 20;

/// Most requests to one interface each time: what many hosts need at once comes a few at a time.
const MOST_ASKED: u32 = 256;

/// Why the kernel cannot be mirrored.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// No netlink socket.
    #[error(
        "cannot open a netlink socket: {0}: check that the process may (RestrictAddressFamilies, seccomp) use AF_NETLINK"
    )]
    Open(#[source] io::Error),
    /// No notifications.
    #[error("cannot subscribe to the kernel's notifications: {0}: Linux 5.3 or newer is needed")]
    Subscribe(#[source] io::Error),
    /// The socket broke.
    #[error("the netlink socket failed: {0}: open the mirror anew")]
    Socket(#[source] io::Error),
    /// The kernel's tables could not be read at the start.
    #[error(
        "the kernel does not list its tables: check that the process may use rtnetlink, and that Linux is 5.3 or newer"
    )]
    Dump,
}

/// What the mirror has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorStatistics {
    /// News read from the kernel, dumps included.
    pub events: u64,
    /// Dumps completed, the first included.
    pub dumps: u64,
    /// How often the kernel lost news because this process did not read in time.
    pub overruns: u64,
    /// Messages that could not be read.
    pub malformed: u64,
    /// Requests to resolve a neighbour that were sent.
    pub asked: u64,
    /// Requests that the kernel refused.
    pub refused: u64,
}

/// A dump under way.
struct Dump {
    /// Which of [`DUMPS`].
    phase: usize,
    sequence: u32,
    kernel: Kernel,
    interrupted: bool,
}

/// A neighbour that the data plane uses.
#[derive(Clone, Copy)]
struct Kept {
    /// No request before.
    next: Instant,
    wait: Duration,
}

/// The live mirror. One owner reads [`Mirror::kernel`] and awaits [`Mirror::changed`].
pub struct Mirror {
    socket: TokioSocket,
    receive_buffer: usize,
    buffer: Vec<u8>,
    sequence: u32,
    kernel: Kernel,
    dump: Option<Dump>,
    /// When to dump (again).
    due: Option<Instant>,
    retry: Duration,
    /// When the first and the last unreported news came.
    news: Option<(Instant, Instant)>,
    changes: Changes,
    kept: BTreeMap<(u32, Ipv4Addr), Kept>,
    keeping: Instant,
    statistics: MirrorStatistics,
}

fn open_socket(receive_buffer: usize) -> Result<TokioSocket, MirrorError> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(MirrorError::Open)?;
    let raw = socket.socket_mut();
    raw.bind_auto().map_err(MirrorError::Open)?;
    // More than the system's limit needs a privilege; without it, overruns are more frequent, and survived.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&*raw, receive_buffer).is_err() {
        let octets = i32::try_from(receive_buffer).unwrap_or(i32::MAX);
        raw.set_rx_buf_sz(octets).map_err(MirrorError::Open)?;
    }
    for group in GROUPS {
        raw.add_membership(group as u32).map_err(MirrorError::Subscribe)?;
    }
    Ok(socket)
}

impl Mirror {
    /// Subscribes and reads all tables; when this returns, [`Mirror::kernel`] is whole. Within a tokio runtime with I/O
    /// and time.
    ///
    /// # Errors
    /// No netlink, or an old kernel. No privilege is needed to read.
    pub async fn open() -> Result<Mirror, MirrorError> {
        Mirror::open_with(RECEIVE_BUFFER).await
    }

    /// As [`Mirror::open`], with so many octets of receive buffer: a small one loses news early.
    ///
    /// # Errors
    /// As [`Mirror::open`].
    pub async fn open_with(receive_buffer: usize) -> Result<Mirror, MirrorError> {
        let now = Instant::now();
        let mut mirror = Mirror {
            socket: open_socket(receive_buffer)?,
            receive_buffer,
            buffer: Vec::with_capacity(DATAGRAM),
            sequence: 0,
            kernel: Kernel::default(),
            dump: None,
            due: Some(now),
            retry: RETRY.0,
            news: None,
            changes: Changes::default(),
            kept: BTreeMap::new(),
            keeping: now,
            statistics: MirrorStatistics::default(),
        };
        while mirror.statistics.dumps == 0 {
            mirror.step().await?;
            if mirror.retry == RETRY.1 {
                return Err(MirrorError::Dump);
            }
        }
        (mirror.changes, mirror.news) = (Changes::default(), None);
        Ok(mirror)
    }

    /// The kernel as it was when the last batch was given out, or a little newer.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Counters since the mirror was opened.
    pub fn statistics(&self) -> MirrorStatistics {
        self.statistics
    }

    /// Waits for the next batch of changes. A batch is never empty and names each key once; it ends 5 ms after the last
    /// news or 50 ms after the first. A call that is dropped loses nothing. Neighbours in use are kept fresh only while
    /// this is being awaited.
    ///
    /// # Errors
    /// The socket broke: open a new mirror.
    pub async fn changed(&mut self) -> Result<Changes, MirrorError> {
        loop {
            if self.news.is_some_and(|news| batch_end(news) <= Instant::now()) {
                self.news = None;
                self.settle();
                if !self.changes.is_empty() {
                    return Ok(std::mem::take(&mut self.changes));
                }
            }
            self.step().await?;
        }
    }

    /// Says that the data plane sends to this neighbour, and asks the kernel to resolve it now. From now on the
    /// kernel is reminded before the entry is forgotten, may not collect it whatever else fills its table, and is
    /// asked again when the neighbour fails or its link returns, until [`Mirror::release`]. This process sends no
    /// packet: NTF_USE makes the kernel do its own ARP. Needs CAP_NET_ADMIN, without which it is counted as refused.
    pub fn resolve(&mut self, ifindex: u32, address: Ipv4Addr) {
        let now = Instant::now();
        if self.kept.len() >= MOST_KEPT && !self.kept.contains_key(&(ifindex, address)) {
            return;
        }
        let kept = self.kept.entry((ifindex, address)).or_insert(Kept { next: now, wait: ASKING.0 });
        kept.wait = ASKING.0;
        kept.next = kept.next.min(now + ASKING.0);
        self.remind(ifindex, address, now);
    }

    /// No longer keeps a neighbour resolved: the kernel may collect it. One that does not answer is forgotten at once.
    pub fn release(&mut self, ifindex: u32, address: Ipv4Addr) {
        self.kept.remove(&(ifindex, address));
        let entry = self.kernel.neighbours().get(&(ifindex, address)).copied();
        if let Some(entry) = entry.filter(|entry| entry.guarded) {
            self.sequence = self.sequence.wrapping_add(1);
            let request = match entry.usable() {
                Some(_) => use_request(ifindex, address, false, self.sequence),
                None => forget_request(ifindex, address, self.sequence),
            };
            // Where it is lost, the entry stays a while longer.
            let _ = self.send(&request);
        }
    }

    /// The neighbours that are kept resolved, by interface and address.
    pub fn kept(&self) -> impl Iterator<Item = (u32, Ipv4Addr)> {
        self.kept.keys().copied()
    }

    /// Reads all tables again, soon.
    pub fn resync(&mut self) {
        self.due = Some(Instant::now());
    }

    /// One wait, for the socket or the next timer, and what follows from it. May be dropped while it waits.
    async fn step(&mut self) -> Result<(), MirrorError> {
        let due = self.due.filter(|_| self.dump.is_none());
        let keeping = Some(self.keeping).filter(|_| !self.kept.is_empty());
        let timer = [due, keeping, self.news.map(batch_end)].into_iter().flatten().min();
        let timer = timer.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let lost = tokio::select! {
            lost = poll_fn(|context| self.poll_drain(context)) => lost?,
            () = sleep_until(timer) => false,
        };
        if lost {
            self.statistics.overruns += 1;
            self.socket = open_socket(self.receive_buffer)?;
            self.postpone();
        }
        let now = Instant::now();
        if self.dump.is_none() && self.due.is_some_and(|due| due <= now) {
            (self.due, self.sequence) = (None, self.sequence.wrapping_add(1));
            self.dump = Some(Dump {
                phase: 0,
                sequence: self.sequence,
                kernel: Kernel::default(),
                interrupted: false,
            });
            self.ask_for_dump();
        }
        if self.keeping <= now {
            self.keeping = now + KEEPING;
            self.remind_all(now);
        }
        Ok(())
    }

    /// Reads what waits in the socket, and waits where nothing does. True where the kernel lost something.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, MirrorError>> {
        for turn in 0..TURN {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            let received = self.socket.poll_recv_from(context, &mut buffer);
            let lost = match &received {
                // Port 0 is the kernel. Other processes can send too, and are not listened to.
                Poll::Ready(Ok(sender)) if sender.port_number() != 0 => false,
                // What fills the buffer was cut off.
                Poll::Ready(Ok(_)) => buffer.len() >= DATAGRAM || self.take_in(&buffer),
                Poll::Ready(Err(error)) => error.raw_os_error() == Some(libc::ENOBUFS),
                Poll::Pending => false,
            };
            self.buffer = buffer;
            match received {
                _ if lost => return Poll::Ready(Ok(true)),
                Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                    return Poll::Ready(Err(MirrorError::Socket(error)));
                }
                Poll::Pending if turn == 0 => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(_) => (),
            }
        }
        Poll::Ready(Ok(false))
    }

    /// Takes a datagram in. True where the kernel says that it lost something.
    fn take_in(&mut self, datagram: &[u8]) -> bool {
        let mut lost = false;
        read(datagram, |incoming| match incoming {
            Incoming::Event(event) => self.hear(event),
            Incoming::Part(sequence, event) => {
                if let Some(dump) = self.dump.as_mut().filter(|dump| dump.sequence == sequence) {
                    self.statistics.events += 1;
                    dump.kernel.apply(event);
                }
            }
            Incoming::Interrupted(sequence) => {
                if let Some(dump) = self.dump.as_mut().filter(|dump| dump.sequence == sequence) {
                    dump.interrupted = true;
                }
            }
            Incoming::Done(sequence, errno) => self.dumped(sequence, errno),
            Incoming::Answer(sequence, errno) if errno != 0 => self.dumped(sequence, errno),
            Incoming::Answer(..) => (),
            Incoming::Overrun => lost = true,
            Incoming::Malformed => self.statistics.malformed += 1,
        });
        lost
    }

    fn hear(&mut self, event: Event) {
        let now = Instant::now();
        self.statistics.events += 1;
        let quiet = match &event {
            Event::Link(ifindex, new) => self.kernel.links().get(ifindex).is_none_or(|old| {
                let back = new.up && new.carrier && !(old.up && old.carrier);
                if back {
                    let kept = self.kept.iter_mut().filter(|((index, _), _)| index == ifindex);
                    kept.for_each(|(_, kept)| *kept = Kept { next: now, wait: ASKING.0 });
                    self.keeping = now;
                }
                (old.up, old.carrier) == (new.up, new.carrier)
            }),
            Event::LinkGone(_) | Event::AddressGone(_) | Event::NexthopGone(_) => false,
            _ => true,
        };
        if !quiet {
            self.due = Some(self.due.unwrap_or(now + SETTLING).min(now + SETTLING));
        }
        if let Some(dump) = &mut self.dump {
            dump.kernel.apply(event.clone());
        }
        self.kernel.apply(event);
        self.news = Some((self.news.map_or(now, |(first, _)| first), now));
    }

    fn settle(&mut self) {
        self.changes.merge(self.kernel.settle());
    }

    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.socket.socket_ref().send_to(request, &SocketAddr::new(0, 0), libc::MSG_DONTWAIT).map(drop)
    }

    fn ask_for_dump(&mut self) {
        let Some(dump) = &self.dump else { return };
        if self.send(&dump_request(DUMPS[dump.phase], dump.sequence)).is_err() {
            self.postpone();
        }
    }

    /// Gives the dump up and has it made anew after a while.
    fn postpone(&mut self) {
        self.dump = None;
        self.due = Some(Instant::now() + self.retry);
        self.retry = (2 * self.retry).min(RETRY.1);
    }

    /// A part of the dump is complete, or was refused, as any other request may be.
    fn dumped(&mut self, sequence: u32, errno: i32) {
        let Some(mut dump) = self.dump.take_if(|dump| dump.sequence == sequence) else {
            self.statistics.refused += u64::from(errno != 0);
            return;
        };
        if errno != 0 {
            return self.postpone();
        }
        dump.phase += 1;
        if dump.phase < DUMPS.len() {
            self.sequence = self.sequence.wrapping_add(1);
            dump.sequence = self.sequence;
            self.dump = Some(dump);
            return self.ask_for_dump();
        }
        self.settle();
        dump.kernel.settle();
        self.changes.merge(dump.kernel.difference(&self.kernel));
        self.kernel = dump.kernel;
        self.statistics.dumps += 1;
        let now = Instant::now();
        self.news = Some((self.news.map_or(now, |(first, _)| first), now));
        match dump.interrupted {
            true => self.postpone(),
            false => self.retry = RETRY.0,
        }
    }

    /// Reminds the kernel of the neighbours in use, of each interface a few at a time.
    fn remind_all(&mut self, now: Instant) {
        let kept: Vec<_> = self.kept().collect();
        let (mut interface, mut asked) = (0, 0);
        for (ifindex, address) in kept {
            if ifindex != interface {
                (interface, asked) = (ifindex, 0);
            }
            if asked < MOST_ASKED {
                asked += u32::from(self.remind(ifindex, address, now));
            }
        }
    }

    /// Reminds the kernel of a neighbour in use, if it needs that and enough time has passed. Says whether it did.
    fn remind(&mut self, ifindex: u32, address: Ipv4Addr, now: Instant) -> bool {
        let Some(kept) = self.kept.get_mut(&(ifindex, address)) else { return false };
        let entry = self.kernel.neighbours().get(&(ifindex, address)).copied().unwrap_or_default();
        match entry.state {
            // NTF_USE would make a permanent entry a mortal one.
            Nud::Permanent | Nud::NoArp => kept.wait = ASKING.0,
            Nud::Reachable if entry.guarded => kept.wait = ASKING.0,
            Nud::Incomplete | Nud::Delay | Nud::Probe if entry.guarded => (),
            _ if kept.next > now => (),
            _ => {
                kept.next = now + kept.wait;
                kept.wait = (2 * kept.wait).min(ASKING.1);
                self.sequence = self.sequence.wrapping_add(1);
                self.statistics.asked += 1;
                if self.send(&use_request(ifindex, address, true, self.sequence)).is_err() {
                    self.statistics.refused += 1;
                }
                return true;
            }
        }
        false
    }
}

fn batch_end((first, last): (Instant, Instant)) -> Instant {
    (last + QUIET).min(first + PATIENCE)
}
