//! Certificates of every kind that the table of wrong files names, made on the spot.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};

const DAY: i64 = 86_400;

/// Days from today, and an hour more, so that a slow test does not end up a day later.
fn params(name: &str, alternative: &[&str], days: (i64, i64)) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let at = |days: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs((now + days * DAY + 3600) as u64);
    let alternative: Vec<String> = alternative.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(alternative).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (at(days.0), at(days.1));
    params
}

fn ca(name: &str, days: (i64, i64)) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = params(name, &[], days);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key).expect("signed").pem();
    (pem, Issuer::new(params, key))
}

fn write(directory: &Path, name: &str, mode: u32, text: &str) {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode set");
}

/// Writes all of them to `directory`.
pub fn write_all(directory: &Path) {
    let (pem, issuer) = ca("lab CA", (-100, 1000));
    write(directory, "ca.pem", 0o644, &pem);
    write(directory, "old-ca.pem", 0o644, &ca("old CA", (-100, -3)).0);
    write(directory, "soon-ca.pem", 0o644, &ca("soon CA", (-100, 29)).0);
    for (file, name, alternative, days) in [
        ("gw", "gw-a", &["gw-a.example", "192.0.2.1"][..], (-1, 365)),
        ("gw-a", "gw-a", &["gw-a.example"], (-1, 365)),
        ("other", "other", &["gw-a.example"], (-1, 365)),
        ("expired", "expired", &["gw-a.example"], (-20, -10)),
        ("future", "future", &["gw-a.example"], (5, 365)),
        ("soon", "soon", &["gw-a.example"], (-20, 20)),
    ] {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(name, alternative, days).signed_by(&key, &issuer).expect("signed");
        write(directory, &format!("{file}.pem"), 0o644, &certificate.pem());
        write(directory, &format!("{file}.key"), 0o600, &key.serialize_pem());
        if file == "gw" {
            write(directory, "open.key.pem", 0o644, &key.serialize_pem());
            write(directory, "writable.pem", 0o666, &certificate.pem());
        }
    }
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2040, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).expect("signed").pem().expect("PEM");
    write(directory, "crl.pem", 0o644, &list);
}
