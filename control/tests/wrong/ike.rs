//! The table of `ike`: a good file, and for each fault the change that makes it and the message that must come.

use super::Change;
use super::Change::Replace;

/// A file without fault: a pre-shared key, a second child of the same IKE SA, certificates, a peer whose address is not
/// known.
pub const BASE: &str = "\
name: a
capacity: {tunnels: 8}
ports:
  lan: {device: net_null0, addresses: [10.1.0.1/24]}
  wan: {device: net_null1, addresses: [192.0.2.1/24]}
routes:
  - {to: 0.0.0.0/0, via: 192.0.2.254}
tunnels:
  berlin:
    peer: 198.51.100.1
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.2.0.0/16]
    ike: {psk_file: good.psk, lifetime: 1h}
  munich:
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.3.0.0/16]
    ike: {share: berlin, start: traffic}
  vienna:
    peer: 198.51.100.3
    interface: vienna
    ike:
      certificate: gw.pem
      key: gw.key
      ca: ca.pem
      crl: [crl.pem]
      local_id: gw-a.example
      remote_id: gw-b.example
      suite: aws
  zurich:
    peer: any
    local: 192.0.2.1
    interface: zurich
    ike: {psk_file: good.psk, remote_id: '*.example.org'}
ike: {transmissions: 8, keepalive: 20s}
";

