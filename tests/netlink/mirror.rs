//! The mirror follows the kernel: routes, nexthop objects, neighbours, lost news.

use std::time::Duration;

use penstock_control::netlink::{Hop, Kernel, Mirror, Neighbour, Nexthop, Nud, Target};

use crate::lab::{NEVER, Peer, addr, assert_whole, batch, block_on, ip, net, run, until, until_hops};

/// One link `v0` with the address 192.0.2.1/24 and an end that nobody listens to.
fn link() {
    ip(&[
        "link add v0 type veth peer name v1",
        "link set v1 up",
        "link set v0 up",
        "addr add 192.0.2.1/24 dev v0",
    ]);
}

fn target(kernel: &Kernel, prefix: &str) -> Option<Target> {
    kernel.routes().get(&net(prefix)).map(|route| route.target.clone())
}

fn neighbour(kernel: &Kernel, link: &str, address: &str) -> Option<Neighbour> {
    kernel.neighbours().get(&(kernel.ifindex(link)?, addr(address))).copied()
}

pub fn what_was_there_before_is_read() {
    link();
    ip(&[
        "link set v0 alias 'penstock:test'",
        "link set v0 address 02:00:00:00:00:77 mtu 1400",
        "addr add 198.51.100.1 peer 198.51.100.2 dev v0",
        "nexthop add id 7 via 192.0.2.7 dev v0",
        "route add 10.7.0.0/16 nhid 7 metric 20 proto 186",
        "route add blackhole 10.8.0.0/16",
        "neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev v0",
    ]);
    block_on(async {
        let mirror = Mirror::open().await.unwrap();
        let kernel = mirror.kernel();
        let ifindex = kernel.ifindex("v0").unwrap();
        let link = &kernel.links()[&ifindex];
        assert_eq!(
            (link.mac, link.mtu, link.up, link.carrier),
            (Some([2, 0, 0, 0, 0, 0x77]), 1400, true, true)
        );
        assert_eq!((link.alias.as_deref(), link.kind.as_deref()), (Some("penstock:test"), Some("veth")));
        let addresses: Vec<_> = kernel.addresses_of(ifindex).map(|it| (it.address, it.peer)).collect();
        assert_eq!(
            addresses,
            [(net("192.0.2.1/24"), None), (net("198.51.100.1/32"), Some(addr("198.51.100.2")))]
        );
        let hop = Hop { ifindex, gateway: Some(addr("192.0.2.7")), weight: 1 };
        let route = &kernel.routes()[&net("10.7.0.0/16")];
        assert_eq!((route.target.hops(), route.metric, route.protocol), (&[hop][..], 20, 186));
        assert_eq!(target(kernel, "10.8.0.0/16"), Some(Target::Blackhole));
        let connected = &kernel.routes()[&net("192.0.2.0/24")];
        assert_eq!((connected.protocol, connected.source), (2, Some(addr("192.0.2.1"))));
        assert_eq!(connected.target.hops(), [Hop { ifindex, gateway: None, weight: 1 }]);
        assert_eq!(kernel.nexthops()[&7], Nexthop::Hop(hop));
        let expected = Neighbour { mac: Some([2, 0, 0, 0, 0, 9]), state: Nud::Permanent, guarded: false };
        assert_eq!(neighbour(kernel, "v0", "192.0.2.9"), Some(expected));
        assert_eq!(kernel.lookup(addr("10.7.1.1")).map(|(prefix, _)| prefix), Some(net("10.7.0.0/16")));
        assert_eq!(mirror.statistics().malformed, 0);
    });
}

