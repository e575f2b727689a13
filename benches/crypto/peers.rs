//! The libraries beside which our engines are measured: each takes a burst of packets and says how many TSC cycles it
//! took to seal or open them one after the other, in the way that its documentation recommends.

use std::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};
use std::rc::Rc;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use libloading::{Library, Symbol};
use penstock_dataplane::crypto::{Aad, Direction, Engine, Job, TAG_LEN};
use penstock_tables::{Cipher, KeyBlock};

/// One packet to work on, in place.
pub struct Packet<'a> {
    pub key: usize,
    pub iv: [u8; 8],
    pub aad: Aad,
    pub text: &'a mut [u8],
}

impl Packet<'_> {
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&SALT);
        nonce[4..].copy_from_slice(&self.iv);
        nonce
    }
}

/// The same for every key.
pub const SALT: [u8; 4] = [1, 2, 3, 4];

/// Packets in a burst.
pub const BURST: usize = 32;

/// Who is measured.
pub trait Contender {
    fn library(&self) -> &str;
    fn engine(&self) -> &str;
    /// TSC cycles that all packets took, in bursts of [`BURST`].
    fn run(&mut self, direction: Direction, packets: Vec<Packet<'_>>) -> u64;
}

/// Reads the time stamp counter when everything before is done.
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSCP that has AES-NI.
    unsafe {
        let mut core = 0;
        let time = __rdtscp(&raw mut core);
        _mm_lfence();
        time
    }
}

/// TSC cycles of `work`, less those of measuring.
fn timed(work: impl FnOnce()) -> u64 {
    let start = now();
    let empty = now() - start;
    let start = now();
    work();
    (now() - start).saturating_sub(empty)
}

/// Spins for about `cycles`.
pub fn spin(cycles: u64) {
    // SAFETY: RDTSC has no precondition.
    let time = || unsafe { _rdtsc() };
    let start = time();
    while time() - start < cycles {
        std::hint::spin_loop();
    }
}

/// A key with as much behind it as the SA takes in the tables of the data plane.
#[repr(C, align(64))]
pub struct Spaced(pub KeyBlock, pub [u8; 64]);

/// One of our engines.
pub struct Ours {
    pub engine: &'static dyn Engine,
    pub keys: Rc<Vec<Spaced>>,
    /// Asks for the keys of a burst before it is done, as `path` does when it has found the SAs.
    pub prefetch: bool,
}

impl Contender for Ours {
    fn library(&self) -> &str {
        "penstock"
    }

    fn engine(&self) -> &str {
        self.engine.name()
    }

    fn run(&mut self, direction: Direction, packets: Vec<Packet<'_>>) -> u64 {
        let mut jobs: Vec<Job<'_>> = packets
            .into_iter()
            .map(|packet| Job {
                key: &self.keys[packet.key].0,
                iv: packet.iv,
                aad: packet.aad,
                direction,
                text: packet.text,
                done: false,
            })
            .collect();
        let cycles = timed(|| {
            let mut left = jobs.as_mut_slice();
            while !left.is_empty() {
                let (burst, rest) = left.split_at_mut(BURST.min(left.len()));
                if self.prefetch {
                    burst.iter().for_each(|job| self.engine.prefetch(job.key, job.text.len() - TAG_LEN));
                }
                self.engine.run(burst);
                left = rest;
            }
        });
        assert!(jobs.iter().all(|job| job.done), "{} failed", self.engine.name());
        cycles
    }
}

/// No engine: only loads what a packet of 64 octets needs of its key (with AES-128). What more SAs must cost, if nothing else hides it.
pub struct Loads {
    pub keys: Rc<Vec<Spaced>>,
}

impl Contender for Loads {
    fn library(&self) -> &str {
        "none"
    }

    fn engine(&self) -> &str {
        "loads of key lines"
    }

