//! Public keys and signatures: Ed25519, ECDSA on P-256 and P-384, RSA-PSS with SHA-256. Verification only.

use std::collections::BTreeMap;
use std::fmt;

use ring::digest::{SHA256, digest};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PSS_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};

use crate::digest::{decode_hex, encode_hex};
use crate::json::{Json, canonical};
use crate::spki::{PublicKeyInfo, parse_pem};

/// The name of a key: lower-case hex SHA-256 of its canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A public key as metadata holds it. Unknown types and fields are kept: they are part of the key's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `ed25519`, `ecdsa` or `rsa`.
    pub keytype: String,
    /// `ed25519`, `ecdsa-sha2-nistp256`, `ecdsa-sha2-nistp384` or `rsassa-pss-sha256`.
    pub scheme: String,
    /// Holds `public`: hex for Ed25519, PEM for the others.
    pub keyval: BTreeMap<String, Json>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Json>,
}

impl Key {
    /// An Ed25519 key from its 32 bytes.
    #[must_use]
    pub fn ed25519(public: &[u8]) -> Self {
        let public = Json::String(encode_hex(public));
        Self {
            keytype: "ed25519".to_owned(),
            scheme: "ed25519".to_owned(),
            keyval: BTreeMap::from([("public".to_owned(), public)]),
            extra: BTreeMap::new(),
        }
    }

    /// The id this key must be listed under.
    #[must_use]
    pub fn id(&self) -> KeyId {
        // TUF 1.0.34 §4.2.1: hexdigest of the SHA-256 hash of the canonical form of the key
        let form = canonical(self).expect("a key came from strict JSON or from our constructors");
        KeyId(encode_hex(digest(&SHA256, &form).as_ref()))
    }

    /// The key in the form that can verify; `None` if its type is unknown or its value malformed.
    pub(crate) fn verifier(&self) -> Option<Verifier> {
        let public = self.keyval.get("public")?.as_str()?;
        // Off-spec: "ecdsa-sha2-nistp…" as keytype is what securesystemslib wrote before 2023; deployed roots hold it.
        let (algorithm, material): (&'static dyn VerificationAlgorithm, _) =
            match (self.keytype.as_str(), self.scheme.as_str()) {
                ("ed25519", "ed25519") => {
                    (&ED25519, decode_hex(public).filter(|key| key.len() == 32)?)
                }
                ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                    let PublicKeyInfo::P256(point) = parse_pem(public)? else { return None };
                    (&ECDSA_P256_SHA256_ASN1, point)
                }
                ("ecdsa" | "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384") => {
                    let PublicKeyInfo::P384(point) = parse_pem(public)? else { return None };
                    (&ECDSA_P384_SHA384_ASN1, point)
                }
                ("rsa", "rsassa-pss-sha256") => {
                    let PublicKeyInfo::Rsa(key) = parse_pem(public)? else { return None };
                    (&RSA_PSS_2048_8192_SHA256, key)
                }
                _ => return None,
            };
        Some(Verifier { algorithm, material })
    }
}

/// A parsed public key.
pub(crate) struct Verifier {
    algorithm: &'static dyn VerificationAlgorithm,
    material: Vec<u8>,
}

impl Verifier {
    /// Whether the hex signature is this key's over the message. Anything malformed is no signature.
    pub(crate) fn verify(&self, message: &[u8], signature: &str) -> bool {
        decode_hex(signature).is_some_and(|signature| {
            UnparsedPublicKey::new(self.algorithm, &self.material)
                .verify(message, &signature)
                .is_ok()
        })
    }

    /// The bare key, equal for two listings of one key under different ids.
    pub(crate) fn into_material(self) -> Vec<u8> {
        self.material
    }
}

/// One entry of a document's `signatures`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The key that signed.
    pub keyid: KeyId,
    /// The signature in hex.
    pub sig: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_the_hash_of_the_canonical_key() {
        // From the example of TUF 1.0.34 §4.3.
        let public = "72378e5bc588793e58f81c8533da64a2e8f1565c1fcc7f253496394ffc52542c";
        let key = Key::ed25519(&decode_hex(public).unwrap());
        assert_eq!(
            key.id().as_str(),
            "1bf1c6e3cdd3d3a8420b19199e27511999850f4b376c4547b2f32fba7e80fca3"
        );
    }

    #[test]
    fn unknown_fields_are_part_of_the_id() {
        let plain = Key::ed25519(&[7; 32]);
        let mut with_field = plain.clone();
        with_field.extra.insert("x-note".to_owned(), Json::Bool(true));
        assert_ne!(plain.id(), with_field.id());
    }

    #[test]
    fn keys_of_unknown_type_or_broken_value_cannot_verify() {
        let mut wrong_length = Key::ed25519(&[7; 31]);
        let mut unknown = Key::ed25519(&[7; 32]);
        unknown.scheme = "sphincs+".to_owned();
        let mut no_pem = Key::ed25519(&[7; 32]);
        no_pem.keytype = "rsa".to_owned();
        no_pem.scheme = "rsassa-pss-sha256".to_owned();
        for key in [&wrong_length, &unknown, &no_pem] {
            assert!(key.verifier().is_none(), "{key:?}");
        }
        wrong_length.keyval.clear();
        assert!(wrong_length.verifier().is_none());
    }
}
