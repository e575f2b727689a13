//! Full rate both ways for 30 s, or 10 minutes in the nightly form: every buffer comes back, no counter is off.

use std::thread;
use std::time::Duration;

use penstock_suite::command::until;
use penstock_suite::counters::{Buffers, Counters};
use penstock_suite::gateway::{self, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};
use penstock_suite::{flow, iperf};

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn every_buffer_comes_back_and_every_frame_is_counted() {
    let seconds = if std::env::var_os("PENSTOCK_NIGHTLY").is_some() { 600 } else { 30 };
    let lab = Lab::make();
    let gateways = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    // Caches and rings are filled once before the level counts.
    let servers = Site::BOTH.map(|site| iperf::Server::start(&lab.host(site)));
    iperf::udp(&lab.host(Site::A), "10.2.0.2", 2, "0");
    iperf::udp(&lab.host(Site::B), "10.1.0.2", 2, "0");
    let before: Vec<u64> = gateways.iter().map(Buffers::at_rest).collect();
    // A signal a frame would keep the data plane's main thread from reporting, under load and for seconds after it.
    assert!(gateways.iter().all(|gateway| gateway.files_that_signal() == 0), "net_tap asks for signals");
    let first: Vec<Counters> = gateways.iter().map(Counters::read).collect();
    let (host_a, host_b) = (lab.host(Site::A), lab.host(Site::B));
    let flood = thread::spawn(move || iperf::udp(&host_a, "10.2.0.2", seconds, "0"));
    let stream = thread::spawn(move || iperf::tcp(&host_b, "10.1.0.2", seconds, "-P 2"));
    let (sent, lost) = flood.join().expect("iperf3 ran");
    let rate = stream.join().expect("iperf3 ran");
    eprintln!("UDP flood: {sent} datagrams sent, {lost} lost; TCP against it: {rate:.0} Mbit/s");
    assert!(sent > 1000 * u64::from(seconds), "{sent} sent, {lost} lost");
    assert!(rate > 0.0, "TCP starved: {rate} Mbit/s");
    drop(servers);
    // What a gateway takes in an overload it also passes on; what it cannot take is lost before.
    for (gateway, first) in gateways.iter().zip(&first) {
        let counters = Counters::read(gateway);
        let [received, dropped] = [0, 3].map(|kind| counters.all(kind) - first.all(kind));
        eprintln!("{}: {received} frames received, {dropped} dropped", gateway.name());
        assert!(dropped < received / 4, "{}: {:?}", gateway.name(), counters.drops);
    }
    // And what is no overload it passes on whole.
    let flows = Site::BOTH.map(|from| {
        let (to, address) = (lab.host(from.other()), from.other().host());
        flow::Flow::start(flow::Plan { from: lab.host(from), to, address, rate: 500, octets: 1000 })
    });
    assert!(until(Duration::from_secs(60), || flows.iter().all(|flow| flow.arrived() >= 1500)));
    for report in flows.map(flow::Flow::stop) {
        assert_eq!(report.lost, [0; 0], "of {} datagrams", report.sent);
    }
    for (gateway, before) in gateways.iter().zip(&before) {
        let after = Buffers::once(gateway, |now| now.in_use == *before);
        assert_eq!((after.in_use, after.waiting), (*before, 0), "{}: {after:?}", gateway.name());
    }
    for (gateway, first) in gateways.iter().zip(&first) {
        let counters = Counters::read(gateway);
        counters.must_add_up();
        counters.must_have_opened_all();
        let moved = counters.sent() - first.sent();
        assert!(moved > 1000 * u64::from(seconds), "{} moved {moved} frames", gateway.name());
    }
    gateways.into_iter().for_each(gateway::Gateway::stop);
}
