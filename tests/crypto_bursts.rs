//! Every crypto engine against the reference engine (the aes-gcm and chacha20poly1305 crates) on random bursts: mixed
//! keys, ciphers, directions, lengths and alignments, texts that touch unmapped pages on either side, forged packets.
//!
//! `PENSTOCK_NIGHTLY=1` compares ten million jobs an engine, otherwise some ten thousand.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::Arguments;
use penstock_dataplane::crypto::{self, Aad, Direction, Engine, Job, TAG_LEN};
use penstock_suite::engines;
use penstock_tables::{Cipher, KeyBlock};

const LONGEST: usize = 9000;
const BURST: usize = 80;

/// A small generator (splitmix64): what it gives need not be secret, only the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn fill(&mut self, octets: &mut [u8]) {
        for part in octets.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

/// Memory between two pages that cannot be touched.
struct Guarded {
    base: *mut u8,
    page: usize,
    usable: usize,
}

impl Guarded {
    fn new(octets: usize) -> Guarded {
        // SAFETY: a fresh anonymous mapping, of which the pages in the middle are made accessible.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let usable = octets.next_multiple_of(page);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), usable + 2 * page, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
            let base: *mut u8 = base.cast();
            let made = libc::mprotect(base.add(page).cast(), usable, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(made, 0, "mprotect: {}", std::io::Error::last_os_error());
            Guarded { base, page, usable }
        }
    }

