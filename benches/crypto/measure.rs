//! What is measured, how often, and how it is printed and written.

use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;

use penstock_dataplane::crypto::{self, Aad, Direction, TAG_LEN};
use penstock_tables::{Cipher, KeyBlock};
use serde_json::json;

use super::peers::{
    AwsLc, BURST, Contender, IpsecMb, Loads, Ours, Packet, Ring, RustCrypto, SALT, Spaced, now, spin,
};
use super::targets;

/// Octets between two buffers of the pool: as far as DPDK's mbufs of 2 KiB are apart.
const STRIDE: usize = 2432;

/// Where the text starts in its buffer: behind mbuf, headroom, Ethernet, IPv4, SPI, sequence number and IV.
const TEXT_AT: usize = 64 + 128 + 128 + 14 + 20 + 16;

/// Buffers of the pool where there are thousands of SAs.
pub const FEW: usize = 512;

/// Places in memory that keys and buffers get in turn: where they collide with other hot lines in the way predictor of the
/// first-level cache (Zen), one place is slower by half than the others, for any engine.
const PLACEMENTS: usize = 5;

/// How long the packets are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Sizes {
    Equal(usize),
    /// 7 : 4 : 1 of 64, 570 and 1420 octets in random order.
    Imix,
}

impl Sizes {
    fn parse(text: &str) -> Sizes {
        if text == "imix" { Sizes::Imix } else { Sizes::Equal(text.parse().expect("octets, or imix")) }
    }

    fn of(self, packet: usize) -> usize {
        match self {
            Sizes::Equal(len) => len,
            Sizes::Imix => {
                let mixed = (packet as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                [64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1420][(mixed % 12) as usize]
            }
        }
    }

    fn json(self) -> serde_json::Value {
        match self {
            Sizes::Equal(len) => json!(len),
            Sizes::Imix => json!("imix"),
        }
    }
}

/// One column of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Setting {
    cipher_bits: usize,
    sas: usize,
    pool: usize,
    sizes: Sizes,
}

impl Setting {
    fn cipher(self) -> Cipher {
        if self.cipher_bits == 128 { Cipher::Aes128Gcm16 } else { Cipher::Aes256Gcm16 }
    }
}

struct Options {
    rounds: usize,
    out: Option<String>,
    sizes: Vec<Sizes>,
    ciphers: Vec<usize>,
    sas: Vec<usize>,
    pools: Vec<usize>,
    only: Option<Vec<String>>,
}

impl Options {
    fn from_args() -> Options {
        let numbers = |text: &str| -> Vec<usize> {
            text.split(',').map(|number| number.parse().expect("a number")).collect()
        };
        let sizes = ["64", "128", "256", "512", "1024", "1424", "imix"];
        let mut options = Options {
            rounds: 301,
            out: None,
            sizes: sizes.map(Sizes::parse).to_vec(),
            ciphers: vec![128, 256],
            sas: vec![1, 32, 10_000],
            pools: vec![BURST, FEW, 4096],
            only: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => {}
                "--quick" => options.rounds = 41,
                "--rounds" => options.rounds = value().parse().expect("a number of rounds"),
                "--out" => options.out = Some(value()),
                "--sizes" => options.sizes = value().split(',').map(Sizes::parse).collect(),
                "--ciphers" => options.ciphers = numbers(&value()),
                "--sas" => options.sas = numbers(&value()),
                "--pools" => options.pools = numbers(&value()),
                "--only" => options.only = Some(value().split(',').map(str::to_owned).collect()),
                other => panic!("unknown option {other}; see the head of benches/crypto.rs"),
            }
        }
        options
    }

    fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        for &cipher_bits in &self.ciphers {
            for &sas in &self.sas {
                for &pool in &self.pools {
                    for &sizes in &self.sizes {
                        // So many SAs that few packets each have another key, again and again: there the packets
                        // themselves are in the cache, as they are behind the stages before the engine.
                        let many = sas > 4096;
                        if (many && pool == FEW) || (sas <= pool && (pool != FEW || sas == 1)) {
                            settings.push(Setting { cipher_bits, sas, pool, sizes });
                        }
                    }
                }
            }
        }
        settings
    }
}

