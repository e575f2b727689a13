//! Notify message types, errors below 16384 and statuses above. RFC 7296 section 3.10.1 and IANA's registry.

macro_rules! notify_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// The notify message types that this implementation sends or understands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum NotifyType { $($(#[$doc])* $name,)* Other(u16) }

        impl From<u16> for NotifyType {
            fn from(v: u16) -> Self {
                match v { $($value => Self::$name,)* v => Self::Other(v) }
            }
        }

        impl From<NotifyType> for u16 {
            fn from(v: NotifyType) -> u16 {
                match v { $(NotifyType::$name => $value,)* NotifyType::Other(v) => v }
            }
        }

        impl std::fmt::Display for NotifyType {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self { $(Self::$name => f.write_str($text),)* Self::Other(v) => write!(f, "notify {v}") }
            }
        }
    };
}

notify_types! {
    UnsupportedCriticalPayload = 1, "UNSUPPORTED_CRITICAL_PAYLOAD";
    InvalidIkeSpi = 4, "INVALID_IKE_SPI";
    InvalidMajorVersion = 5, "INVALID_MAJOR_VERSION";
    InvalidSyntax = 7, "INVALID_SYNTAX";
    InvalidMessageId = 9, "INVALID_MESSAGE_ID";
    InvalidSpi = 11, "INVALID_SPI";
    NoProposalChosen = 14, "NO_PROPOSAL_CHOSEN";
    InvalidKePayload = 17, "INVALID_KE_PAYLOAD";
    AuthenticationFailed = 24, "AUTHENTICATION_FAILED";
    SinglePairRequired = 34, "SINGLE_PAIR_REQUIRED";
    NoAdditionalSas = 35, "NO_ADDITIONAL_SAS";
    InternalAddressFailure = 36, "INTERNAL_ADDRESS_FAILURE";
    FailedCpRequired = 37, "FAILED_CP_REQUIRED";
    TsUnacceptable = 38, "TS_UNACCEPTABLE";
    InvalidSelectors = 39, "INVALID_SELECTORS";
    UnacceptableAddresses = 40, "UNACCEPTABLE_ADDRESSES";
    TemporaryFailure = 43, "TEMPORARY_FAILURE";
    ChildSaNotFound = 44, "CHILD_SA_NOT_FOUND";
    StateNotFound = 47, "STATE_NOT_FOUND";
    TsMaxQueue = 48, "TS_MAX_QUEUE";
    InitialContact = 16384, "INITIAL_CONTACT";
    SetWindowSize = 16385, "SET_WINDOW_SIZE";
    AdditionalTsPossible = 16386, "ADDITIONAL_TS_POSSIBLE";
    NatDetectionSourceIp = 16388, "NAT_DETECTION_SOURCE_IP";
    NatDetectionDestinationIp = 16389, "NAT_DETECTION_DESTINATION_IP";
    Cookie = 16390, "COOKIE";
    UseTransportMode = 16391, "USE_TRANSPORT_MODE";
    RekeySa = 16393, "REKEY_SA";
    EspTfcPaddingNotSupported = 16394, "ESP_TFC_PADDING_NOT_SUPPORTED";
    MobikeSupported = 16396, "MOBIKE_SUPPORTED";
    UpdateSaAddresses = 16400, "UPDATE_SA_ADDRESSES";
    RedirectSupported = 16406, "REDIRECT_SUPPORTED";
    Redirect = 16407, "REDIRECT";
    RedirectedFrom = 16408, "REDIRECTED_FROM";
    ChildlessSupported = 16418, "CHILDLESS_IKEV2_SUPPORTED";
    FragmentationSupported = 16430, "IKEV2_FRAGMENTATION_SUPPORTED";
    SignatureHashAlgorithms = 16431, "SIGNATURE_HASH_ALGORITHMS";
    IntermediateSupported = 16438, "INTERMEDIATE_EXCHANGE_SUPPORTED";
    AdditionalKeyExchange = 16441, "ADDITIONAL_KEY_EXCHANGE";
    SaResourceInfo = 16444, "SA_RESOURCE_INFO";
}

impl NotifyType {
    /// Whether the type is an error (RFC 7296 3.10.1: below 16384).
    pub fn is_error(self) -> bool {
        u16::from(self) < 16384
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives() {
        for v in 0..=u16::MAX {
            assert_eq!(u16::from(NotifyType::from(v)), v);
        }
        assert!(NotifyType::TemporaryFailure.is_error() && !NotifyType::Cookie.is_error());
        assert_eq!(NotifyType::TsUnacceptable.to_string(), "TS_UNACCEPTABLE");
    }
}
