//! Why a handshake failed, in words.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake failed. The texts are fixed: what the other side sent is not quoted.
#[must_use]
pub fn failure(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(error) = inner else {
        return "the connection ended before the handshake was done";
    };
    match error {
        Error::InvalidMessage(_) => "the other side does not speak TLS",
        Error::NoCertificatesPresented => "the client has sent no certificate, and one is required",
        Error::InvalidCertificate(error) => certificate(error),
        Error::NoApplicationProtocol => {
            "the client offers another protocol than the one that is spoken here (ALPN)"
        }
        Error::PeerIncompatible(_) => {
            "the other side speaks neither TLS 1.2 nor TLS 1.3 with a known cipher"
        }
        Error::AlertReceived(alert) => self::alert(*alert),
        _ => "the handshake was not valid",
    }
}

fn certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet: is a clock wrong?"
        }
        CertificateError::UnknownIssuer => "the certificate is not of a CA that is trusted here",
        CertificateError::BadSignature => {
            "the certificate was signed by another key than that of the CA that is trusted here"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is of another name"
        }
        CertificateError::Revoked => "the certificate was revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is for another purpose (extended key usage)"
        }
        _ => "the certificate is not valid",
    }
}

fn alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => {
            "the other side says that the certificate has expired"
        }
        AlertDescription::UnknownCA => "the other side does not trust the CA of the certificate",
        AlertDescription::CertificateRequired => "the other side requires a client certificate",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "the other side does not accept the certificate"
        }
        AlertDescription::ProtocolVersion => "the other side speaks no version of TLS in common",
        AlertDescription::NoApplicationProtocol => {
            "the other side speaks another protocol than the one that was offered (ALPN)"
        }
        AlertDescription::UnrecognisedName => "the other side is not known by this name",
        _ => "the other side ended the handshake",
    }
}
