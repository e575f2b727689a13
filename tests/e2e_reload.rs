//! A changed file, by `penstock apply` and by SIGHUP: tunnels come, change and go, and those that the change does not touch
//! lose no packet.

use std::fs;
use std::time::Duration;

use penstock_suite::command::{self, inside, refuse, succeed, until};
use penstock_suite::counters::Counters;
use penstock_suite::flow::{Flow, Plan};
use penstock_suite::gateway::{self, Gateway, Setup, secret_tunnel};
use penstock_suite::lab::{Lab, Site};
use rustix::process::Signal;

/// A second tunnel, between 10.11.0.0/24 and 10.12.0.0/24, and the routes to the hosts behind.
fn with_extra(lab: &Lab, site: Site, options: &str) -> Setup {
    let (own, other) = (site.number(), site.other().number());
    let first = secret_tunnel(lab, site, "");
    let extra = format!(
        "  extra:\n\
         \x20   peer: {peer}\n\
         \x20   local_prefixes: [10.1{own}.0.0/24]\n\
         \x20   remote_prefixes: [10.1{other}.0.0/24]\n\
         \x20   lab_keys: {{secret_file: {secret}, context: extra}}\n\
         {options}",
        peer = site.other().outer(),
        secret = lab.file("lab.secret").display(),
    );
    let more = format!("routes:\n  - {{to: 10.1{own}.0.0/24, via: 10.{own}.0.2}}\n");
    Setup { more, ..Setup::new(site, first + &extra) }
}

fn write(lab: &Lab, gateway: &Gateway, setup: &Setup) {
    fs::write(gateway.config(), setup.yaml(lab)).expect("the lab's folder is ours");
}

fn tunnels(gateway: &Gateway) -> usize {
    gateway.json(&["show", "tunnels"]).as_array().expect("a list").len()
}

/// Whether a ping between the hosts of the second tunnel is answered.
fn extra_passes(lab: &Lab) -> bool {
    let ping = ["-n", "-c", "1", "-W", "1", "-I", "10.11.0.2", "10.12.0.2"];
    command::output(inside(&lab.host(Site::A), "ping").args(ping)).status.success()
}

#[test]
#[ignore = "needs root and TAP devices: scripts/test runs it"]
fn untouched_tunnels_lose_nothing() {
    let lab = Lab::make();
    let gateways = gateway::pair(&lab, |site| Setup::new(site, secret_tunnel(&lab, site, "")));
    let [a, b] = &gateways;
    for site in Site::BOTH {
        let address = format!("10.1{}.0.2/32", site.number());
        succeed(inside(&lab.host(site), "ip").args(["addr", "add", &address, "dev", "tlan"]));
    }
    let flows = Site::BOTH.map(|from| {
        let (to, address) = (lab.host(from.other()), from.other().host());
        Flow::start(Plan { from: lab.host(from), to, address, rate: 1000, octets: 400 })
    });

    // A tunnel comes.
    assert!(!extra_passes(&lab));
    for gateway in &gateways {
        write(&lab, gateway, &with_extra(&lab, gateway.site(), ""));
        gateway.run(&["apply"]);
        assert_eq!(tunnels(gateway), 2);
    }
    assert!(until(Duration::from_secs(20), || extra_passes(&lab)), "the new tunnel carries nothing");

    // It changes, by SIGHUP.
    for gateway in &gateways {
        write(&lab, gateway, &with_extra(&lab, gateway.site(), "    cipher: aes256gcm16\n"));
        command::signal(gateway.control(), Signal::HUP);
    }
    let changed = |gateway: &Gateway| {
        let sas = gateway.json(&["show", "sa"]);
        let of_extra = sas.as_array().expect("a list").iter().filter(|sa| sa["tunnel"] == "extra");
        let ciphers: Vec<_> =
            of_extra.map(|sa| sa["cipher"].as_str().unwrap_or_default().to_owned()).collect();
        !ciphers.is_empty() && ciphers.iter().all(|cipher| cipher == "aes256gcm16")
    };
    assert!(until(Duration::from_secs(10), || gateways.iter().all(changed)), "SIGHUP changed nothing");
    assert!(until(Duration::from_secs(20), || extra_passes(&lab)), "the changed tunnel carries nothing");

    // A wrong file changes nothing and is explained.
    let good = fs::read_to_string(a.config()).expect("ours");
    fs::write(a.config(), good.replace("cipher: aes256gcm16", "cipher: rot13")).expect("ours");
    let said = refuse(&mut a.command(&["apply"]));
    assert!(said.contains("rot13") && said.contains("a.yaml:"), "{said}");
    assert!(tunnels(a) == 2 && extra_passes(&lab), "a wrong file did something");

    // It goes.
    for gateway in &gateways {
        write(&lab, gateway, &Setup::new(gateway.site(), secret_tunnel(&lab, gateway.site(), "")));
        gateway.run(&["apply"]);
        assert_eq!(tunnels(gateway), 1);
    }
    assert!(!extra_passes(&lab));

    let enough = || flows.iter().all(|flow| flow.arrived() > 5000);
    assert!(until(Duration::from_secs(20), enough), "the flows carry too little");
    for flow in flows {
        let report = flow.stop();
        assert!(report.sent > 2000, "only {} datagrams were sent", report.sent);
        assert!(report.lost.is_empty(), "lost {} of {}: {:?}", report.lost.len(), report.sent, report.lost);
        assert_eq!(report.doubled, 0);
    }
    assert!(Counters::read(b).sent() > 0);
    for gateway in gateways {
        Counters::read(&gateway).must_add_up();
        gateway.stop();
    }
}
