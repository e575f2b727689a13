//! Datagrams from the two sockets. Enters: UDP payloads. Leaves: the IKE SA that each belongs to, or a stateless answer:
//! cookies under load, unprotected refusals. RFC 7296 sections 2.5, 2.6 and 2.21.1.

use crate::endpoint::Endpoint;
use crate::exchange::{Acceptance, accept, unprotected_notify};
use crate::message::{
    ExchangeType, HEADER_BYTES, Header, Notify, NotifyType, Payload, WireError, decode_chain,
};
use crate::nat;
use crate::output::{Datagram, EventKind, Output, Outputs, SpiSource};
use crate::reason::{Failure, Reason};
use crate::sa::{Path, State};
use crate::time::Now;
use std::time::Duration;

/// The cookie secret changes this often; the last two are accepted.
const COOKIE_LIFETIME: Duration = Duration::from_secs(60);
/// Unprotected refusals a second: enough for people, useless for reflection.
const REFUSALS_PER_SECOND: u32 = 100;

impl Endpoint {
    /// A datagram from one of the two sockets.
    pub fn handle(&mut self, now: Now, datagram: &Datagram, spis: &mut dyn SpiSource, out: &mut Outputs) {
        let path =
            Path { local: datagram.local, remote: datagram.remote, encapsulated: datagram.encapsulated };
        let bytes = match (datagram.encapsulated, &datagram.bytes[..]) {
            (true, [0, 0, 0, 0, rest @ ..]) => rest,
            // A keepalive, or ESP that should not have come here.
            (true, _) => return,
            (false, bytes) => bytes,
        };
        let header = match Header::decode(bytes) {
            Ok(h) => h,
            Err(WireError::Version(v)) => return self.on_version(now, v, bytes, path, out),
            Err(_) => return,
        };
        match (header.exchange, header.response) {
            (ExchangeType::Init, false) => self.on_init(now, &header, bytes, path, spis, out),
            (ExchangeType::Init, true) => {
                let spi = header.spi_i;
                self.with_sa(now, spi, spis, out, |sa, ctx| {
                    if sa.initiator {
                        sa.on_init_response(ctx, &header, bytes);
                    }
                });
            }
            _ => {
                let spi = if header.from_initiator { header.spi_r } else { header.spi_i };
                self.with_sa(now, spi, spis, out, |sa, ctx| {
                    if (sa.spi_i, sa.spi_r) == (header.spi_i, header.spi_r) {
                        sa.on_protected(ctx, header, bytes, path);
                    }
                });
            }
        }
    }

    /// A peer that does not speak IKEv2 (RFC 7296 2.5).
    fn on_version(&mut self, now: Now, version: u8, bytes: &[u8], path: Path, out: &mut Outputs) {
        let from = self.connections.by_address(path.local.ip(), path.remote.ip());
        let request = bytes.get(19).is_some_and(|f| f & 0x20 == 0);
        let (true, true, Some(head)) = (self.may_refuse(now), request, bytes.get(..HEADER_BYTES)) else {
            return;
        };
        let mut plain = head.to_vec();
        plain[17] = 0x20;
        plain[24..].copy_from_slice(&(HEADER_BYTES as u32).to_be_bytes());
        if let (Ok(header), true) = (Header::decode(&plain), version > 2) {
            let notify = Notify::new(NotifyType::InvalidMajorVersion, []);
            self.send(path, unprotected_notify(&header, notify), out);
        }
        if let Some(c) = from.first() {
            let failure = Failure::new(Reason::VersionMismatch, format!("it speaks version {version}"));
            self.note(
                now,
                Some(c.name.clone()),
                EventKind::Failed,
                Some(failure),
                path.remote.to_string(),
                out,
            );
        }
    }

