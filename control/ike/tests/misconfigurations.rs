//! Thirty-odd mistakes that people make between two gateways, and for each what `why` says on either end.

#[path = "common/mod.rs"]
mod common;
#[path = "common/pki.rs"]
mod pki;
use common::*;
use penstock_ike::auth::{IdentityPattern, LocalCertificate, SharedKey};
use penstock_ike::message::TrafficSelector;
use penstock_ike::*;
use pki::{Ca, Wish};

type Ends = [Connection; 2];

/// Sets both ends up with one mistake, lets A begin, and gives `why` of both.
fn why(mistake: impl Fn(&mut Ends, &mut World)) -> [(&'static str, String); 2] {
    let mut w = World::new(11);
    let mut ends = [site(A), site(B)];
    mistake(&mut ends, &mut w);
    let [a, b] = ends;
    w.configure(A, a);
    w.configure(B, b);
    w.initiate(A);
    w.run(seconds(70));
    [w.why(A), w.why(B)]
}

/// `codes` are A's and B's; `text` must be what the end that knows better says, without the leading name.
#[track_caller]
fn expect(name: &str, mistake: impl Fn(&mut Ends, &mut World), codes: [&str; 2], text: &str) {
    let [a, b] = why(mistake);
    assert_eq!([a.0, b.0], codes, "{name}:\n  {}\n  {}", a.1, b.1);
    assert!(a.1.ends_with(text) || b.1.ends_with(text), "{name}: expected `{text}`\n  {}\n  {}", a.1, b.1);
}

fn certificates(ends: &mut Ends, own: [LocalCertificate; 2], ca: [&Ca; 2]) {
    for ((c, own), ca) in ends.iter_mut().zip(own).zip(ca) {
        c.local_auth = LocalAuth::Certificate(Box::new(own));
        c.remote_auth = RemoteAuth::Certificate(ca.trust().into());
    }
}

fn good(ca: &Ca) -> [LocalCertificate; 2] {
    ["gw-a.example", "gw-b.example"].map(|name| ca.local(&Wish { name, ..Wish::default() }))
}

#[test]
fn proposals() {
    let ike_of = |a: &'static str, b: &'static str| {
        move |e: &mut Ends, _: &mut World| (e[A].ike, e[B].ike) = (ike(a), ike(b))
    };
    let esp_of = |a: &'static str, b: &'static str| {
        move |e: &mut Ends, _: &mut World| {
            child(&mut e[A], |c| c.esp = esp(a));
            child(&mut e[B], |c| c.esp = esp(b));
        }
    };
    let refused = ["ike-proposal-refused", "ike-proposal-mismatch"];
    expect(
        "IKE cipher",
        ike_of("aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha256-x25519"),
        refused,
        "no common IKE proposal (encryption: peer offers aes-gcm16-128, we allow aes-gcm16-256)",
    );
    expect(
        "PRF",
        ike_of("aes256gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-x25519"),
        refused,
        "no common IKE proposal (PRF: peer offers prfsha256, we allow prfsha384)",
    );
    expect(
        "IKE group",
        ike_of("aes256gcm16-prfsha256-modp2048", "aes256gcm16-prfsha256-ecp384-x25519"),
        refused,
        "no common IKE proposal (key exchange: peer offers modp2048, we allow ecp384 or x25519)",
    );
    expect(
        "integrity",
        ike_of("aes256-sha256-x25519", "aes256-sha384-prfsha256-x25519"),
        refused,
        "no common IKE proposal (integrity: peer offers sha256, we allow sha384)",
    );
    expect(
        "GCM and CBC",
        ike_of("aes256gcm16-prfsha256-x25519", "aes256-sha256-x25519"),
        refused,
        "no common IKE proposal (encryption: peer offers aes-gcm16-256, we allow aes-cbc-256; integrity: peer offers none, we allow sha256)",
    );
    expect(
        "ML-KEM on one side",
        ike_of("aes256gcm16-prfsha256-x25519-ke1_mlkem768", "aes256gcm16-prfsha256-x25519"),
        refused,
        "no common IKE proposal (additional key exchange 1: peer offers mlkem768, we allow none)",
    );
    let refused = ["child-proposal-refused", "child-proposal-mismatch"];
    expect(
        "ESP cipher",
        esp_of("aes128gcm16", "chacha20poly1305"),
        refused,
        "no common ESP proposal (encryption: peer offers aes-gcm16-128, we allow chacha20poly1305)",
    );
    expect(
        "ESN",
        esp_of("aes256gcm16-esn", "aes256gcm16-noesn"),
        refused,
        "no common ESP proposal (sequence numbers: peer offers esn, we allow noesn)",
    );
}

/// The other end has whole networks: what it would not take must not be sealed.
#[test]
fn protocols_and_ports_alone_are_refused() {
    let tcp = |t: &str| TrafficSelector { protocol: 6, start_port: 5201, end_port: 5201, ..net(t) };
    let ports =
        "protocols or ports of its networks, which are not enforced here: make it offer whole networks";
    // The peer begins with them, and we do: it narrows our whole networks to them.
    for begins in [A, B] {
        let mut w = World::new(11);
        let mut ends = [site(A), site(B)];
        child(&mut ends[A], |c| c.remote_ts = vec![tcp("10.2.0.0/16")]);
        ends.into_iter().enumerate().for_each(|(n, c)| w.configure(n, c));
        w.initiate(begins);
        w.run(seconds(5));
        let (code, text) = w.why(B);
        assert_eq!(code, "selectors-ports", "{begins} begins: {text}");
        assert!(text.contains(ports), "{text}");
        assert_eq!((w.children(A), w.children(B)), (0, 0), "{begins} begins");
        assert!(w.pairs(B).is_empty() && w.nodes[B].plane.reserved.is_empty(), "{begins} begins");
    }
    // A packet's own selectors beside whole networks (RFC 7296 section 2.9) are left out.
    let mut w = World::new(11);
    let mut ends = [site(A), site(B)];
    child(&mut ends[A], |c| {
        (c.local_ts, c.remote_ts) =
            (vec![tcp("10.1.0.7/32"), net("10.1.0.0/16")], vec![tcp("10.2.0.7/32"), net("10.2.0.0/16")]);
    });
    ends.into_iter().enumerate().for_each(|(n, c)| w.configure(n, c));
    w.initiate(A);
    w.run(seconds(2));
    let status = w.nodes[B].endpoint.connection("site").unwrap();
    let got = &status.ike[0].children[0];
    assert_eq!(
        (&got.local_ts[..], &got.remote_ts[..]),
        (&[net("10.2.0.0/16")][..], &[net("10.1.0.0/16")][..])
    );
    assert!(w.up() && w.lost == 0);
}

#[test]
fn secrets_and_identities() {
    let refused = |b| ["authentication-refused", b];
    let key = |c: &mut Connection, k: &'static [u8]| {
        (c.local_auth, c.remote_auth) =
            (LocalAuth::Psk(SharedKey::new(k)), RemoteAuth::Psk(SharedKey::new(k)));
    };
    expect(
        "pre-shared key",
        |e, _| key(&mut e[B], b"another secret"),
        refused("psk-mismatch"),
        "the pre-shared keys of the two ends differ (peer gw-a.example)",
    );
    expect(
        "our name",
        |e, _| e[A].local_id = "wrong.example".parse().unwrap(),
        refused("peer-identity-unknown"),
        "no tunnel is configured for the identity that the peer presents (it is wrong.example, configured: gw-a.example)",
    );
    expect(
        "address instead of name",
        |e, _| e[A].local_id = "192.0.2.1".parse().unwrap(),
        refused("peer-identity-unknown"),
        "(it is 192.0.2.1, configured: gw-a.example)",
    );
    expect(
        "the peer's name here",
        |e, _| e[A].remote_id = "wrong.example".parse().unwrap(),
        refused("local-identity-mismatch"),
        "the peer asks for an identity that is not ours (it asks for wrong.example, we are gw-b.example)",
    );
    expect(
        "the peer's own name",
        |e, _| {
            e[A].remote_id = IdentityPattern::Below("other.example".into());
        },
        ["peer-identity-mismatch", "authentication-refused"],
        "the peer calls itself something else than configured (it is gw-b.example, expected *.other.example)",
    );
    let ca = Ca::new("lab CA");
    expect(
        "key here, certificate there",
        |e, _| e[B].remote_auth = RemoteAuth::Certificate(ca.trust().into()),
        refused("auth-method-mismatch"),
        "the peer proves itself by another method than configured (it uses a pre-shared key, a certificate is configured)",
    );
    expect(
        "certificate here, key there",
        |e, _| e[A].local_auth = LocalAuth::Certificate(Box::new(good(&ca)[A].clone())),
        refused("auth-method-mismatch"),
        "(it uses a certificate, a pre-shared key is configured)",
    );
}