pub fn routes_come_change_and_go() {
    link();
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        ip(&["route add 10.2.0.0/16 via 192.0.2.2"]);
        let changes = mirror.changed().await.unwrap();
        assert!(changes.routes.contains(&net("10.2.0.0/16")), "{changes:?}");
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.2", 1)]).await;
        ip(&["route replace 10.2.0.0/16 via 192.0.2.3"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.3", 1)]).await;
        // The first of equals counts; what is appended waits for its end.
        ip(&["route append 10.2.0.0/16 via 192.0.2.4", "route prepend 10.2.0.0/16 via 192.0.2.5"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.5", 1)]).await;
        assert_whole(&mirror).await;
        ip(&["route del 10.2.0.0/16 via 192.0.2.5", "route del 10.2.0.0/16 via 192.0.2.3"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.4", 1)]).await;
        for (word, expected) in [
            ("blackhole", Target::Blackhole),
            ("unreachable", Target::Unreachable),
            ("prohibit", Target::Prohibit),
        ] {
            ip(&[&format!("route replace {word} 10.2.0.0/16")]);
            until(&mut mirror, word, |kernel| target(kernel, "10.2.0.0/16").as_ref() == Some(&expected))
                .await;
        }
        ip(&["route del 10.2.0.0/16", "route add 10.3.0.0/16 via 192.0.2.3 table 100"]);
        until(&mut mirror, "gone", |kernel| target(kernel, "10.2.0.0/16").is_none()).await;
        ip(&["route add default via 192.0.2.6"]);
        until_hops(&mut mirror, "0.0.0.0/0", &[("192.0.2.6", 1)]).await;
        assert_eq!(target(mirror.kernel(), "10.3.0.0/16"), None);
        assert_whole(&mirror).await;
        assert_eq!(mirror.statistics().malformed, 0);
    });
}

pub fn the_lowest_metric_wins() {
    link();
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        ip(&["route add 10.2.0.0/16 via 192.0.2.2 metric 200"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.2", 1)]).await;
        ip(&[
            "route add 10.2.0.0/16 via 192.0.2.3 metric 100",
            "route add 10.2.0.0/16 via 192.0.2.4 metric 300",
        ]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.3", 1)]).await;
        ip(&["route del 10.2.0.0/16 metric 100"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.2", 1)]).await;
        assert_whole(&mirror).await;
    });
}

pub fn nexthop_objects_are_resolved() {
    link();
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        ip(&["nexthop add id 7 via 192.0.2.7 dev v0", "route add 10.7.0.0/16 nhid 7"]);
        until_hops(&mut mirror, "10.7.0.0/16", &[("192.0.2.7", 1)]).await;
        ip(&[
            "nexthop add id 8 via 192.0.2.8 dev v0",
            "nexthop add id 9 group 7,3/8",
            "route add 10.9.0.0/16 nhid 9",
        ]);
        until_hops(&mut mirror, "10.9.0.0/16", &[("192.0.2.7", 3), ("192.0.2.8", 1)]).await;
        // The object changes under its routes.
        ip(&["nexthop replace id 7 via 192.0.2.77 dev v0"]);
        until_hops(&mut mirror, "10.7.0.0/16", &[("192.0.2.77", 1)]).await;
        until_hops(&mut mirror, "10.9.0.0/16", &[("192.0.2.77", 3), ("192.0.2.8", 1)]).await;
        assert_whole(&mirror).await;
        // The kernel removes what hangs on the object, and says so of the object alone.
        ip(&["nexthop del id 7"]);
        until_hops(&mut mirror, "10.9.0.0/16", &[("192.0.2.8", 1)]).await;
        until(&mut mirror, "gone", |kernel| target(kernel, "10.7.0.0/16").is_none()).await;
        ip(&["link set lo up", "nexthop add id 11 blackhole", "route add 10.8.0.0/16 nhid 11"]);
        until(&mut mirror, "dropped", |kernel| target(kernel, "10.8.0.0/16") == Some(Target::Blackhole))
            .await;
        assert_whole(&mirror).await;
        // The same without the copies of the hops in the routes' messages.
        run("echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode");
        ip(&["nexthop add id 10 via 192.0.2.10 dev v0", "route add 10.10.0.0/16 nhid 10"]);
        until_hops(&mut mirror, "10.10.0.0/16", &[("192.0.2.10", 1)]).await;
        assert_whole(&mirror).await;
        assert_eq!(mirror.statistics().malformed, 0);
    });
}

pub fn many_hops_with_weights() {
    link();
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        ip(&[
            "route add 10.2.0.0/16 nexthop via 192.0.2.2 weight 2 nexthop via 192.0.2.3 nexthop dev v0 weight 5",
        ]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.2", 2), ("192.0.2.3", 1), ("", 5)]).await;
        ip(&["route del 10.2.0.0/16"]);
        until(&mut mirror, "gone", |kernel| target(kernel, "10.2.0.0/16").is_none()).await;
    });
}

pub fn what_the_kernel_removes_in_silence_is_found() {
    link();
    ip(&[
        "link add w0 type veth peer name w1",
        "link set w1 up",
        "link set w0 up",
        "addr add 198.51.100.1/24 dev w0",
    ]);
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        ip(&["nexthop add id 7 via 192.0.2.7 dev v0", "route add 10.7.0.0/16 nhid 7"]);
        ip(&["route add 10.2.0.0/16 via 192.0.2.2", "route add 10.3.0.0/16 via 198.51.100.3"]);
        ip(&["route add 10.4.0.0/16 nexthop via 192.0.2.2 nexthop via 198.51.100.3"]);
        until_hops(&mut mirror, "10.4.0.0/16", &[("192.0.2.2", 1), ("198.51.100.3", 1)]).await;
        ip(&["link set v0 down"]);
        until_hops(&mut mirror, "10.4.0.0/16", &[("198.51.100.3", 1)]).await;
        let gone = |prefix: &'static str| move |kernel: &Kernel| target(kernel, prefix).is_none();
        until(&mut mirror, "10.2 gone", gone("10.2.0.0/16")).await;
        assert_eq!(target(mirror.kernel(), "10.7.0.0/16"), None);
        // Routes over the link do not come back with it.
        ip(&["link set v0 up"]);
        until_hops(&mut mirror, "10.4.0.0/16", &[("192.0.2.2", 1), ("198.51.100.3", 1)]).await;
        until(&mut mirror, "dumped", |kernel| target(kernel, "10.2.0.0/16").is_none()).await;
        ip(&["addr del 192.0.2.1/24 dev v0", "link del w0"]);
        until(&mut mirror, "10.3 gone", gone("10.3.0.0/16")).await;
        until(&mut mirror, "10.4 gone", gone("10.4.0.0/16")).await;
        until(&mut mirror, "link gone", |kernel| kernel.ifindex("w1").is_none()).await;
        assert_whole(&mirror).await;
    });
}

pub fn neighbours_are_resolved_and_kept() {
    let peer = Peer::new("v0", "p0");
    ip(&["addr add 192.0.2.1/24 dev v0"]);
    peer.ip("link set p0 address 02:00:00:00:00:02");
    peer.ip("addr add 192.0.2.2/24 dev p0");
    let mac = Some([2, 0, 0, 0, 0, 2]);
    run("echo 1 > /proc/sys/net/ipv4/neigh/v0/delay_first_probe_time");
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        let ifindex = mirror.kernel().ifindex("v0").unwrap();
        let usable = |kernel: &Kernel| {
            neighbour(kernel, "v0", "192.0.2.2").and_then(|neighbour| neighbour.usable()) == mac
        };
        let reachable = |kernel: &Kernel| {
            usable(kernel)
                && neighbour(kernel, "v0", "192.0.2.2").is_some_and(|it| it.state == Nud::Reachable)
        };
        assert_eq!(neighbour(mirror.kernel(), "v0", "192.0.2.2"), None);
        mirror.resolve(ifindex, addr("192.0.2.2"));
        until(&mut mirror, "resolved", usable).await;
        // What grows stale is asked again, unasked.
        ip(&["neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 nud stale dev v0"]);
        until(&mut mirror, "stale", |kernel| !reachable(kernel)).await;
        until(&mut mirror, "confirmed", reachable).await;
        // And what goes with the link comes back with it.
        ip(&["link set v0 down"]);
        until(&mut mirror, "forgotten", |kernel| !usable(kernel)).await;
        ip(&["link set v0 up"]);
        until(&mut mirror, "resolved again", usable).await;
        mirror.release(ifindex, addr("192.0.2.2"));
        assert_eq!(mirror.kept().count(), 0);
        assert_eq!(mirror.statistics().refused, 0);
    });
}

