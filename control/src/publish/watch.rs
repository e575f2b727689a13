//! What becomes of a tunnel from one look at its counters to the next: state and counters enter, once a second; since when
//! it is in its state, when it carried a packet last, and whether what is sent is answered leave. The data plane knows
//! nothing of it.

use std::time::Duration;

use super::live::{Refused, Traffic};
use crate::api::types::TunnelState;

/// A tunnel is called unanswered when so many packets were sent since the last one was received, ...
const PACKETS: u64 = 20;
/// ... at so many looks (one burst proves nothing), ...
const LOOKS: u32 = 10;
/// ... in so long, ...
const SILENCE: Duration = Duration::from_secs(20);
/// ... and the last of them at most so long ago: who has stopped asking waits for no answer.
const ASKING: Duration = Duration::from_secs(60);

/// A moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// Since control started.
    pub up: Duration,
    /// Seconds since 1970.
    pub unix: u64,
}

/// What there is to see of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Its state.
    pub state: TunnelState,
    /// What it sent.
    pub sent: Traffic,
    /// What it received.
    pub received: Traffic,
    /// What it refused.
    pub refused: Refused,
}

/// What was seen of a tunnel.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    seen: Option<Sight>,
    /// Since when it is in its state, in seconds since 1970.
    pub since: u64,
    /// When it sent last, in seconds since 1970.
    pub last_sent: Option<u64>,
    /// When it received last, in seconds since 1970.
    pub last_received: Option<u64>,
    asked: Option<Asked>,
}

/// What was sent since something was received.
#[derive(Clone, Copy, Debug)]
struct Asked {
    begun: Duration,
    last: Duration,
    looks: u32,
    packets: u64,
    refused: Refused,
}

/// A tunnel that sends and gets nothing back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unanswered {
    /// Packets that were sent since the last one was received.
    pub packets: u64,
    /// Since the first of them.
    pub seconds: u64,
    /// What came meanwhile and was refused.
    pub refused: Refused,
    /// Whether anything was received before, as far back as this control knows.
    pub ever: bool,
}

impl Watch {
    /// Looks. Returns the state before, where it is another now.
    pub fn look(&mut self, now: Moment, sight: Sight) -> Option<TunnelState> {
        let Some(before) = self.seen.replace(sight) else {
            self.since = now.unix;
            return None;
        };
        if before.received.packets != sight.received.packets {
            (self.last_received, self.asked) = (Some(now.unix), None);
        }
        let sent = sight.sent.packets.saturating_sub(before.sent.packets);
        if sent > 0 {
            self.last_sent = Some(now.unix);
            if before.received.packets == sight.received.packets {
                let fresh =
                    Asked { begun: now.up, last: now.up, looks: 0, packets: 0, refused: before.refused };
                let asked = self.asked.get_or_insert(fresh);
                (asked.last, asked.looks, asked.packets) = (now.up, asked.looks + 1, asked.packets + sent);
            }
        }
        if before.state == sight.state {
            return None;
        }
        // With other SAs, or another way, the question is asked anew.
        (self.since, self.asked) = (now.unix, None);
        Some(before.state)
    }

    /// The state as it was seen last; none before the first look.
    pub fn state(&self) -> Option<TunnelState> {
        self.seen.map(|sight| sight.state)
    }

    /// What its SAs refused, at the last look.
    pub fn refused(&self) -> Refused {
        self.seen.map(|sight| sight.refused).unwrap_or_default()
    }

    /// Packets that were sent since the last one was received.
    pub fn unanswered_packets(&self) -> u64 {
        self.asked.map_or(0, |asked| asked.packets)
    }

    /// Whether the tunnel is up, sends, and gets nothing back, for long enough to be told.
    pub fn unanswered(&self, now: Moment) -> Option<Unanswered> {
        let (asked, sight) = (self.asked?, self.seen?);
        let silent = now.up.saturating_sub(asked.begun);
        let told = sight.state == TunnelState::Up
            && asked.packets >= PACKETS
            && asked.looks >= LOOKS
            && silent >= SILENCE
            && now.up.saturating_sub(asked.last) <= ASKING;
        told.then(|| Unanswered {
            packets: asked.packets,
            seconds: silent.as_secs(),
            refused: sight.refused.since(asked.refused),
            ever: sight.received.packets > 0,
        })
    }
}

