//! The aes-gcm and chacha20poly1305 crates behind [`Engine`]: oracle for the other engines, fallback on any CPU, and
//! what every engine hands ChaCha20-Poly1305 (RFC 7634) to. Jobs enter one by one, each leaves done or wiped.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20poly1305::ChaCha20Poly1305;
use penstock_tables::Cipher;

use super::{Direction, Engine, Job, TAG_LEN, scrub};

/// The name of the engine.
pub(super) const NAME: &str = "reference";

/// See the module.
#[derive(Debug, Default)]
pub struct Reference;

impl Engine for Reference {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        for job in jobs {
            run_one(job);
        }
        scrub_stack();
    }
}

/// Overwrites what the crates left on the stack, whose frames are not ours to bound: far more than was ever seen.
pub(super) fn scrub_stack() {
    scrub::<16_384>();
}

/// Does one job of any cipher and sets its `done`.
pub(super) fn run_one(job: &mut Job<'_>) {
    job.done = match job.key.cipher() {
        Some(Cipher::Aes128Gcm16) => work::<Aes128Gcm>(job),
        Some(Cipher::Aes256Gcm16) => work::<Aes256Gcm>(job),
        Some(Cipher::ChaCha20Poly1305) => work::<ChaCha20Poly1305>(job),
        None => false,
    };
}

fn work<C: AeadInOut + KeyInit>(job: &mut Job<'_>) -> bool {
    let Ok(cipher) = C::new_from_slice(job.key.raw_key()) else { return false };
    let Some(at) = job.text.len().checked_sub(TAG_LEN) else { return false };
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&job.key.salt());
    nonce[4..].copy_from_slice(&job.iv);
    let Ok(nonce) = nonce.as_slice().try_into() else { return false };
    let (text, tag) = job.text.split_at_mut(at);
    match job.direction {
        Direction::Seal => match cipher.encrypt_inout_detached(nonce, job.aad.as_bytes(), text.into()) {
            Ok(made) => {
                tag.copy_from_slice(&made);
                true
            }
            Err(_) => false,
        },
        Direction::Open => {
            let Ok(tag) = (&*tag).try_into() else { return false };
            cipher.decrypt_inout_detached(nonce, job.aad.as_bytes(), text.into(), tag).is_ok()
        }
    }
}