/// The variable that masks CPU features in aws-lc, and the value that masks AVX-512.
const MASK: (&str, &str) = ("OPENSSL_ia32cap", "~0x0:~0x00000000d0230000");

fn contenders(setting: Setting, only: Option<&[String]>) -> Vec<Box<dyn Contender>> {
    let cipher = setting.cipher();
    let keys: Vec<Vec<u8>> = (0..setting.sas)
        .map(|at| (0..cipher.key_len()).map(|n| (at * 31 + n * 7 + (at >> 8)) as u8).collect())
        .collect();
    let mut blocks = on_huge_pages(keys.len());
    let expand = |key: &Vec<u8>| KeyBlock::expand(cipher, key, SALT).expect("key length");
    blocks.extend(keys.iter().map(|key| Spaced(expand(key), [0; 64])));
    let blocks = Rc::new(blocks);
    let masked = std::env::var_os(MASK.0).is_some();
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    for name in crypto::names() {
        match crypto::select(Some(name)) {
            Ok(engine) if !masked || name == "aesni" => {
                all.push(Box::new(Ours { engine, keys: blocks.clone(), prefetch: setting.sas > BURST }));
            }
            Ok(_) => {}
            Err(error) => println!("SKIPPED: {error}"),
        }
    }
    if setting.sas > BURST && !masked {
        all.push(Box::new(Loads { keys: blocks }));
    }
    let aws_lc = if masked { "AVX-512 masked" } else { "run-time detection" };
    all.push(Box::new(AwsLc::new(cipher, &keys, aws_lc)));
    if !masked {
        all.push(Box::new(Ring::new(cipher, &keys, "run-time detection")));
        all.push(Box::new(RustCrypto::new(cipher, &keys)));
    }
    let engine = if masked { "avx_gen4" } else { "vaes_avx512" };
    let can = crypto::select(Some(if masked { "aesni" } else { "vaes" })).is_ok();
    match IpsecMb::new(cipher, &keys, engine).filter(|_| can) {
        Some(ipsec_mb) => all.push(Box::new(ipsec_mb)),
        None => println!("SKIPPED: libipsec-mb ({engine}) is not installed, or this CPU cannot run it"),
    }
    if let Some(only) = only {
        all.retain(|one| only.iter().any(|name| name == one.library() || name == one.engine()));
    }
    all
}

