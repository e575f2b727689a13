//! A tunnel with a kernel interface of its own: kernel routes over it lead into the tunnel, also those with nexthop objects
//! as routing daemons install them, and the gateway itself talks through it.

use std::time::Duration;

use penstock_suite::capture::{Capture, Seen, frames, see};
use penstock_suite::command::{inside, succeed, until};
use penstock_suite::counters::Counters;
use penstock_suite::gateway::{Gateway, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site, ping};

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
