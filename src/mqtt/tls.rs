//! TLS to the broker: rustls on ring, the authorities named in the settings and no others.
//!
//! Verification is rustls's own (`WebPkiServerVerifier`, rustls-webpki 0.103). The client library links an older
//! webpki for a variant of its error type only; a test below shows which one decides.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use crate::clock::UnixTime;
use crate::mqtt::{Refusal, RefusalKind, TlsSettings};

/// Reads the files and builds the client's side of TLS 1.2 and 1.3.
///
/// # Errors
/// [`RefusalKind::Settings`] names the file and what is wrong with it.
pub(super) fn client_config(settings: &TlsSettings) -> Result<Arc<ClientConfig>, Refusal> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&settings.ca)? {
        roots.add(certificate).map_err(|error| bad_file(&settings.ca, &error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad_file(&settings.ca, &error.to_string()))?
        .with_root_certificates(roots);
    let config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain = certificates(&client.chain)?;
            let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|error| {
                bad_file(&client.key, &format!("no private key in it: {error}"))
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let detail = format!("it does not fit {}: {error}", client.chain.display());
                bad_file(&client.key, &detail)
            })?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad_file(path, &error.to_string()))?;
    if certificates.is_empty() {
        return Err(bad_file(path, "no certificate in it"));
    }
    Ok(certificates)
}

fn bad_file(path: &Path, detail: &str) -> Refusal {
    let message = format!(
        "TLS file {}: {detail}; it must be readable by the agent, in PEM (-----BEGIN …)",
        path.display()
    );
    Refusal { kind: RefusalKind::Settings, message }
}

/// The TLS reason within an error of the client library, in plain words; `None` when TLS is not to blame.
#[must_use]
pub(super) fn explain(error: &(dyn Error + 'static), host: &str, now: UnixTime) -> Option<Refusal> {
    let error = find(error)?;
    let (kind, message) = match error {
        rustls::Error::InvalidCertificate(reason) => explain_certificate(reason, host, now),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert, host),
        rustls::Error::InvalidMessage(_) => (
            RefusalKind::Tls,
            format!(
                "{host} does not answer with TLS; is this the broker's TLS port (usually 8883)?"
            ),
        ),
        other => (
            RefusalKind::Tls,
            format!("TLS with {host} failed: {other}; the broker must offer TLS 1.2 or 1.3"),
        ),
    };
    Some(Refusal { kind, message })
}

fn explain_certificate(
    reason: &CertificateError,
    host: &str,
    now: UnixTime,
) -> (RefusalKind, String) {
    match reason {
        CertificateError::UnknownIssuer => (
            RefusalKind::UnknownIssuer,
            format!(
                "the certificate of {host} was not issued by an authority in mqtt.tls.ca; put the \
                 broker's CA certificate there, or, if it is there, somebody else answers"
            ),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            RefusalKind::CertificateExpired,
            format!(
                "the certificate of {host} has expired (this device's clock says {now}); renew the \
                 broker's certificate, or set the clock if it is wrong"
            ),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            RefusalKind::CertificateNotYetValid,
            format!(
                "the certificate of {host} is not valid yet: this device's clock says {now}; set \
                 the clock (NTP or RTC), or check the certificate's first day"
            ),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            RefusalKind::WrongHostName,
            format!(
                "the broker's certificate is not for \"{host}\"; use the name in the certificate as \
                 mqtt.host, or issue one that names this host ({reason})"
            ),
        ),
        other => (
            RefusalKind::BadCertificate,
            format!(
                "the certificate of {host} is refused: {other}; issue a new one for the broker"
            ),
        ),
    }
}

fn explain_alert(alert: AlertDescription, host: &str) -> (RefusalKind, String) {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        // OpenSSL's answer to a missing certificate in TLS 1.2.
        | Alert::HandshakeFailure => (
            RefusalKind::ClientCertificate,
            format!(
                "{host} refuses this device's certificate, or misses one ({alert:?}); set mqtt.tls.cert \
                 and mqtt.tls.key to a valid certificate from an authority that the broker trusts"
            ),
        ),
        other => (
            RefusalKind::Tls,
            format!("{host} ended TLS with the alert {other:?}; look into the broker's log"),
        ),
    }
}

/// The TLS error in a chain of causes. An I/O error hides its own cause from `source`, so it is opened.
fn find<'a>(mut error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        error = match inner {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, GeneralSubtree, IsCa, KeyPair,
        NameConstraints,
    };
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    /// A handshake in memory with a server whose certificate for `name` comes from a CA that is only permitted `permitted`.
    fn handshake(permitted: &str, name: &str, host: &'static str) -> Result<(), rustls::Error> {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(permitted.into())],
            excluded_subtrees: Vec::new(),
        });
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, issuer.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let client = client_config(&TlsSettings { ca, client: None }).unwrap();
        let mut client = ClientConnection::new(client, host.try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    /// RUSTSEC-2026-0099: rustls-webpki before 0.103.12, 0.102 among them, takes `*.example.com` for permitted by
    /// `accept.example.com`. That this is refused shows that the patched one verifies.
    #[test]
    fn a_wildcard_wider_than_the_issuer_may_name_is_refused() {
        assert_eq!(handshake("example.com", "*.example.com", "reject.example.com"), Ok(()));
        let error =
            handshake("accept.example.com", "*.example.com", "reject.example.com").unwrap_err();
        assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error:?}");
        let error =
            handshake("accept.example.com", "*.example.com", "accept.example.com").unwrap_err();
        assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error:?}");
    }

    /// The old webpki is linked, but only for a variant of the client library's error type.
    #[test]
    fn the_old_webpki_is_reached_by_the_client_library_alone() {
        let lock =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
        let packages: Vec<_> = lock.split("[[package]]").collect();
        let version = |package: &str| -> Option<(String, String)> {
            let field = |name: &str| {
                let line = package.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim_matches('"').to_owned())
            };
            Some((field("name = ")?, field("version = ")?))
        };
        let users = |needle: &str| -> Vec<String> {
            let uses = |package: &&&str| {
                package.lines().any(|line| line.trim().trim_matches(['"', ',']) == needle)
            };
            packages.iter().filter(uses).filter_map(|package| Some(version(package)?.0)).collect()
        };
        let users_of_old = users("rustls-webpki 0.102.8");
        let allowed = ["rumqttc", "rumqttd"];
        assert!(
            users_of_old.iter().all(|user| allowed.contains(&user.as_str())),
            "{users_of_old:?}"
        );
        assert!(
            users_of_old.iter().any(|user| user == "rumqttc"),
            "update the advisories in deny.toml"
        );
        let new = packages.iter().filter_map(|package| version(package));
        let new: Vec<_> = new
            .filter(|(name, version)| name == "rustls-webpki" && version.starts_with("0.103."))
            .collect();
        let patch =
            |version: &str| version.rsplit('.').next().and_then(|patch| patch.parse::<u32>().ok());
        assert!(
            !new.is_empty() && new.iter().all(|(_, version)| patch(version) >= Some(13)),
            "{new:?}"
        );
        assert!(users(&format!("rustls-webpki {}", new[0].1)).contains(&"rustls".to_owned()));
    }
}
