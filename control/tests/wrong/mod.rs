//! The table: a good file, and for each fault the change that makes it and the message that must come.

pub mod ike;

use Change::{File, Replace};

/// How a wrong file is made.
pub enum Change {
    /// It is this text.
    File(&'static str),
    /// It is the good file with the first text replaced by the second.
    Replace(&'static str, &'static str),
}

impl Change {
    /// The wrong file's text, made of the good one `base`.
    pub fn apply(&self, base: &str) -> String {
        match self {
            File(text) => (*text).to_string(),
            Replace(old, new) => {
                assert!(base.contains(old), "the good file lacks {old:?}");
                base.replacen(old, new, 1)
            }
        }
    }
}

/// A file without fault.
pub const BASE: &str = "\
name: a
lab: true
memory: {hugepages: auto, megabytes: 256}
dataplane: {cores: [1, 2]}
capacity: {tunnels: 4}
ports:
  lan: {device: net_null0, addresses: [10.1.0.1/24], mtu: 1500}
  wan: {device: net_null1, addresses: [192.0.2.1/24]}
routes:
  - {to: 0.0.0.0/0, via: 192.0.2.254}
tunnels:
  frankfurt:
    peer: 198.51.100.2
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.2.0.0/16]
    esn: true
    lab_keys: {secret_file: lab.secret}
  paris:
    peer: 198.51.100.2
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.3.0.0/16]
    interface: vti
    lab_keys:
      outbound: {spi: 0x1001, key: a0a1a2a3a4a5a6a7a8a9aaabacadaeaf01020304}
      inbound: {spi: 0x1002, key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304}
metrics: {listen: 127.0.0.1:9464}
";

