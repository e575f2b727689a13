//! INFORMATIONAL: deletes, probes, late errors. Enters: tasks and requests. Leaves: closed SAs on both ends.
//! RFC 7296 sections 1.4, 2.4 and 2.25.

use super::{Payloads, Request, Task, What, refusal};
use crate::child::ChildState;
use crate::config::Start;
use crate::message::{ExchangeType, Header, Notify, NotifyType, Payload, Protocol};
use crate::output::EventKind;
use crate::reason::Reason;
use crate::sa::{Ctx, IkeSa, State};
use std::time::Duration;

/// A child that the peer deleted and that ought to exist is asked for again after this.
const RECREATE: Duration = Duration::from_secs(1);

impl IkeSa {
    /// Deletes a child, and with it all others that wait for deletion.
    pub fn delete_children(&mut self, ctx: &mut Ctx<'_>, spi_in: u32) {
        let mut spis = Vec::new();
        for c in self
            .children
            .iter_mut()
            .filter(|c| c.spi_in == spi_in || (c.state == ChildState::Deleting && c.unconfirmed.is_none()))
        {
            c.state = ChildState::Deleting;
            spis.push(c.spi_in);
        }
        if spis.is_empty() {
            return;
        }
        self.tasks.retain(|t| !matches!(t.what, What::DeleteChild(s) if spis.contains(&s)));
        let wire = spis.iter().map(|s| s.to_be_bytes().to_vec()).collect();
        let delete = Payload::Delete { protocol: Protocol::Esp, spis: wire };
        self.request(ctx, ExchangeType::Informational, &[delete], Request::DeleteChildren(spis));
    }

    pub fn on_delete_children_response(&mut self, ctx: &mut Ctx<'_>, spis: &[u32]) {
        spis.iter().for_each(|s| self.remove_child(ctx, *s, Reason::DeletedByOperator, true));
    }

    /// Deletes the IKE SA and everything in it.
    pub fn delete_ike(&mut self, ctx: &mut Ctx<'_>, reason: Reason) {
        let was_up = self.state == State::Up;
        self.drop_children(ctx, reason, true);
        self.state = State::Closing;
        if was_up {
            let text = self.peer_text();
            self.event(ctx, EventKind::IkeDown, Some(reason.into()), text);
            if let Some(name) = self.name() {
                ctx.effects.ended.push((name, reason.into()));
            }
        }
        let delete = Payload::Delete { protocol: Protocol::Ike, spis: Vec::new() };
        self.request(ctx, ExchangeType::Informational, &[delete], Request::DeleteIke);
    }

    /// The peer confirmed the deletion.
    pub fn on_deleted(&mut self, ctx: &mut Ctx<'_>) {
        self.drop_children(ctx, Reason::DeletedByOperator, true);
        self.state = State::Dead;
    }

