//! A flow of numbered UDP datagrams from one namespace to another: what arrived, what did not, and the longest silence.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` on a thread of its own inside a network namespace.
pub fn within<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let path = format!("/run/netns/{namespace}");
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
        work()
    })
}

/// How a flow is made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Namespace of the sender.
    pub from: String,
    /// Namespace of the receiver.
    pub to: String,
    /// The receiver's address.
    pub address: String,
    /// Datagrams a second.
    pub rate: u32,
    /// Octets of payload, at least 8.
    pub octets: usize,
}

/// A flow under way.
pub struct Flow {
    stop_sending: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Vec<(u64, Instant)>>,
}

/// What became of a flow.
#[derive(Debug)]
pub struct Report {
    /// Datagrams sent.
    pub sent: u64,
    /// Number and time of those that arrived, in the order of arrival.
    pub arrived: Vec<(u64, Instant)>,
    /// Numbers that never arrived.
    pub lost: Vec<u64>,
    /// Datagrams that arrived more than once.
    pub doubled: usize,
}

impl Report {
    /// When the first datagram arrived after `moment`.
    pub fn first_after(&self, moment: Instant) -> Option<Instant> {
        self.arrived.iter().map(|(_, at)| *at).find(|at| *at > moment)
    }
}

impl Flow {
    /// Starts the receiver, then the sender.
    pub fn start(plan: Plan) -> Flow {
        assert!(plan.octets >= 8 && plan.rate > 0);
        let (stop_sending, stop_receiving) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (sent, arrived) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let receiver = {
            let (stop, arrived) = (stop_receiving.clone(), arrived.clone());
            within(&plan.to, move || receive(&stop, &arrived, &ready))
        };
        let port = is_ready.recv().expect("the receiver says its port");
        let sender = {
            let (stop, sent, plan) = (stop_sending.clone(), sent.clone(), plan.clone());
            within(&plan.from.clone(), move || send(&plan, port, &stop, &sent))
        };
        Flow { stop_sending, stop_receiving, sent, arrived, sender, receiver }
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Datagrams that arrived so far.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Ends the sender, waits for what is on its way, ends the receiver.
    pub fn stop(self) -> Report {
        self.stop_sending.store(true, Ordering::Relaxed);
        self.sender.join().expect("the sender has not panicked");
        // A busy machine may hold back for long what is not lost.
        let (sent, mut still) = (self.sent.load(Ordering::Relaxed), 0);
        while self.arrived.load(Ordering::Relaxed) < sent && still < 20 {
            let arrived = self.arrived.load(Ordering::Relaxed);
            thread::sleep(Duration::from_millis(100));
            still = if self.arrived.load(Ordering::Relaxed) == arrived { still + 1 } else { 0 };
        }
        self.stop_receiving.store(true, Ordering::Relaxed);
        let arrived = self.receiver.join().expect("the receiver has not panicked");
        let sent = self.sent.load(Ordering::Relaxed);
        let mut seen = vec![0u32; sent as usize];
        arrived.iter().for_each(|(number, _)| seen[*number as usize] += 1);
        let lost = (0..sent).filter(|number| seen[*number as usize] == 0).collect();
        let doubled = seen.iter().filter(|times| **times > 1).count();
        Report { sent, arrived, lost, doubled }
    }
}

fn send(plan: &Plan, port: u16, stop: &AtomicBool, sent: &AtomicU64) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((plan.address.as_str(), port)).expect("a route to the receiver");
    let (start, mut datagram) = (Instant::now(), vec![0; plan.octets]);
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = start + Duration::from_secs_f64(number as f64 / f64::from(plan.rate));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        if let Err(error) = socket.send(&datagram) {
            // A path that is away for a moment is a loss like any other; the receiver knows.
            let away = [
                ErrorKind::AddrNotAvailable,
                ErrorKind::ConnectionRefused,
                ErrorKind::HostUnreachable,
                ErrorKind::NetworkDown,
                ErrorKind::NetworkUnreachable,
            ];
            assert!(away.contains(&error.kind()), "send: {error}");
        }
        number += 1;
        sent.store(number, Ordering::Relaxed);
    }
}

fn receive(
    stop: &AtomicBool,
    count: &AtomicU64,
    ready: &std::sync::mpsc::Sender<u16>,
) -> Vec<(u64, Instant)> {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // What the test counts as lost must have been lost on the way, not here.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20).expect("root may");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("not zero");
    ready.send(socket.local_addr().expect("bound").port()).expect("the test waits for it");
    let (mut arrived, mut datagram) = (vec![], [0; 65536]);
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut datagram) {
            Ok(8..) => {
                let number = u64::from_be_bytes(std::array::from_fn(|at| datagram[at]));
                arrived.push((number, Instant::now()));
                count.store(arrived.len() as u64, Ordering::Relaxed);
            }
            Ok(short) => panic!("a datagram of {short} octets that nobody sent"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("receive: {error}"),
        }
    }
    arrived
}
