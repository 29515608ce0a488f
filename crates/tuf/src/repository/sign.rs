//! Ed25519 signing keys.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::digest::encode_hex;
use crate::{Key, Signature};

/// Bytes that are no Ed25519 key, or no random numbers to make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no usable Ed25519 key: give the PKCS#8 bytes that `SigningKey::generate` made")]
pub struct InvalidKey;

/// A secret key. `Debug` shows its id only.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Makes a key: PKCS#8 version 2 in DER, to be stored encrypted.
    ///
    /// # Errors
    /// The operating system gave no random numbers.
    pub fn generate() -> Result<Vec<u8>, InvalidKey> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        document.map(|document| document.as_ref().to_vec()).map_err(|_| InvalidKey)
    }

    /// Reads what [`Self::generate`] made; version 1, as OpenSSL writes it, also works.
    ///
    /// # Errors
    /// [`InvalidKey`]
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| InvalidKey)?;
        Ok(Self { pair })
    }

    /// A key from its 32 secret bytes.
    ///
    /// # Errors
    /// [`InvalidKey`]
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, InvalidKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| InvalidKey)?;
        Ok(Self { pair })
    }

    /// The public key as metadata holds it.
    #[must_use]
    pub fn public(&self) -> Key {
        Key::ed25519(self.pair.public_key().as_ref())
    }

    /// Signs the canonical form of a role.
    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        let sig = encode_hex(self.pair.sign(message).as_ref());
        Signature { keyid: self.public().id(), sig }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SigningKey").field("id", &self.public().id().as_str()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_signs_what_its_public_key_verifies() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let signature = key.sign(b"message");
        let verifier = key.public().verifier().unwrap();
        assert!(verifier.verify(b"message", &signature.sig));
        assert!(!verifier.verify(b"another", &signature.sig));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let key = SigningKey::from_seed(&[0x5a; 32]).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains(key.public().id().as_str()) && !shown.contains("5a5a"), "{shown}");
    }

    #[test]
    fn refuses_what_is_no_key() {
        assert_eq!(SigningKey::from_pkcs8(b"-----BEGIN").map(|_| ()), Err(InvalidKey));
    }
}
