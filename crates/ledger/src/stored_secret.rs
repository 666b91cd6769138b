//! The secret of a ledger's keys as its meta holds it, with the version of the keys.

use super::{Epoch, Identity};
use consentd_core::id::{KEY_VERSION, KeySecret};
use consentd_core::partition::Layout;

/// The secret that pairs' keys are derived with, and the [version](KEY_VERSION) of these keys.
///
/// Encoded: the version (one byte, whose upper bit is set if the ledger has nameless pairs) and the secret
/// (16). The first version is the secret alone, so that a program that knows only that version refuses later
/// ones: it expects 16 bytes. A program that does not know the upper bit sees a later version, and refuses it.
#[derive(Clone, Copy)]
pub(super) struct StoredSecret {
    pub(super) key_version: u32,
    /// Whether a copy found pairs whose names were gone, so that their keys name no business: see
    /// [`BusinessTag::NAMELESS`](consentd_core::id::BusinessTag::NAMELESS).
    pub(super) has_nameless: bool,
    pub(super) secret: [u8; 16],
}

/// The bit of the encoded version that is set if the ledger has nameless pairs.
const NAMELESS: u8 = 1 << 7;

impl StoredSecret {
    /// A secret whose keys have the version of today.
    pub(super) fn new(secret: [u8; 16]) -> Self {
        Self { key_version: KEY_VERSION, has_nameless: false, secret }
    }

    /// A random one.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Self::new(secret))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let version = u8::try_from(self.key_version).unwrap_or(u8::MAX).min(!NAMELESS);
        let version = if self.has_nameless { version | NAMELESS } else { version };
        let version = (self.key_version > 1).then_some(version);
        version.into_iter().chain(self.secret).collect()
    }

    /// `None` if these bytes are no secret of any version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if let Ok(secret) = bytes.try_into() {
            return Some(Self { key_version: 1, has_nameless: false, secret });
        }
        let (first, secret) = bytes.split_first()?;
        let secret = secret.try_into().ok()?;
        let (version, has_nameless) = (first & !NAMELESS, first & NAMELESS != 0);
        (version > 1).then_some(Self { key_version: u32::from(version), has_nameless, secret })
    }

    /// The constants of a ledger with this secret.
    pub(super) fn identity(&self, epoch: Epoch, layout: Layout, buckets: u32) -> Identity {
        let Self { key_version, has_nameless, secret } = *self;
        let secret = KeySecret::of_version(&secret, key_version);
        Identity { epoch, secret, key_version, has_nameless, layout, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip_and_only_the_first_has_sixteen_bytes() {
        let all = [(1, false, 16), (2, false, 17), (3, false, 17), (3, true, 17), (127, true, 17)];
        for (key_version, has_nameless, len) in all {
            let bytes = StoredSecret { key_version, has_nameless, secret: [7; 16] }.encode();
            assert_eq!(bytes.len(), len);
            let decoded = StoredSecret::decode(&bytes).unwrap();
            assert_eq!((decoded.key_version, decoded.secret), (key_version, [7; 16]));
            assert_eq!(decoded.has_nameless, has_nameless);
        }
        let [zero, nameless_zero] = [0, NAMELESS].map(|first| [&[first][..], &[7; 16]].concat());
        for bytes in [&[][..], &[7; 15], &[7; 18], &zero, &nameless_zero] {
            assert!(StoredSecret::decode(bytes).is_none());
        }
    }
}