#[test]
fn certificates_of_every_kind() {
    let refused = |b| ["authentication-refused", b];
    let (ca, other) = (Ca::new("lab CA"), Ca::new("other CA"));
    expect(
        "other CA",
        |e, _| certificates(e, good(&ca), [&ca, &other]),
        refused("certificate-untrusted"),
        "no configured CA signed the peer's certificate (O=lab,CN=gw-a.example, issued by CN=lab CA)",
    );
    let with = |wish: Wish<'static>| {
        let ca = &ca;
        move |e: &mut Ends, _: &mut World| {
            let own =
                [ca.local(&Wish { name: wish.name, usage: wish.usage.clone(), ..wish }), good(ca)[B].clone()];
            certificates(e, own, [ca, ca]);
        }
    };
    let own = |years, name| Wish { years, name, ..Wish::default() };
    expect(
        "not valid yet",
        with(own((2030, 2040), "gw-a.example")),
        refused("certificate-not-yet-valid"),
        "the peer's certificate is not valid yet: check the clocks of both ends (O=lab,CN=gw-a.example becomes valid in 1081 days)",
    );
    expect(
        "name not in the certificate",
        with(own((2020, 2040), "gw-x.example")),
        refused("certificate-identity-mismatch"),
        "the peer's certificate does not hold its identity (O=lab,CN=gw-x.example does not hold gw-a.example)",
    );
    expect(
        "for mail only",
        with(Wish {
            name: "gw-a.example",
            usage: Some(rcgen::ExtendedKeyUsagePurpose::EmailProtection),
            ..Wish::default()
        }),
        refused("certificate-invalid"),
        "the certificate is not for gateways: its extended key usage lacks serverAuth, clientAuth and ipsecIKE)",
    );
    expect(
        "expired here",
        with(own((2020, 2022), "gw-a.example")),
        ["local-certificate-expired", "negotiation-timeout"],
        "our own certificate has expired (O=lab,CN=gw-a.example)",
    );
    expect(
        "expired there",
        |e, w| {
            w.nodes[A].wall_offset = -6 * 365 * 86_400;
            certificates(
                e,
                [ca.local(&own((2020, 2022), "gw-a.example")), ca.local(&own((2020, 2040), "gw-b.example"))],
                [&ca, &ca],
            );
        },
        refused("certificate-expired"),
        "the peer's certificate has expired (O=lab,CN=gw-a.example expired 1840 days ago)",
    );
    expect(
        "clock here slow",
        |e, w| {
            w.nodes[A].wall_offset = -10 * 365 * 86_400;
            certificates(e, good(&ca), [&ca, &ca]);
        },
        ["certificate-not-yet-valid", "authentication-refused"],
        "becomes valid in 1078 days)",
    );
    expect(
        "revoked",
        |e, _| {
            certificates(e, good(&ca), [&ca, &ca]);
            e[B].remote_auth = RemoteAuth::Certificate(ca.trust_with(&ca.revoke(7, 2040)).into());
        },
        refused("certificate-revoked"),
        "the peer's certificate is revoked (O=lab,CN=gw-a.example)",
    );
    expect(
        "stale revocation list",
        |e, _| {
            certificates(e, good(&ca), [&ca, &ca]);
            e[B].remote_auth = RemoteAuth::Certificate(ca.trust_with(&ca.revoke(99, 2022)).into());
        },
        refused("crl-expired"),
        "the configured revocation list has expired: fetch a new one (O=lab,CN=gw-a.example)",
    );
    expect("nothing wrong", |e, _| certificates(e, good(&ca), [&ca, &ca]), ["up", "up"], "site is up");
}

