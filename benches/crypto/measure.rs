//! What is measured, how often, and how it is printed and written.

use std::collections::BTreeMap;
use std::io::Write;

use penstock_dataplane::crypto::{self, Aad, Direction, TAG_LEN};
use penstock_tables::{Cipher, KeyBlock};
use serde_json::json;

use super::peers::{AwsLc, BURST, Contender, IpsecMb, Ours, Packet, Ring, RustCrypto, SALT, now, spin};

/// Octets between two buffers of the pool: as far as DPDK's mbufs of 2 KiB are apart.
const STRIDE: usize = 2432;

/// Where the text starts in its buffer: behind mbuf, headroom, Ethernet, IPv4, SPI, sequence number and IV.
const TEXT_AT: usize = 64 + 128 + 128 + 14 + 20 + 16;

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
            pools: vec![BURST, 4096],
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
                        // Thousands of SAs need as many packets, and matter most where packets are small.
                        if sas <= pool || (sas > 4096 && pool == 4096) {
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
    let blocks = || -> Vec<KeyBlock> {
        let mut blocks = on_huge_pages(keys.len());
        blocks.extend(keys.iter().map(|key| KeyBlock::expand(cipher, key, SALT).expect("key length")));
        blocks
    };
    let masked = std::env::var_os(MASK.0).is_some();
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    for name in crypto::names() {
        match crypto::select(Some(name)) {
            Ok(engine) if !masked || name == "aesni" => {
                all.push(Box::new(Ours { engine, keys: blocks(), prefetch: setting.sas > BURST }));
            }
            Ok(_) => {}
            Err(error) => println!("SKIPPED: {error}"),
        }
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

/// Buffers of a setting: as they are before sealing, and before opening.
struct Pool {
    memory: Vec<u8>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    setting: Setting,
    /// Where in the keys the next round starts.
    start: usize,
}

impl Pool {
    fn new(setting: Setting) -> Pool {
        let octets = setting.pool * STRIDE + 64;
        let plain: Vec<u8> = (0..octets).map(|at| (at * 11 + (at >> 8)) as u8).collect();
        let mut memory = on_huge_pages(octets);
        memory.extend_from_slice(&plain);
        Pool { memory, sealed: plain.clone(), plain, setting, start: 0 }
    }

    fn packets(&mut self, direction: Direction) -> Vec<Packet<'_>> {
        let from = if direction == Direction::Open { &self.sealed } else { &self.plain };
        let align = self.memory.as_ptr().align_offset(64);
        let (setting, start) = (self.setting, self.start);
        let buffers = self.memory[align..].chunks_exact_mut(STRIDE).zip(from[align..].chunks_exact(STRIDE));
        buffers
            .take(setting.pool)
            .enumerate()
            .map(|(at, (buffer, from))| {
                let range = TEXT_AT..TEXT_AT + setting.sizes.of(at) + TAG_LEN;
                let text = &mut buffer[range.clone()];
                // Packet by packet: a copy of the whole would bypass the caches.
                text.copy_from_slice(&from[range]);
                Packet {
                    // Keys in an order that no prefetcher foresees.
                    key: (start + at) * 7919 % setting.sas,
                    iv: (at as u64).to_be_bytes(),
                    aad: Aad::new(0x1000 + at as u32, at as u32),
                    text,
                }
            })
            .collect()
    }

    /// Seals with `contender`, so that there is something to open.
    fn seal(&mut self, contender: &mut dyn Contender) {
        contender.run(Direction::Seal, self.packets(Direction::Seal));
        self.sealed.copy_from_slice(&self.memory);
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
fn measure(setting: Setting, contenders: &mut [Box<dyn Contender>], rounds: usize) -> Samples {
    let mut samples = Samples::new();
    let mut pool = Pool::new(setting);
    let (rounds, tries) = if setting.pool > BURST { (rounds.div_ceil(10), 1) } else { (rounds, 5) };
    for round in 0..rounds {
        pool.start = if setting.sas > setting.pool { round * setting.pool % setting.sas } else { 0 };
        pool.seal(&mut *contenders[0]);
        for (at, contender) in contenders.iter_mut().enumerate() {
            for direction in [Direction::Seal, Direction::Open] {
                let mut best = u64::MAX;
                for _ in 0..tries {
                    best = best.min(contender.run(direction, pool.packets(direction)));
                }
                let tsc = best as f64 / setting.pool as f64;
                let ratio = clock_ratio().max(clock_ratio());
                let sample = samples.entry((at, direction == Direction::Open)).or_default();
                sample.0.push(tsc * ratio);
                sample.1.push(tsc);
            }
        }
    }
    samples
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

pub fn main() {
    let options = Options::from_args();
    let masked = std::env::var_os(MASK.0).is_some();
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        assert!(core_affinity::set_for_current(core), "pinning to a core");
    }
    let mut out = options.out.as_ref().map(|path| {
        let mut open = std::fs::OpenOptions::new();
        let open = if masked { open.append(true) } else { open.write(true).create(true).truncate(true) };
        open.open(path).unwrap_or_else(|error| panic!("{path}: {error}"))
    });
    let machine = machine();
    println!("{machine}; core cycles per packet, seal/open, bursts of {BURST}; clock by dependent additions");
    spin(100_000_000);
    for setting in options.settings() {
        let mut contenders = contenders(setting, options.only.as_deref());
        if contenders.is_empty() {
            continue;
        }
        let samples = measure(setting, &mut contenders, options.rounds);
        println!(
            "AES-{}, {:?}, {} SAs, pool {}{}",
            setting.cipher_bits,
            setting.sizes,
            setting.sas,
            setting.pool,
            if masked { ", AVX-512 masked" } else { "" }
        );
        for (at, contender) in contenders.iter().enumerate() {
            let mut cells = Vec::new();
            for open in [false, true] {
                let (mut core, mut tsc) = samples[&(at, open)].clone();
                let (core, tsc) = (median(&mut core), median(&mut tsc));
                cells.push(format!("{core:.1}"));
                if let Some(out) = &mut out {
                    let line = json!({
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
                    });
                    writeln!(out, "{line}").expect("writing the results");
                }
            }
            println!("  {:<20} {:<20} {:>16}", contender.library(), contender.engine(), cells.join("/"));
        }
    }
    if !masked && crypto::select(Some("aesni")).is_ok() {
        masked_child();
    }
}
