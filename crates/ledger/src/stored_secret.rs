//! The secret of a ledger's keys as its meta holds it, with the version of the keys.

use consentd_core::id::{KEY_VERSION, KeySecret};

/// The secret that pairs' keys are derived with, and the [version](KEY_VERSION) of these keys.
///
/// Encoded: the version (one byte) and the secret (16). The first version is the secret alone, so that a program
/// that knows only that version refuses later ones: it expects 16 bytes.
#[derive(Clone, Copy)]
pub(super) struct StoredSecret {
    pub(super) key_version: u32,
    pub(super) secret: [u8; 16],
}

impl StoredSecret {
    /// A secret whose keys have the version of today.
    pub(super) fn new(secret: [u8; 16]) -> Self {
        Self { key_version: KEY_VERSION, secret }
    }

    /// A random one.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Self::new(secret))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let version = u8::try_from(self.key_version).unwrap_or(u8::MAX);
        let version = (self.key_version > 1).then_some(version);
        version.into_iter().chain(self.secret).collect()
    }

    /// `None` if these bytes are no secret of any version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if let Ok(secret) = bytes.try_into() {
            return Some(Self { key_version: 1, secret });
        }
        let (version, secret) = bytes.split_first()?;
        let secret = secret.try_into().ok()?;
        (*version > 1).then_some(Self { key_version: u32::from(*version), secret })
    }

    pub(super) fn hasher(&self) -> KeySecret {
        KeySecret::new(&self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip_and_only_the_first_has_sixteen_bytes() {
        for (key_version, len) in [(1, 16), (2, 17), (255, 17)] {
            let bytes = StoredSecret { key_version, secret: [7; 16] }.encode();
            assert_eq!(bytes.len(), len);
            let decoded = StoredSecret::decode(&bytes).unwrap();
            assert_eq!((decoded.key_version, decoded.secret), (key_version, [7; 16]));
        }
        let zero = [[0].as_slice(), &[7; 16]].concat();
        for bytes in [&[][..], &[7; 15], &[7; 18], &zero] {
            assert!(StoredSecret::decode(bytes).is_none());
        }
    }
}
