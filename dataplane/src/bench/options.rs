//! The options of a benchmark run, named as testpmd names its own. Arguments in, options out.

use std::str::FromStr;

use clap::{Parser, ValueEnum};
use penstock_tables::Cipher;

/// Benchmark of Penstock's packet path. Everything before `--` is DPDK's.
#[derive(Debug, Parser)]
#[command(name = "penstock-dataplane EAL-OPTIONS --")]
pub struct BenchOptions {
    /// What is timed.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Encap, Mode::Decap])]
    forward_mode: Vec<Mode>,
    /// Tunnels with an SA in each direction; every packet is another one's. A list runs one after the other.
    #[arg(long, visible_alias = "tunnels", value_delimiter = ',', default_values_t = [1u32])]
    sas: Vec<u32>,
    /// Octets of the inner IPv4 packets, or `imix` (7:4:1 of 64, 570, 1420).
    #[arg(long, value_delimiter = ',', default_value = "64,512,1420")]
    pub sizes: Vec<Size>,
    /// Packets a burst.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub burst: u16,
    /// Crypto engine; the best for this CPU where none is given.
    #[arg(long)]
    pub engine: Option<String>,
    /// Cipher of the SAs.
    #[arg(long, value_enum, default_value_t = CipherOption::Aes128gcm16)]
    pub cipher: CipherOption,
    /// Extended sequence numbers.
    #[arg(long)]
    pub esn: bool,
    /// Replay window, in packets.
    #[arg(long, default_value_t = 1024)]
    pub replay_window: u32,
    /// UDP encapsulation.
    #[arg(long)]
    pub udp: bool,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    pub duration: f64,
    /// Write JSON, one object a measurement.
    #[arg(long)]
    pub json: bool,
}

impl BenchOptions {
    /// What is timed.
    pub fn modes(&self) -> Vec<Mode> {
        self.forward_mode.clone()
    }

    /// How many SAs, one after the other.
    pub fn sas(&self) -> Vec<u32> {
        self.sas.clone()
    }
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Plaintext in, ESP out.
    Encap,
    /// ESP in, plaintext out.
    Decap,
    /// Both, one after the other.
    Loop,
}

impl Mode {
    /// The word of reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Encap => "encap",
            Mode::Decap => "decap",
            Mode::Loop => "loop",
        }
    }
}

/// The ciphers by the configuration's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CipherOption {
    /// AES-GCM, 128-bit key.
    Aes128gcm16,
    /// AES-GCM, 256-bit key.
    Aes256gcm16,
    /// ChaCha20-Poly1305.
    Chacha20poly1305,
}

impl CipherOption {
    /// The cipher.
    pub fn cipher(self) -> Cipher {
        match self {
            CipherOption::Aes128gcm16 => Cipher::Aes128Gcm16,
            CipherOption::Aes256gcm16 => Cipher::Aes256Gcm16,
            CipherOption::Chacha20poly1305 => Cipher::ChaCha20Poly1305,
        }
    }

    /// The word of reports.
    pub fn name(self) -> &'static str {
        match self {
            CipherOption::Aes128gcm16 => "aes128gcm16",
            CipherOption::Aes256gcm16 => "aes256gcm16",
            CipherOption::Chacha20poly1305 => "chacha20poly1305",
        }
    }
}

/// Sizes of inner packets, in octets: those of one round of the generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The word of the command line.
    pub word: String,
    /// Sizes that the generator repeats.
    pub pattern: Vec<usize>,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(word: &str) -> Result<Size, String> {
        let pattern = if word == "imix" {
            // 7:4:1, spread so that no burst is of one size.
            vec![64, 570, 64, 64, 570, 64, 1420, 64, 570, 64, 64, 570]
        } else {
            match word.parse() {
                Ok(octets @ 28..=1900) => vec![octets],
                _ => return Err("expected 28 to 1900 octets, or imix".into()),
            }
        };
        Ok(Size { word: word.to_owned(), pattern })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_is_seven_four_one() {
        let size: Size = "imix".parse().unwrap();
        let count = |octets| size.pattern.iter().filter(|size| **size == octets).count();
        assert_eq!((count(64), count(570), count(1420)), (7, 4, 1));
        assert!("27".parse::<Size>().is_err() && "x".parse::<Size>().is_err());
    }
}
