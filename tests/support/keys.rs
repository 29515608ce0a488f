//! Test-only keys and certificates, made anew for each test.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `<name>.pem` and `<name>.key`.
fn issue(dir: &Path, issuer: &Authority, name: &str, hosts: &[&str], years: (i32, i32)) {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// A folder of test-only keys: `ca.pem`, `other-ca.pem`, servers and clients.
pub fn keys() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (authority("test CA"), authority("other CA"));
    std::fs::write(dir.path().join("ca.pem"), own.pem()).unwrap();
    std::fs::write(dir.path().join("other-ca.pem"), other.pem()).unwrap();
    // The last is this machine as seen from one that QEMU emulates.
    let here = ["localhost", "127.0.0.1", "10.0.2.2"];
    let path = dir.path();
    issue(path, &own, "good", &here, (2020, 2090));
    issue(path, &own, "expired", &here, (2019, 2020));
    issue(path, &own, "future", &here, (2080, 2090));
    issue(path, &own, "elsewhere", &["broker.example"], (2020, 2090));
    issue(path, &own, "client", &["dock-3"], (2020, 2090));
    for name in ["dock-3", "dock-4", "publisher", "ops"] {
        issue(path, &own, name, &[name], (2020, 2090));
    }
    issue(path, &other, "foreign-client", &["dock-3"], (2020, 2090));
    dir
}