    fn run(&mut self, _: Direction, packets: Vec<Packet<'_>>) -> u64 {
        timed(|| {
            for packet in &packets {
                let key = &self.keys[packet.key].0;
                for line in 10..15 {
                    // SAFETY: the line lies in the block, which is made of octets.
                    unsafe { std::ptr::from_ref(key).cast::<u64>().add(8 * line).read_volatile() };
                }
            }
        })
    }
}

/// aws-lc-rs and ring have the same interface.
macro_rules! ring_like {
    ($name:ident, $krate:ident, $label:literal) => {
        pub struct $name {
            keys: Vec<$krate::aead::LessSafeKey>,
            label: String,
        }

        impl $name {
            pub fn new(cipher: Cipher, keys: &[Vec<u8>], label: &str) -> $name {
                use $krate::aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey};
                let algorithm = if cipher == Cipher::Aes128Gcm16 { &AES_128_GCM } else { &AES_256_GCM };
                let keys = keys
                    .iter()
                    .map(|key| LessSafeKey::new(UnboundKey::new(algorithm, key).expect("key length")))
                    .collect();
                $name { keys, label: label.to_owned() }
            }
        }

        impl Contender for $name {
            fn library(&self) -> &str {
                $label
            }

            fn engine(&self) -> &str {
                &self.label
            }

            fn run(&mut self, direction: Direction, packets: Vec<Packet<'_>>) -> u64 {
                use $krate::aead::Nonce;
                timed(|| {
                    for packet in packets {
                        let nonce = Nonce::assume_unique_for_key(packet.nonce());
                        let aad = $krate::aead::Aad::from(packet.aad.as_bytes());
                        let key = &self.keys[packet.key];
                        if direction == Direction::Open {
                            key.open_in_place(nonce, aad, packet.text).expect("tag");
                        } else {
                            let at = packet.text.len() - TAG_LEN;
                            let (text, tag) = packet.text.split_at_mut(at);
                            let made = key.seal_in_place_separate_tag(nonce, aad, text).expect("seal");
                            tag.copy_from_slice(made.as_ref());
                        }
                    }
                })
            }
        }
    };
}

ring_like!(AwsLc, aws_lc_rs, "aws-lc-rs");
ring_like!(Ring, ring, "ring");

/// The aes-gcm crate with its keys expanded beforehand.
pub enum RustCrypto {
    Aes128(Vec<Aes128Gcm>),
    Aes256(Vec<Aes256Gcm>),
}

impl RustCrypto {
    pub fn new(cipher: Cipher, keys: &[Vec<u8>]) -> RustCrypto {
        fn expand<C: KeyInit>(keys: &[Vec<u8>]) -> Vec<C> {
            keys.iter().map(|key| C::new_from_slice(key).expect("key length")).collect()
        }
        match cipher {
            Cipher::Aes128Gcm16 => RustCrypto::Aes128(expand(keys)),
            _ => RustCrypto::Aes256(expand(keys)),
        }
    }
}

fn rust_crypto<C: AeadInOut>(keys: &[C], direction: Direction, packets: Vec<Packet<'_>>) -> u64 {
    timed(|| {
        for packet in packets {
            let nonce = packet.nonce();
            let nonce = nonce.as_slice().try_into().expect("nonce length");
            let (key, aad) = (&keys[packet.key], packet.aad);
            let at = packet.text.len() - TAG_LEN;
            let (text, tag) = packet.text.split_at_mut(at);
            if direction == Direction::Open {
                let tag = (&*tag).try_into().expect("tag length");
                key.decrypt_inout_detached(nonce, aad.as_bytes(), text.into(), tag).expect("tag");
            } else {
                let made = key.encrypt_inout_detached(nonce, aad.as_bytes(), text.into()).expect("seal");
                tag.copy_from_slice(&made);
            }
        }
    })
}

impl Contender for RustCrypto {
    fn library(&self) -> &str {
        "RustCrypto aes-gcm"
    }

