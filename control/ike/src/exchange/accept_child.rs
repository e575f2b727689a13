//! Child SAs that the peer asks for, in IKE_AUTH or CREATE_CHILD_SA, new or replacing one. Enters: a request. Leaves: the
//! answer, and an installed child SA. RFC 7296 sections 1.3.1, 1.3.3, 2.8, 2.9 and 2.25.1.

use super::create_child::Agreed;
use super::replace::AFTER_THE_PEER;
use super::{Payloads, Request, lower, nonce};
use crate::child::{ChildState, list, narrow};
use crate::crypto::choice::{answer_esp, choose_esp};
use crate::crypto::difference::explain_esp;
use crate::crypto::ke::SharedSecret;
use crate::crypto::{EspChoice, Method};
use crate::message::{
    Header, KeyExchangeData, Notify, NotifyType, Payload, Protocol, TrafficSelector, ranges,
};
use crate::output::EventKind;
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa, State};

/// Why an SA cannot have these selectors: more ranges than there is room for are never made fewer by taking wider ones.
pub(super) fn too_many(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
    most: usize,
) -> Option<Failure> {
    let most_of_both = ranges(local).max(ranges(remote));
    let text = || format!("{} to {}: {most_of_both} ranges, at most {most}", list(local), list(remote));
    (most_of_both > most).then(|| Failure::new(Reason::SelectorsTooMany, text()))
}

/// A child that we agreed to: payloads of the answer, and its inbound SPI.
pub(crate) struct AcceptedChild {
    pub payloads: Vec<Payload>,
    pub spi_in: u32,
}

