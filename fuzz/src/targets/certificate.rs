//! A device's certificate, as DER, and the name in it. Certificate requests will be a target of
//! their own as soon as a decoder takes them.

use floret_core::ClientId;
use floret_server::tls::client_id;
use rcgen::{CertificateParams, KeyPair, SerialNumber};

use super::Target;

pub(super) const TARGET: Target =
    Target { name: "certificate", run, limit, seeds, share: 12, longest: 1000 };

fn run(data: &[u8]) -> bool {
    let Ok(name) = client_id(Some(&data.into())) else { return false };
    assert_eq!(name.as_str().parse::<ClientId>().as_ref(), Ok(&name));
    true
}

/// Parsed names and extensions, which borrow the input.
fn limit(data: &[u8]) -> usize {
    64 * data.len() + 16 * 1024
}

/// Keys are drawn anew each time; `make-corpus` keeps files that are there.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let make = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.serial_number = Some(SerialNumber::from(1));
        Ok::<_, rcgen::Error>(params.self_signed(&key)?.der().to_vec())
    };
    let cases: [(&'static str, &[&str]); 5] = [
        ("one-name", &["phone-1"]),
        ("two-names", &["a", "b"]),
        ("no-name", &[]),
        ("address", &["10.0.0.1", "::1"]),
        ("bad-name", &["Not.A.Label"]),
    ];
    cases.map(|(name, names)| (name, make(names).unwrap_or_default())).to_vec()
}
