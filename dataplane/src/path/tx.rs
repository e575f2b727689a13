//! Collects frames for each port and hands them over in bursts; what the port does not take after a bounded number of
//! tries is dropped and counted.

use penstock_tables::{Note, Verdict};

use super::{Context, WorkerPort};
use crate::port::{Burst, Port};

/// How often a port that took only a part is asked again.
const TRIES: usize = 8;

/// Adds a frame with its Ethernet header; sends when a burst is full.
#[inline(always)]
pub fn queue<P: Port>(port: &mut WorkerPort<P>, frame: P::Frame, cx: &mut Context<'_>) {
    if port.out.is_full() {
        flush(port, cx);
    }
    if let Err(frame) = port.out.push(frame) {
        cx.end(frame, Verdict::TransmitFull);
    }
}

/// Sends what waits.
#[inline(always)]
pub fn flush<P: Port>(port: &mut WorkerPort<P>, cx: &mut Context<'_>) {
    if port.out.is_empty() {
        return;
    }
    let mut sent = port.queue.send(&mut port.out);
    if !port.out.is_empty() {
        sent += again(&mut port.queue, &mut port.out, cx);
    }
    cx.tally.count(Verdict::Sent, sent as u64);
}

#[cold]
fn again<P: Port>(queue: &mut P, out: &mut Burst<P::Frame>, cx: &mut Context<'_>) -> usize {
    cx.tally.note(Note::TransmitRetried, 1);
    let mut sent = 0;
    for _ in 0..TRIES {
        std::hint::spin_loop();
        sent += queue.send(out);
        if out.is_empty() {
            return sent;
        }
    }
    cx.tally.count(Verdict::TransmitFull, out.len() as u64);
    out.clear();
    sent
}
