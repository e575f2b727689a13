//! What is not supported is refused so that both ends know: MOBIKE (RFC 4555), redirection (RFC 5685), EAP (RFC 7296
//! section 2.16). Two endpoints; one of them is made to say what Penstock itself never says.

use super::Request;
use crate::message::{ExchangeType, Header, Notify, NotifyType, Payload, PayloadType};
use crate::reason::Reason;
use crate::testing::ends::{Ends, ME, PEER};
use std::time::Duration;

fn notify(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::new(kind, []))
}

/// `ME` has sent its IKE_AUTH request, and it is lost.
fn before_auth() -> Ends {
    let mut ends = Ends::new();
    ends.initiate();
    ends.one_way(ME);
    ends.one_way(PEER);
    ends.take(ME);
    ends
}

/// What becomes of `ME` where the answer to IKE_AUTH is this payload.
fn auth_answered_with(payload: Payload) -> Ends {
    let mut ends = before_auth();
    let sa = ends.sa(PEER);
    let (spi_i, spi_r, next, exchange) = (sa.spi_i, sa.spi_r, PayloadType::None, ExchangeType::Auth);
    let header =
        Header { spi_i, spi_r, next, exchange, from_initiator: true, response: false, id: 1, length: 0 };
    ends.make(PEER, |sa, ctx| sa.respond(ctx, &header, &[payload]));
    ends.one_way(PEER);
    ends
}

#[test]
fn an_update_of_addresses_is_refused_and_nothing_moves() {
    let mut ends = Ends::new();
    ends.connect();
    let before = (ends.sa(PEER).path, ends.up());
    let sent = [notify(NotifyType::MobikeSupported), notify(NotifyType::UpdateSaAddresses)];
    ends.make(ME, |sa, ctx| sa.request(ctx, ExchangeType::Informational, &sent, Request::Probe));
    let answers = ends.deliver();
    let kinds: Vec<NotifyType> =
        answers.iter().filter_map(|p| if let Payload::Notify(n) = p { Some(n.kind) } else { None }).collect();
    assert_eq!(kinds, [NotifyType::UnacceptableAddresses], "and MOBIKE_SUPPORTED is not said back");
    assert_eq!((ends.sa(PEER).path, ends.up()), (before.0, [true, true]));
    assert_eq!(ends.reasons(PEER), [Reason::MobikeRefused]);
    assert_eq!(
        ends.why(PEER).text,
        "site is up, but the peer wants to change its address by MOBIKE, which is not supported: it was refused, and the \
         addresses stay"
    );
}

#[test]
fn mobike_is_never_announced() {
    let mut ends = Ends::new();
    ends.connect();
    assert!(ends.seen.len() >= 3, "{} messages", ends.seen.len());
    for payload in ends.seen.iter().flatten() {
        if let Payload::Notify(n) = payload {
            let foreign = [NotifyType::MobikeSupported, NotifyType::RedirectSupported];
            assert!(!foreign.contains(&n.kind), "{}", n.kind);
        }
    }
}

#[test]
fn a_redirection_is_refused_at_every_step() {
    // In the answer to IKE_SA_INIT.
    let mut ends = Ends::new();
    ends.initiate();
    let init = ends.take(ME);
    let header = Header::decode(&init[0].bytes).unwrap();
    let redirect = Notify::new(NotifyType::Redirect, [1, 4, 192, 0, 2, 9]);
    let bytes = super::unprotected_notify(&header, redirect);
    ends.give(ME, bytes);
    assert_eq!(ends.reasons(ME), [], "anybody may have sent this: there may be a better answer");
    ends.pass(Duration::from_secs(1));
    assert!(ends.reasons(ME).contains(&Reason::RedirectRefused), "{:?}", ends.reasons(ME));
    assert_eq!(ends.up(), [false, false]);

    // In the answer to IKE_AUTH.
    let ends = auth_answered_with(notify(NotifyType::Redirect));
    assert_eq!(ends.reasons(ME), [Reason::RedirectRefused]);
    assert_eq!(ends.up(), [false, false]);

    // When everything is up: it stays up.
    let mut ends = Ends::new();
    ends.connect();
    let sent = [notify(NotifyType::Redirect)];
    ends.make(PEER, |sa, ctx| sa.request(ctx, ExchangeType::Informational, &sent, Request::Probe));
    ends.deliver();
    assert_eq!((ends.reasons(ME), ends.up()), (vec![Reason::RedirectRefused], [true, true]));
}

#[test]
fn eap_is_refused_by_either_role() {
    // The responder wants it.
    let ends = auth_answered_with(Payload::Eap(vec![1, 1, 0, 5, 1]));
    assert_eq!(ends.reasons(ME), [Reason::EapRefused]);

    // The initiator wants it: an IKE_AUTH request without AUTH.
    let mut ends = before_auth();
    ends.make(ME, |sa, ctx| {
        (sa.pending, sa.request_id) = (None, 1);
        let id = sa.connection.as_ref().unwrap().local_id.to_wire();
        sa.request(ctx, ExchangeType::Auth, &[Payload::IdI(id)], Request::Auth(None));
    });
    ends.one_way(ME);
    assert_eq!(ends.reasons(PEER), [Reason::EapRefused]);
    let answer = ends.open(PEER);
    assert_eq!(answer, [notify(NotifyType::AuthenticationFailed)]);
    ends.one_way(PEER);
    assert_eq!((ends.reasons(ME), ends.up()), (vec![Reason::AuthenticationRefused], [false, false]));
}