impl Unanswered {
    /// What is seen, and what it can mean.
    pub fn sentence(&self) -> String {
        let Unanswered { packets, seconds, refused, ever } = self;
        let span = crate::show::duration(*seconds);
        let seen = format!("{packets} packets sent, none received for {span}");
        let came = match (refused.auth_failed, refused.replay) {
            (0, 0) => {
                let before = if *ever { "" } else { ", nor before" };
                return format!(
                    "{seen}{before}: something on the way or the peer drops ESP in one direction, the peer has no way \
                     back for these addresses, or the traffic needs no answer (syslog, multicast, one-way video); \
                     compare `penstock show sa` with the counters of the peer"
                );
            }
            (0, replay) => format!("{replay} came and were replays or too late"),
            (failed, 0) => {
                format!("{failed} came and had a wrong tag, so the peer has other keys or they were changed")
            }
            (failed, replay) => format!("{failed} came with a wrong tag and {replay} as replays or too late"),
        };
        format!("{seen}, but {came}: see `penstock show sa`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(sent: u64, received: u64) -> Sight {
        let traffic = |packets| Traffic { packets, bytes: packets * 100 };
        let (sent, received) = (traffic(sent), traffic(received));
        Sight { state: TunnelState::Up, sent, received, refused: Refused::default() }
    }

    fn at(second: u64) -> Moment {
        Moment { up: Duration::from_secs(second), unix: 1_000_000 + second }
    }

    /// Looks once a second; `counters` says what was sent and received so far.
    fn watch(seconds: u64, counters: impl Fn(u64) -> (u64, u64)) -> (Watch, Moment) {
        let mut watch = Watch::default();
        for second in 0..=seconds {
            let (sent, received) = counters(second);
            assert_eq!(watch.look(at(second), sight(sent, received)), None);
        }
        (watch, at(seconds))
    }

    #[test]
    fn a_tunnel_that_gets_no_answer_is_told() {
        let (seen, now) = watch(42, |second| (second * 25, second.min(2) * 25));
        let told = seen.unanswered(now).expect("black-holed");
        assert_eq!((told.packets, told.seconds, told.ever), (1000, 39, true));
        assert!(
            told.sentence().starts_with("1000 packets sent, none received for 39 s: "),
            "{}",
            told.sentence()
        );
        assert_eq!((seen.last_sent, seen.last_received), (Some(1_000_042), Some(1_000_002)));
        let (never, now) = watch(30, |second| (second, 0));
        assert!(never.unanswered(now).expect("black-holed").sentence().contains("for 29 s, nor before: "));
    }

    #[test]
    fn what_proves_nothing_is_not_told() {
        let nothing = |(watch, now): (Watch, Moment)| assert_eq!(watch.unanswered(now), None);
        nothing(watch(300, |_| (1_000_000, 0)));
        // One burst at the end of a transfer.
        nothing(watch(50, |second| if second < 5 { (second, second) } else { (9000, 4) }));
        // An answer now and then, however much is sent.
        nothing(watch(300, |second| (second * 1000, second / 15)));
        // Too short, too few.
        nothing(watch(19, |second| (second * 1000, 0)));
        nothing(watch(40, |second| (second / 10, 0)));
        // It stopped asking.
        nothing(watch(200, |second| (second.min(100) * 10, 0)));
        // Another state in between.
        let (mut seen, _) = watch(42, |second| (second * 25, 0));
        let down = Sight { state: TunnelState::NoSa, ..sight(42 * 25, 0) };
        assert_eq!(seen.look(at(43), down), Some(TunnelState::Up));
        assert_eq!((seen.unanswered(at(43)), seen.since), (None, 1_000_043));
        assert_eq!(seen.look(at(44), sight(42 * 25, 0)), Some(TunnelState::NoSa));
        assert_eq!(seen.unanswered(at(44)), None);
    }

    #[test]
    fn what_was_refused_meanwhile_is_told() {
        let (mut seen, _) = watch(42, |second| (second * 25, 0));
        let refused = Refused { auth_failed: 7, replay: 0 };
        seen.look(at(43), Sight { refused, ..sight(43 * 25, 0) });
        let told = seen.unanswered(at(43)).expect("black-holed").sentence();
        assert!(told.contains("but 7 came and had a wrong tag"), "{told}");
    }
}
