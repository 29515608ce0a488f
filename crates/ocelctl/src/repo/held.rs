//! What a broker holds of a repository, against what is here: nobody's push may take devices back. Only what the keys of this
//! repository signed counts, so that a hostile broker cannot keep the right folder from being pushed.

use std::collections::BTreeMap;

use ocelli_tuf::repository::Document;
use ocelli_tuf::schema::{Role, Root, Snapshot, Timestamp};

use super::{Repository, authority};
use crate::Failure;

/// Roots looked for beyond the newest one here. One is enough to know.
const ROOTS_AHEAD: u64 = 8;
const TIMESTAMP: &str = "timestamp.json";

/// Metadata that a broker holds, by file name.
pub(crate) type Held = BTreeMap<String, Vec<u8>>;

impl Repository {
    /// Files that tell whether a broker is ahead; see [`Self::snapshot_of`] for one more.
    pub(crate) fn telling_files(&self) -> Vec<String> {
        let newest = self.versions("root").last().copied().unwrap_or_default();
        // The first root is what devices begin with. Another one there is another repository's.
        let roots = (2..=newest.saturating_add(ROOTS_AHEAD)).map(root_file);
        roots.chain([TIMESTAMP.to_owned()]).collect()
    }

    /// Name of the snapshot that a held timestamp names, whoever signed that.
    pub(crate) fn snapshot_of(held: &Held) -> Option<String> {
        let timestamp = Document::<Timestamp>::parse(TIMESTAMP, held.get(TIMESTAMP)?).ok()?;
        Some(format!("{}.snapshot.json", timestamp.signed().snapshot().version))
    }

    /// Whether everything signed that the broker holds is here, too, or is older.
    ///
    /// # Errors
    /// What is on the broker, what is here, and what to do.
    pub(crate) fn not_behind(&self, held: &Held) -> Result<(), Failure> {
        let Some(root) = self.newest::<Root>("root")? else { return Ok(()) };
        let own = root.signed().version.get();
        let (fork, last) = self.held_roots(held, root.clone())?;
        if let Some(version) = fork {
            return Err(self.behind_of(
                &format!("another root {version}, signed by the keys of root {}", version - 1),
                &format!("a root {version} of its own"),
            ));
        }
        if last > own {
            return Err(self.behind_of(
                &format!("root {last}, signed by the keys of this repository"),
                &format!("root {own}, from before that change of keys"),
            ));
        }
        let signed = Signed { root: root.signed(), held };
        self.newer::<Timestamp>("timestamp", TIMESTAMP, &signed)?;
        let file = Self::snapshot_of(held).unwrap_or_default();
        let Some([theirs, ours]) = self.newer::<Snapshot>("snapshot", &file, &signed)? else {
            return Ok(());
        };
        for (file, listed) in &theirs.signed().meta {
            let here = ours.signed().meta.get(file).map_or(0, |own| own.version.get());
            if here < listed.version.get() {
                return Err(self.behind_of(
                    &format!(
                        "a signed snapshot with version {} of {}",
                        listed.version,
                        file.escape_debug()
                    ),
                    &format!("version {here}"),
                ));
            }
        }
        Ok(())
    }

    /// A held document and the one here, which is not behind it; `None` where one is missing.
    fn newer<T: Role + PartialEq>(
        &self,
        role: &str,
        file: &str,
        signed: &Signed<'_>,
    ) -> Result<Option<[Document<T>; 2]>, Failure> {
        let pair = signed.document::<T>(role, file)?.zip(self.newest::<T>(role)?);
        let Some((theirs, ours)) = pair else { return Ok(None) };
        let (held, own) = (theirs.signed().version(), ours.signed().version());
        if held >= own && theirs.signed() != ours.signed() {
            return Err(self.behind_of(
                &format!("{role} {held} of this repository, signed by its key"),
                &own.to_string(),
            ));
        }
        Ok(Some([theirs, ours]))
    }

    /// The version from which the held roots are others than the ones here, and the last version of the held chain.
    fn held_roots(
        &self,
        held: &Held,
        newest: Document<Root>,
    ) -> Result<(Option<u64>, u64), Failure> {
        for pair in self.versions("root").windows(2) {
            let before = self.version::<Root>("root", pair[0])?;
            let own = self.version::<Root>("root", pair[1])?;
            let theirs = successor(&before, held)?;
            if theirs.is_some_and(|theirs| theirs.signed() != own.signed()) {
                return Ok((Some(pair[1]), pair[1]));
            }
        }
        let mut last = newest;
        while let Some(next) = successor(&last, held)? {
            last = next;
        }
        Ok((None, last.signed().version.get()))
    }

    fn behind_of(&self, theirs: &str, ours: &str) -> Failure {
        Failure(format!(
            "the broker holds {theirs}; {} has {ours}: somebody pushed from another copy, nothing was written. Push from \
             the newest copy, or bring this one up to it; if nobody did, a key is stolen: change it \
             (docs/operations.md, Two copies)",
            self.dir.display()
        ))
    }
}

/// What the broker holds, as the newest root wants it signed.
struct Signed<'a> {
    root: &'a Root,
    held: &'a Held,
}

impl Signed<'_> {
    fn document<T: Role>(&self, role: &str, file: &str) -> Result<Option<Document<T>>, Failure> {
        let bytes = self.held.get(file);
        let parsed = bytes.and_then(|bytes| Document::<T>::parse(file, bytes).ok());
        let authority = authority(self.root, role)?;
        Ok(parsed.filter(|document| document.verify(authority).is_ok()))
    }
}

fn root_file(version: u64) -> String {
    format!("{version}.root.json")
}

/// The held root that follows on this one by the signatures of both (TUF 1.0.34 §5.3.4 and §5.3.5).
fn successor(root: &Document<Root>, held: &Held) -> Result<Option<Document<Root>>, Failure> {
    let next = root.signed().version.get().saturating_add(1);
    let Some(bytes) = held.get(&root_file(next)) else { return Ok(None) };
    let Ok(document) = Document::<Root>::parse("root.json", bytes) else { return Ok(None) };
    for keys in [root.signed(), document.signed()] {
        if document.verify(authority(keys, "root")?).is_err() {
            return Ok(None);
        }
    }
    Ok((document.signed().version.get() == next).then_some(document))
}
