//! Frames from one port of a pair to the other, as testpmd's `io` and `mac` do: what IPsec is added to.

use penstock_dataplane::dpdk::Mbuf;
use penstock_dataplane::port::{Burst, Frame, Port};

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Frames received.
    pub received: u64,
    /// Frames that the other port took; it refused the rest, which were freed.
    pub sent: u64,
}

/// Forwards one burst; with `macs` they become destination and source.
#[inline]
pub fn burst<P: Port<Frame = Mbuf>>(from: &mut P, to: &mut P, macs: Option<[[u8; 6]; 2]>) -> Forwarded {
    let mut frames = Burst::new();
    let received = receive(from, &mut frames, macs);
    Forwarded { received, sent: to.send(&mut frames) as u64 }
}

/// As [`burst`], out by the port that they came in by.
pub fn back<P: Port<Frame = Mbuf>>(port: &mut P, macs: Option<[[u8; 6]; 2]>) -> Forwarded {
    let mut frames = Burst::new();
    let received = receive(port, &mut frames, macs);
    Forwarded { received, sent: port.send(&mut frames) as u64 }
}

#[inline(always)]
fn receive<P: Port<Frame = Mbuf>>(from: &mut P, frames: &mut Burst<Mbuf>, macs: Option<[[u8; 6]; 2]>) -> u64 {
    let received = from.receive(frames);
    if let Some([destination, source]) = macs {
        for frame in frames {
            if let Some(header) = frame.data_mut().get_mut(..12) {
                header[..6].copy_from_slice(&destination);
                header[6..].copy_from_slice(&source);
            }
        }
    }
    received as u64
}
