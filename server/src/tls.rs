//! Mutual TLS 1.3: the server's configuration, and a device's name out of its certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use floret_core::ClientId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files::{self, FileError};
use crate::home::Home;

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that holds no certificate or key.
    #[error("{}: {problem}: restore it, or begin anew with `floret-server init`", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Certificate and key that rustls refuses.
    #[error("the certificates of {}: {problem}", dir.display())]
    Refused {
        /// The server's directory.
        dir: PathBuf,
        /// What rustls said.
        problem: String,
    },
}

/// A configuration that accepts devices of the run's own authority, over TLS 1.3 and HTTP/2 alone.
pub(crate) fn server_config(home: &Home) -> Result<ServerConfig, TlsError> {
    let refused = |problem: String| TlsError::Refused { dir: home.dir().to_owned(), problem };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&home.ca_certificate())? {
        roots.add(authority).map_err(|error| refused(error.to_string()))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|error| refused(error.to_string()))?;
    let chain = certificates(&home.server_certificate())?;
    let key = private_key(&home.server_key())?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)
        });
    let mut config = config.map_err(|error| refused(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Every connection shows its certificate anew, and none is remembered.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = files::read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(bad_pem(path, "it holds no PEM certificate")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&files::read(path)?)
        .map_err(|_| bad_pem(path, "it holds no PEM private key"))
}

fn bad_pem(path: &Path, problem: &str) -> TlsError {
    TlsError::Pem { path: path.to_owned(), problem: problem.to_owned() }
}

/// A verified certificate that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// None, or not an X.509 certificate.
    #[error("the device showed no certificate that can be read")]
    Unreadable,
    /// None or several names.
    #[error("the certificate has {0} subject alternative names where one DNS name is needed")]
    Names(usize),
    /// Another kind of name.
    #[error("the certificate's subject alternative name is no DNS name")]
    NotDns,
    /// A name that no device has.
    #[error("the certificate's DNS name is no client name: {0}")]
    Name(#[from] floret_core::id::InvalidName),
}

/// The device's name: the one DNS name of its certificate, which TLS has verified.
///
/// # Errors
/// No certificate, one that cannot be read, or one with other names than a device's.
pub fn client_id(certificate: Option<&CertificateDer<'_>>) -> Result<ClientId, NoIdentity> {
    let certificate = certificate.ok_or(NoIdentity::Unreadable)?;
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| NoIdentity::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| NoIdentity::Unreadable)?;
    let names = names.map(|extension| extension.value.general_names.as_slice());
    match names.unwrap_or_default() {
        [GeneralName::DNSName(name)] => Ok(name.parse()?),
        [_] => Err(NoIdentity::NotDns),
        names => Err(NoIdentity::Names(names.len())),
    }
}
