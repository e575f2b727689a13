//! What `why` adds: the drops of a tunnel by reason, and what a silence may come from that nobody tells. A name and an
//! answer enter, the answer with more lines leaves.

use penstock_tables::{TunnelDrops, Verdict};

use crate::api::types::{Answer, Response};
use crate::gateway::Gateway;

/// Drops that come and go with the SA and the way to the peer: the answer itself speaks of those.
const PASSING: [Verdict; 5] =
    [Verdict::NoSa, Verdict::SaOrphaned, Verdict::NoRoute, Verdict::NoNeighbour, Verdict::PortDown];

impl Gateway {
    /// Adds to what `why` says of a tunnel that is up.
    pub(crate) fn with_losses(&self, name: &str, response: Response) -> Response {
        let (Response::Ok(Answer::Why(mut why)), Some(live), Some(state)) =
            (response.clone(), self.tunnels.get(name), &self.state)
        else {
            return response;
        };
        if why.up {
            let slots = live.children().map(|child| self.tables.tunnel_drops(child.slot, state));
            let counts: Vec<_> = slots.flat_map(|drops| drops.each().collect::<Vec<_>>()).collect();
            why.text += &words(&TunnelDrops::from_counts(counts));
            if live.watch.unanswered(self.moment()).is_some() {
                why.text += &format!(
                    "\nif small packets pass and large ones do not, a link on the way takes less than {} octets: ICMP \
                     \"fragmentation needed\" for ESP has no effect here, so set `mtu` of the tunnel",
                    live.outer_mtu()
                );
            }
        }
        Response::Ok(Answer::Why(why))
    }
}

/// The reasons with the most packets first.
fn words(drops: &TunnelDrops) -> String {
    let mut lost: Vec<(Verdict, u64)> =
        drops.each().filter(|(verdict, count)| *count > 0 && !PASSING.contains(verdict)).collect();
    if lost.is_empty() {
        return String::new();
    }
    lost.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let list: Vec<String> =
        lost.iter().map(|(verdict, count)| format!("{count} {}", verdict.name())).collect();
    let mut text = format!("\ndropped: {}", list.join(", "));
    if drops.of(Verdict::AuthFailed) > 0 {
        text += "\nauth_failed beside good packets: forged ones, or with ESN old ones sent again; the tunnel is not harmed";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_told_by_their_weight_and_the_passing_ones_are_not() {
        let drops = |all: &[(Verdict, u64)]| TunnelDrops::from_counts(all.iter().copied());
        assert_eq!(words(&drops(&[(Verdict::NoSa, 7)])), "");
        let text = words(&drops(&[(Verdict::TooOld, 3), (Verdict::NoSa, 7), (Verdict::SelectorInbound, 12)]));
        assert_eq!(text, "\ndropped: 12 selector_inbound, 3 too_old");
        assert!(words(&drops(&[(Verdict::AuthFailed, 1)])).contains("with ESN old ones sent again"));
    }
}