/// Core cycles in a TSC cycle, now.
fn clock_ratio() -> f64 {
    const CHAIN: u64 = 4000;
    let start = now();
    let mut x = start;
    for _ in 0..CHAIN / 8 {
        // SAFETY: adds to a register.
        unsafe {
            std::arch::asm!(
                "add {0}, 1", "add {0}, 1", "add {0}, 1", "add {0}, 1",
                "add {0}, 1", "add {0}, 1", "add {0}, 1", "add {0}, 1",
                inout(reg) x, options(nomem, nostack),
            );
        }
    }
    let cycles = now() - start;
    std::hint::black_box(x);
    CHAIN as f64 / cycles as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Buffers of a setting, and what goes into them before sealing and before opening: one text after the other.
struct Pool {
    memory: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    setting: Setting,
}

impl Pool {
    fn new(setting: Setting, contender: &mut dyn Contender) -> Pool {
        let octets = setting.pool * STRIDE + 64;
        let mut memory = on_huge_pages(octets);
        memory.resize(octets, 0);
        let texts: usize = (0..setting.pool).map(|at| setting.sizes.of(at) + TAG_LEN).sum();
        let plain: Vec<u8> =
            (0..texts * Pool::windows_of(setting)).map(|at| (at * 11 + (at >> 8)) as u8).collect();
        let mut pool = Pool { memory, sealed: plain.clone(), plain, setting };
        for window in 0..pool.windows() {
            contender.run(Direction::Seal, pool.packets(Direction::Seal, window));
            let sealed = pool.texts();
            let mut at = window * texts;
            for range in sealed {
                pool.sealed[at..at + range.len()].copy_from_slice(&pool.memory[range.clone()]);
                at += range.len();
            }
        }
        pool
    }

    /// How often the buffers are filled until every SA had a packet.
    fn windows_of(setting: Setting) -> usize {
        setting.sas.div_ceil(setting.pool).max(1)
    }

    fn windows(&self) -> usize {
        Pool::windows_of(self.setting)
    }

    /// Where the texts with their tags stand in memory.
    fn texts(&self) -> Vec<std::ops::Range<usize>> {
        let align = self.memory.as_ptr().align_offset(64);
        let range = |at: usize| {
            let start = align + at * STRIDE + TEXT_AT;
            start..start + self.setting.sizes.of(at) + TAG_LEN
        };
        (0..self.setting.pool).map(range).collect()
    }

    fn packets(&mut self, direction: Direction, window: usize) -> Vec<Packet<'_>> {
        let setting = self.setting;
        let from = if direction == Direction::Open { &self.sealed } else { &self.plain };
        let align = self.memory.as_ptr().align_offset(64);
        let mut from = &from[window * (from.len() / Pool::windows_of(setting))..];
        let buffers = self.memory[align..].chunks_exact_mut(STRIDE);
        buffers
            .take(setting.pool)
            .enumerate()
            .map(|(at, buffer)| {
                let text = &mut buffer[TEXT_AT..TEXT_AT + setting.sizes.of(at) + TAG_LEN];
                let (mine, others) = from.split_at(text.len());
                from = others;
                text.copy_from_slice(mine);
                let number = window * setting.pool + at;
                Packet {
                    // Keys in an order that no prefetcher foresees.
                    key: number * 7919 % setting.sas,
                    iv: (number as u64).to_be_bytes(),
                    aad: Aad::new(0x1000 + number as u32, number as u32),
                    text,
                }
            })
            .collect()
    }

    /// TSC cycles per packet of one pass through all SAs. The best of some tries, where that is one small pool.
    fn pass(&mut self, contender: &mut dyn Contender, direction: Direction) -> f64 {
        let windows = self.windows();
        let tries = if self.setting.pool > BURST { 1 } else { 5 };
        let mut cycles = 0;
        for window in 0..windows {
            let once = |_| contender.run(direction, self.packets(direction, window));
            cycles += (0..tries).map(once).min().unwrap_or(0);
        }
        cycles as f64 / (windows * self.setting.pool) as f64
    }
}

/// Room for `count` values, on huge pages where the kernel has some, as keys and packets of the data plane are.
pub fn on_huge_pages<T>(count: usize) -> Vec<T> {
    const HUGE: usize = 2 << 20;
    let room = Vec::with_capacity(count);
    let (start, end) = (room.as_ptr() as usize, room.as_ptr() as usize + count * size_of::<T>());
    let (first, last) = (start.next_multiple_of(HUGE), end & !(HUGE - 1));
    if last > first {
        // SAFETY: advice on whole pages of our own; where it is not taken, nothing changes.
        unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
    }
    room
}

type Samples = BTreeMap<(usize, bool), (Vec<f64>, Vec<f64>)>;

/// Measures all contenders in turn, again and again.
fn measure(samples: &mut Samples, setting: Setting, contenders: &mut [Box<dyn Contender>], rounds: usize) {
    let mut pool = Pool::new(setting, &mut *contenders[0]);
    let rounds = if setting.pool > BURST { rounds.div_ceil(10) } else { rounds };
    for _ in 0..rounds {
        for (at, contender) in contenders.iter_mut().enumerate() {
            for direction in [Direction::Seal, Direction::Open] {
                if pool.windows() > 1 {
                    // The keys of the others push these out of the cache: what thousands of SAs cost is wanted, not what
                    // memory costs.
                    for _ in 0..2 {
                        pool.pass(&mut **contender, direction);
                    }
                }
                let tsc = pool.pass(&mut **contender, direction);
                let ratio = clock_ratio().max(clock_ratio());
                let sample = samples.entry((at, direction == Direction::Open)).or_default();
                sample.0.push(tsc * ratio);
                sample.1.push(tsc);
            }
        }
    }
}

/// Core seconds in which 100,000 SAs expand their keys, one of each direction.
fn expansion(cipher: Cipher) -> f64 {
    const KEYS: usize = 20_000;
    let keys: Vec<Vec<u8>> =
        (0..KEYS).map(|at| (0..cipher.key_len()).map(|n| (at * 31 + n) as u8).collect()).collect();
    let mut blocks = on_huge_pages(KEYS);
    let start = std::time::Instant::now();
    blocks.extend(keys.iter().map(|key| KeyBlock::expand(cipher, key, SALT).expect("key length")));
    let seconds = start.elapsed().as_secs_f64();
    std::hint::black_box(&blocks);
    seconds * 200_000.0 / KEYS as f64
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or("?").trim().to_owned()
    };
    format!("{}, family {} model {}", field("model name"), field("cpu family"), field("model"))
}

