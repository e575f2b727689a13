//! IKEv2's parser: whatever bytes come, decoding ends without a panic, and what was decoded encodes to something that
//! decodes to the same (RFC 7296 section 3).
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_ike::message::{
    HEADER_BYTES, Header, PayloadType, decode_chain, encode_chain, find_encrypted, intersect,
};

fuzz_target!(|data: &[u8]| {
    let first = match Header::decode(data) {
        Ok(header) => {
            assert_eq!(Header::decode(&[&header.encode()[..], &data[HEADER_BYTES..]].concat()), Ok(header));
            let _ = find_encrypted(header.next, &data[HEADER_BYTES..]);
            chain(header.next, &data[HEADER_BYTES..]);
            return;
        }
        Err(_) => data.first().copied().unwrap_or(0),
    };
    chain(first.into(), data.get(1..).unwrap_or_default());
});

fn chain(first: PayloadType, bytes: &[u8]) {
    use penstock_ike::message::Payload;
    let Ok(payloads) = decode_chain(first, bytes) else { return };
    // Unknown payloads lose their content and foreign attributes their value: they are not sent again.
    let ours = |p: &Payload| match p {
        Payload::Unknown(_) => false,
        Payload::Sa(s) => s.iter().flat_map(|p| &p.transforms).all(|t| !t.foreign_attribute),
        _ => true,
    };
    let kept: Vec<Payload> = payloads.into_iter().filter(ours).collect();
    let (again, encoded) = encode_chain(&kept);
    assert_eq!(decode_chain(again, &encoded).as_ref(), Ok(&kept));
    for p in &kept {
        if let Payload::TsI(ts) | Payload::TsR(ts) = p {
            let same = intersect(ts, ts);
            assert!(ts.iter().all(|t| same.iter().any(|s| s.contains(t))));
        }
    }
}
