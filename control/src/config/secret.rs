//! Files with key material and certificates: a path enters, octets that wipe themselves leave. A secret that others can read is
//! refused, and so is a certificate that others can write.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::scalar::KeyText;

/// A secret has at least so many octets (the output length of the hash that derives from it, RFC 5869).
pub const MIN_SECRET_LEN: usize = 32;

/// A pre-shared key has at least so many octets. AWS makes none shorter.
pub const MIN_PSK_LEN: usize = 8;

/// Octets of the largest secret or private key.
const MAX_LEN: u64 = 16 << 10;
/// Octets of the largest file of certificates or revocation lists.
const MAX_PUBLIC_LEN: u64 = 16 << 20;

/// Why a file with key material is refused. The file's name is not part of the sentence.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be opened or read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// Group or others may read or write it.
    #[error("has mode {mode:03o}: others than its owner can read or write it; run `chmod 600` on it")]
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// Group or others may write it, and so say whom to trust.
    #[error("has mode {mode:03o}: others than its owner can write it; run `chmod 644` on it")]
    Writable {
        /// Its permission bits.
        mode: u32,
    },
    /// It is a directory, a device or a socket.
    #[error("is not a regular file")]
    Kind,
    /// It is larger than any key.
    #[error("has more than {most} octets: not what is expected here")]
    Long {
        /// Octets that it may have.
        most: u64,
    },
    /// It is too short to derive keys from.
    #[error("has {found} octets, expected at least {MIN_SECRET_LEN}: make one with `openssl rand -hex 32`")]
    Short {
        /// Octets that it has.
        found: usize,
    },
    /// It is too short to authenticate anyone.
    #[error(
        "has {found} octets, expected at least {MIN_PSK_LEN}, better 32: make one with `openssl rand -base64 32`"
    )]
    ShortPsk {
        /// Octets that it has.
        found: usize,
    },
    /// It does not hold hexadecimal digits.
    #[error("is {0}")]
    Form(&'static str),
}

/// Reads a lab secret: the file's octets without white space at either end.
///
/// # Errors
/// Where the file cannot be read, others can read it, or it is too short.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let octets = read_private(path)?;
    let secret = octets.trim_ascii();
    match secret.len() {
        found @ ..MIN_SECRET_LEN => Err(SecretError::Short { found }),
        _ => Ok(Zeroizing::new(secret.to_vec())),
    }
}

/// Reads a key in hexadecimal digits.
///
/// # Errors
/// Where the file cannot be read, others can read it, or it does not hold a key.
pub fn read_key(path: &Path) -> Result<KeyText, SecretError> {
    let octets = read_private(path)?;
    std::str::from_utf8(&octets).unwrap_or_default().parse().map_err(SecretError::Form)
}

/// Reads a pre-shared key: the file's octets without white space at either end.
///
/// # Errors
/// Where the file cannot be read, others can read it, or it is too short.
pub fn read_psk(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let octets = read_private(path)?;
    let secret = octets.trim_ascii();
    match secret.len() {
        found @ ..MIN_PSK_LEN => Err(SecretError::ShortPsk { found }),
        _ => Ok(Zeroizing::new(secret.to_vec())),
    }
}

/// Reads a file that only its owner may read or write.
///
/// # Errors
/// Where the file cannot be read, is no file, is too large, or others can read it.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let (file, mode) = open(path, MAX_LEN)?;
    if mode & 0o077 != 0 {
        return Err(SecretError::Mode { mode });
    }
    let mut octets = Zeroizing::new(Vec::with_capacity(MAX_LEN as usize));
    file.take(MAX_LEN).read_to_end(&mut octets)?;
    Ok(octets)
}

/// Reads a file that everyone may read and only its owner may write: certificates and revocation lists.
///
/// # Errors
/// Where the file cannot be read, is no file, is too large, or others can write it.
pub fn read_public(path: &Path) -> Result<Vec<u8>, SecretError> {
    let (file, mode) = open(path, MAX_PUBLIC_LEN)?;
    if mode & 0o022 != 0 {
        return Err(SecretError::Writable { mode });
    }
    let mut octets = Vec::new();
    file.take(MAX_PUBLIC_LEN).read_to_end(&mut octets)?;
    Ok(octets)
}

/// The file and its permission bits.
fn open(path: &Path, most: u64) -> Result<(std::fs::File, u32), SecretError> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(SecretError::Kind);
    }
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > most {
        return Err(SecretError::Long { most });
    }
    Ok((file, metadata.mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_owner_may_read_a_secret() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("secret");
        std::fs::write(&path, " 0123456789abcdef0123456789abcdef\n").expect("written");
        for (mode, allowed) in [(0o600, true), (0o400, true), (0o640, false), (0o602, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode set");
            assert_eq!(read_secret(&path).is_ok(), allowed, "{mode:o}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode set");
        assert_eq!(read_secret(&path).expect("readable").len(), 32);
        assert_eq!(read_key(&path).expect("a key").octets().len(), 16);
    }

    #[test]
    fn short_and_odd_files_are_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        assert!(matches!(read_secret(directory.path()), Err(SecretError::Kind)));
        let path = directory.path().join("secret");
        assert!(matches!(read_secret(&path), Err(SecretError::Unreadable(_))));
        std::fs::write(&path, "0123456789abcdef\n").expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode set");
        assert!(matches!(read_secret(&path), Err(SecretError::Short { found: 16 })));
        std::fs::write(&path, vec![b'a'; 20_000]).expect("written");
        assert!(matches!(read_secret(&path), Err(SecretError::Long { .. })));
        assert!(matches!(read_key(&path), Err(SecretError::Long { .. })));
    }
}