    fn on_init(
        &mut self,
        now: Now,
        header: &Header,
        bytes: &[u8],
        path: Path,
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        if let Some(&spi) = self.half_open.get(&(path.remote, header.spi_i)) {
            return self.with_sa(now, spi, spis, out, |sa, ctx| {
                if sa.state == State::HalfOpen && sa.init.0 == bytes && sa.expected_id == 1 {
                    let answer = sa.init.1.clone();
                    sa.transmit(ctx, &[answer]);
                }
            });
        }
        if header.spi_r != 0 || header.id != 0 || !header.from_initiator {
            return;
        }
        let payloads = match decode_chain(header.next, &bytes[HEADER_BYTES..]) {
            Ok(p) => p,
            Err(e) => return self.refuse_init(now, header, path, e, out),
        };
        let open = self.half_open.len();
        if open >= self.settings.cookie_threshold && !self.has_cookie(now, header, path, &payloads) {
            let Some(nonce) =
                payloads.iter().find_map(|p| if let Payload::Nonce(n) = p { Some(n) } else { None })
            else {
                return;
            };
            let data =
                nat::cookie(&self.cookie.secrets[0], self.cookie.version, nonce, path.remote, header.spi_i);
            return self.send(path, unprotected_notify(header, Notify::new(NotifyType::Cookie, data)), out);
        }
        if open >= self.settings.max_half_open {
            *self.stray.entry(Reason::TooManyHalfOpen).or_default() += 1;
            return;
        }
        let mut ctx = self.context(now, spis, out);
        match accept(&mut ctx, header, bytes, &payloads, path) {
            Acceptance::Sa(sa) => {
                let from = out.len();
                self.half_open.insert((path.remote, header.spi_i), sa.local_spi());
                self.put(*sa);
                self.record(from, out);
            }
            Acceptance::Refused(message, failure) => {
                let key_exchange_only = failure.is_none();
                if !key_exchange_only && !self.may_refuse(now) {
                    return;
                }
                self.send(path, message, out);
                if let Some(failure) = failure {
                    let known = self.connections.by_address(path.local.ip(), path.remote.ip());
                    let name = known.first().map(|c| c.name.clone());
                    self.note(
                        now,
                        name,
                        EventKind::Failed,
                        Some(failure),
                        format!("peer at {}", path.remote),
                        out,
                    );
                }
            }
        }
    }

    fn refuse_init(&mut self, now: Now, header: &Header, path: Path, error: WireError, out: &mut Outputs) {
        if self.may_refuse(now) {
            let notify = match error {
                WireError::UnknownCritical(n) => Notify::new(NotifyType::UnsupportedCriticalPayload, [n]),
                _ => Notify::new(NotifyType::InvalidSyntax, []),
            };
            self.send(path, unprotected_notify(header, notify), out);
        }
    }

    /// Whether the request returns one of our cookies; changes the secret when its time is over.
    fn has_cookie(&mut self, now: Now, header: &Header, path: Path, payloads: &[Payload]) -> bool {
        if now.at.since(self.cookie.changed) >= COOKIE_LIFETIME {
            self.cookie.secrets[1] = self.cookie.secrets[0];
            self.rng.fill_bytes(&mut self.cookie.secrets[0]);
            (self.cookie.version, self.cookie.changed) = (self.cookie.version.wrapping_add(1), now.at);
        }
        let notify = payloads.iter().find_map(|p| match p {
            Payload::Notify(n) if n.kind == NotifyType::Cookie => Some(&n.data),
            _ => None,
        });
        let nonce = payloads.iter().find_map(|p| if let Payload::Nonce(n) = p { Some(n) } else { None });
        let (Some(cookie), Some(nonce)) = (notify, nonce) else { return false };
        let version = self.cookie.version;
        let current =
            [(version, &self.cookie.secrets[0]), (version.wrapping_sub(1), &self.cookie.secrets[1])];
        current.iter().any(|(v, s)| {
            let expected = nat::cookie(&s[..], *v, nonce, path.remote, header.spi_i);
            subtle::ConstantTimeEq::ct_eq(&expected[..], &cookie[..]).into()
        })
    }

    fn may_refuse(&mut self, now: Now) -> bool {
        let second = now.at.0.as_secs();
        if self.refusals.0 != second {
            self.refusals = (second, 0);
        }
        self.refusals.1 += 1;
        self.refusals.1 <= REFUSALS_PER_SECOND
    }

    fn send(&self, path: Path, message: Vec<u8>, out: &mut Outputs) {
        let Path { local, remote, encapsulated } = path;
        let bytes = if encapsulated { [&[0; 4], &message[..]].concat() } else { message };
        out.push(Output::Send(Datagram { local, remote, encapsulated, bytes }));
    }

    /// A message as if it had been authentic: what lies behind the encryption is open to fuzzing by this alone. `spi` is
    /// one of [`Endpoint::status`], `next` the type of the first payload in `plain`; message IDs are made to fit.
    #[cfg(fuzzing)]
    #[allow(clippy::too_many_arguments)]
    pub fn handle_plain(
        &mut self,
        now: Now,
        spi: u64,
        (exchange, response, next): (u8, bool, u8),
        plain: &[u8],
        spis: &mut dyn SpiSource,
        out: &mut Outputs,
    ) {
        self.with_sa(now, spi, spis, out, |sa, ctx| {
            let id = match (response, &sa.pending) {
                (true, Some(p)) => p.id,
                (true, None) => return,
                (false, _) => sa.expected_id,
            };
            let header = Header {
                spi_i: sa.spi_i,
                spi_r: sa.spi_r,
                next: crate::message::PayloadType::Encrypted,
                exchange: exchange.into(),
                from_initiator: !sa.initiator,
                response,
                id,
                length: 0,
            };
            if sa.state != State::Connecting || response {
                sa.on_plain(ctx, header, next.into(), plain, sa.path);
            }
        });
    }
}
