//! Sorts a burst of AES-GCM jobs into batches of one cipher and one direction, for the aesni engine.
//!
//! Jobs enter in any mixture; a [`Batch`] leaves: up to [`PACKETS`] packets with what NIST SP 800-38D section 7 builds
//! of each (counter block, additional data, lengths), their text cut into segments that the 48 powers of a
//! [`KeyBlock`] can hash without a reduction. What is not AES-GCM goes to the reference engine.

use arrayvec::ArrayVec;
use penstock_tables::{Cipher, KeyBlock};

use super::{Direction, Job, TAG_LEN, reference};

/// Packets in a batch at most.
pub(super) const PACKETS: usize = 32;

/// Blocks in each segment of a text but its last: one for each power.
pub(super) const SEGMENT_BLOCKS: usize = penstock_tables::key::POWERS;

/// Longest text in octets that is done in batches: more than any IP packet has.
pub(super) const TEXT_MAX: usize = 65_536;

/// Blocks of a text that is hashed in one go: with additional data and lengths as many as there are powers.
pub(super) const ONLY_MAX: usize = penstock_tables::key::POWERS - 2;

/// Blocks of a last segment: with lengths as many as there are powers.
const LAST_MAX: usize = penstock_tables::key::POWERS - 1;

const _: () = assert!(SEGMENT_BLOCKS.is_multiple_of(16));

/// One packet of a batch.
pub(super) struct Packet<'a> {
    pub key: &'a KeyBlock,
    /// Start of the text; behind `len` octets stand [`TAG_LEN`] of tag.
    pub text: *mut u8,
    /// Octets of text.
    pub len: usize,
    /// Segments of the text, at least one.
    pub segments: u32,
    /// Octets of the first segment where there are several.
    pub lead: u32,
    /// Its place in the burst.
    pub job: u32,
}

impl Packet<'_> {
    /// Blocks of text.
    #[inline]
    pub fn blocks(&self) -> usize {
        self.len.div_ceil(16)
    }

    /// Octets of text before segment `at`.
    #[inline]
    pub fn start(&self, at: usize) -> usize {
        if at == 0 { 0 } else { self.lead as usize + (at - 1) * SEGMENT_BLOCKS * 16 }
    }

    /// Octets of text in segment `at`, and whether it is the last one.
    #[inline]
    fn octets(&self, at: usize) -> (usize, bool) {
        let last = at + 1 == self.segments as usize;
        (if last { self.len } else { self.start(at + 1) } - self.start(at), last)
    }

    /// Blocks of text in segment `at`, and whether it is the last one.
    #[inline]
    pub fn segment(&self, at: usize) -> (usize, bool) {
        let (octets, last) = self.octets(at);
        (octets.div_ceil(16), last)
    }
}

/// Packets of one cipher and one direction, and what is hashed of each beside its text.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub packets: ArrayVec<Packet<'a>, PACKETS>,
    /// Salt and IV, and a block counter of 0 (SP 800-38D section 7.1 step 2).
    pub nonces: [u128; PACKETS],
    /// Additional data, padded with zeros.
    pub aads: [u128; PACKETS],
    /// Bits of text, bits of additional data: octet-reversed, that is the number as the CPU holds it.
    pub lengths: [u128; PACKETS],
}

impl<'a> Batch<'a> {
    /// Takes a job in, of which there are no more than there is room for.
    #[inline]
    fn push(&mut self, at: usize, job: &mut Job<'a>) {
        let len = job.text.len() - TAG_LEN;
        let place = self.packets.len();
        let (segments, lead) = segments(len);
        let salt = u128::from(u32::from_le_bytes(job.key.salt()));
        self.nonces[place] = salt | u128::from(u64::from_le_bytes(job.iv)) << 32;
        self.aads[place] = job.aad.padded();
        self.lengths[place] = u128::from(len as u64 * 8) | u128::from(job.aad.bits()) << 64;
        let packet = Packet {
            key: job.key,
            text: job.text.as_mut_ptr(),
            len,
            segments: segments as u32,
            lead: lead as u32,
            job: at as u32,
        };
        self.packets.push(packet);
    }
}

/// Segments of a text of `len` octets, and the octets of the first one where there are several.
#[inline]
fn segments(len: usize) -> (usize, usize) {
    const SEGMENT: usize = SEGMENT_BLOCKS * 16;
    if len <= LAST_MAX * 16 {
        return (1, 0);
    }
    // The last segment is one block shorter than the others, for the lengths.
    if len % SEGMENT <= LAST_MAX * 16 {
        (1 + len / SEGMENT, SEGMENT)
    } else {
        (2 + len / SEGMENT, SEGMENT - 256)
    }
}

/// Calls `work` with batches of `jobs` until every one was in a batch or done by the reference engine. `work` gets the
/// cipher, the direction, the batch, and the jobs among which its packets have their places.
#[inline]
pub(super) fn each_batch<'a>(
    jobs: &mut [Job<'a>],
    mut work: impl FnMut(Cipher, Direction, &Batch<'a>, &mut [Job<'a>]),
) {
    let mut batch = Batch::default();
    let mut handed_on = false;
    for jobs in jobs.chunks_mut(PACKETS) {
        // One bit for each job that is still to be done.
        let mut left = u32::MAX >> (PACKETS - jobs.len());
        while left != 0 {
            let first = &jobs[left.trailing_zeros() as usize];
            let (cipher, direction) = (first.key.cipher(), first.direction);
            batch.packets.clear();
            let mut later = 0;
            while left != 0 {
                let at = left.trailing_zeros() as usize;
                left &= left - 1;
                let job = &mut jobs[at];
                if job.key.cipher() != cipher || job.direction != direction {
                    later |= 1 << at;
                } else if !is_batched(job) {
                    reference::run_one(job);
                    handed_on = true;
                } else {
                    batch.push(at, job);
                }
            }
            if let Some(cipher) = cipher.filter(|_| !batch.packets.is_empty()) {
                work(cipher, direction, &batch, jobs);
            }
            left = later;
        }
    }
    if handed_on {
        reference::scrub_stack();
    }
}

/// Whether a job can be in a batch: AES-GCM, with room for a tag, and not longer than any packet.
#[inline]
fn is_batched(job: &Job<'_>) -> bool {
    matches!(job.key.cipher(), Some(Cipher::Aes128Gcm16 | Cipher::Aes256Gcm16))
        && job.text.len().wrapping_sub(TAG_LEN) <= TEXT_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_tables::key::POWERS;

    #[test]
    fn segments_cover_every_text_and_never_need_a_power_that_is_not_there() {
        let key = KeyBlock::expand(Cipher::Aes128Gcm16, &[1; 16], [0; 4]).unwrap();
        for len in (0..3000).chain(TEXT_MAX - 100..=TEXT_MAX) {
            let (segments, lead) = segments(len);
            let (segments, lead) = (segments as u32, lead as u32);
            let text = std::ptr::null_mut();
            let packet = Packet { key: &key, text, len, segments, lead, job: 0 };
            let blocks = packet.blocks();
            let mut sum = 0;
            for at in 0..segments as usize {
                let (count, last) = packet.segment(at);
                assert_eq!(last, at + 1 == segments as usize);
                assert_eq!(packet.start(at), sum * 16);
                assert!(count + usize::from(last) + usize::from(blocks <= ONLY_MAX) <= POWERS, "{len}");
                sum += count;
            }
            assert_eq!(sum, blocks, "{len} octets");
        }
    }
}