/// Title, change of [`BASE`], message.
pub const TABLE: &[(&str, Change, &str)] = &[
    (
        "neither key nor certificate",
        Replace("psk_file: good.psk, lifetime", "lifetime"),
        "a.yaml:13:5: tunnels.berlin.ike: does not say how the gateways prove who they are: write psk_file, or certificate, key and ca",
    ),
    (
        "key and certificate",
        Replace("certificate: gw.pem", "psk_file: good.psk\n      certificate: gw.pem"),
        "a.yaml:23:20: tunnels.vienna.ike.certificate: the tunnel has psk_file too: keep one of them",
    ),
    (
        "ike and lab keys",
        Replace("lifetime: 1h}", "lifetime: 1h}\n    lab_keys: {secret_file: lab.secret}"),
        "a.yaml:14:5: tunnels.berlin.lab_keys: the tunnel has ike too: keep one of them",
    ),
    (
        "cipher beside ike",
        Replace(
            "    ike: {psk_file: good.psk, life",
            "    cipher: aes256gcm16\n    esn: true\n    ike: {psk_file: good.psk, life",
        ),
        "a.yaml:13:13: tunnels.berlin.cipher: belongs to lab_keys: with ike, write esp_proposals there, such as aes256gcm16-esn\na.yaml:14:10: tunnels.berlin.esn: belongs to lab_keys: with ike, write esp_proposals there, such as aes256gcm16-esn",
    ),
    (
        "encapsulation beside ike",
        Replace(
            "    ike: {psk_file: good.psk, life",
            "    encapsulation: udp\n    ike: {psk_file: good.psk, life",
        ),
        "a.yaml:13:20: tunnels.berlin.encapsulation: belongs to lab_keys: IKEv2 finds out whether there is a NAT; ike.force_encapsulation wraps ESP in any case",
    ),
    (
        "unknown key of ike",
        Replace("lifetime: 1h", "life_time: 1h"),
        "a.yaml:13:31: tunnels.berlin.ike: unknown key `life_time`, expected one of `share`, `psk_file`, `certificate`, `key`, `ca`, `crl`, `local_id`, `remote_id`, `suite`, `proposals`, `esp_proposals`, `pfs`, `start`, `lifetime`, `rekey_margin`, `rekey_bytes`, `rekey_packets`, `ike_lifetime`, `ike_rekey_margin`, `dpd`, `force_encapsulation`, `fragment_size`, `per_worker`",
    ),
    (
        "unknown suite",
        Replace("suite: aws", "suite: gcp"),
        "a.yaml:28:14: tunnels.vienna.ike.suite: unknown variant `gcp`, expected one of `default`, `azure`, `aws`, `cnsa2`",
    ),
    (
        "weak proposal",
        Replace("suite: aws", "proposals: [aes128-sha1-modp1024]"),
        "a.yaml:28:19: tunnels.vienna.ike.proposals[0]: `sha1` in proposal `aes128-sha1-modp1024` is too weak (SHA-1 is being retired): use sha256; `modp1024` in proposal `aes128-sha1-modp1024` is too weak (RFC 8247: 1024-bit group): use x25519 (group 31), ecp256 (19), ecp384 (20) or modp2048 (14)",
    ),
    (
        "weak ESP",
        Replace("suite: aws", "esp_proposals: [3des-md5-modp1536]"),
        "a.yaml:28:23: tunnels.vienna.ike.esp_proposals[0]: `3des` in proposal `3des-md5-modp1536` is too weak (RFC 8247: 64-bit blocks): use aes256gcm16; `md5` in proposal `3des-md5-modp1536` is too weak (RFC 8247: MD5 is broken): use sha256; `modp1536` in proposal `3des-md5-modp1536` is too weak (RFC 8247: 1536-bit group): use x25519 (group 31), ecp256 (19), ecp384 (20) or modp2048 (14)",
    ),
    (
        "CBC for ESP",
        Replace("suite: aws", "esp_proposals: [aes256-sha256]"),
        "a.yaml:28:23: tunnels.vienna.ike.esp_proposals[0]: `aes256` in proposal `aes256-sha256` is not known here: ciphers aes256gcm16 aes128gcm16 chacha20poly1305 (integrity is their own); esn noesn; PFS x25519 ecp256 ecp384 modp2048",
    ),
    (
        "proposal without PRF",
        Replace("suite: aws", "proposals: [aes256gcm16-x25519]"),
        "a.yaml:28:19: tunnels.vienna.ike.proposals[0]: proposal `aes256gcm16-x25519` names no PRF: add prfsha256",
    ),
    (
        "proposal without group",
        Replace("suite: aws", "proposals: [aes256gcm16-prfsha256]"),
        "a.yaml:28:19: tunnels.vienna.ike.proposals[0]: proposal `aes256gcm16-prfsha256` names no key exchange: add x25519, ecp256 or modp2048",
    ),
    (
        "unknown word",
        Replace("suite: aws", "proposals: [aes256gcm16-prfsha256-curve448]"),
        "a.yaml:28:19: tunnels.vienna.ike.proposals[0]: `curve448` in proposal `aes256gcm16-prfsha256-curve448` is not known here: ciphers aes256gcm16 aes128gcm16 aes256 aes128; integrity sha256 sha384 sha512; PRFs prfsha256 prfsha384 prfsha512; key exchanges x25519 ecp256 ecp384 modp2048 ke1_mlkem768 ke1_mlkem1024",
    ),
    (
        "PFS twice",
        Replace("suite: aws", "esp_proposals: [aes256gcm16]\n      pfs: ecp384"),
        "a.yaml:29:12: tunnels.vienna.ike.pfs: esp_proposals name their key exchange themselves: write it there, such as aes256gcm16-x25519",
    ),
    (
        "PFS with a weak group",
        Replace("suite: aws", "pfs: modp1024"),
        "a.yaml:28:12: tunnels.vienna.ike.pfs: `modp1024`, expected off, x25519, ecp256, ecp384 or modp2048",
    ),
    (
        "missing file",
        Replace("good.psk, lifetime", "no.psk, lifetime"),
        "a.yaml:13:21: tunnels.berlin.ike.psk_file: `no.psk` cannot be read: No such file or directory (os error 2)",
    ),
    (
        "key that others can read",
        Replace("good.psk, lifetime", "open.psk, lifetime"),
        "a.yaml:13:21: tunnels.berlin.ike.psk_file: `open.psk` has mode 640: others than its owner can read or write it; run `chmod 600` on it",
    ),
    (
        "key too short",
        Replace("good.psk, lifetime", "tiny.psk, lifetime"),
        "a.yaml:13:21: tunnels.berlin.ike.psk_file: `tiny.psk` has 6 octets, expected at least 8, better 32: make one with `openssl rand -base64 32`",
    ),
    (
        "CA beside a pre-shared key",
        Replace("lifetime: 1h", "ca: ca.pem"),
        "a.yaml:13:35: tunnels.berlin.ike.ca: belongs to certificate: add that, or remove this",
    ),
    (
        "certificate without its key",
        Replace("      key: gw.key\n", ""),
        "a.yaml:21:5: tunnels.vienna.ike: key is missing: a certificate proves nothing without its private key",
    ),
    (
        "key of another certificate",
        Replace("key: gw.key", "key: other.key"),
        "a.yaml:23:12: tunnels.vienna.ike.key: `other.key`: the private key does not belong to the certificate of CN=gw-a",
    ),
    (
        "private key that others can read",
        Replace("key: gw.key", "key: open.key.pem"),
        "a.yaml:23:12: tunnels.vienna.ike.key: `open.key.pem` has mode 644: others than its owner can read or write it; run `chmod 600` on it",
    ),
    (
        "key that is none",
        Replace("key: gw.key", "key: good.psk"),
        "a.yaml:23:12: tunnels.vienna.ike.key: `good.psk`: no private key that is usable here: write ECDSA P-256/P-384, RSA or Ed25519 as PKCS #8, SEC 1 or PKCS #1",
    ),
    (
        "certificate that is none",
        Replace("certificate: gw.pem", "certificate: good.psk"),
        "a.yaml:22:20: tunnels.vienna.ike.certificate: `good.psk`: no usable certificate in the file: write it as PEM or DER",
    ),
    (
        "certificate that others can write",
        Replace("certificate: gw.pem", "certificate: writable.pem"),
        "a.yaml:22:20: tunnels.vienna.ike.certificate: `writable.pem` has mode 666: others than its owner can write it; run `chmod 644` on it",
    ),
    (
        "certificate expired",
        Replace("certificate: gw.pem\n      key: gw.key", "certificate: expired.pem\n      key: expired.key"),
        "a.yaml:22:20: tunnels.vienna.ike.certificate: the certificate of CN=expired expired 9 days ago: renew it",
    ),
    (
        "certificate not valid yet",
        Replace("certificate: gw.pem\n      key: gw.key", "certificate: future.pem\n      key: future.key"),
        "a.yaml:22:20: tunnels.vienna.ike.certificate: the certificate of CN=future becomes valid in 6 days: is the clock of this machine right?",
    ),
    (
        "identity that the certificate lacks",
        Replace("local_id: gw-a.example", "local_id: gw-x.example"),
        "a.yaml:26:17: tunnels.vienna.ike.local_id: `gw-x.example` is not in the certificate, so peers would refuse it: it holds gw-a.example, 192.0.2.1, CN=gw-a",
    ),
    (
        "no CA",
        Replace("      ca: ca.pem\n", ""),
        "a.yaml:21:5: tunnels.vienna.ike: ca is missing: without a CA no certificate of the peer can be trusted",
    ),
    (
        "CA that is not there",
        Replace("ca: ca.pem", "ca: [ca.pem, no.pem]"),
        "a.yaml:24:20: tunnels.vienna.ike.ca[1]: `no.pem` cannot be read: No such file or directory (os error 2)",
    ),
    (
        "CA expired",
        Replace("ca: ca.pem", "ca: old-ca.pem"),
        "a.yaml:24:11: tunnels.vienna.ike.ca[0]: the certificate of the CA CN=old CA expired 2 days ago: renew it",
    ),
    (
        "revocation list that is none",
        Replace("crl: [crl.pem]", "crl: [ca.pem]"),
        "a.yaml:25:13: tunnels.vienna.ike.crl[0]: `ca.pem`: no usable revocation list in the file: write it as PEM or DER",
    ),
    (
        "no identity of the peer",
        Replace("      remote_id: gw-b.example\n", ""),
        "a.yaml:21:5: tunnels.vienna.ike: remote_id is missing: write who the peer must prove to be, or any for everyone whom the CA certified",
    ),
    (
        "identity that is none",
        Replace("remote_id: gw-b.example", "remote_id: 'gw b'"),
        "a.yaml:27:18: tunnels.vienna.ike.remote_id: `gw b` is no identity, expected a host name, an address, user@host, a name such as `CN=gw, O=Example`, or keyid:HEX",
    ),
    (
        "share of an unknown tunnel",
        Replace("share: berlin", "share: hamburg"),
        "a.yaml:17:18: tunnels.munich.ike.share: there is no tunnel `hamburg`: name one that has the same peer",
    ),
    (
        "share with itself",
        Replace("share: berlin", "share: munich"),
        "a.yaml:17:18: tunnels.munich.ike.share: a tunnel cannot share with itself: name another one, or remove share",
    ),
    (
        "share of a share",
        Replace("ike: {psk_file: good.psk, remote_id: '*.example.org'}", "ike: {share: munich}"),
        "a.yaml:33:18: tunnels.zurich.ike.share: tunnel munich shares the peer of berlin itself: name that one",
    ),
    (
        "share in a circle",
        Replace("ike: {psk_file: good.psk, lifetime: 1h}", "ike: {share: munich}"),
        "a.yaml:13:18: tunnels.berlin.ike.share: tunnel munich shares the peer of berlin itself: name that one\na.yaml:17:18: tunnels.munich.ike.share: tunnel berlin shares the peer of munich itself: name that one",
    ),
    (
        "peer's words in a child",
        Replace("share: berlin,", "share: berlin, psk_file: good.psk, suite: azure,"),
        "a.yaml:17:36: tunnels.munich.ike.psk_file: belongs to the peer, so to tunnel berlin, whose IKE SA this tunnel shares: remove it here\na.yaml:17:53: tunnels.munich.ike.suite: belongs to the peer, so to tunnel berlin, whose IKE SA this tunnel shares: remove it here",
    ),
    (
        "peer of a child",
        Replace("    ike: {share", "    peer: 198.51.100.9\n    ike: {share"),
        "a.yaml:17:11: tunnels.munich.peer: belongs to the peer, so to tunnel berlin, whose IKE SA this tunnel shares: remove it here",
    ),
    (
        "begins although only the peer can",
        Replace("remote_id: '*.example.org'", "start: now"),
        "a.yaml:33:38: tunnels.zurich.ike.start: the peer's address is not known, so only the peer can begin: write wait, or its address as peer",
    ),
    (
        "lifetime too short",
        Replace("lifetime: 1h", "lifetime: 1m"),
        "a.yaml:13:41: tunnels.berlin.ike.lifetime: `1m`, expected 5m to 7d",
    ),
    (
        "lifetime that is none",
        Replace("lifetime: 1h", "lifetime: 1 hour"),
        "a.yaml:13:41: tunnels.berlin.ike.lifetime: `1 hour` is not a time, expected a time such as 500ms, 30s, 45m, 8h or 1d",
    ),
    (
        "margin too long",
        Replace("lifetime: 1h", "rekey_margin: 30m"),
        "a.yaml:13:45: tunnels.berlin.ike.rekey_margin: `30m`, expected more than 0 and less than half of the lifetime, 1h, for it is drawn from once to twice this",
    ),
    (
        "few bytes",
        Replace("lifetime: 1h", "rekey_bytes: 1000"),
        "a.yaml:13:44: tunnels.berlin.ike.rekey_bytes: `1000`, expected at least 1048576 octets",
    ),
    (
        "probing too often",
        Replace("lifetime: 1h", "dpd: 100ms"),
        "a.yaml:13:36: tunnels.berlin.ike.dpd: `100ms`, expected 1s to 1h",
    ),
    (
        "fragments too small",
        Replace("lifetime: 1h", "fragment_size: 100"),
        "a.yaml:13:46: tunnels.berlin.ike.fragment_size: `100`, expected off or a number of octets from 576 to 9216",
    ),
    (
        "same two ends twice",
        Replace(
            "peer: any\n    local: 192.0.2.1\n    interface: zurich\n    ike: {psk_file: good.psk, remote_id: '*.example.org'}",
            "peer: 198.51.100.1\n    interface: zurich\n    ike: {psk_file: good.psk}",
        ),
        "a.yaml:32:5: tunnels.zurich.ike: tunnel berlin has the same gateways and identities, so its IKE SA would replace this one's: write share: berlin, which makes this tunnel one more child of it",
    ),
    (
        "same networks twice",
        Replace("remote_prefixes: [10.3.0.0/16]", "remote_prefixes: [10.2.0.0/16]"),
        "a.yaml:16:23: tunnels.munich.remote_prefixes[0]: `10.2.0.0/16` is a remote prefix of tunnel berlin too: a network is behind one peer",
    ),
    (
        "networks that overlap",
        Replace("remote_prefixes: [10.3.0.0/16]", "remote_prefixes: [10.2.7.0/24]"),
        "a.yaml:16:23: tunnels.munich.remote_prefixes[0]: `10.2.7.0/24` is inside `10.2.0.0/16` of tunnel berlin: selectors that two peers agree upon must not overlap; make them disjoint, or give tunnel berlin an interface instead of prefixes and let routes choose",
    ),
    (
        "peer network without ike",
        Replace(
            "ike: {psk_file: good.psk, remote_id: '*.example.org'}\n",
            "lab_keys: {secret_file: lab.secret}\nlab: true\n",
        ),
        "a.yaml:30:11: tunnels.zurich.peer: lab keys need the peer's own address, expected one such as 192.0.2.1",
    ),
    (
        "peer network with host bits",
        Replace("peer: any", "peer: 203.0.113.1/24"),
        "a.yaml:30:11: tunnels.zurich.peer: `203.0.113.1/24` has bits set behind its prefix length: write 203.0.113.0/24",
    ),
    (
        "saved keys outside of a laboratory",
        Replace("transmissions: 8", "save_keys: keys.csv"),
        "a.yaml:34:18: ike.save_keys: whoever has these keys reads the negotiations: they are for the lab, so write lab: true, or remove it",
    ),
    (
        "one transmission",
        Replace("transmissions: 8", "transmissions: 1"),
        "a.yaml:34:22: ike.transmissions: `1`, expected 2 to 30",
    ),
    (
        "cookies never",
        Replace("transmissions: 8", "cookie_threshold: 9000"),
        "a.yaml:34:25: ike.cookie_threshold: `9000` is more than ike.max_half_open, 4096: no cookie would ever be asked for",
    ),
    (
        "keepalives too rare",
        Replace("keepalive: 20s", "keepalive: 1h"),
        "a.yaml:34:36: ike.keepalive: `1h`, expected 5s to 5m",
    ),
    (
        "PFS in a child of written proposals",
        Replace("share: berlin,", "share: vienna, pfs: off, esp_proposals: [aes256gcm16],"),
        "a.yaml:17:31: tunnels.munich.ike.pfs: esp_proposals name their key exchange themselves: write it there, such as aes256gcm16-x25519",
    ),
];
