//! Certificates of every kind that the tests need, made on the spot.

use penstock_ike::auth::{LocalCertificate, TrustStore};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, SignatureAlgorithm,
    date_time_ymd,
};

pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
pub struct Wish<'a> {
    pub name: &'a str,
    pub algorithm: &'static SignatureAlgorithm,
    /// First and last year.
    pub years: (i32, i32),
    pub serial: u64,
    pub usage: Option<ExtendedKeyUsagePurpose>,
    pub is_ca: bool,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Wish {
            name: "gw.example",
            algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
            years: (2020, 2040),
            serial: 7,
            usage: None,
            is_ca: false,
        }
    }
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut p = CertificateParams::default();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        p.distinguished_name.push(DnType::CommonName, name);
        let pem = p.self_signed(&key).unwrap().pem();
        Ca { pem, issuer: Issuer::new(p, key) }
    }

    /// PEM of certificate and key.
    pub fn issue(&self, wish: &Wish<'_>) -> (String, String) {
        let key = KeyPair::generate_for(wish.algorithm).unwrap();
        let mut p = CertificateParams::new(vec![wish.name.to_string()]).unwrap();
        p.distinguished_name.push(DnType::OrganizationName, "lab");
        p.distinguished_name.push(DnType::CommonName, wish.name);
        p.not_before = date_time_ymd(wish.years.0, 1, 1);
        p.not_after = date_time_ymd(wish.years.1, 1, 1);
        p.serial_number = Some(SerialNumber::from(wish.serial));
        p.extended_key_usages = wish.usage.clone().into_iter().collect();
        if wish.is_ca {
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = p.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn local(&self, wish: &Wish<'_>) -> LocalCertificate {
        let (certificate, key) = self.issue(wish);
        LocalCertificate::new(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    /// A revocation list with one serial number, due for renewal in this year.
    pub fn revoke(&self, serial: u64, until: i32) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub fn trust(&self) -> TrustStore {
        TrustStore::new(&[self.pem.as_bytes()], &[]).unwrap()
    }

    pub fn trust_with(&self, crl: &str) -> TrustStore {
        TrustStore::new(&[self.pem.as_bytes()], &[crl.as_bytes()]).unwrap()
    }
}
