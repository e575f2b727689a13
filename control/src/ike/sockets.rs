//! The two UDP sockets of IKE on each outer address of the gateway: datagrams of the protocol machine enter and leave. The
//! kernel's twin of the port carries them (RFC 7296 section 2, RFC 3948 section 2.2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use penstock_ike::Datagram;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Datagrams that were received and not looked at yet; more wait in the kernel.
const QUEUE: usize = 256;
/// Octets that the kernel keeps for a socket: a thousand peers may speak at once.
const BUFFER: usize = 4 << 20;
/// Peers of which the last failure to send is remembered.
const REMEMBERED: usize = 4096;

/// The sockets of all addresses.
#[derive(Debug)]
pub(crate) struct Sockets {
    ports: (u16, u16),
    open: BTreeMap<Ipv4Addr, Pair>,
    received: mpsc::Sender<Datagram>,
    refused: HashMap<IpAddr, String>,
}

/// The sockets of one address: plain, and with encapsulation.
#[derive(Debug)]
struct Pair {
    sockets: [UdpSocket; 2],
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Sockets {
    /// No sockets yet; what they will receive comes out of the channel.
    pub fn new(ports: (u16, u16)) -> (Sockets, mpsc::Receiver<Datagram>) {
        let (received, receiver) = mpsc::channel(QUEUE);
        (Sockets { ports, open: BTreeMap::new(), received, refused: HashMap::new() }, receiver)
    }

    /// Opens what is missing and closes what is not wanted any more. Returns what is wrong, by address.
    pub fn follow(&mut self, wanted: &BTreeSet<Ipv4Addr>) -> BTreeMap<Ipv4Addr, String> {
        self.open.retain(|address, _| wanted.contains(address));
        let mut problems = BTreeMap::new();
        for address in wanted {
            if self.open.contains_key(address) {
                continue;
            }
            match self.pair(*address) {
                Ok(pair) => {
                    self.open.insert(*address, pair);
                }
                Err(problem) => {
                    problems.insert(*address, problem);
                }
            }
        }
        problems
    }

    /// Whether the sockets of `address` are open.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.open.contains_key(&address)
    }

    fn pair(&self, address: Ipv4Addr) -> Result<Pair, String> {
        let open = |port, encapsulated| {
            let local = SocketAddr::from((address, port));
            open(local, encapsulated, self.received.clone()).map_err(|error| reason(local, &error))
        };
        let (plain, first) = open(self.ports.0, false)?;
        let (encapsulated, second) = open(self.ports.1, true).inspect_err(|_| first.abort())?;
        Ok(Pair { sockets: [plain, encapsulated], tasks: [first, second] })
    }

    /// Sends a datagram from the address that it says. What the kernel refuses is lost, as on any network; the protocol
    /// repeats it.
    pub fn send(&mut self, datagram: &Datagram) {
        let IpAddr::V4(address) = datagram.local.ip() else { return };
        let Some(pair) = self.open.get(&address) else { return };
        let remote = datagram.remote.ip();
        match pair.sockets[usize::from(datagram.encapsulated)].send_to(&datagram.bytes, datagram.remote) {
            Ok(_) => {
                self.refused.remove(&remote);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::debug!("IKE to {}: {error}", datagram.remote);
                if self.refused.len() < REMEMBERED || self.refused.contains_key(&remote) {
                    self.refused.insert(remote, error.to_string());
                }
            }
        }
    }

    /// Why the kernel did not take the last datagram for this peer.
    pub fn refusal(&self, remote: IpAddr) -> Option<&str> {
        self.refused.get(&remote).map(String::as_str)
    }
}

fn reason(local: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => format!(
            "{}: no interface has this address yet: it comes with the twin of its port, so see `penstock show ports`",
            local.ip()
        ),
        io::ErrorKind::AddrInUse => format!(
            "{local}: UDP port {} is taken: another IKE daemon runs on this machine, stop it",
            local.port()
        ),
        _ => format!("{local}: {error}"),
    }
}

/// Opens one socket and the task that reads it.
fn open(
    local: SocketAddr,
    encapsulated: bool,
    received: mpsc::Sender<Datagram>,
) -> io::Result<(UdpSocket, JoinHandle<()>)> {
    let socket = UdpSocket::bind(local)?;
    socket.set_nonblocking(true)?;
    // IKE fragments its own messages (RFC 7383); what is larger all the same may be fragmented on the way.
    sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
    // Beyond the system's limit where this process may.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER)?;
    }
    let reader = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
    let task = tokio::spawn(receive(reader, local, encapsulated, received));
    Ok((socket, task))
}

async fn receive(
    socket: tokio::net::UdpSocket,
    local: SocketAddr,
    encapsulated: bool,
    received: mpsc::Sender<Datagram>,
) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, remote)) => {
                let datagram = Datagram { local, remote, encapsulated, bytes: buffer[..len].to_vec() };
                if received.send(datagram).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                log::debug!("IKE on {local}: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> (u16, u16) {
        let free = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.local_addr().expect("bound").port()
        };
        (free(), free())
    }

    #[tokio::test]
    async fn datagrams_come_from_the_address_and_port_that_they_say() {
        let (one, other) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
        let ports = ports();
        let (mut sockets, mut received) = Sockets::new(ports);
        assert_eq!(sockets.follow(&[one, other].into()), BTreeMap::new());
        for (encapsulated, port) in [(false, ports.0), (true, ports.1)] {
            let (local, remote) = (SocketAddr::from((one, port)), SocketAddr::from((other, port)));
            sockets.send(&Datagram { local, remote, encapsulated, bytes: vec![1, 2, 3] });
            let expected = Datagram { local: remote, remote: local, encapsulated, bytes: vec![1, 2, 3] };
            assert_eq!(received.recv().await, Some(expected));
        }
        assert_eq!(sockets.follow(&[one].into()), BTreeMap::new());
        assert!(sockets.has(one) && !sockets.has(other));
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_named() {
        let elsewhere = Ipv4Addr::new(203, 0, 113, 77);
        let taken = UdpSocket::bind("127.0.0.4:0").expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let (mut sockets, _received) = Sockets::new((port, port));
        let here = Ipv4Addr::new(127, 0, 0, 4);
        let problems = sockets.follow(&[elsewhere, here].into());
        assert!(problems[&elsewhere].contains("no interface has this address yet"), "{problems:?}");
        assert!(problems[&here].contains(&format!("UDP port {port} is taken")), "{problems:?}");
        drop(taken);
        assert!(sockets.follow(&[here].into())[&here].contains("is taken"), "both ports are the same");
    }
}
