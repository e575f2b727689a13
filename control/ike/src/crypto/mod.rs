//! What IKEv2 computes: key agreement, key derivation, protection of its own messages, and the names of the
//! suites. Every primitive is a crate's; here is only their composition as the RFCs order it.

pub mod choice;
pub mod cipher;
pub mod difference;
pub mod ke;
pub mod keys;
pub mod prf;
pub mod suites;

pub use choice::{EspChoice, IkeChoice};
pub use cipher::{IkeCipher, Integrity, MessageKey};
pub use ke::{KeError, Method};
pub use keys::{ChildKeys, DirectionKey, IkeKeys};
pub use prf::Prf;
pub use suites::{EspCipher, EspProposal, IkeProposal, Suite, SuiteError};

/// The randomness that the caller injects; tests inject a seeded one.
pub type Rng = dyn rand_core::CryptoRng + Send;