/// Title, change, message.
pub const TABLE: &[(&str, Change, &str)] = &[
    ("empty file", File(""), "a.yaml:1:1: the key `ports` is missing: add it"),
    (
        "not YAML",
        File("name: \"a\n"),
        "a.yaml:2:1: found unexpected end of stream at line 2 column 1, while scanning a quoted scalar at line 1 column 7",
    ),
    (
        "a tab",
        File("ports:\n\tlan: {}\n"),
        "a.yaml:2:1: a tab stands where YAML takes only spaces: indent with spaces",
    ),
    (
        "several errors of form",
        File(
            "ports:\n  lan: {device: 7, mut: 9}\n  wan: {addresses: [10.0.0.1, x]}\nroutes: 5\ntunnels:\n  t: {peer: [], esn: 4}\n",
        ),
        "a.yaml:2:17: ports.lan.device: invalid type: integer `7`, expected a string\n\
         a.yaml:2:20: ports.lan: unknown key `mut`, expected one of `device`, `addresses`, `mtu`, `vlan`, `promiscuous`, `public`\n\
         a.yaml:3:3: ports.wan: the key `device` is missing: add it\n\
         a.yaml:3:21: ports.wan.addresses[0]: `10.0.0.1` lacks its prefix length, expected an IPv4 address with its prefix length such as 192.0.2.1/24\n\
         a.yaml:4:9: routes: invalid type: integer `5`, expected a list\n\
         a.yaml:6:7: tunnels.t.peer: invalid type: sequence, expected an IPv4 address such as 192.0.2.1, or with ike also a network such as 203.0.113.0/24, or any\n\
         a.yaml:6:22: tunnels.t.esn: invalid type: integer `4`, expected true or false",
    ),
    (
        "MTU that a tap cannot have",
        Replace(
            "device: net_null0, addresses: [10.1.0.1/24], mtu: 1500",
            "device: \"net_tap0,iface=x\", addresses: [10.1.0.1/24], mtu: 9000",
        ),
        "a.yaml:7:68: ports.lan.mtu: `9000` is more than net_tap can have, 1504: use that or less",
    ),
    ("two documents", File("name: a\n---\nname: b\n"), "a.yaml:1:1: the key `ports` is missing: add it"),
    (
        "a list at the top",
        File("- ports\n"),
        "a.yaml:1:1: invalid type: sequence, expected keys with values below it",
    ),
    ("no ports", File("name: a\n"), "a.yaml:1:1: the key `ports` is missing: add it"),
    ("ports empty", File("ports: {}\n"), "a.yaml:1:1: ports: has no port, expected at least one"),
    (
        "unknown key at the top",
        Replace("name: a\n", "name: a\ntunnel: {}\n"),
        "a.yaml:2:1: unknown key `tunnel`, expected one of `name`, `lab`, `state_directory`, `memory`, `dataplane`, `capacity`, `ports`, `routes`, `tunnels`, `ike`, `metrics`",
    ),
    (
        "unknown key of a port",
        Replace("mtu: 1500", "mut: 1500"),
        "a.yaml:7:54: ports.lan: unknown key `mut`, expected one of `device`, `addresses`, `mtu`, `vlan`, `promiscuous`, `public`",
    ),
    (
        "unknown key of a tunnel",
        Replace("    esn: true", "    esp: true"),
        "a.yaml:16:5: tunnels.frankfurt: unknown key `esp`, expected one of `local`, `peer`, `local_prefixes`, `remote_prefixes`, `interface`, `interface_addresses`, `encapsulation`, `cipher`, `esn`, `replay_window`, `dont_fragment`, `mtu`, `ike`, `lab_keys`",
    ),
    (
        "key twice",
        Replace("    esn: true", "    esn: true\n    esn: false"),
        "a.yaml:17:5: tunnels.frankfurt: duplicate key `esn`",
    ),
    ("port twice", Replace("  wan:", "  lan:"), "a.yaml:8:3: ports: duplicate name `lan`: give each its own"),
    (
        "tunnel twice",
        Replace("  paris:", "  frankfurt:"),
        "a.yaml:18:3: tunnels: duplicate name `frankfurt`: give each its own",
    ),
    (
        "name with a slash",
        Replace("name: a", "name: ../a"),
        "a.yaml:1:7: name: `../a` is not a name, expected 1 to 32 letters, digits, - or _, beginning with a letter or digit",
    ),
    (
        "lab not a boolean",
        Replace("lab: true", "lab: maybe"),
        "a.yaml:2:6: lab: invalid type: string \"maybe\", expected true or false",
    ),
    (
        "number that is a word",
        Replace("mtu: 1500", "mtu: large"),
        "a.yaml:7:59: ports.lan.mtu: invalid type: string \"large\", expected a whole number from 0 to 65535",
    ),
    (
        "number out of its type",
        Replace("mtu: 1500", "mtu: 70000"),
        "a.yaml:7:59: ports.lan.mtu: invalid value: integer `70000`, expected a whole number from 0 to 65535",
    ),
    (
        "negative number",
        Replace("mtu: 1500", "mtu: -1"),
        "a.yaml:7:59: ports.lan.mtu: invalid type: integer `-1`, expected a whole number from 0 to 65535",
    ),
    (
        "list expected",
        Replace("addresses: [10.1.0.1/24]", "addresses: 10.1.0.1/24"),
        "a.yaml:7:39: ports.lan.addresses: invalid type: string \"10.1.0.1/24\", expected a list",
    ),
    (
        "keys expected",
        Replace("dataplane: {cores: [1, 2]}", "dataplane: fast"),
        "a.yaml:4:12: dataplane: invalid type: string \"fast\", expected keys with values below it",
    ),
    (
        "huge pages word",
        Replace("hugepages: auto", "hugepages: maybe"),
        "a.yaml:3:21: memory.hugepages: unknown variant `maybe`, expected one of `auto`, `on`, `off`",
    ),
    (
        "too little memory",
        Replace("megabytes: 256", "megabytes: 8"),
        "a.yaml:3:38: memory.megabytes: `8`, expected at least 64 megabytes",
    ),
    (
        "relative directory",
        Replace("hugepages: auto", "directory: here"),
        "a.yaml:3:21: memory.directory: `here`, expected auto or a path that begins with /",
    ),
    (
        "no core",
        Replace("cores: [1, 2]", "cores: []"),
        "a.yaml:4:13: dataplane.cores: is empty, expected at least one core",
    ),
    (
        "core twice",
        Replace("cores: [1, 2]", "cores: [1, 1]"),
        "a.yaml:4:24: dataplane.cores[1]: core 1 is listed twice: write each core once",
    ),
    (
        "core that the machine lacks",
        Replace("cores: [1, 2]", "cores: [1, 64]"),
        "a.yaml:4:24: dataplane.cores[1]: this machine has no core 64 for this process, expected some of 0, 1, 2, 3",
    ),
    (
        "control core that the machine lacks",
        Replace("cores: [1, 2]", "control_core: 9"),
        "a.yaml:4:27: dataplane.control_core: this machine has no core 9 for this process, expected some of 0, 1, 2, 3",
    ),
    (
        "unknown engine",
        Replace("cores: [1, 2]", "engine: avx"),
        "a.yaml:4:21: dataplane.engine: unknown variant `avx`, expected one of `auto`, `reference`, `aesni`, `vaes`",
    ),
    (
        "capacity below the tunnels",
        Replace("capacity: {tunnels: 4}", "capacity: {tunnels: 1}"),
        "a.yaml:5:21: capacity.tunnels: `1` is less than the 2 tunnels that the file has: raise it",
    ),
    (
        "capacity zero",
        Replace("capacity: {tunnels: 4}", "capacity: {routes: 0}"),
        "a.yaml:5:20: capacity.routes: `0`, expected 1 to 4000000",
    ),
    (
        "capacity below the routes",
        Replace("capacity: {tunnels: 4}", "capacity: {routes: 3}"),
        "a.yaml:5:20: capacity.routes: `3` is less than the 7 routes that the file makes: raise it",
    ),
    (
        "largest window odd",
        Replace("capacity: {tunnels: 4}", "capacity: {replay_window: 1000}"),
        "a.yaml:5:27: capacity.replay_window: `1000`, expected a power of two from 64 to 65536 packets",
    ),
    (
        "port without device",
        Replace("device: net_null1, ", ""),
        "a.yaml:8:8: ports.wan: the key `device` is missing: add it",
    ),
    (
        "device with a space",
        Replace("device: net_null1", "device: \"net null1\""),
        "a.yaml:8:17: ports.wan.device: is not a device, expected a PCI address such as 0000:3b:00.1 or a virtual device such as net_tap0,iface=tlan",
    ),
    (
        "device used twice",
        Replace("device: net_null1", "device: \"net_null0,copy=1\""),
        "a.yaml:8:17: ports.wan.device: `net_null0` is already the device of port lan: one port has one device",
    ),
    (
        "device's end named like the twin",
        Replace("device: net_null1", "device: \"net_tap1,iface=wan\""),
        "a.yaml:8:17: ports.wan.device: `iface=wan` is the name of the port's twin: name the device's end otherwise",
    ),
    (
        "port name too long",
        Replace("  wan:", "  wide-area-network:"),
        "a.yaml:8:3: ports.wide-area-network: `wide-area-network` is not a name, expected 1 to 15 letters, digits, - or _, beginning with a letter or digit",
    ),
    (
        "port named like a kernel interface",
        Replace("  wan:", "  eth0:"),
        "a.yaml:8:3: ports.eth0: `eth0` is a network interface of the kernel: give it another name, for its twin takes the same",
    ),
    (
        "port named lo",
        Replace("  wan:", "  lo:"),
        "a.yaml:8:3: ports.lo: `lo` is a network interface of the kernel: give it another name, for its twin takes the same",
    ),
    (
        "address without prefix length",
        Replace("192.0.2.1/24", "192.0.2.1"),
        "a.yaml:8:40: ports.wan.addresses[0]: `192.0.2.1` lacks its prefix length, expected an IPv4 address with its prefix length such as 192.0.2.1/24",
    ),
    (
        "IPv6 address",
        Replace("192.0.2.1/24", "2001:db8::1/64"),
        "a.yaml:8:40: ports.wan.addresses[0]: `2001:db8::1/64` is IPv6, which this release does not carry yet: use an IPv4 address with its prefix length such as 192.0.2.1/24",
    ),
    (
        "address that is none",
        Replace("192.0.2.1/24", "wan.example"),
        "a.yaml:8:40: ports.wan.addresses[0]: `wan.example` is not an address with a prefix length, expected an IPv4 address with its prefix length such as 192.0.2.1/24",
    ),
    (
        "broadcast address",
        Replace("192.0.2.1/24", "192.0.2.255/24"),
        "a.yaml:8:40: ports.wan.addresses[0]: `192.0.2.255/24` is the network's own or its broadcast address, expected one between them",
    ),
    (
        "multicast address",
        Replace("192.0.2.1/24", "224.0.0.5/24"),
        "a.yaml:8:40: ports.wan.addresses[0]: `224.0.0.5` is not an address that a station can have\na.yaml:10:26: routes[0].via: `192.0.2.254` is in no port's network: give a port an address in its network\na.yaml:13:11: tunnels.frankfurt.peer: no port and no route leads to `198.51.100.2`: add a route to it, or write local as well\na.yaml:19:11: tunnels.paris.peer: no port and no route leads to `198.51.100.2`: add a route to it, or write local as well",
    ),
    (
        "addresses of two ports overlap",
        Replace("10.1.0.1/24", "192.0.2.77/28"),
        "a.yaml:7:40: ports.lan.addresses[0]: `192.0.2.77/28` overlaps `192.0.2.1/24` of ports.wan: give each its own network",
    ),
    (
        "same address twice",
        Replace("[192.0.2.1/24]", "[192.0.2.1/24, 192.0.2.1/24]"),
        "a.yaml:8:54: ports.wan.addresses[1]: `192.0.2.1/24` overlaps `192.0.2.1/24` of ports.wan: give each its own network",
    ),
    (
        "vlan out of range",
        Replace("mtu: 1500", "vlan: 4095"),
        "a.yaml:7:60: ports.lan.vlan: `4095`, expected a VLAN from 1 to 4094",
    ),
    (
        "mtu out of range",
        Replace("mtu: 1500", "mtu: 575"),
        "a.yaml:7:59: ports.lan.mtu: `575`, expected 576 to 9216 octets",
    ),
    (
        "route through nowhere",
        Replace("via: 192.0.2.254", "via: 203.0.113.1"),
        "a.yaml:10:26: routes[0].via: `203.0.113.1` is in no port's network: give a port an address in its network\na.yaml:13:11: tunnels.frankfurt.peer: no port and no route leads to `198.51.100.2`: add a route to it, or write local as well\na.yaml:19:11: tunnels.paris.peer: no port and no route leads to `198.51.100.2`: add a route to it, or write local as well",
    ),
    (
        "route through itself",
        Replace("via: 192.0.2.254", "via: 192.0.2.1"),
        "a.yaml:10:26: routes[0].via: `192.0.2.1` is this gateway's own address, expected a neighbour",
    ),
    (
        "route with host bits",
        Replace("to: 0.0.0.0/0", "to: 10.9.0.1/16"),
        "a.yaml:10:10: routes[0].to: `10.9.0.1/16` has bits set behind its prefix length: write 10.9.0.0/16",
    ),
    (
        "route twice",
        Replace(
            "  - {to: 0.0.0.0/0, via: 192.0.2.254}",
            "  - {to: 0.0.0.0/0, via: 192.0.2.254}\n  - {to: 0.0.0.0/0, via: 192.0.2.253}",
        ),
        "a.yaml:11:10: routes[1].to: `0.0.0.0/0` has a route already: write one route for it",
    ),
    (
        "peer missing",
        Replace("    peer: 198.51.100.2\n", ""),
        "a.yaml:12:3: tunnels.frankfurt: the key `peer` is missing: add it",
    ),
    (
        "peer is a name",
        Replace("peer: 198.51.100.2", "peer: gw.example"),
        "a.yaml:13:11: tunnels.frankfurt.peer: `gw.example` is not an address, expected an IPv4 address such as 192.0.2.1, or with ike also a network such as 203.0.113.0/24, or any",
    ),
    (
        "peer is IPv6",
        Replace("peer: 198.51.100.2", "peer: 2001:db8::2"),
        "a.yaml:13:11: tunnels.frankfurt.peer: `2001:db8::2` is IPv6, which this release does not carry yet: use an IPv4 address such as 192.0.2.1, or with ike also a network such as 203.0.113.0/24, or any",
    ),
    (
        "peer is this gateway",
        Replace("peer: 198.51.100.2", "peer: 192.0.2.1"),
        "a.yaml:13:11: tunnels.frankfurt.peer: `192.0.2.1` is this gateway's own address, expected the other gateway's",
    ),
    (
        "peer is multicast",
        Replace("peer: 198.51.100.2", "peer: 224.0.0.1"),
        "a.yaml:13:11: tunnels.frankfurt.peer: `224.0.0.1` is not an address that a station can have",
    ),
    (
        "peer without a way",
        Replace("  - {to: 0.0.0.0/0, via: 192.0.2.254}", "  - {to: 203.0.113.0/24, via: 192.0.2.254}"),
        "a.yaml:13:11: tunnels.frankfurt.peer: no port and no route leads to `198.51.100.2`: add a route to it, or write local as well\na.yaml:19:11: tunnels.paris.peer: no port and no route leads to `198.51.100.2`: add a route to it, or write local as well",
    ),
    (
        "local is no port's address",
        Replace("    esn: true", "    local: 192.0.2.9"),
        "a.yaml:16:12: tunnels.frankfurt.local: `192.0.2.9` is not an address of any port: add it to one",
    ),
    (
        "no remote prefixes",
        Replace("    remote_prefixes: [10.2.0.0/16]\n", ""),
        "a.yaml:12:3: tunnels.frankfurt.remote_prefixes: is missing or empty: list prefixes, or give the tunnel an interface",
    ),
    (
        "remote prefix is IPv6",
        Replace("[10.2.0.0/16]", "[\"2001:db8::/32\"]"),
        "a.yaml:15:23: tunnels.frankfurt.remote_prefixes[0]: `2001:db8::/32` is IPv6, which this release does not carry yet: use an IPv4 prefix such as 10.1.0.0/16",
    ),
    (
        "remote prefix with host bits",
        Replace("[10.2.0.0/16]", "[10.2.0.1/16]"),
        "a.yaml:15:23: tunnels.frankfurt.remote_prefixes[0]: `10.2.0.1/16` has bits set behind its prefix length: write 10.2.0.0/16",
    ),
    (
        "remote prefix that is a number",
        Replace("[10.2.0.0/16]", "[10.2]"),
        "a.yaml:15:23: tunnels.frankfurt.remote_prefixes[0]: `10.2` is not an address with a prefix length, expected an IPv4 prefix such as 10.1.0.0/16",
    ),
    (
        "remote prefixes overlap in a tunnel",
        Replace("[10.2.0.0/16]", "[10.2.0.0/16, 10.2.3.0/24]"),
        "a.yaml:15:36: tunnels.frankfurt.remote_prefixes[1]: `10.2.3.0/24` overlaps `10.2.0.0/16` of the same list: write the wider one alone",
    ),
    (
        "remote prefix is local",
        Replace("[10.2.0.0/16]", "[10.1.0.0/16]"),
        "a.yaml:15:23: tunnels.frankfurt.remote_prefixes[0]: `10.1.0.0/16` is one of local_prefixes too: a network is on one side",
    ),
    (
        "remote prefix is a port's network",
        Replace("[10.2.0.0/16]", "[10.1.0.0/25]"),
        "a.yaml:15:23: tunnels.frankfurt.remote_prefixes[0]: `10.1.0.0/25` lies in `10.1.0.0/24`, the network of port lan: it is not behind the peer",
    ),
    (
        "remote prefix of two tunnels",
        Replace("[10.3.0.0/16]", "[10.2.0.0/16]"),
        "a.yaml:21:23: tunnels.paris.remote_prefixes[0]: `10.2.0.0/16` is a remote prefix of tunnel frankfurt too: a network is behind one peer",
    ),
    (
        "remote prefix inside another tunnel's with other sources",
        Replace(
            "    local_prefixes: [10.1.0.0/16]\n    remote_prefixes: [10.3.0.0/16]",
            "    local_prefixes: [10.1.5.0/24]\n    remote_prefixes: [10.2.3.0/24]",
        ),
        "a.yaml:21:23: tunnels.paris.remote_prefixes[0]: `10.2.3.0/24` is inside `10.2.0.0/16` of tunnel frankfurt, but its local_prefixes lack 10.1.0.0/16, which frankfurt has: packets from there would be dropped; add it or make the prefixes disjoint",
    ),
    (
        "unknown cipher",
        Replace("    esn: true", "    cipher: des"),
        "a.yaml:16:13: tunnels.frankfurt.cipher: unknown variant `des`, expected one of `aes128gcm16`, `aes256gcm16`, `chacha20poly1305`",
    ),
    (
        "unknown encapsulation",
        Replace("    esn: true", "    encapsulation: gre"),
        "a.yaml:16:20: tunnels.frankfurt.encapsulation: unknown variant `gre`, expected `esp` or `udp`",
    ),
    (
        "window no power of two",
        Replace("    esn: true", "    replay_window: 100"),
        "a.yaml:16:20: tunnels.frankfurt.replay_window: `100`, expected a power of two from 64 to 65536 packets",
    ),
    (
        "window too small",
        Replace("    esn: true", "    replay_window: 32"),
        "a.yaml:16:20: tunnels.frankfurt.replay_window: `32`, expected a power of two from 64 to 65536 packets",
    ),
    (
        "window above the capacity",
        Replace("    esn: true", "    replay_window: 4096"),
        "a.yaml:16:20: tunnels.frankfurt.replay_window: `4096` is more than capacity.replay_window, 1024: raise that too",
    ),
    (
        "tunnel mtu above the port's",
        Replace("    esn: true", "    mtu: 1501"),
        "a.yaml:16:10: tunnels.frankfurt.mtu: `1501` is more than the 1500 octets of port wan: raise that too",
    ),
    (
        "tunnel mtu out of range",
        Replace("    esn: true", "    mtu: 100"),
        "a.yaml:16:10: tunnels.frankfurt.mtu: `100`, expected 576 to 9216 octets",
    ),
    (
        "interface named like a port",
        Replace("    esn: true", "    interface: lan"),
        "a.yaml:16:16: tunnels.frankfurt.interface: `lan` is the name of a port: give the tunnel's interface another",
    ),
    (
        "interface named like the kernel's",
        Replace("    esn: true", "    interface: eth0"),
        "a.yaml:16:16: tunnels.frankfurt.interface: `eth0` is a network interface of the kernel: give it another name, for its twin takes the same",
    ),
    (
        "interface twice",
        Replace("    esn: true", "    interface: vti"),
        "a.yaml:22:16: tunnels.paris.interface: `vti` is already the interface of tunnel frankfurt: one tunnel has one interface",
    ),
    (
        "interface addresses without interface",
        Replace("    esn: true", "    interface_addresses: [169.254.0.1/30]"),
        "a.yaml:16:5: tunnels.frankfurt.interface_addresses: belong to an interface: give the tunnel one",
    ),
    (
        "interface address overlaps a port's",
        Replace("    esn: true", "    interface: fra\n    interface_addresses: [10.1.0.9/30]"),
        "a.yaml:17:27: tunnels.frankfurt.interface_addresses[0]: `10.1.0.9/30` overlaps `10.1.0.1/24` of ports.lan: give each its own network",
    ),
    (
        "tunnel without keys",
        Replace("    lab_keys: {secret_file: lab.secret}\n", ""),
        "a.yaml:12:3: tunnels.frankfurt: has no keys: write ike, or lab_keys (and lab: true)",
    ),
    (
        "lab keys without lab",
        Replace("lab: true", "lab: false"),
        "a.yaml:17:5: tunnels.frankfurt.lab_keys: keys without IKEv2 are for the lab: write lab: true, or remove them\na.yaml:23:5: tunnels.paris.lab_keys: keys without IKEv2 are for the lab: write lab: true, or remove them",
    ),
    (
        "lab keys empty",
        Replace("{secret_file: lab.secret}", "{}"),
        "a.yaml:17:5: tunnels.frankfurt.lab_keys: expected either secret_file, or outbound and inbound",
    ),
    (
        "both kinds of keys",
        Replace(
            "{secret_file: lab.secret}",
            "{secret_file: lab.secret, inbound: {spi: 0x900, key_file: good.key}}",
        ),
        "a.yaml:17:5: tunnels.frankfurt.lab_keys: has both secret_file and fixed keys: keep one of them",
    ),
    (
        "secret that others can read",
        Replace("{secret_file: lab.secret}", "{secret_file: open.secret}"),
        "a.yaml:17:29: tunnels.frankfurt.lab_keys.secret_file: `open.secret` has mode 644: others than its owner can read or write it; run `chmod 600` on it",
    ),
    (
        "secret too short",
        Replace("{secret_file: lab.secret}", "{secret_file: short.secret}"),
        "a.yaml:17:29: tunnels.frankfurt.lab_keys.secret_file: `short.secret` has 4 octets, expected at least 32: make one with `openssl rand -hex 32`",
    ),
    (
        "secret that is not there",
        Replace("{secret_file: lab.secret}", "{secret_file: no.secret}"),
        "a.yaml:17:29: tunnels.frankfurt.lab_keys.secret_file: `no.secret` cannot be read: No such file or directory (os error 2)",
    ),
    (
        "generation zero",
        Replace("{secret_file: lab.secret}", "{secret_file: lab.secret, generation: 0}"),
        "a.yaml:17:53: tunnels.frankfurt.lab_keys.generation: `0`, expected 1 or more",
    ),
    (
        "same derived keys twice",
        Replace(
            "    interface: vti\n    lab_keys:\n      outbound: {spi: 0x1001, key: a0a1a2a3a4a5a6a7a8a9aaabacadaeaf01020304}\n      inbound: {spi: 0x1002, key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304}\n",
            "    lab_keys: {secret_file: lab.secret}\n",
        ),
        "a.yaml:22:5: tunnels.paris.lab_keys: tunnel frankfurt has the same gateways, secret and context, so the same keys: add a context",
    ),
    (
        "one direction only",
        Replace("      inbound: {spi: 0x1002, key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304}\n", ""),
        "a.yaml:23:5: tunnels.paris.lab_keys: inbound is missing: a tunnel needs a key for each direction",
    ),
    (
        "reserved SPI",
        Replace("spi: 0x1002", "spi: 255"),
        "a.yaml:25:22: tunnels.paris.lab_keys.inbound.spi: `255` is reserved, expected 256 to 4294967295",
    ),
    (
        "SPI too large",
        Replace("spi: 0x1002", "spi: 0x100000000"),
        "a.yaml:25:22: tunnels.paris.lab_keys.inbound.spi: invalid value: integer `4294967296`, expected a whole number from 0 to 4294967295",
    ),
    (
        "inbound SPI twice",
        Replace(
            "{secret_file: lab.secret}",
            "{outbound: {spi: 0x900, key_file: good.key}, inbound: {spi: 0x1002, key: c0c1c2c3c4c5c6c7c8c9cacbcccdcecf01020304}}",
        ),
        "a.yaml:25:22: tunnels.paris.lab_keys.inbound.spi: `0x1002` is already the inbound SPI of tunnel frankfurt: each has its own",
    ),
    (
        "key not hexadecimal",
        Replace("b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304", "swordfish"),
        "a.yaml:25:35: tunnels.paris.lab_keys.inbound.key: not a key, expected an even number of hexadecimal digits: the key, then the 4 octets of salt",
    ),
    (
        "key too short",
        Replace("b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304", "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf"),
        "a.yaml:25:35: tunnels.paris.lab_keys.inbound.key: has 16 octets, expected 20 for aes128gcm16: 16 of key and 4 of salt",
    ),
    (
        "same key in both directions",
        Replace("b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304", "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf01020304"),
        "a.yaml:25:35: tunnels.paris.lab_keys.inbound.key: is the same key as tunnels.paris.lab_keys.outbound.key, which repeats nonces: each direction needs its own",
    ),
    (
        "key and key file",
        Replace(
            "key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304",
            "key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304, key_file: good.key",
        ),
        "a.yaml:25:7: tunnels.paris.lab_keys.inbound: expected either key or key_file",
    ),
    (
        "key file that others can read",
        Replace("key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304", "key_file: open.key"),
        "a.yaml:25:40: tunnels.paris.lab_keys.inbound.key_file: `open.key` has mode 604: others than its owner can read or write it; run `chmod 600` on it",
    ),
    (
        "key file with words",
        Replace("key: b0b1b2b3b4b5b6b7b8b9babbbcbdbebf01020304", "key_file: words.key"),
        "a.yaml:25:40: tunnels.paris.lab_keys.inbound.key_file: `words.key` is not a key, expected an even number of hexadecimal digits: the key, then the 4 octets of salt",
    ),
    (
        "generation of fixed keys",
        Replace("    lab_keys:\n", "    lab_keys:\n      generation: 2\n"),
        "a.yaml:24:19: tunnels.paris.lab_keys.generation: belongs to secret_file: remove it",
    ),
    (
        "encapsulations differ between the same gateways",
        Replace("    interface: vti", "    interface: vti\n    encapsulation: udp"),
        "a.yaml:23:20: tunnels.paris.encapsulation: tunnel frankfurt between the same two gateways has another one: use one for both",
    ),
    (
        "metrics for the world",
        Replace("listen: 127.0.0.1:9464", "listen: 0.0.0.0:9464"),
        "a.yaml:26:19: metrics.listen: `0.0.0.0:9464` is not a loopback address: name the networks that are answered in metrics.allow, or write 127.0.0.1:9464",
    ),
    (
        "metrics for networks that cannot ask",
        Replace("listen: 127.0.0.1:9464", "listen: 127.0.0.1:9464, allow: [10.0.0.0/8]"),
        "a.yaml:26:35: metrics.allow: nobody of these networks reaches the loopback address `127.0.0.1:9464`: change metrics.listen",
    ),
    (
        "metrics for a network with host bits",
        Replace("listen: 127.0.0.1:9464", "listen: 0.0.0.0:9464, allow: [2001:db8::1/64]"),
        "a.yaml:26:41: metrics.allow[0]: `2001:db8::1/64` has bits set behind its prefix length: write 2001:db8::/64",
    ),
    (
        "metrics without port",
        Replace("listen: 127.0.0.1:9464", "listen: 127.0.0.1"),
        "a.yaml:26:19: metrics.listen: `127.0.0.1`, expected off or an address and port such as 127.0.0.1:9464",
    ),
    (
        "too many ports",
        File(
            "ports:\n  p0: {device: net_null0}\n  p1: {device: net_null1}\n  p2: {device: net_null2}\n  p3: {device: net_null3}\n  p4: {device: net_null4}\n  p5: {device: net_null5}\n  p6: {device: net_null6}\n  p7: {device: net_null7}\n  p8: {device: net_null8}\n  p9: {device: net_null9}\n  p10: {device: net_null10}\n  p11: {device: net_null11}\n  p12: {device: net_null12}\n  p13: {device: net_null13}\n  p14: {device: net_null14}\n  p15: {device: net_null15}\n  p16: {device: net_null16}\n",
        ),
        "a.yaml:1:1: ports: has 17 ports, expected at most 16",
    ),
    (
        "too many prefixes",
        Replace(
            "[10.2.0.0/16]",
            "[10.2.0.0/24, 10.2.1.0/24, 10.2.2.0/24, 10.2.3.0/24, 10.2.4.0/24, 10.2.5.0/24, 10.2.6.0/24, 10.2.7.0/24, 10.2.8.0/24, 10.2.9.0/24, 10.2.10.0/24, 10.2.11.0/24, 10.2.12.0/24, 10.2.13.0/24, 10.2.14.0/24, 10.2.15.0/24, 10.2.16.0/24]",
        ),
        "a.yaml:15:5: tunnels.frankfurt.remote_prefixes: has 17 prefixes, expected at most 16: use wider ones",
    ),
];
