//! The lab's CA, and certificates for both ends, made by openssl: [ab]-(ecdsa|rsa).(pem|key) and ca.pem.

use std::path::PathBuf;
use std::process::Command;

use super::command::{script, succeed};
use super::lab::Lab;

/// The folder with all of them, made when it is first asked for.
pub fn folder(lab: &Lab) -> PathBuf {
    let folder = lab.file("pki");
    if !folder.exists() {
        succeed(Command::new(script("lab/pki")).arg(&folder));
    }
    folder
}