/// Measures again what `options` say, in a child in which aws-lc does without AVX-512.
fn masked_child() {
    let program = std::env::current_exe().expect("own path");
    let status =
        std::process::Command::new(program).args(std::env::args().skip(1)).env(MASK.0, MASK.1).status();
    assert!(status.expect("starting the masked run").success(), "the masked run failed");
}

/// What is measured, as a line of JSON.
fn line(
    setting: Setting,
    contender: &dyn Contender,
    open: bool,
    core: f64,
    tsc: f64,
    machine: &str,
) -> serde_json::Value {
    json!({
        "library": contender.library(),
        "engine": contender.engine(),
        "cipher": format!("aes-{}-gcm", setting.cipher_bits),
        "direction": if open { "open" } else { "seal" },
        "bytes": setting.sizes.json(),
        "sas": setting.sas,
        "pool": setting.pool,
        "core_cycles": (core * 10.0).round() / 10.0,
        "tsc_cycles": (tsc * 10.0).round() / 10.0,
        "burst": BURST,
        "machine": machine,
        "clock": "TSC times ratio to dependent additions",
    })
}

pub fn main() {
    let options = Options::from_args();
    let masked = std::env::var_os(MASK.0).is_some();
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        assert!(core_affinity::set_for_current(core), "pinning to a core");
    }
    let machine = machine();
    println!("{machine}; core cycles per packet, seal/open, bursts of {BURST}; clock by dependent additions");
    spin(100_000_000);
    let mut lines = Vec::new();
    for setting in options.settings() {
        let mut samples = Samples::new();
        let mut all = Vec::new();
        for placement in 0..PLACEMENTS {
            // What stands before them on the heap, and among mappings.
            let _pads = (vec![1_u8; placement * 4160], vec![1_u8; (placement + 1) * 151_552]);
            all = contenders(setting, options.only.as_deref());
            if !all.is_empty() {
                measure(&mut samples, setting, &mut all, options.rounds.div_ceil(PLACEMENTS));
            }
        }
        println!(
            "AES-{}, {:?}, {} SAs, pool {}{}",
            setting.cipher_bits,
            setting.sizes,
            setting.sas,
            setting.pool,
            if masked { ", AVX-512 masked" } else { "" }
        );
        for (at, contender) in all.iter().enumerate() {
            let mut cells = Vec::new();
            for open in [false, true] {
                let (mut core, mut tsc) = samples[&(at, open)].clone();
                let (core, tsc) = (median(&mut core), median(&mut tsc));
                cells.push(format!("{core:.1}"));
                lines.push(line(setting, &**contender, open, core, tsc, &machine));
            }
            println!("  {:<20} {:<20} {:>16}", contender.library(), contender.engine(), cells.join("/"));
        }
    }
    if !masked {
        for cipher in [Cipher::Aes128Gcm16, Cipher::Aes256Gcm16] {
            let seconds = (expansion(cipher) * 1000.0).round() / 1000.0;
            println!("{cipher:?}: 100,000 SAs expand both keys in {seconds} core seconds");
            let bits = cipher.key_len() * 8;
            lines.push(json!({"expansion": format!("aes-{bits}-gcm"), "sas": 100_000, "keys": 200_000, "core_seconds": seconds}));
        }
    }
    write(&options, masked, &lines);
    if !masked && crypto::select(Some("aesni")).is_ok() {
        masked_child();
    }
    if let Some(path) = options.out.as_ref().filter(|_| !masked) {
        targets::append(path);
    }
}

/// Writes the lines of a run; those of the masked run behind the others.
fn write(options: &Options, masked: bool, lines: &[serde_json::Value]) {
    let Some(path) = &options.out else { return };
    let mut open = std::fs::OpenOptions::new();
    let open = if masked { open.append(true) } else { open.write(true).create(true).truncate(true) };
    let mut out = open.open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    lines.iter().for_each(|line| writeln!(out, "{line}").expect("writing the results"));
}