impl IkeSa {
    pub fn on_create_child_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, payloads: &[Payload]) {
        let p = Payloads(payloads);
        let is_ike = p.sa().is_some_and(|s| s.first().is_some_and(|s| s.protocol == Protocol::Ike));
        if is_ike {
            return self.on_rekey_request(ctx, header, &p);
        }
        let rekeying = matches!(&self.pending, Some(x) if matches!(x.request, Request::Rekey(_) | Request::Followup(_) | Request::DeleteIke));
        if self.state != State::Up || rekeying || self.followup.is_some() {
            return self.refuse(ctx, header, NotifyType::TemporaryFailure);
        }
        let rekey = p.notify(NotifyType::RekeySa);
        let old = match rekey {
            None => None,
            Some(n) => match self.find_rekeyed(n) {
                Ok(spi) => Some(spi),
                Err(notify) => return self.respond(ctx, header, &[Payload::Notify(notify)]),
            },
        };
        match self.accept_child(ctx, &p, old, true) {
            Ok(accepted) => {
                self.respond(ctx, header, &accepted.payloads);
                self.finish_accept(ctx, accepted.spi_in, old);
            }
            Err((notify, failure)) => {
                self.respond(ctx, header, &[Payload::Notify(notify)]);
                if let Some(f) = failure {
                    self.event(ctx, EventKind::Failed, Some(f.clone()), "a child was refused");
                    old.into_iter().for_each(|old| self.rekey_refused(ctx, old, f.clone(), AFTER_THE_PEER));
                }
            }
        }
    }

    /// The child that a REKEY_SA names by the SPI that its sender receives on, or the refusal.
    fn find_rekeyed(&self, n: &Notify) -> Result<u32, Notify> {
        let spi = <[u8; 4]>::try_from(&n.spi[..]).map(u32::from_be_bytes).ok();
        match self.children.iter().find(|c| Some(c.spi_out) == spi) {
            None => {
                let (protocol, spi) = (n.protocol, n.spi.clone());
                Err(Notify { protocol, spi, kind: NotifyType::ChildSaNotFound, data: Vec::new() })
            }
            Some(c) if matches!(c.state, ChildState::Deleting | ChildState::Replaced) => {
                Err(Notify::new(NotifyType::TemporaryFailure, []))
            }
            Some(c) => Ok(c.spi_in),
        }
    }

    /// Agrees to a peer's child and installs its inbound half, before the answer leaves.
    pub fn accept_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        p: &Payloads<'_>,
        replaces: Option<u32>,
        own_keys: bool,
    ) -> Result<AcceptedChild, (Notify, Option<Failure>)> {
        let refuse = |kind, failure: Failure| Err((Notify::new(kind, []), Some(failure)));
        let malformed =
            || (Notify::new(NotifyType::InvalidSyntax, []), Some(Reason::MalformedMessage.into()));
        let connection = self.connection.clone().ok_or_else(malformed)?;
        let (Some(offer), Some(ts_i), Some(ts_r)) = (p.sa(), p.ts_i(), p.ts_r()) else {
            return Err(malformed());
        };
        // Protocols and ports are not enforced: what the peer would not take might be sealed.
        let whole = |ts: &[TrafficSelector]| ts.iter().filter(|t| t.is_whole()).copied().collect::<Vec<_>>();
        let Some((config, local_ts, remote_ts)) = narrow(&connection, &whole(ts_r), &whole(ts_i)) else {
            if narrow(&connection, ts_r, ts_i).is_some() {
                let text = format!("it offers {} to {}", list(ts_r), list(ts_i));
                return refuse(NotifyType::TsUnacceptable, Failure::new(Reason::SelectorsPorts, text));
            }
            let ours = connection
                .children
                .iter()
                .map(|c| format!("{} to {}", list(&c.local_ts), list(&c.remote_ts)));
            let ours = ours.collect::<Vec<_>>().join("; ");
            let text = format!("peer offers {} to {}, we allow {ours}", list(ts_r), list(ts_i));
            return refuse(NotifyType::TsUnacceptable, Failure::new(Reason::SelectorsMismatch, text));
        };
        if let Some(failure) = too_many(&local_ts, &remote_ts, ctx.settings.ranges) {
            return refuse(NotifyType::TsUnacceptable, failure);
        }
        let group = p.ke().and_then(|k| Method::from_id(k.method));
        let chosen = match own_keys {
            true => answer_esp(&config.esp, offer, group),
            false => choose_esp(&config.esp, offer, false),
        };
        let Some((esp, mut answer)) = chosen else {
            // With every key exchange left out it would do: so it is the key exchange.
            let only_pfs = own_keys && choose_esp(&config.esp, offer, false).is_some();
            let reason = if only_pfs { Reason::PfsMismatch } else { Reason::ChildProposalMismatch };
            let failure = Failure::new(reason, explain_esp(&config.esp, offer, own_keys));
            return refuse(NotifyType::NoProposalChosen, failure);
        };
        let (nonce_i, nonce_r) = match own_keys {
            true => (p.nonce().ok_or_else(malformed)?.to_vec(), nonce(ctx)),
            false => (self.salt.nonce_i.clone(), self.salt.nonce_r.clone()),
        };
        let (public, secrets) = self.answer_key_exchange(ctx, esp, p)?;
        let Some(spi_in) = ctx.spis.allocate() else {
            return refuse(NotifyType::NoAdditionalSas, Reason::SpisExhausted.into());
        };
        let Some(keys) = self.keys.as_ref().map(|k| k.child(esp, &nonce_i, &nonce_r, &secrets)) else {
            return Err(malformed());
        };
        let spi_out = answer.esp_spi().unwrap_or_default();
        answer.spi = spi_in.to_be_bytes().to_vec();
        let resource = p
            .notify(NotifyType::SaResourceInfo)
            .and_then(|n| n.data.first_chunk())
            .map(|b| u32::from_be_bytes(*b));
        let resource = resource.filter(|_| config.per_worker > 1);
        let mut payloads = vec![Payload::Sa(vec![answer])];
        if own_keys {
            payloads.push(Payload::Nonce(nonce_r.clone()));
            payloads.extend(public.map(Payload::Ke));
        }
        payloads.push(Payload::TsI(remote_ts.clone()));
        payloads.push(Payload::TsR(local_ts.clone()));
        if let Some(worker) = resource {
            payloads.push(Payload::Notify(Notify::new(NotifyType::SaResourceInfo, worker.to_be_bytes())));
        }
        let nonce = lower(&nonce_i, &nonce_r);
        self.install_child(
            ctx,
            Agreed {
                config,
                first: !own_keys,
                esp,
                spi_in,
                spi_out,
                local_ts,
                remote_ts,
                keys,
                ours: false,
                nonce,
                replaces,
                resource,
            },
        );
        Ok(AcceptedChild { payloads, spi_in })
    }

    /// PFS: our public value and the secret, or INVALID_KE_PAYLOAD with the group that was chosen.
    #[allow(clippy::type_complexity)]
    fn answer_key_exchange(
        &self,
        ctx: &mut Ctx<'_>,
        esp: EspChoice,
        p: &Payloads<'_>,
    ) -> Result<(Option<KeyExchangeData>, Vec<SharedSecret>), (Notify, Option<Failure>)> {
        let Some(group) = esp.pfs else { return Ok((None, Vec::new())) };
        match p.ke() {
            Some(ke) if ke.method == group.id() => match group.respond(&ke.data, ctx.rng) {
                Ok((data, secret)) => Ok((Some(KeyExchangeData { method: group.id(), data }), vec![secret])),
                Err(_) => Err((Notify::new(NotifyType::InvalidSyntax, []), Some(Reason::KeInvalid.into()))),
            },
            _ => Err((Notify::new(NotifyType::InvalidKePayload, group.id().to_be_bytes()), None)),
        }
    }

    /// After the answer left: a new child is sent with at once, a replacement when the peer is known to have it.
    pub fn finish_accept(&mut self, ctx: &mut Ctx<'_>, spi_in: u32, replaces: Option<u32>) {
        let Some(nonce) = self.children.iter().find(|c| c.spi_in == spi_in).map(|c| c.nonce.clone()) else {
            return;
        };
        if !self.children.iter().any(|c| Some(c.spi_in) == replaces) && ctx.tunnels.has_older(spi_in) {
            let until = ctx.now.at + ctx.settings.drain / crate::child::SWITCH_PART;
            let new = self.children.iter_mut().filter(|c| c.spi_in == spi_in);
            new.for_each(|c| c.switch_at = Some(until));
            return self.drop_duplicate(ctx, spi_in);
        }
        let Some(old) = self.children.iter_mut().find(|c| Some(c.spi_in) == replaces) else {
            ctx.tunnels.switch(ctx.out, spi_in, ctx.now.at + ctx.settings.drain);
            return self.drop_duplicate(ctx, spi_in);
        };
        if old.state == ChildState::Rekeying {
            old.replaced_by = Some((spi_in, nonce));
        } else {
            old.state = ChildState::Replaced;
        }
        let old = old.spi_in;
        if let Some(c) = self.children.iter_mut().find(|c| c.spi_in == spi_in) {
            c.awaits = Some(old);
        }
    }
}