    fn engine(&self) -> &str {
        "run-time detection"
    }

    fn run(&mut self, direction: Direction, packets: Vec<Packet<'_>>) -> u64 {
        match self {
            RustCrypto::Aes128(keys) => rust_crypto(keys, direction, packets),
            RustCrypto::Aes256(keys) => rust_crypto(keys, direction, packets),
        }
    }
}

type Pre = unsafe extern "C" fn(key: *const u8, expanded: *mut Expanded);
type Work = unsafe extern "C" fn(
    key: *const Expanded,
    context: *mut Expanded,
    out: *mut u8,
    text: *const u8,
    len: u64,
    iv: *const u8,
    aad: *const u8,
    aad_len: u64,
    tag: *mut u8,
    tag_len: u64,
);

/// Room for intel-ipsec-mb's `gcm_key_data` (1,536 octets for the engine that needs most) or `gcm_context_data`.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Expanded([u8; 4096]);

/// intel-ipsec-mb as installed, through the functions that its direct AES-GCM interface ends up in.
pub struct IpsecMb {
    _library: Library,
    engine: String,
    seal: Work,
    open: Work,
    keys: Vec<Expanded>,
    context: Box<Expanded>,
}

impl IpsecMb {
    /// The library's engine of that name (`vaes_avx512`, `avx_gen4`); none where the library is not installed.
    pub fn new(cipher: Cipher, keys: &[Vec<u8>], engine: &str) -> Option<IpsecMb> {
        let bits = cipher.key_len() * 8;
        // SAFETY: the library has no initialiser that touches us; the types are those of its header (1.0 to 1.5).
        unsafe {
            let library = Library::new("libIPSec_MB.so.1").ok()?;
            let pre: Symbol<'_, Pre> = library.get(format!("aes_gcm_pre_{bits}_{engine}")).ok()?;
            let seal: Work = *library.get(format!("aes_gcm_enc_{bits}_{engine}")).ok()?;
            let open: Work = *library.get(format!("aes_gcm_dec_{bits}_{engine}")).ok()?;
            let mut expanded = super::measure::on_huge_pages(keys.len());
            expanded.resize(keys.len(), Expanded([0; 4096]));
            for (key, expanded) in keys.iter().zip(&mut expanded) {
                pre(key.as_ptr(), expanded);
            }
            let context = Box::new(Expanded([0; 4096]));
            Some(IpsecMb {
                _library: library,
                engine: engine.to_owned(),
                seal,
                open,
                keys: expanded,
                context,
            })
        }
    }
}

impl Contender for IpsecMb {
    fn library(&self) -> &str {
        "libipsec-mb"
    }

    fn engine(&self) -> &str {
        &self.engine
    }

    fn run(&mut self, direction: Direction, packets: Vec<Packet<'_>>) -> u64 {
        let work = if direction == Direction::Open { self.open } else { self.seal };
        let mut right = true;
        let cycles = timed(|| {
            for packet in packets {
                let len = packet.text.len() - TAG_LEN;
                let (nonce, aad) = (packet.nonce(), packet.aad.as_bytes());
                let mut tag = [0u8; TAG_LEN];
                let text = packet.text.as_mut_ptr();
                // SAFETY: text and tag are as long as is said; key and context are of this library's making.
                unsafe {
                    work(
                        &self.keys[packet.key],
                        &mut *self.context,
                        text,
                        text,
                        len as u64,
                        nonce.as_ptr(),
                        aad.as_ptr(),
                        aad.len() as u64,
                        tag.as_mut_ptr(),
                        TAG_LEN as u64,
                    );
                }
                if direction == Direction::Open {
                    right &= u128::from_ne_bytes(tag).to_ne_bytes() == packet.text[len..];
                } else {
                    packet.text[len..].copy_from_slice(&tag);
                }
            }
        });
        assert!(right, "libipsec-mb: wrong tag");
        cycles
    }
}
