//! A tunnel with a kernel interface of its own: kernel routes over it lead into the tunnel, also those with nexthop objects
//! as routing daemons install them, and the gateway itself talks through it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use penstock_suite::capture::{Capture, Seen, frames, see};
use penstock_suite::charon::Auth;
use penstock_suite::command::{inside, output, signal, succeed, text, until};
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{Gateway, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site, ping};
use penstock_suite::negotiated::Negotiated;
use rustix::process::Signal;

fn setup(lab: &Lab, site: Site) -> Setup {
    let whole = secret_tunnel(
        lab,
        site,
        &format!("interface: tosite\ninterface_addresses: [169.254.0.{}/30]", site.number()),
    );
    // Route-based: no prefix stands in the file.
    let kept = whole.lines().filter(|line| !line.contains("_prefixes:"));
    Setup::new(site, kept.map(|line| format!("{line}\n")).collect::<String>())
}

fn ip(gateway: &Gateway, arguments: &str) {
    succeed(inside(gateway.namespace(), "ip").args(arguments.split_whitespace()));
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn kernel_routes_lead_into_the_tunnel() {
    let lab = Lab::make();
    let capture = Capture::start(&lab.wire(), "wire", &lab.file("wire.pcap"), "");
    let [a, b] = Site::BOTH.map(|site| Gateway::start(&lab, &setup(&lab, site)));
    let soon = |what: &str, holds: &mut dyn FnMut() -> bool| {
        assert!(until(Duration::from_secs(20), holds), "{what}: {:#}", a.json(&["show", "routes"]));
    };
    let hosts_talk = || lab.ping(Site::A, "10.2.0.2", 1) == 1;

    // The gateways talk to each other through the tunnel before any route is there.
    soon("gateway to gateway", &mut || ping(a.namespace(), "169.254.0.2", 1) == 1);
    assert_eq!(ping(b.namespace(), "169.254.0.1", 5), 5);
    assert!(!hosts_talk(), "there is no route yet");

    // Plain kernel routes.
    ip(&a, "route add 10.2.0.0/24 dev tosite");
    ip(&b, "route add 10.1.0.0/24 dev tosite");
    soon("plain routes", &mut || hosts_talk());
    assert_eq!(lab.ping(Site::A, "10.2.0.2", 5), 5);
    assert_eq!(lab.ping(Site::B, "10.1.0.2", 5), 5);
    // From the gateway to a host, and from a host to the other gateway's inner address.
    assert_eq!(ping(a.namespace(), "10.2.0.2", 5), 5);
    assert_eq!(lab.ping(Site::A, "10.2.0.1", 5), 5);

    // Taken away, nothing passes, and nothing leaves in the clear (the capture below).
    ip(&a, "route del 10.2.0.0/24 dev tosite");
    soon("route deleted", &mut || !hosts_talk());

    // Routes with nexthop objects, changed in place.
    ip(&a, "nexthop add id 7 dev tosite");
    ip(&a, "route add 10.2.0.0/24 nhid 7");
    soon("nexthop object", &mut || hosts_talk());
    ip(&a, "nexthop replace id 7 blackhole");
    soon("blackhole nexthop", &mut || !hosts_talk());
    ip(&a, "nexthop replace id 7 dev tosite");
    soon("nexthop restored", &mut || hosts_talk());

    // A route over a port by a nexthop object: a network behind host B.
    succeed(inside(&lab.host(Site::B), "ip").args(["addr", "add", "10.22.0.2/32", "dev", "tlan"]));
    ip(&b, "nexthop add id 8 via 10.2.0.2 dev lan");
    ip(&b, "route add 10.22.0.0/24 nhid 8");
    ip(&a, "route add 10.22.0.0/24 dev tosite");
    soon("a network behind host B", &mut || lab.ping(Site::A, "10.22.0.2", 1) == 1);

    let (file, counts) = capture.stop();
    assert_eq!(counts.missed, 0);
    for frame in frames(&file) {
        assert!(matches!(see(&frame), Seen::Arp | Seen::Esp(_)), "on the wire: {:x?}", see(&frame));
    }
    for gateway in [a, b] {
        let counters = Counters::read(&gateway);
        counters.must_add_up();
        counters.must_have_opened_all();
        gateway.stop();
    }
}

/// A negotiated tunnel with an interface, whose dead peer is noticed soon. Site A begins.
fn negotiated(lab: &Lab, site: Site) -> Setup {
    let start = if site == Site::A { "now" } else { "wait" };
    let ike = Negotiated::suite(Auth::Psk, Path::new("none"), start, "default").with("dpd: 1s");
    let whole = format!("{}    interface: tosite\n", ike.tunnel(lab, site));
    let kept = whole.lines().filter(|line| !line.contains("_prefixes:"));
    let quick =
        "ike: {retransmit_first: 200ms, retransmit_max: 500ms, transmissions: 3, reconnect_max: 2s}\n";
    let tunnels = kept.map(|line| format!("{line}\n")).collect::<String>();
    Setup { more: quick.into(), ..Setup::new(site, tunnels) }
}

/// What `ip monitor link` tells, from now on.
struct Monitor {
    child: Child,
    file: PathBuf,
}

impl Monitor {
    fn start(gateway: &Gateway, file: PathBuf) -> Monitor {
        let output = File::create(&file).expect("the lab's folder is ours");
        let mut ip = inside(gateway.namespace(), "ip");
        let child = ip.args(["-o", "monitor", "link"]).stdout(output).spawn().expect("ip is there");
        Monitor { child, file }
    }

    /// How often it told that the interface has no carrier.
    fn losses(&self) -> usize {
        let told = fs::read_to_string(&self.file).expect("it is ours");
        told.lines().filter(|line| line.contains("tosite") && line.contains("NO-CARRIER")).count()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn the_carrier_follows_the_sa_and_another_route_takes_over() {
    let lab = Lab::make();
    let [mut a, mut b] = Site::BOTH.map(|site| Gateway::start(&lab, &negotiated(&lab, site)));
    let soon = |what: &str, holds: &mut dyn FnMut() -> bool| {
        assert!(until(Duration::from_secs(30), holds), "{what}")
    };
    let shown = |gateway: &Gateway, arguments: &str| {
        succeed(inside(gateway.namespace(), "ip").args(arguments.split_whitespace()))
    };
    let has_carrier = |gateway: &Gateway| !shown(gateway, "link show tosite").contains("NO-CARRIER");
    soon("a carrier with the first SA", &mut || has_carrier(&a) && has_carrier(&b));
    ip(&a, "route add 10.2.0.0/24 dev tosite metric 10");
    ip(&b, "route add 10.1.0.0/24 dev tosite");
    // The floating static route: another router on the LAN.
    ip(&a, "neigh add 10.1.0.77 lladdr 02:00:00:00:00:77 dev lan");
    ip(&a, "route add 10.2.0.0/24 via 10.1.0.77 metric 20");
    let leads_to = |a: &Gateway, text: &str| {
        let routes = a.json(&["show", "routes", "--prefix", "10.2.0.0/24"]);
        let mut routes = routes.as_array().expect("a list").iter();
        let by_kernel = shown(a, "route get 10.2.0.2");
        let device = if text.starts_with("tunnel") { "dev tosite" } else { "dev lan" };
        by_kernel.contains(device)
            && routes.any(|route| {
                route["prefix"] == "10.2.0.0/24" && route["target"].as_str().expect("text").starts_with(text)
            })
    };
    soon("the tunnel's route", &mut || leads_to(&a, "tunnel site") && lab.ping(Site::A, "10.2.0.2", 1) == 1);

    let code = |gateway: &Gateway, arguments: &[&str]| output(&mut gateway.command(arguments)).status.code();
    assert_eq!(code(&a, &["status", "--check"]), Some(0));
    // A reader that leaves after the first line is no error.
    let command = format!("{:?} | true", a.command(&["show", "drops", "--all", "--json"]));
    let said = output(Command::new("bash").args(["-c", &format!("set -o pipefail; {command}")]));
    assert_eq!((said.status.code(), text(&said.stderr).as_str()), (Some(0), ""), "{command}");

    // Taken down by the operator.
    a.run(&["terminate", "site"]);
    soon("no carrier, and the other route", &mut || !has_carrier(&a) && leads_to(&a, "port lan"));
    soon("no carrier at the peer", &mut || !has_carrier(&b));
    assert_eq!(code(&a, &["status", "--check"]), Some(1));
    let why = output(&mut a.command(&["why", "site", "--check"]));
    assert_eq!((why.status.code(), text(&why.stdout).lines().count()), (Some(1), 1));
    a.run(&["initiate", "site"]);
    soon("the tunnel's route again", &mut || has_carrier(&a) && leads_to(&a, "tunnel site"));

    // A control that starts again finds the SA; the carrier does not go.
    let monitor = Monitor::start(&a, lab.file("monitor"));
    a.kill_control();
    a.restart_control();
    soon("adopted", &mut || a.json(&["why", "site"])["code"] == "up");
    assert_eq!(monitor.losses(), 0);

    // The data plane that starts again attaches, and the carrier follows.
    a.kill_dataplane();
    lab.plug(Site::A);
    soon("a carrier after the data plane's restart", &mut || has_carrier(&a) && leads_to(&a, "tunnel site"));

    // The peer's host stops, all at once.
    let dataplane = b.dataplane().expect("it runs");
    b.kill_control();
    signal(dataplane, Signal::KILL);
    soon("no carrier without the peer", &mut || !has_carrier(&a) && leads_to(&a, "port lan"));
    soon("it ends", &mut || b.dataplane().is_none());
    assert_eq!(code(&b, &["status", "--check"]), Some(2));
    b.restart_control();
    lab.plug(Site::B);
    soon("the peer is back", &mut || has_carrier(&a) && leads_to(&a, "tunnel site"));
    for gateway in [a, b] {
        gateway.stop();
    }
}
