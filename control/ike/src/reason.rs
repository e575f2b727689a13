//! Why something failed or ended: stable codes for metrics and scripts, and a sentence for people. The codes never
//! change their meaning; new ones are added at the end.

macro_rules! reasons {
    ($($name:ident, $code:literal, $text:literal;)*) => {
        /// A stable reason. [`Reason::code`] is what metrics and scripts see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        pub enum Reason { $($name,)* }

        impl Reason {
            /// Every reason, in the order of definition.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable code.
            pub fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            /// One sentence for an operator.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    PeerUnreachable, "peer-unreachable", "the peer does not answer at all: check its address, routing, and UDP 500 in firewalls";
    PeerUnreachable4500, "peer-unreachable-4500", "the peer answers on UDP 500 but not on UDP 4500: a firewall or NAT on the way blocks UDP 4500";
    PeerUnresponsive, "peer-unresponsive", "the peer was up and has stopped answering";
    IkeProposalMismatch, "ike-proposal-mismatch", "no common IKE proposal";
    IkeProposalRefused, "ike-proposal-refused", "the peer refuses all our IKE proposals, or knows no tunnel from our address; its log says which";
    KeGroupRefused, "ke-group-refused", "the peer wants a key exchange that we do not allow";
    KeInvalid, "ke-invalid", "the peer's public key exchange value is not valid";
    ChildProposalMismatch, "child-proposal-mismatch", "no common ESP proposal";
    ChildProposalRefused, "child-proposal-refused", "the peer refuses all our ESP proposals; compare cipher, PFS group and ESN on both ends";
    SelectorsMismatch, "selectors-mismatch", "the peer's traffic selectors have nothing in common with ours";
    SelectorsRefused, "selectors-refused", "the peer refuses our traffic selectors; compare both ends' local and remote networks";
    SelectorsTooMany, "selectors-too-many", "the traffic selectors have more ranges of addresses than a tunnel holds: use wider or fewer networks";
    SinglePairRequired, "single-pair-required", "the peer takes only one pair of networks per child; each pair is asked for by itself";
    PeerIdentityMismatch, "peer-identity-mismatch", "the peer calls itself something else than configured";
    PeerIdentityUnknown, "peer-identity-unknown", "no tunnel is configured for the identity that the peer presents";
    LocalIdentityMismatch, "local-identity-mismatch", "the peer asks for an identity that is not ours";
    PskMismatch, "psk-mismatch", "the pre-shared keys of the two ends differ";
    SignatureInvalid, "signature-invalid", "the peer's signature does not verify with its certificate";
    SignatureAlgorithmRefused, "signature-algorithm-refused", "the peer signs with an algorithm that is not allowed";
    NoCommonSignatureHash, "no-common-signature-hash", "the peer announces no hash that our key may sign with";
    AuthenticationRefused, "authentication-refused", "the peer refuses our identity or our proof of it: compare identities and secrets, its log says which";
    AuthMethodMismatch, "auth-method-mismatch", "the peer proves itself by another method than configured";
    CertificateMissing, "certificate-missing", "the peer sent no certificate";
    CertificateInvalid, "certificate-invalid", "the peer's certificate cannot be used";
    CertificateExpired, "certificate-expired", "the peer's certificate has expired";
    CertificateNotYetValid, "certificate-not-yet-valid", "the peer's certificate is not valid yet: check the clocks of both ends";
    CertificateUntrusted, "certificate-untrusted", "no configured CA signed the peer's certificate";
    CertificateRevoked, "certificate-revoked", "the peer's certificate is revoked";
    CertificateIdentityMismatch, "certificate-identity-mismatch", "the peer's certificate does not hold its identity";
    CertificateKeyWeak, "certificate-key-weak", "the peer's key is too weak: RSA needs 2048 bits, ECDSA P-256 or P-384";
    CrlExpired, "crl-expired", "the configured revocation list has expired: fetch a new one";
    RevocationUnknown, "revocation-unknown", "no configured revocation list covers the peer's certificate";
    LocalCertificateExpired, "local-certificate-expired", "our own certificate has expired";
    NoConnection, "no-connection", "no tunnel is configured between these addresses";
    VersionMismatch, "version-mismatch", "the peer does not speak IKEv2";
    MalformedMessage, "malformed-message", "the peer sent a message that RFC 7296 does not allow";
    UnsupportedCritical, "unsupported-critical", "a critical payload is not understood";
    RedirectRefused, "redirect-refused", "the peer redirects to another gateway, which is not supported: configure that gateway's address";
    MobikeRefused, "mobike-refused", "the peer wants to change its address by MOBIKE, which is not supported: it was refused, and the addresses stay";
    EapRefused, "eap-refused", "the peer wants EAP, which is not supported: use a pre-shared key or certificates";
    CookieLoop, "cookie-loop", "the peer keeps asking for cookies";
    TemporaryFailure, "temporary-failure", "the peer is busy with another exchange; tried again later";
    NoAdditionalSas, "no-additional-sas", "the peer takes no further child SA";
    PeerError, "peer-error", "the peer answered with an error";
    SpisExhausted, "spis-exhausted", "the data plane has no free SPI: raise the number of security associations";
    TooManyHalfOpen, "too-many-half-open", "too many unfinished negotiations at once";
    DeletedByPeer, "deleted-by-peer", "the peer closed it";
    DeletedByOperator, "deleted-by-operator", "closed by the operator";
    LifetimeExpired, "lifetime-expired", "its hard lifetime ended before it was replaced";
    Replaced, "replaced", "replaced by a newer one";
    InitialContact, "initial-contact", "the peer started anew and forgot it";
    ConfigurationChanged, "configuration-changed", "its configuration changed";
    NegotiationTimeout, "negotiation-timeout", "the peer began a negotiation and did not finish it";
    ChildNotFound, "child-not-found", "the peer no longer knows the child SA";
    ExpiryAhead, "certificate-expires-soon", "a certificate expires within 30 days";
    SelectorsPorts, "selectors-ports", "the peer wants only protocols or ports of its networks, which are not enforced here: make it offer whole networks";
    PfsRefused, "pfs-refused", "the peer refuses the key exchange of the rekey: PFS is asked for by one end only, or its groups differ; make `pfs` the same on both ends";
    PfsMismatch, "pfs-mismatch", "the peer's rekey has no key exchange that we allow: PFS is asked for by one end only, or its groups differ; make `pfs` the same on both ends";
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// A reason with what is particular to this case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The stable part.
    pub reason: Reason,
    /// Names and values; may be empty.
    pub detail: String,
}

impl Failure {
    /// A reason with details.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Failure {
        Failure { reason, detail: detail.into() }
    }
}

/// A rekey was refused: what is up now has an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Who refused it, and why.
    pub failure: Failure,
    /// When the keys end, in seconds since 1970.
    pub until_unix_seconds: u64,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "up until {}, then down: {}", crate::time::clock(self.until_unix_seconds), self.failure)
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Failure {
        Failure { reason, detail: String::new() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason.text())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_fit_metrics() {
        let mut codes: Vec<&str> = Reason::ALL.iter().map(|r| r.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert!(
            codes
                .iter()
                .all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
        let f = Failure::new(Reason::PskMismatch, "peer gw.b");
        assert_eq!(f.to_string(), "the pre-shared keys of the two ends differ (peer gw.b)");
    }
}
