//! PEM public keys (SubjectPublicKeyInfo, RFC 5280 §4.1 and RFC 5480) to what ring takes. Public keys only.

/// A public key taken out of its SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PublicKeyInfo {
    /// PKCS#1 `RSAPublicKey` in DER.
    Rsa(Vec<u8>),
    /// Uncompressed point on P-256.
    P256(Vec<u8>),
    /// Uncompressed point on P-384.
    P384(Vec<u8>),
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// AlgorithmIdentifier contents: rsaEncryption, NULL.
const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
/// AlgorithmIdentifier contents: id-ecPublicKey, secp256r1.
const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// AlgorithmIdentifier contents: id-ecPublicKey, secp384r1.
const P384: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";

/// Reads one `-----BEGIN PUBLIC KEY-----` block; `None` for anything else.
pub(crate) fn parse_pem(text: &str) -> Option<PublicKeyInfo> {
    let body = text
        .trim()
        .strip_prefix("-----BEGIN PUBLIC KEY-----")?
        .strip_suffix("-----END PUBLIC KEY-----")?;
    parse_der(&decode_base64(body)?)
}

fn parse_der(der: &[u8]) -> Option<PublicKeyInfo> {
    let (info, rest) = element(SEQUENCE, der)?;
    let (algorithm, info) = element(SEQUENCE, info)?;
    let (bits, after) = element(BIT_STRING, info)?;
    let (unused, key) = bits.split_first()?;
    if !rest.is_empty() || !after.is_empty() || *unused != 0 {
        return None;
    }
    let uncompressed = |length| key.len() == length && key[0] == 4;
    match algorithm {
        RSA => Some(PublicKeyInfo::Rsa(key.to_vec())),
        P256 if uncompressed(65) => Some(PublicKeyInfo::P256(key.to_vec())),
        P384 if uncompressed(97) => Some(PublicKeyInfo::P384(key.to_vec())),
        _ => None,
    }
}

/// The contents of the DER element at the front, and what follows it.
fn element(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, input) = input.split_first()?;
    let (&first, input) = input.split_first()?;
    let (length, input) = match first {
        0..=0x7f => (usize::from(first), input),
        0x81 | 0x82 => {
            let (bytes, input) = input.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            // DER: the shortest form only.
            let shortest = if bytes.len() == 1 { length > 0x7f } else { length > 0xff };
            shortest.then_some((length, input))?
        }
        _ => return None,
    };
    (found == tag).then_some(())?;
    input.split_at_checked(length)
}

/// Standard base64 with padding; line breaks are skipped.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut group: u32 = 0;
    let (mut digits, mut padding) = (0, 0);
    for byte in text.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                0
            }
            _ => return None,
        };
        if padding > 2 || (padding > 0 && byte != b'=') {
            return None;
        }
        group = group << 6 | u32::from(value);
        digits += 1;
        if digits % 4 == 0 {
            let [_, bytes @ ..] = group.to_be_bytes();
            out.extend_from_slice(&bytes[..3 - padding]);
            group = 0;
        }
    }
    (digits % 4 == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEXsz3SZXFb8jMV42j6pJlyjbjR8K\nN3Bwocexq6LMIb5qsWKOQvLN16NUefLc4HswOoumRsVVaajSpQS6fobkRw==\n-----END PUBLIC KEY-----\n";

    #[test]
    fn reads_a_p256_key() {
        let Some(PublicKeyInfo::P256(point)) = parse_pem(EC_KEY) else { panic!("no P-256 key") };
        assert_eq!((point.len(), &point[..3]), (65, &[4, 0x11, 0x7b][..]));
    }

    #[test]
    fn refuses_anything_but_one_public_key() {
        let cases = [
            String::new(),
            EC_KEY.replace("PUBLIC", "PRIVATE"),
            EC_KEY.replace("MFkw", "MFgw"),
            EC_KEY.replace("Rw==", "Rw="),
            EC_KEY.replace("Rw==", "Rw==AAAA"),
            EC_KEY.replace("MFkw", "M kw"),
            EC_KEY.replace("AQcDQgAEEXsz", "AQcDQgACEXsz"),
            EC_KEY.replace("AQcDQgAEEXsz", "AQcDQgEEEXsz"),
            EC_KEY.repeat(2),
        ];
        for (index, text) in cases.iter().enumerate() {
            assert_eq!(parse_pem(text), None, "case {index}");
        }
    }

    #[test]
    fn every_cut_of_a_key_is_refused_without_panic() {
        let body: String = EC_KEY.lines().filter(|line| !line.starts_with('-')).collect();
        let der = decode_base64(&body).unwrap();
        for length in 0..der.len() {
            assert_eq!(parse_der(&der[..length]), None, "{length}");
        }
        assert!(parse_der(&der).is_some());
    }
}
