//! The aes-gcm crate behind [`Engine`]: oracle for the other engines and fallback on any CPU.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use penstock_tables::Cipher;

use super::{Direction, Engine, Job, TAG_LEN};

/// See the module.
#[derive(Debug, Default)]
pub struct Reference;

impl Engine for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        for job in jobs {
            job.done = match job.key.cipher() {
                Some(Cipher::Aes128Gcm16) => work::<Aes128Gcm>(job),
                Some(Cipher::Aes256Gcm16) => work::<Aes256Gcm>(job),
                _ => false,
            };
        }
    }
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
