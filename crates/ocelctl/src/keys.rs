//! `ocelctl keys`: Ed25519 keys in files, the secret half encrypted with a passphrase (PKCS#8 with PBES2: scrypt and AES-256),
//! the public half as TUF metadata holds it.

use std::io::Write;
use std::path::{Path, PathBuf};

use ocelli_tuf::Key;
use ocelli_tuf::repository::SigningKey;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};

use crate::files::Place;
use crate::{Failure, files, written};

/// Environment variable with the passphrase, for unattended signing.
pub(crate) const PASSPHRASE: &str = "OCELCTL_PASSPHRASE";
const LABEL: &str = "ENCRYPTED PRIVATE KEY";

/// `ocelctl keys …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a key: <NAME>.key (secret, encrypted) and <NAME>.pub (public)
    New {
        /// Path without ending, as keys/releases-anna
        name: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
    },
}

/// Where the passphrase comes from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Passphrase {
    /// File whose first line is the passphrase [default: $OCELCTL_PASSPHRASE, else asked for]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// A passphrase in a file.
    #[cfg(test)]
    pub(crate) fn in_file(path: &Path) -> Self {
        Self { passphrase_file: Some(path.to_owned()) }
    }

    /// The passphrase of a key that exists.
    fn read(&self, key: &Path) -> Result<String, Failure> {
        match self.given()? {
            Some(text) => not_empty(text),
            None => not_empty(asked(rpassword::prompt_password(prompt("Passphrase", key)))?),
        }
    }

    /// The passphrase of a new key.
    fn choose(&self, key: &Path) -> Result<String, Failure> {
        match self.given()? {
            Some(text) => not_empty(text),
            None => asked_twice(key, rpassword::prompt_password),
        }
    }

    /// From the file or the environment; `None`: a person is to be asked.
    fn given(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.passphrase_file else { return Ok(std::env::var(PASSPHRASE).ok()) };
        let text = files::read(path)
            .map_err(|failure| Failure(format!("{failure}; check --passphrase-file")))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
    }
}

fn prompt(what: &str, key: &Path) -> String {
    format!("{what} of {}: ", key.display())
}

fn asked(answer: std::io::Result<String>) -> Result<String, Failure> {
    answer.map_err(|error| {
        Failure(format!("no passphrase: {error}; see --passphrase-file and {PASSPHRASE}"))
    })
}

fn not_empty(text: String) -> Result<String, Failure> {
    if text.is_empty() {
        return Err(Failure::new("the passphrase is empty; choose one of several words"));
    }
    Ok(text)
}

/// A slip in what nobody sees while typing would make a key that nobody can use.
fn asked_twice(
    key: &Path,
    mut ask: impl FnMut(String) -> std::io::Result<String>,
) -> Result<String, Failure> {
    let first = not_empty(asked(ask(prompt("New passphrase", key)))?)?;
    let again = asked(ask("The same once more: ".to_owned()))?;
    if first != again {
        return Err(Failure::new("the two passphrases differ; no key was made, try again"));
    }
    Ok(first)
}

/// Runs `ocelctl keys`.
pub(crate) fn run(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    let Command::New { name, passphrase } = command;
    let id = make(&name, &passphrase)?;
    written(writeln!(
        out,
        "{}: secret, encrypted; keep it and its passphrase apart\n{}: public, key id {id}",
        with_ending(&name, "key").display(),
        with_ending(&name, "pub").display()
    ))
}

/// Makes both files; neither may exist. Gives the key's id.
pub(crate) fn make(name: &Path, passphrase: &Passphrase) -> Result<String, Failure> {
    let (secret, public) = (with_ending(name, "key"), with_ending(name, "pub"));
    for path in [&secret, &public] {
        if path.exists() {
            return Err(Failure(format!("{}: exists; choose another name", path.display())));
        }
    }
    let text = passphrase.choose(&secret)?;
    let der = SigningKey::generate().map_err(|error| Failure(error.to_string()))?;
    let key = SigningKey::from_pkcs8(&der).map_err(|error| Failure(error.to_string()))?;
    files::write(&secret, encrypt(&der, &text)?.as_bytes(), Place::Secret)?;
    let mut json = serde_json::to_vec_pretty(&key.public()).expect("a key is plain JSON");
    json.push(b'\n');
    files::write(&public, &json, Place::Public)?;
    Ok(key.public().id().to_string())
}