pub fn a_neighbour_that_appears_late_is_found() {
    let peer = Peer::new("v0", "p0");
    ip(&["addr add 192.0.2.1/24 dev v0"]);
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        let ifindex = mirror.kernel().ifindex("v0").unwrap();
        mirror.resolve(ifindex, addr("192.0.2.3"));
        let state = |kernel: &Kernel| neighbour(kernel, "v0", "192.0.2.3").map(|neighbour| neighbour.state);
        until(&mut mirror, "failed", |kernel| state(kernel) == Some(Nud::Failed)).await;
        peer.ip("addr add 192.0.2.3/24 dev p0");
        until(&mut mirror, "resolved", |kernel| {
            neighbour(kernel, "v0", "192.0.2.3").is_some_and(|neighbour| neighbour.usable().is_some())
        })
        .await;
        assert!(mirror.statistics().asked >= 2);
    });
}

pub fn a_permanent_neighbour_stays_permanent() {
    link();
    ip(&["neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev v0"]);
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        mirror.resolve(mirror.kernel().ifindex("v0").unwrap(), addr("192.0.2.9"));
        ip(&["route add 10.2.0.0/16 via 192.0.2.9"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.9", 1)]).await;
        let fresh = Mirror::open().await.unwrap();
        assert_eq!(neighbour(fresh.kernel(), "v0", "192.0.2.9").map(|it| it.state), Some(Nud::Permanent));
        // A link that is not there is refused, and that harms nothing.
        mirror.resolve(4711, addr("192.0.2.9"));
        ip(&["route add 10.3.0.0/16 via 192.0.2.9"]);
        until_hops(&mut mirror, "10.3.0.0/16", &[("192.0.2.9", 1)]).await;
        assert!(mirror.statistics().refused >= 1);
    });
}

