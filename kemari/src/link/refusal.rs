//! What TLS complains about, in sentences for the operator.

use rustls::{AlertDescription, CertificateError, Error};

use super::LinkError;

/// The error as the operator should read it.
pub(super) fn sentence(error: &Error) -> LinkError {
    let text = match error {
        Error::InvalidCertificate(reason) => format!("its certificate is refused: {}", certificate(reason)),
        Error::NoCertificatesPresented => {
            "it showed no certificate, so it may be anybody: give it one of this set (`kemari certs`)".into()
        }
        Error::AlertReceived(alert) => format!("it refused this side: {}", alert_sentence(*alert)),
        Error::InvalidMessage(_) => {
            "it does not speak TLS: the other host may have `plaintext = true`, or it is no \
                                     Kemari; use the same configuration on both hosts"
                .into()
        }
        Error::PeerIncompatible(_) => {
            "it speaks another TLS than 1.3: run the same version of Kemari on both hosts".into()
        }
        other => format!("TLS failed: {other}"),
    };
    LinkError::Refused(text)
}

/// Why a certificate is no good.
pub(super) fn certificate(reason: &CertificateError) -> String {
    use CertificateError as Bad;
    match reason {
        Bad::UnknownIssuer | Bad::BadSignature => {
            "it is not signed by the authority in ca.pem; both hosts need certificates of the same set".into()
        }
        Bad::Expired | Bad::ExpiredContext { .. } => {
            "it has expired (or a host's clock is wrong); make a new set with `kemari certs`".into()
        }
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            "it is not valid yet: a host's clock is wrong".into()
        }
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => "it is for another host".into(),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            "it is not made for both TLS clients and servers".into()
        }
        other => other.to_string(),
    }
}

fn alert_sentence(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "this host's certificate is not of its authority; both hosts need certificates of the same set"
                .into()
        }
        AlertDescription::CertificateExpired => {
            "this host's certificate has expired (or a clock is wrong)".into()
        }
        AlertDescription::CertificateRequired => "this side showed no certificate".into(),
        AlertDescription::BadCertificate => "this host's certificate is not valid there".into(),
        other => format!("alert {other:?}"),
    }
}
