//! IKE_INTERMEDIATE with an additional key exchange. Enters: keys of IKE_SA_INIT. Leaves: keys that also depend on the
//! additional exchange, and the octets that AUTH covers. RFC 9242, RFC 9370 section 2.2.2.

use super::{Payloads, Request, refusal};
use crate::crypto::Method;
use crate::crypto::ke::Exchange;
use crate::message::{ExchangeType, Header, KeyExchangeData, NotifyType, Payload, PayloadType};
use crate::protect::intermediate_octets;
use crate::reason::{Failure, Reason};
use crate::sa::{Ctx, IkeSa};

impl IkeSa {
    /// Adds a message to IntAuth; with the keys that protect it, so before they change (RFC 9242 3.3.2).
    pub fn mix_intermediate(&mut self, header: Header, first: PayloadType, plain: &[u8]) {
        let (Some(keys), Some(choice)) = (&self.keys, self.choice) else { return };
        let octets = intermediate_octets(header, first, plain);
        let (key, chain) = match header.from_initiator {
            true => (&keys.p_i, &mut self.intermediate.0),
            false => (&keys.p_r, &mut self.intermediate.1),
        };
        *chain = choice.prf.mac(key, &[&chain[..], &octets]).to_vec();
    }

    /// IntAuth as AUTH covers it: empty without IKE_INTERMEDIATE.
    pub fn intermediate_auth(&self, auth_id: u32) -> Vec<u8> {
        if self.intermediate.0.is_empty() {
            return Vec::new();
        }
        [&self.intermediate.0[..], &self.intermediate.1, &auth_id.to_be_bytes()].concat()
    }

    pub fn send_intermediate(&mut self, ctx: &mut Ctx<'_>, method: Method) {
        let ke = method.start(ctx.rng);
        let payload = Payload::Ke(KeyExchangeData { method: method.id(), data: ke.public().to_vec() });
        self.request(ctx, ExchangeType::Intermediate, &[payload], Request::Intermediate(ke));
    }

    pub fn on_intermediate_request(&mut self, ctx: &mut Ctx<'_>, header: &Header, payloads: &[Payload]) {
        let method = self.choice.and_then(|c| c.additional).filter(|_| header.id == 1);
        let (Some(method), Some(ke)) = (method, Payloads(payloads).ke()) else {
            self.refuse(ctx, header, NotifyType::InvalidSyntax);
            return self
                .fail(ctx, Failure::new(Reason::MalformedMessage, "IKE_INTERMEDIATE was not negotiated"));
        };
        let answer = if ke.method == method.id() { method.respond(&ke.data, ctx.rng).ok() } else { None };
        let Some((data, secret)) = answer else {
            self.refuse(ctx, header, NotifyType::InvalidSyntax);
            return self.fail(ctx, Reason::KeInvalid.into());
        };
        self.respond(ctx, header, &[Payload::Ke(KeyExchangeData { method: method.id(), data })]);
        self.update_keys(ctx, &secret);
    }

    pub fn on_intermediate_response(&mut self, ctx: &mut Ctx<'_>, ke: Exchange, payloads: &[Payload]) {
        let p = Payloads(payloads);
        if let Some(n) = p.error() {
            return self.fail(ctx, refusal(n, false));
        }
        let secret = p.ke().filter(|k| k.method == ke.method().id()).and_then(|k| ke.finish(&k.data).ok());
        let Some(secret) = secret else { return self.fail(ctx, Reason::KeInvalid.into()) };
        self.update_keys(ctx, &secret);
        self.send_auth(ctx);
    }

    fn update_keys(&mut self, ctx: &mut Ctx<'_>, secret: &[u8]) {
        self.keys = self.keys.take().map(|k| k.updated(&self.salt, secret));
        self.export_keys(ctx);
    }
}
