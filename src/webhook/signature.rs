//! Who signs webhooks: the header that a sender puts its signature in, its secrets, and how the
//! signature is written.
//!
//! Meta signs with the secret of the app, in `X-Hub-Signature-256`. A business solution provider (BSP)
//! that passes Meta's body on cannot: it signs with a secret of its own, in a header of its own. Each
//! header belongs to its own secrets alone, so that it is always clear which secret a signature is
//! compared with.

use axum::http::{HeaderMap, HeaderName};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::secrets::Secrets;

/// The header with the app's signature.
pub(crate) const APP_SIGNATURE: &str = "x-hub-signature-256";

/// What comes before a signature in hexadecimal.
const PREFIX: &str = "sha256=";

/// An HMAC-SHA256 of a request's body.
type Signature = [u8; 32];

/// A sender that signs webhooks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signer {
    header: HeaderName,
    secrets: Secrets,
    form: SignatureForm,
}

/// How a signature is written in its header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SignatureForm {
    /// `sha256=` and hexadecimal, as Meta writes it
    /// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/create-webhook-endpoint>,
    /// 2026-06-17).
    Prefixed,
    /// Hexadecimal with or without `sha256=`, or base64. 360dialog documents the header, the algorithm
    /// and the bytes, and not which of these it writes
    /// (<https://docs.360dialog.com/partner/onboarding/webhook-events-and-setup/signature-validation>,
    /// read 2026-11-30). All of them say the same 32 bytes, and none can be taken for another.
    Any,
}

/// The signatures of a request, one for each signer; `None` where it has none by that signer.
pub(super) type Signatures = Vec<Option<Signature>>;

/// Whether a request's body is signed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// By a secret of the signer whose header has the signature.
    Signed,
    /// Every signature is wrong.
    Wrong,
    /// No header has a signature.
    Missing,
}

impl Signer {
    /// The app, by its secrets.
    #[must_use]
    pub fn app(secrets: Secrets) -> Self {
        let header = HeaderName::from_static(APP_SIGNATURE);
        Self { header, secrets, form: SignatureForm::Prefixed }
    }

    /// A BSP, by its secrets, which signs in a header of its own.
    #[must_use]
    pub fn provider(header: HeaderName, secrets: Secrets) -> Self {
        Self { header, secrets, form: SignatureForm::Any }
    }

    /// The signature in the header, if there is one header of this name, and one alone.
    fn signature(&self, headers: &HeaderMap) -> Option<Signature> {
        let mut all = headers.get_all(&self.header).iter();
        let (Some(one), None) = (all.next(), all.next()) else { return None };
        let text = one.to_str().ok()?;
        match (self.form, text.strip_prefix(PREFIX)) {
            (_, Some(text)) => from_hex(text),
            (SignatureForm::Prefixed, None) => None,
            (SignatureForm::Any, None) => from_hex(text).or_else(|| from_base64(text)),
        }
    }
}

fn from_hex(text: &str) -> Option<Signature> {
    let mut signature = Signature::default();
    hex::decode_to_slice(text, &mut signature).ok()?;
    Some(signature)
}

fn from_base64(text: &str) -> Option<Signature> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// The signatures of a request.
pub(super) fn signatures(signers: &[Signer], headers: &HeaderMap) -> Signatures {
    signers.iter().map(|signer| signer.signature(headers)).collect()
}

/// Compares each signature with the secrets of its own signer. One that is right suffices: a BSP may
/// leave Meta's header in, whose secret is that of the BSP's app.
pub(super) fn verify(signers: &[Signer], signatures: &Signatures, body: &[u8]) -> Verdict {
    let mut verdict = Verdict::Missing;
    for (signer, signature) in signers.iter().zip(signatures) {
        let Some(signature) = signature else { continue };
        if signer.secrets.signed(body, signature) {
            return Verdict::Signed;
        }
        verdict = Verdict::Wrong;
    }
    verdict
}
