//! The run's own certificate authority: it signs the server's certificate and each device's.
//!
//! The authority lasts ten years, what it signs one year: devices are enrolled again in time, and
//! the server renews its own certificate at a start. Keys are ECDSA on P-256.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use floret_core::ClientId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::files::{self, Access, FileError};
use crate::home::Home;

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The server's certificate is renewed at a start when it has less than this left.
const RENEW_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A certificate that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A host that no certificate can name.
    #[error("server.hosts: {0:?} is neither a DNS name nor an IP address")]
    Host(String),
    /// A key or certificate of the authority that cannot be used.
    #[error("{}: {problem}: restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// rcgen could not make a certificate.
    #[error("a certificate cannot be made: {0}")]
    Rcgen(#[from] rcgen::Error),
}

/// A certificate and its private key, as PEM. Not `Debug`: it holds a secret.
pub(crate) struct Credentials {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Credentials {
    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// Whether a certificate can name each of `hosts`.
pub(crate) fn check_hosts(hosts: &[String]) -> Result<(), AuthorityError> {
    match hosts.iter().find(|host| ServerName::try_from(host.as_str()).is_err()) {
        Some(host) => Err(AuthorityError::Host(host.clone())),
        None => Ok(()),
    }
}

/// Whoever signs certificates of the run.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority and writes its files.
    pub(crate) fn create(home: &Home) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = params("floret authority", AUTHORITY_LIFE);
        // It signs leaves, and no further authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let credentials = Credentials::new(&params.self_signed(&key)?, &key);
        files::replace(&home.ca_key(), Access::Private, credentials.key.as_bytes())?;
        let certificate = credentials.certificate.as_bytes();
        files::replace(&home.ca_certificate(), Access::Shared, certificate)?;
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// Reads the authority's files.
    pub(crate) fn load(home: &Home) -> Result<Self, AuthorityError> {
        let damaged = |path: PathBuf, error: rcgen::Error| AuthorityError::Damaged {
            path,
            problem: error.to_string(),
        };
        let key = KeyPair::from_pem(&files::read_text(&home.ca_key())?)
            .map_err(|error| damaged(home.ca_key(), error))?;
        let certificate = files::read_text(&home.ca_certificate())?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(|error| damaged(home.ca_certificate(), error))?;
        Ok(Self { issuer })
    }

    /// Writes a server certificate for `hosts`, and its key.
    pub(crate) fn issue_server(&self, home: &Home, hosts: &[String]) -> Result<(), AuthorityError> {
        check_hosts(hosts)?;
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let credentials = self.sign("floret server", hosts, usage)?;
        files::replace(&home.server_key(), Access::Private, credentials.key.as_bytes())?;
        let certificate = credentials.certificate.as_bytes();
        Ok(files::replace(&home.server_certificate(), Access::Shared, certificate)?)
    }

    /// A certificate whose one DNS name is the device's.
    pub(crate) fn issue_device(&self, name: &ClientId) -> Result<Credentials, AuthorityError> {
        let hosts = [name.to_string()];
        self.sign(name.as_str(), &hosts, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        common_name: &str,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Credentials, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = params(common_name, LEAF_LIFE);
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        Ok(Credentials::new(&params.signed_by(&key, &self.issuer)?, &key))
    }
}

fn params(common_name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Devices' clocks may be behind.
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + life).into();
    params
}

/// Renews the server's certificate if it is missing, ends soon, or names other hosts.
pub(crate) fn renew_server(home: &Home, hosts: &[String]) -> Result<(), AuthorityError> {
    let fresh = match files::read(&home.server_certificate()) {
        Err(error) if error.is_missing() => false,
        pem => is_fresh(&pem?, hosts),
    };
    if !fresh {
        Authority::load(home)?.issue_server(home, hosts)?;
        tracing::info!(?hosts, "the server's certificate was renewed");
    }
    Ok(())
}

/// Whether a PEM certificate names exactly `hosts` and does not end soon.
fn is_fresh(pem: &[u8], hosts: &[String]) -> bool {
    let Ok((_, pem)) = parse_x509_pem(pem) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let names = names.value.general_names.iter().map(host_name);
    let wanted = hosts.iter().map(|host| match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.clone(),
    });
    let left = certificate.validity().time_to_expiration();
    left.is_some_and(|left| left.whole_seconds() > RENEW_WITHIN.as_secs().cast_signed())
        && names.collect::<BTreeSet<_>>() == wanted.collect::<BTreeSet<_>>()
}

fn host_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.map(|address| address.to_string()).unwrap_or_default()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
