//! What the cases share: commands, a second namespace, waiting for the mirror.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipnet::Ipv4Net;
use penstock_control::netlink::{Kernel, Mirror};

/// Longer than anything takes: what has not happened by then does not happen.
pub const NEVER: Duration = Duration::from_secs(30);

/// Runs a command line and returns what it says.
pub fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{line}: {text}");
    text
}

/// Runs several `ip` command lines.
pub fn ip(lines: &[&str]) {
    lines.iter().for_each(|line| drop(run(&format!("ip {line}"))));
}

/// Runs many `ip` command lines in one process.
pub fn batch(lines: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Runs `work` on a single thread.
pub fn block_on<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The mirror's content is what a new one would read.
pub async fn assert_whole(mirror: &Mirror) {
    let fresh = Mirror::open().await.unwrap();
    assert_eq!(mirror.kernel().links(), fresh.kernel().links());
    assert_eq!(mirror.kernel().addresses(), fresh.kernel().addresses());
    assert_eq!(mirror.kernel().nexthops(), fresh.kernel().nexthops());
    assert_eq!(mirror.kernel().routes(), fresh.kernel().routes());
}

/// Follows the kernel until it is so.
pub async fn until(mirror: &mut Mirror, what: &str, is_so: impl Fn(&Kernel) -> bool) {
    let wait = async {
        while !is_so(mirror.kernel()) {
            let changes = mirror.changed().await.unwrap();
            assert!(!changes.is_empty());
        }
    };
    if tokio::time::timeout(NEVER, wait).await.is_err() {
        panic!("{what}: {:?} {:?}", mirror.kernel(), mirror.statistics());
    }
}

/// Follows until the best route of `prefix` has these gateways, each with its weight.
pub async fn until_hops(mirror: &mut Mirror, prefix: &str, gateways: &[(&str, u32)]) {
    let prefix = net(prefix);
    let expected: Vec<(Option<Ipv4Addr>, u32)> =
        gateways.iter().map(|(gateway, weight)| (gateway.parse().ok(), *weight)).collect();
    let what = format!("{prefix} by {gateways:?}");
    until(mirror, &what, |kernel| {
        let hops = kernel.routes().get(&prefix).map_or(&[][..], |route| route.target.hops());
        hops.iter().map(|hop| (hop.gateway, hop.weight)).eq(expected.iter().copied())
    })
    .await;
}

pub fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

pub fn addr(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Another namespace, that lasts as long as this value.
pub struct Peer(Child);

impl Peer {
    /// Makes it, with one end of the veth `here`-`there` inside.
    pub fn new(here: &str, there: &str) -> Peer {
        let mut command = Command::new("unshare");
        let child =
            command.args(["--net", "sleep", "300"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let peer = Peer(child.unwrap());
        let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        while space(&peer.0.id().to_string()) == space("self") {
            std::thread::sleep(Duration::from_millis(5));
        }
        ip(&[
            &format!("link add {here} type veth peer name {there}"),
            &format!("link set {there} netns {}", peer.0.id()),
            &format!("link set {here} up"),
        ]);
        peer.ip(&format!("link set {there} up"));
        peer
    }

    /// Runs `ip` inside.
    pub fn ip(&self, line: &str) -> String {
        run(&format!("nsenter --target {} --net ip {line}", self.0.id()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