    pub fn on_informational_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, payloads: &[Payload]) {
        let p = Payloads(payloads);
        let deletes = payloads.iter().filter_map(|x| match x {
            Payload::Delete { protocol, spis } => Some((*protocol, spis)),
            _ => None,
        });
        let (mut ike, mut ours) = (false, Vec::new());
        for (protocol, spis) in deletes {
            match protocol {
                Protocol::Ike => ike = true,
                Protocol::Esp => spis.iter().for_each(|s| ours.extend(self.peer_deletes(ctx, s))),
                _ => {}
            }
        }
        let failed = p.notify(NotifyType::AuthenticationFailed).map(|n| refusal(n, false));
        let mut answer = Vec::new();
        if !ours.is_empty() && !ike {
            let spis = ours.iter().map(|s: &u32| s.to_be_bytes().to_vec()).collect();
            answer.push(Payload::Delete { protocol: Protocol::Esp, spis });
        }
        self.refuse_wishes(ctx, &p, &mut answer);
        self.respond(ctx, header, &answer);
        if ike || failed.is_some() {
            return self.peer_deletes_ike(ctx, failed.unwrap_or(Reason::DeletedByPeer.into()));
        }
        if !ours.is_empty() {
            self.recreate(ctx);
        }
    }

    /// What is not supported: other addresses by MOBIKE (RFC 4555 3.5), and another gateway (RFC 5685 5), which has no answer of
    /// its own. Everything stays as it is.
    fn refuse_wishes(&mut self, ctx: &mut Ctx<'_>, p: &Payloads<'_>, answer: &mut Vec<Payload>) {
        if p.notify(NotifyType::UpdateSaAddresses).is_some() {
            answer.push(Payload::Notify(Notify::new(NotifyType::UnacceptableAddresses, [])));
            self.event(ctx, EventKind::Failed, Some(Reason::MobikeRefused.into()), self.peer_text());
        }
        if p.notify(NotifyType::Redirect).is_some() {
            self.event(ctx, EventKind::Failed, Some(Reason::RedirectRefused.into()), self.peer_text());
        }
    }

    /// The peer deletes the child that it receives on this SPI; gives our SPI for the answer unless we are deleting it
    /// ourselves (RFC 7296 1.4.1).
    fn peer_deletes(&mut self, ctx: &mut Ctx<'_>, spi: &[u8]) -> Option<u32> {
        let spi_out = u32::from_be_bytes(spi.try_into().ok()?);
        let child = self.children.iter().find(|c| c.spi_out == spi_out)?;
        let (spi_in, state) = (child.spi_in, child.state);
        if state == ChildState::Deleting {
            // If our own request is not out yet it need not go: this is the deletion.
            let sent = matches!(&self.pending, Some(p) if matches!(&p.request, Request::DeleteChildren(s) if s.contains(&spi_in)));
            if sent {
                return None;
            }
            self.tasks.retain(|t| t.what != What::DeleteChild(spi_in));
        }
        let reason = if state == ChildState::Replaced || child.replaced_by.is_some() {
            Reason::Replaced
        } else {
            Reason::DeletedByPeer
        };
        if reason == Reason::Replaced
            && let Some(c) = self.children.iter_mut().find(|c| c.spi_in == spi_in)
        {
            c.closing = Some(reason);
        }
        if let (Reason::Replaced, Some(Request::Child(offer))) =
            (reason, self.pending.as_mut().map(|p| &mut p.request))
        {
            offer.superseded |= offer.replaces == Some(spi_in);
        }
        self.remove_child(ctx, spi_in, reason, true);
        Some(spi_in)
    }

    /// Asks again for children that ought to exist at all times.
    pub fn recreate(&mut self, ctx: &mut Ctx<'_>) {
        let Some(connection) = self.connection.clone() else { return };
        for c in connection.children.iter().filter(|c| c.start == Start::Now) {
            self.want_child(ctx, &c.name, RECREATE);
        }
    }

    fn peer_deletes_ike(&mut self, ctx: &mut Ctx<'_>, mut failure: crate::Failure) {
        // The peer finished a rekey of its own: ours is forgotten (RFC 7296 2.25.2).
        if let Some((spi, _)) = self.replaced_by.take() {
            self.hand_over(ctx, spi);
        }
        let drain = failure.reason == Reason::DeletedByPeer;
        if drain && self.is_superfluous(ctx) {
            failure = Reason::Replaced.into();
        }
        let reason = failure.reason;
        self.drop_children(ctx, reason, drain);
        self.fail(ctx, failure);
    }

    /// A child reached its hard limit.
    pub fn expire_child(&mut self, ctx: &mut Ctx<'_>, spi_in: u32) {
        let Some(c) = self.children.iter_mut().find(|c| c.spi_in == spi_in) else { return };
        // Whatever happens to the exchange that handles it, it does not come here again before that has ended.
        c.hard_at = c.hard_at + Duration::from_secs(86_400);
        match c.state {
            ChildState::Replaced => {
                c.closing = Some(Reason::Replaced);
                self.remove_child(ctx, spi_in, Reason::Replaced, true);
            }
            ChildState::Deleting => {}
            ChildState::Live | ChildState::Rekeying => {
                c.state = ChildState::Deleting;
                c.closing = Some(Reason::LifetimeExpired);
                let name = c.config.name.clone();
                self.queue(Task::new(ctx.now.at, What::DeleteChild(spi_in)));
                if self
                    .connection
                    .iter()
                    .flat_map(|c| &c.children)
                    .any(|c| c.name == name && c.start == Start::Now)
                {
                    self.want_child(ctx, &name, Duration::ZERO);
                }
            }
        }
    }
}