fn encrypt(der: &[u8], passphrase: &str) -> Result<String, Failure> {
    let bad = |error: pkcs8::Error| Failure(format!("the key cannot be encrypted: {error}"));
    let info = PrivateKeyInfoRef::try_from(der).map_err(bad)?;
    let encrypted: SecretDocument = info.encrypt(passphrase).map_err(bad)?;
    let pem = encrypted.to_pem(LABEL, LineEnding::LF);
    Ok(pem.map_err(|error| bad(error.into()))?.to_string())
}

/// Reads a secret key.
pub(crate) fn read(path: &Path, passphrase: &Passphrase) -> Result<SigningKey, Failure> {
    let bad = |detail: String| Failure(format!("{}: {detail}", path.display()));
    let bytes = files::read(path).map_err(|failure| {
        Failure(format!("{failure}; --key names a secret key that `ocelctl keys new` made"))
    })?;
    let pem = String::from_utf8(bytes)
        .map_err(|_| bad("is no key file; expected what `ocelctl keys new` made".to_owned()))?;
    let (label, document) = SecretDocument::from_pem(&pem)
        .map_err(|error| bad(format!("{error}; expected what `ocelctl keys new` made")))?;
    if label != LABEL {
        return Err(bad(format!("holds a {label}, expected an {LABEL}")));
    }
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
        .map_err(|error| bad(error.to_string()))?;
    let text = passphrase.read(path)?;
    let der = encrypted.decrypt(text).map_err(|_| bad("wrong passphrase".to_owned()))?;
    SigningKey::from_pkcs8(der.as_bytes()).map_err(|error| bad(error.to_string()))
}

/// Reads a public key.
pub(crate) fn read_public(path: &Path) -> Result<Key, Failure> {
    let bytes = files::read(path).map_err(|failure| {
        Failure(format!("{failure}; expected a .pub file of `ocelctl keys new`"))
    })?;
    let key: Key = serde_json::from_slice(&bytes).map_err(|error| {
        Failure(format!("{}: {error}; expected a .pub file of `ocelctl keys new`", path.display()))
    })?;
    Ok(key)
}

fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut text = name.as_os_str().to_owned();
    text.push(".");
    text.push(ending);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_passphrase_is_asked_for_twice() {
        let answers = |texts: [&'static str; 2]| {
            let mut texts = texts.into_iter();
            let mut prompts = Vec::new();
            let text = asked_twice(Path::new("keys/anna.key"), |prompt| {
                prompts.push(prompt);
                Ok(texts.next().unwrap().to_owned())
            });
            (text.map_err(|failure| failure.0), prompts.len())
        };
        assert_eq!(
            answers(["three words here", "three words here"]).0.unwrap(),
            "three words here"
        );
        let (told, asked) = answers(["three words here", "three wrods here"]);
        assert!(told.unwrap_err().contains("differ; no key was made"));
        assert_eq!(asked, 2);
        assert!(answers(["", "x"]).0.unwrap_err().contains("is empty"));
    }

    #[test]
    fn a_key_is_read_back_with_its_passphrase_only() {
        let folder = tempfile::tempdir().unwrap();
        let [right, wrong] = ["right words", "wrong words"].map(|text| {
            let path = folder.path().join(text);
            std::fs::write(&path, format!("{text}\n")).unwrap();
            Passphrase::in_file(&path)
        });
        let name = folder.path().join("releases.anna");
        let id = make(&name, &right).unwrap();
        let secret = folder.path().join("releases.anna.key");
        assert_eq!(read(&secret, &right).unwrap().public().id().as_str(), id);
        let public = read_public(&folder.path().join("releases.anna.pub")).unwrap();
        assert_eq!(public.id().as_str(), id);
        assert!(read(&secret, &wrong).unwrap_err().0.contains("wrong passphrase"));
        assert!(make(&name, &right).unwrap_err().0.contains("exists"));
        let pem = std::fs::read_to_string(&secret).unwrap();
        assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{pem}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
