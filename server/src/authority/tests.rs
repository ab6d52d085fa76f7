use std::fs;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, client::WebPkiServerVerifier};

use super::*;
use crate::tls::client_id;

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["certificates/devices", "secrets"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let home = Home::new(dir.path());
    (dir, home)
}

fn hosts(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

fn certificate(pem: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem).unwrap()
}

fn roots(home: &Home) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&fs::read(home.ca_certificate()).unwrap())).unwrap();
    Arc::new(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[test]
fn the_server_certificate_verifies_for_its_hosts_alone() {
    use rustls::client::danger::ServerCertVerifier;
    let (_dir, home) = home();
    let authority = Authority::create(&home).unwrap();
    authority.issue_server(&home, &hosts(&["fl.example.org", "127.0.0.1"])).unwrap();
    let leaf = certificate(&fs::read(home.server_certificate()).unwrap());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(&home), provider());
    let verifier = verifier.build().unwrap();
    let verify = |name: &str| {
        let name = ServerName::try_from(name).unwrap();
        verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
    };
    verify("fl.example.org").unwrap();
    verify("127.0.0.1").unwrap();
    assert!(verify("other.example.org").is_err());
}

#[test]
fn device_certificates_verify_as_clients_of_their_own_authority() {
    let (_dir, home) = home();
    Authority::create(&home).unwrap();
    let authority = Authority::load(&home).unwrap();
    let name: ClientId = "phone-1".parse().unwrap();
    let credentials = authority.issue_device(&name).unwrap();
    let leaf = certificate(credentials.certificate.as_bytes());
    assert_eq!(client_id(Some(&leaf)).unwrap(), name);

    let verifier = |home: &Home| {
        WebPkiClientVerifier::builder_with_provider(roots(home), provider()).build().unwrap()
    };
    verifier(&home).verify_client_cert(&leaf, &[], UnixTime::now()).unwrap();
    let (_other_dir, other) = self::home();
    Authority::create(&other).unwrap();
    assert!(verifier(&other).verify_client_cert(&leaf, &[], UnixTime::now()).is_err());

    // A server's certificate does not make a client.
    authority.issue_server(&home, &hosts(&["localhost"])).unwrap();
    let server = certificate(&fs::read(home.server_certificate()).unwrap());
    assert!(verifier(&home).verify_client_cert(&server, &[], UnixTime::now()).is_err());
}

#[test]
fn only_one_valid_dns_name_is_an_identity() {
    let (_dir, home) = home();
    let authority = Authority::create(&home).unwrap();
    let usage = || ExtendedKeyUsagePurpose::ClientAuth;
    for (names, problem) in [
        (hosts(&["a", "b"]), "has 2 subject alternative names"),
        (hosts(&[]), "has 0 subject alternative names"),
        (hosts(&["10.0.0.1"]), "is no DNS name"),
        (hosts(&["Not.A.Label"]), "is no client name"),
    ] {
        let credentials = authority.sign("x", &names, usage()).unwrap();
        let leaf = certificate(credentials.certificate.as_bytes());
        let error = client_id(Some(&leaf)).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    assert!(client_id(None).is_err());
    assert!(client_id(Some(&CertificateDer::from(vec![1, 2, 3]))).is_err());
}

#[test]
fn the_server_certificate_is_renewed_when_its_hosts_change() {
    let (_dir, home) = home();
    Authority::create(&home).unwrap();
    let read = || fs::read(home.server_certificate()).unwrap();
    let first = hosts(&["localhost", "127.0.0.1", "::1"]);
    renew_server(&home, &first).unwrap();
    let issued = read();
    renew_server(&home, &first).unwrap();
    assert_eq!(read(), issued);
    renew_server(&home, &hosts(&["localhost"])).unwrap();
    assert_ne!(read(), issued);
}

#[cfg(unix)]
#[test]
fn private_keys_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, home) = home();
    Authority::create(&home).unwrap().issue_server(&home, &hosts(&["localhost"])).unwrap();
    for path in [home.ca_key(), home.server_key()] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
}

#[test]
fn a_damaged_authority_is_named() {
    let (_dir, home) = home();
    Authority::create(&home).unwrap();
    fs::write(home.ca_key(), "-----BEGIN NONSENSE-----").unwrap();
    let Err(error) = Authority::load(&home) else { panic!("a damaged key was read") };
    assert!(error.to_string().contains("secrets/ca.key"), "{error}");
}
