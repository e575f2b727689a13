//! iperf3 through the tunnel: a server in one namespace, a client in another, its JSON leaves.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::command::{self, inside};

/// A server. It is stopped when it is dropped.
pub struct Server(Child);

impl Server {
    /// Listens in `namespace`.
    pub fn start(namespace: &str) -> Server {
        let mut command = inside(namespace, "iperf3");
        command.arg("-s").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Server(command.spawn().expect("iperf3 is installed"));
        thread::sleep(Duration::from_millis(500));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        command::end(&mut self.0, Signal::KILL);
    }
}

/// Runs a client to its end and returns what it measured.
pub fn client(namespace: &str, to: &str, options: &str) -> Value {
    // A server that has just ended another test is not listening for a moment.
    thread::sleep(Duration::from_secs(1));
    let mut command = inside(namespace, "iperf3");
    command.args(["-J", "-c", to]).args(options.split_whitespace());
    let result = command::output(&mut command);
    let said = command::text(&result.stdout);
    let json: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("iperf3: {error}: {said}"));
    assert!(json.get("error").is_none(), "iperf3 {options}: {}", json["error"]);
    json["end"].clone()
}

/// TCP for some seconds; `options` such as -R. Returns Mbit/s that arrived.
pub fn tcp(namespace: &str, to: &str, seconds: u32, options: &str) -> f64 {
    let end = client(namespace, to, &format!("-t {seconds} {options}"));
    end["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e6
}

/// UDP for some seconds at a rate such as 20M. Returns datagrams sent and lost.
pub fn udp(namespace: &str, to: &str, seconds: u32, rate: &str) -> (u64, u64) {
    let end = client(namespace, to, &format!("-u -b {rate} -l 1300 -t {seconds}"));
    let figure = |name: &str| end["sum"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {end}"));
    (figure("packets"), figure("lost_packets"))
}