#[test]
fn addresses_networks_and_the_way() {
    expect(
        "networks",
        |e, _| child(&mut e[B], |c| c.remote_ts = vec![net("10.7.0.0/16")]),
        ["selectors-refused", "selectors-mismatch"],
        "the peer's traffic selectors have nothing in common with ours (peer offers 10.2.0.0/16 to 10.1.0.0/16, we allow 10.2.0.0/16 to 10.7.0.0/16)",
    );
    expect(
        "networks swapped",
        |e, _| child(&mut e[B], |c| std::mem::swap(&mut c.local_ts, &mut c.remote_ts)),
        ["selectors-refused", "selectors-mismatch"],
        "(peer offers 10.2.0.0/16 to 10.1.0.0/16, we allow 10.1.0.0/16 to 10.2.0.0/16)",
    );
    expect(
        "IPv6 against IPv4",
        |e, _| {
            child(&mut e[A], |c| {
                (c.local_ts, c.remote_ts) = (vec![net("2001:db8:1::/48")], vec![net("2001:db8:2::/48")])
            })
        },
        ["selectors-refused", "selectors-mismatch"],
        "(peer offers 2001:db8:2::/48 to 2001:db8:1::/48, we allow 10.2.0.0/16 to 10.1.0.0/16)",
    );
    expect(
        "wrong address of the peer",
        |e, _| e[A].remote = Remote::Address("192.0.2.77".parse().unwrap()),
        ["peer-unreachable", "waiting"],
        "the peer does not answer at all: check its address, routing, and UDP 500 in firewalls",
    );
    expect(
        "peer expects us elsewhere",
        |e, _| e[B].remote = Remote::Address("192.0.2.78".parse().unwrap()),
        ["ike-proposal-refused", "waiting"],
        "the peer refuses all our IKE proposals, or knows no tunnel from our address; its log says which (NO_PROPOSAL_CHOSEN)",
    );
    expect(
        "4500 blocked",
        |_, w| {
            w.nat[A] = Some("192.0.2.1:40000".parse().unwrap());
            w.block_4500 = true;
        },
        ["peer-unreachable-4500", "negotiation-timeout"],
        "the peer answers on UDP 500 but not on UDP 4500: a firewall or NAT on the way blocks UDP 4500",
    );
    expect(
        "data plane full",
        |_, w| w.nodes[B].plane.free = Some(0),
        ["no-additional-sas", "spis-exhausted"],
        "the data plane has no free SPI: raise the number of security associations",
    );
    expect(
        "network down",
        |_, w| w.weather.loss = 1000,
        ["peer-unreachable", "waiting"],
        "check its address, routing, and UDP 500 in firewalls",
    );
}

#[test]
fn the_text_of_a_whole_line_and_the_log() {
    let [a, b] = why(|e, _| e[B].ike = ike("aes128-sha512-modp2048"));
    assert_eq!(
        a.1,
        "site is down: the peer refuses all our IKE proposals, or knows no tunnel from our address; its log says which (NO_PROPOSAL_CHOSEN)"
    );
    assert!(
        b.1.starts_with("site is down: no common IKE proposal (")
            && b.1.contains("integrity: peer offers sha384 or sha256, we allow sha512"),
        "{}",
        b.1
    );
    let mut w = World::new(13);
    w.configure(A, site(A));
    w.initiate(A);
    w.run(seconds(1));
    let log = w.nodes[A].endpoint.log("site");
    assert_eq!(log[0].to_string(), "initiating: to 192.0.2.2:500");
    let second =
        "failed: peer at 192.0.2.2:500: [ike-proposal-refused] the peer refuses all our IKE proposals";
    assert!(log[1].to_string().starts_with(second), "{}", log[1]);
    let status = w.nodes[A].endpoint.status();
    assert_eq!(status[0].failures, [(Reason::IkeProposalRefused, 1)]);
}
