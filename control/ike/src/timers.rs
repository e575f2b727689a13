//! An IKE SA and time. Enters: the present moment. Leaves: retransmissions, rekeys, probes, keepalives, the end of what
//! is too old. RFC 7296 sections 2.1, 2.4, 2.8 and 2.23.

use crate::child::{Child, ChildState, soft_limit};
use crate::config::Settings;
use crate::exchange::{Request, Task};
use crate::message::ExchangeType;
use crate::output::{Datagram, Output};
use crate::reason::Reason;
use crate::sa::{Ctx, IkeSa, Path, State};
use crate::time::Instant;

/// Transmissions on an IKE SA that a newer one of the same peer has made doubtful: six seconds, as things stand by default.
const SUPERSEDED: u32 = 4;

impl IkeSa {
    /// When [`IkeSa::tick`] has something to do.
    pub fn next_timeout(&self, settings: &Settings) -> Instant {
        let mut at = self.hard_at;
        let mut sooner = |t: Instant| at = at.min(t);
        self.reap_at.into_iter().for_each(&mut sooner);
        match &self.pending {
            Some(p) => sooner(p.next_at),
            None if self.contested => {}
            None => {
                let promised = self.followup.as_ref().map_or(Instant::default(), |f| f.until);
                self.tasks.iter().for_each(|t| sooner(t.not_before.max(promised)));
            }
        }
        if self.state == State::HalfOpen {
            sooner(self.created + settings.half_open_timeout);
        }
        if self.state == State::Up {
            sooner(self.soft_at);
            self.children.iter().for_each(|c| {
                sooner(c.hard_at);
                c.switch_at.into_iter().for_each(&mut sooner);
                if c.state == ChildState::Live {
                    sooner(c.soft_at);
                }
            });
            if let (Some(dpd), None, false) =
                (self.connection.as_ref().and_then(|c| c.dpd), &self.pending, self.contested)
            {
                sooner(self.heard + dpd);
            }
            if self.nat.0 {
                sooner(self.spoke + settings.keepalive);
            }
        }
        at
    }

    pub fn tick(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.at;
        if self.reap_at.is_some_and(|t| t <= now) {
            return self.fail(ctx, Reason::Replaced.into());
        }
        if self.state == State::HalfOpen && self.created + ctx.settings.half_open_timeout <= now {
            return self.fail(ctx, Reason::NegotiationTimeout.into());
        }
        if self.hard_at <= now {
            return self.fail(ctx, Reason::LifetimeExpired.into());
        }
        if self.pending.as_ref().is_some_and(|p| p.next_at <= now) {
            self.retransmit(ctx);
        }
        if self.state == State::Up {
            self.tick_up(ctx);
        }
        self.next_task(ctx);
    }

    fn retransmit(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(failure) = self.doubtful.take() {
            return self.fail(ctx, failure);
        }
        let Some(pending) = &mut self.pending else { return };
        let most = if self.superseded { SUPERSEDED } else { u32::MAX };
        if pending.sent >= ctx.settings.transmissions.min(most) {
            let reason = match (&pending.request, self.path.encapsulated) {
                (Request::Init(_), _) => Reason::PeerUnreachable,
                (Request::Auth(_) | Request::Intermediate(_), true) => Reason::PeerUnreachable4500,
                _ => Reason::PeerUnresponsive,
            };
            return self.fail(ctx, reason.into());
        }
        pending.next_at = ctx.now.at + ctx.settings.wait(pending.sent);
        pending.sent += 1;
        let datagrams = pending.datagrams.clone();
        self.transmit(ctx, &datagrams);
    }

    fn tick_up(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.at;
        if self.soft_at <= now {
            self.soft_at = self.hard_at;
            self.queue(Task::rekey_ike(now));
        }
        self.switch_children(ctx, |c| c.switch_at.is_some_and(|t| t <= now));
        let expired: Vec<u32> = self.children.iter().filter(|c| c.hard_at <= now).map(|c| c.spi_in).collect();
        expired.into_iter().for_each(|spi| self.expire_child(ctx, spi));
        let soft = |c: &&mut Child| c.state == ChildState::Live && c.soft_at <= now;
        let mut due = Vec::new();
        for c in self.children.iter_mut().filter(soft) {
            c.soft_at = c.hard_at;
            due.push(c.spi_in);
        }
        due.into_iter().for_each(|spi| self.queue(Task::rekey_child(now, spi)));
        let dpd = self.connection.as_ref().and_then(|c| c.dpd);
        if self.pending.is_none() && !self.contested && dpd.is_some_and(|d| self.heard + d <= now) {
            self.request(ctx, ExchangeType::Informational, &[], Request::Probe);
        }
        if self.nat.0 && self.spoke + ctx.settings.keepalive <= now {
            self.spoke = now;
            let Path { local, remote, encapsulated } = self.path;
            ctx.out.push(Output::Send(Datagram { local, remote, encapsulated, bytes: vec![0xff] }));
        }
    }

    /// Draws the limits of a new IKE SA.
    pub fn start_lifetime(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.at;
        self.established = now;
        if let Some(lifetime) = self.connection.as_ref().map(|c| c.lifetime) {
            self.soft_at = soft_limit(&lifetime, now, ctx.rng);
            self.hard_at = now + lifetime.hard;
        }
    }
}