    /// A copy of `octets` that starts at `place` of all places that there are, counted from the front.
    fn hold(&mut self, octets: &[u8], place: Place) -> &mut [u8] {
        let room = self.usable - octets.len();
        let at = match place {
            Place::Front => 0,
            Place::Back => room,
            Place::At(any) => any % (room + 1),
        };
        // SAFETY: the range lies within the accessible pages, and the mapping is borrowed mutably.
        let held = unsafe { std::slice::from_raw_parts_mut(self.base.add(self.page + at), octets.len()) };
        held.copy_from_slice(octets);
        held
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` has mapped.
        unsafe { libc::munmap(self.base.cast(), self.usable + 2 * self.page) };
    }
}

#[derive(Clone, Copy)]
enum Place {
    Front,
    Back,
    At(usize),
}

/// What one job of a burst starts from and must lead to.
struct Case {
    key: usize,
    iv: [u8; 8],
    aad: Aad,
    direction: Direction,
    place: Place,
    input: Vec<u8>,
    /// Text and tag, or none where opening must fail.
    output: Option<Vec<u8>>,
    plain: Vec<u8>,
}

fn length(random: &mut Random) -> usize {
    match random.below(8) {
        0 => random.below(65),
        1 | 2 => random.below(300),
        3 => 16 * random.below(20),
        4 => [63, 64, 65, 255, 256, 257, 703, 704, 705, 735, 736, 737, 1407, 1408, 1456, 1457]
            [random.below(16)],
        5 | 6 => random.below(1500),
        _ if random.below(6) == 0 => random.below(LONGEST + 1),
        _ => random.below(2000),
    }
}

fn case(random: &mut Random, keys: &[KeyBlock], key: usize, direction: Direction, len: usize) -> Case {
    let reference = crypto::select(Some("reference")).unwrap();
    let mut iv = [0; 8];
    random.fill(&mut iv);
    let aad = if random.below(3) == 0 {
        Aad::with_esn(random.next() as u32, random.next())
    } else {
        Aad::new(random.next() as u32, random.next() as u32)
    };
    let mut plain = vec![0; len + TAG_LEN];
    random.fill(&mut plain);
    let mut sealed = plain.clone();
    let mut job =
        Job { key: &keys[key], iv, aad, direction: Direction::Seal, text: &mut sealed, done: false };
    reference.run(std::slice::from_mut(&mut job));
    assert!(job.done);
    let place = match random.below(4) {
        0 => Place::Front,
        1 | 2 => Place::Back,
        _ => Place::At(random.below(8192)),
    };
    let mut opened = plain.clone();
    let at = opened.len() - TAG_LEN;
    opened[at..].copy_from_slice(&sealed[at..]);
    let (input, output) = match direction {
        Direction::Seal => (plain.clone(), Some(sealed)),
        Direction::Open if random.below(6) == 0 => {
            let bit = random.below(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            (sealed, None)
        }
        Direction::Open => (sealed, Some(opened)),
    };
    Case { key, iv, aad, direction, place, input, output, plain }
}

fn burst(random: &mut Random, keys: &[KeyBlock]) -> Vec<Case> {
    let one_key = (random.below(3) == 0).then(|| random.below(keys.len()));
    let one_direction =
        (random.below(3) != 0).then(|| if random.below(2) == 0 { Direction::Seal } else { Direction::Open });
    let one_length = (random.below(4) == 0).then(|| length(random));
    (0..random.below(BURST + 1))
        .map(|_| {
            let len = one_length.unwrap_or_else(|| length(random));
            let any = if random.below(2) == 0 { Direction::Seal } else { Direction::Open };
            let key = one_key.unwrap_or_else(|| random.below(keys.len()));
            case(random, keys, key, one_direction.unwrap_or(any), len)
        })
        .collect()
}

/// Runs the burst through an engine and checks every octet that it left.
fn check(engine: &dyn Engine, keys: &[KeyBlock], cases: &[Case], memory: &mut [Guarded]) {
    let mut jobs: Vec<Job<'_>> = cases
        .iter()
        .zip(memory)
        .map(|(case, memory)| Job {
            key: &keys[case.key],
            iv: case.iv,
            aad: case.aad,
            direction: case.direction,
            text: memory.hold(&case.input, case.place),
            done: false,
        })
        .collect();
    engine.run(&mut jobs);
    for (at, (job, case)) in jobs.iter().zip(cases).enumerate() {
        let what = format!("{}: job {at}, {:?}, {} octets", engine.name(), case.direction, case.input.len());
        match &case.output {
            Some(output) => {
                assert!(job.done, "{what}: not done");
                assert!(job.text == output.as_slice(), "{what}: wrong octets");
            }
            None => {
                assert!(!job.done, "{what}: a forged packet was opened");
                let text = &job.text[..job.text.len() - TAG_LEN];
                let wiped = text.iter().all(|octet| *octet == 0);
                assert!(
                    wiped || text == &case.input[..text.len()],
                    "{what}: unverified plaintext was handed out"
                );
                assert!(text.len() < 16 || text != &case.plain[..text.len()], "{what}");
            }
        }
    }
}

fn random_keys(random: &mut Random) -> Vec<KeyBlock> {
    let ciphers = [Cipher::Aes128Gcm16, Cipher::Aes256Gcm16, Cipher::Aes128Gcm16, Cipher::Aes256Gcm16];
    (0..25)
        .map(|at| {
            let cipher = if at == 24 { Cipher::ChaCha20Poly1305 } else { ciphers[at % 4] };
            let mut key = vec![0; cipher.key_len()];
            random.fill(&mut key);
            KeyBlock::expand(cipher, &key, (random.next() as u32).to_le_bytes()).unwrap()
        })
        .collect()
}

/// Compares `jobs` jobs, starting from `seed`.
fn compare(engine: &dyn Engine, jobs: u64, seed: &AtomicU64, done: &AtomicU64) {
    let mut memory: Vec<Guarded> = (0..BURST).map(|_| Guarded::new(LONGEST + TAG_LEN)).collect();
    while done.load(Ordering::Relaxed) < jobs {
        let seed = seed.fetch_add(1, Ordering::Relaxed);
        let mut random = Random(seed);
        let keys = random_keys(&mut random);
        for _ in 0..20 {
            let cases = burst(&mut random, &keys);
            let run = std::panic::AssertUnwindSafe(|| check(engine, &keys, &cases, &mut memory));
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("the seed was {seed}");
                std::panic::resume_unwind(panic);
            }
            done.fetch_add(cases.len() as u64, Ordering::Relaxed);
        }
    }
}

fn every_engine_agrees_with_the_reference_on_random_bursts(engine: &'static dyn Engine) {
    let nightly = std::env::var("PENSTOCK_NIGHTLY").is_ok_and(|value| value == "1");
    let jobs = if nightly { 10_000_000 } else { 30_000 };
    let (seed, done) = (AtomicU64::new(1), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| compare(engine, jobs, &seed, &done));
        }
    });
    println!("{}: {} random jobs agree", engine.name(), done.load(Ordering::Relaxed));
}

/// Bursts of 1 to 64 packets of mixed keys and directions, in which the lengths from 0 to 2100 come one after the other.
fn every_length_and_every_size_of_burst_agree(engine: &'static dyn Engine) {
    let mut random = Random(19);
    let keys = random_keys(&mut random);
    let mut memory: Vec<Guarded> = (0..BURST).map(|_| Guarded::new(LONGEST + TAG_LEN)).collect();
    let mut lengths = 0..=2100;
    for count in (1..=64).cycle() {
        let burst: Vec<usize> = lengths.by_ref().take(count).collect();
        if burst.is_empty() {
            break;
        }
        for one_key in [None, Some(0), Some(1)] {
            let cases: Vec<Case> = burst
                .iter()
                .map(|&len| {
                    let key = one_key.unwrap_or_else(|| random.below(keys.len()));
                    let direction = if random.below(2) == 0 { Direction::Seal } else { Direction::Open };
                    case(&mut random, &keys, key, direction, len)
                })
                .collect();
            check(engine, &keys, &cases, &mut memory);
        }
    }
}

/// A forged packet among others that are opened, at every place of a burst and of every class of length.
fn a_forged_packet_spoils_no_other(engine: &'static dyn Engine) {
    let mut random = Random(23);
    let keys = random_keys(&mut random);
    let mut memory: Vec<Guarded> = (0..BURST).map(|_| Guarded::new(LONGEST + TAG_LEN)).collect();
    for len in [1, 32, 33, 68, 96, 97, 250, 500, 1424] {
        for forged in 0..9 {
            let mut cases: Vec<Case> =
                (0..9).map(|at| case(&mut random, &keys, at % 4, Direction::Open, len)).collect();
            let bit = random.below(8 * TAG_LEN);
            let case = &mut cases[forged];
            if case.output.take().is_some() {
                case.input[len + bit / 8] ^= 1 << (bit % 8);
            }
            check(engine, &keys, &cases, &mut memory);
        }
    }
}

fn texts_without_room_for_a_tag_are_not_done_and_stay_as_they_were(engine: &'static dyn Engine) {
    let keys = random_keys(&mut Random(7));
    for key in &keys {
        for direction in [Direction::Seal, Direction::Open] {
            for len in 0..TAG_LEN {
                let mut text = vec![0x5a; len];
                let aad = Aad::new(1, 2);
                let mut job = Job { key, iv: [0; 8], aad, direction, text: &mut text, done: true };
                engine.run(std::slice::from_mut(&mut job));
                assert!(!job.done, "{} took {len} octets", engine.name());
                assert_eq!(text, vec![0x5a; len]);
            }
        }
    }
}

fn every_bit_of_a_tag_counts(engine: &'static dyn Engine) {
    let mut random = Random(11);
    let keys = random_keys(&mut random);
    for key in &keys {
        let aad = Aad::new(3, 4);
        let mut sealed = [0x77; 80];
        let mut job =
            Job { key, iv: [9; 8], aad, direction: Direction::Seal, text: &mut sealed, done: false };
        engine.run(std::slice::from_mut(&mut job));
        assert!(job.done);
        for bit in 0..TAG_LEN * 8 {
            let mut forged = sealed;
            forged[64 + bit / 8] ^= 1 << (bit % 8);
            let direction = Direction::Open;
            let mut job = Job { key, iv: [9; 8], aad, direction, text: &mut forged, done: true };
            engine.run(std::slice::from_mut(&mut job));
            assert!(!job.done, "{} opened a packet with bit {bit} of its tag turned", engine.name());
        }
    }
}

fn texts_longer_than_any_packet_are_done_too(engine: &'static dyn Engine) {
    let mut random = Random(13);
    let keys = random_keys(&mut random);
    for len in [65_535, 65_536, 65_537, 1_100_000] {
        for key in [0, 1, 24] {
            let mut plain = vec![0; len + TAG_LEN];
            random.fill(&mut plain);
            let (mut sealed, mut expected) = (plain.clone(), plain.clone());
            let reference = crypto::select(Some("reference")).unwrap();
            for (engine, text) in [(engine, &mut sealed), (reference, &mut expected)] {
                let (aad, direction) = (Aad::with_esn(1, 2), Direction::Seal);
                let mut job = Job { key: &keys[key], iv: [1; 8], aad, direction, text, done: false };
                engine.run(std::slice::from_mut(&mut job));
                assert!(job.done);
            }
            assert!(sealed == expected, "{}: {len} octets, key {key}", engine.name());
            let (aad, direction) = (Aad::with_esn(1, 2), Direction::Open);
            let mut job = Job { key: &keys[key], iv: [1; 8], aad, direction, text: &mut sealed, done: false };
            engine.run(std::slice::from_mut(&mut job));
            assert!(job.done && sealed[..len] == plain[..len], "{}: {len} octets", engine.name());
        }
    }
}

/// Octets of stack that are looked at below a burst: more than any engine takes.
const DEAD: usize = 128 << 10;

/// What stands on the stack below the caller, lowest octet first.
#[inline(never)]
fn dead_stack(into: &mut [u8]) {
    let mark = 0u8;
    let end = std::hint::black_box(&raw const mark);
    for (at, octet) in into.iter_mut().enumerate() {
        // SAFETY: the thread's stack is as large as that, and `paint` has touched it; what stands there is only looked at.
        *octet = unsafe { end.wrapping_sub(DEAD - at).read_volatile() };
    }
}

#[inline(never)]
fn paint() {
    std::hint::black_box([0x5a_u8; DEAD + 4096]);
}

/// How many of `secrets` stand on the stack below after `work`.
#[inline(never)]
fn left_by(work: &mut dyn FnMut(), secrets: &HashSet<[u8; 16]>) -> usize {
    let mut dead = vec![0; DEAD];
    paint();
    work();
    dead_stack(&mut dead);
    let found: HashSet<&[u8]> =
        dead.windows(16).filter(|window| secrets.contains(<&[u8; 16]>::try_from(*window).unwrap())).collect();
    found.len()
}

/// Leaves the whole key on the stack.
#[inline(never)]
fn careless(key: &KeyBlock) {
    std::hint::black_box([key.clone(), key.clone()]);
    std::hint::black_box(std::array::from_fn::<u8, 4000, _>(|at| key.powers()[at / 16 % 48][at % 16]));
}

fn a_burst_leaves_neither_keys_nor_key_stream_nor_plaintext_on_the_stack(engine: &'static dyn Engine) {
    let mut random = Random(17);
    let keys = random_keys(&mut random);
    let reference = crypto::select(Some("reference")).unwrap();
    let mut secrets = HashSet::new();
    let mut texts = Vec::new();
    for at in 0..64 {
        let (key, len) = (at % 24, if at < 32 { 64 } else { random.below(1500) });
        let mut plain = vec![0; len + TAG_LEN];
        let (iv, aad) = ([at as u8; 8], Aad::new(1, 2));
        let seal = |text: &mut [u8]| {
            let mut job = Job { key: &keys[key], iv, aad, direction: Direction::Seal, text, done: false };
            reference.run(std::slice::from_mut(&mut job));
        };
        let mut stream = plain.clone();
        seal(&mut stream);
        random.fill(&mut plain);
        let mut sealed = plain.clone();
        seal(&mut sealed);
        for octets in [&stream[..len], &plain[..len]] {
            secrets.extend(octets.as_chunks::<16>().0);
        }
        texts.push((key, iv, aad, if at % 2 == 0 { plain } else { sealed }, at % 2 == 0));
    }
    for key in &keys[..24] {
        secrets.extend(key.round_keys().iter().chain(key.powers()).filter(|block| **block != [0; 16]));
    }
    let left = std::thread::Builder::new().stack_size(4 << 20).spawn(move || {
        assert!(left_by(&mut || careless(&keys[0]), &secrets) > 10, "the test does not see what is left");
        let mut texts = texts.clone();
        let mut jobs: Vec<Job<'_>> = texts
            .iter_mut()
            .map(|(key, iv, aad, text, seal)| {
                let direction = if *seal { Direction::Seal } else { Direction::Open };
                Job { key: &keys[*key], iv: *iv, aad: *aad, direction, text, done: false }
            })
            .collect();
        let left = left_by(&mut || engine.run(&mut jobs), &secrets);
        assert!(jobs.iter().all(|job| job.done), "{}", engine.name());
        assert_eq!(left, 0, "{} left so many secret blocks on the stack", engine.name());
    });
    left.unwrap().join().unwrap();
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = engines::trials(&[
        (
            "agrees with the reference on random bursts",
            every_engine_agrees_with_the_reference_on_random_bursts,
        ),
        ("every length and every size of burst agree", every_length_and_every_size_of_burst_agree),
        ("a forged packet spoils no other", a_forged_packet_spoils_no_other),
        (
            "texts without room for a tag are not done and stay as they were",
            texts_without_room_for_a_tag_are_not_done_and_stay_as_they_were,
        ),
        ("every bit of a tag counts", every_bit_of_a_tag_counts),
        ("texts longer than any packet are done too", texts_longer_than_any_packet_are_done_too),
        (
            "a burst leaves neither keys nor key stream nor plaintext on the stack",
            a_burst_leaves_neither_keys_nor_key_stream_nor_plaintext_on_the_stack,
        ),
    ]);
    libtest_mimic::run(&arguments, trials).exit_code()
}