pub fn lost_news_are_made_up_for() {
    link();
    block_on(async {
        let mut mirror = Mirror::open_with(8192).await.unwrap();
        let dumps = mirror.statistics().dumps;
        let lines = |verb: &str| {
            let line = |n| format!("route {verb} 10.{}.{}.0/24 via 192.0.2.2", n / 200, n % 200);
            (0..4000).map(line).collect::<Vec<_>>().join("\n")
        };
        batch(&lines("add"));
        until(&mut mirror, "all routes", |kernel| kernel.routes().len() == 4001).await;
        assert!(mirror.statistics().overruns > 0, "{:?}", mirror.statistics());
        assert!(mirror.statistics().dumps > dumps);
        assert_whole(&mirror).await;
        // Lost removals are found too, and the mirror still listens.
        batch(&lines("del"));
        until(&mut mirror, "no routes", |kernel| kernel.routes().len() == 1).await;
        ip(&["route add 10.2.0.0/16 via 192.0.2.2"]);
        until_hops(&mut mirror, "10.2.0.0/16", &[("192.0.2.2", 1)]).await;
        assert_whole(&mirror).await;
    });
}

pub fn a_wait_that_is_given_up_loses_nothing() {
    link();
    block_on(async {
        let mut mirror = Mirror::open().await.unwrap();
        let mut told = std::collections::BTreeSet::new();
        let expected: std::collections::BTreeSet<_> =
            (0..50).map(|n| net(&format!("10.2.{n}.0/24"))).collect();
        for prefix in &expected {
            ip(&[&format!("route add {prefix} via 192.0.2.2")]);
            if let Ok(changes) = tokio::time::timeout(Duration::from_millis(1), mirror.changed()).await {
                told.extend(changes.unwrap().routes);
            }
        }
        let rest = async {
            while told != expected {
                told.extend(mirror.changed().await.unwrap().routes);
            }
        };
        tokio::time::timeout(NEVER, rest).await.expect("every change is told");
        assert_whole(&mirror).await;
    });
}
