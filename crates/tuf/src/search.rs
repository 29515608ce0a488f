//! The search for a target through the delegations (§5.6.7) and what is found (§5.7). No I/O; see [`crate::refresh`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Error;
use crate::action::{Action, Answer, Progress, Wanted, done, listed, loaded, persist};
use crate::check::{self, Authority, Verified};
use crate::digest::{FileCheck, Hashes};
use crate::json::Json;
use crate::key::{Key, KeyId};
use crate::path::{TargetPath, metadata_file};
use crate::refresh::Trusted;
use crate::schema::{DelegatedRole, TargetFile, Targets};

/// A target file that a trusted role names, with all a client needs to get and to check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: TargetPath,
    role: String,
    file: TargetFile,
    repository_path: String,
}

impl Target {
    fn new(
        trusted: &Trusted,
        path: &TargetPath,
        role: &str,
        file: &TargetFile,
    ) -> Result<Self, Error> {
        FileCheck::new(path.as_str(), Some(file.length), &file.hashes)?;
        // TUF 1.0.34 §5.7.3: HASH.FILENAME.EXT under consistent snapshots
        let prefix = file.hashes.prefix().filter(|_| trusted.root().consistent_snapshot);
        let repository_path = match prefix {
            Some(digest) => path.with_prefix(digest),
            None => path.to_string(),
        };
        let (path, role, file) = (path.clone(), role.to_owned(), file.clone());
        Ok(Self { path, role, file, repository_path })
    }

    /// The path that was searched for.
    #[must_use]
    pub fn path(&self) -> &TargetPath {
        &self.path
    }

    /// The role that names it.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.file.length
    }

    /// Its digests; at least one is of a known algorithm.
    #[must_use]
    pub fn hashes(&self) -> &Hashes {
        &self.file.hashes
    }

    /// What the application signed beside it.
    #[must_use]
    pub fn custom(&self) -> Option<&Json> {
        self.file.custom.as_ref()
    }

    /// Where the repository has it: with a digest before the file name under consistent snapshots. Not URL-encoded.
    #[must_use]
    pub fn repository_path(&self) -> &str {
        &self.repository_path
    }

    /// The check that its bytes must pass (§5.7.3), as they arrive.
    #[must_use]
    pub fn check(&self) -> FileCheck {
        FileCheck::new(self.path.as_str(), Some(self.file.length), &self.file.hashes)
            .expect("checked when the target was found")
    }

    /// Checks all bytes at once.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Length`], [`Error::Digest`].
    pub fn verify(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut check = self.check();
        check.update(bytes)?;
        check.finish()
    }
}

/// A delegation that waits to be visited.
#[derive(Debug)]
struct Delegation {
    role: DelegatedRole,
    keys: Arc<BTreeMap<KeyId, Key>>,
    depth: usize,
}

#[derive(Debug)]
enum State {
    Load,
    Fetch(Wanted),
    Persist(Verified<Targets>),
}

/// A search in progress. Each one verifies what it visits against the delegation it came by: nothing is inherited
/// from another search or from another path to the same role.
#[derive(Debug)]
pub struct Search {
    trusted: Trusted,
    path: TargetPath,
    open: Vec<Delegation>,
    visited: BTreeSet<String>,
    current: Delegation,
    state: State,
}

impl Search {
    /// Begins with the top-level targets role, which needs no action.
    ///
    /// # Errors
    /// [`Error::NoSuchTarget`], or what is wrong with the first delegation.
    pub fn start(trusted: &Trusted, path: &TargetPath) -> Result<Progress<Self, Target>, Error> {
        // TUF 1.0.34 §5.6.7: pre-order, depth first, from the top-level targets role
        if let Some(file) = trusted.targets().targets.get(path.as_str()) {
            return Target::new(trusted, path, "targets", file).map(Progress::Done);
        }
        let (mut open, mut visited) = (Vec::new(), BTreeSet::new());
        open_delegations(&mut open, trusted.targets(), path, 1);
        let current = next(trusted, path, &mut open, &mut visited)?;
        let (trusted, path) = (trusted.clone(), path.clone());
        Ok(Progress::Continue(Self { trusted, path, open, visited, current, state: State::Load }))
    }

    /// What to do next.
    #[must_use]
    pub fn action(&self) -> Action<'_> {
        match &self.state {
            State::Load => Action::Load { file: metadata_file(&self.current.role.name) },
            State::Fetch(wanted) => wanted.action(),
            State::Persist(targets) => persist(&metadata_file(&self.current.role.name), targets),
        }
    }

    /// Takes the answer to [`Self::action`].
    ///
    /// # Errors
    /// §5.6.7: metadata that cannot be had or verified ends the search.
    pub fn answer(mut self, answer: Answer) -> Result<Progress<Self, Target>, Error> {
        let name = &self.current.role.name;
        let limit = self.trusted.limits.targets_bytes;
        self.state = match std::mem::replace(&mut self.state, State::Load) {
            State::Load => match loaded(answer, limit)?.map(|bytes| self.check(&bytes)) {
                Some(Ok(targets)) => return self.visit(&targets),
                _ => {
                    let listed = listed(self.trusted.snapshot(), name)?;
                    State::Fetch(Wanted::new(self.trusted.root(), name, listed, limit)?)
                }
            },
            State::Fetch(wanted) => State::Persist(self.check(&wanted.take(answer)?)?),
            State::Persist(targets) => {
                done("persist", &answer)?;
                return self.visit(&targets);
            }
        };
        Ok(Progress::Continue(self))
    }

    fn check(&self, bytes: &[u8]) -> Result<Verified<Targets>, Error> {
        let Delegation { role, keys, .. } = &self.current;
        let listed = listed(self.trusted.snapshot(), &role.name)?;
        check::targets(Authority::of_delegation(keys, role), listed, bytes, self.trusted.now)
    }

    /// §5.6.7.1 and §5.6.7.2 for one role.
    fn visit(mut self, targets: &Targets) -> Result<Progress<Self, Target>, Error> {
        if let Some(file) = targets.targets.get(self.path.as_str()) {
            let role = &self.current.role.name;
            return Target::new(&self.trusted, &self.path, role, file).map(Progress::Done);
        }
        open_delegations(&mut self.open, targets, &self.path, self.current.depth + 1);
        self.current = next(&self.trusted, &self.path, &mut self.open, &mut self.visited)?;
        Ok(Progress::Continue(self))
    }
}

/// Puts the delegations that cover the path on top of the stack, first one uppermost.
fn open_delegations(
    open: &mut Vec<Delegation>,
    targets: &Targets,
    path: &TargetPath,
    depth: usize,
) {
    let Some(delegations) = &targets.delegations else { return };
    let keys = Arc::new(delegations.keys.clone());
    let mut covering = Vec::new();
    for role in delegations.roles.iter().filter(|role| role.covers(path)) {
        let terminating = role.terminating;
        covering.push(Delegation { role: role.clone(), keys: Arc::clone(&keys), depth });
        // TUF 1.0.34 §5.6.7.2.1: nothing after a terminating delegation is searched, here or further up
        if terminating {
            open.clear();
            break;
        }
    }
    // TUF 1.0.34 §5.6.7.2.2: otherwise the next one in order
    open.extend(covering.into_iter().rev());
}

/// The next role to visit.
fn next(
    trusted: &Trusted,
    path: &TargetPath,
    open: &mut Vec<Delegation>,
    visited: &mut BTreeSet<String>,
) -> Result<Delegation, Error> {
    let limit_met = |limit| Err(Error::DelegationLimit { path: path.to_string(), limit });
    while let Some(delegation) = open.pop() {
        // TUF 1.0.34 §5.6.7.1: each role once, so cycles end
        if visited.contains(&delegation.role.name) {
            continue;
        }
        // Off-spec: §5.6.7.1 goes on as if there were no such target; we say that a limit was met, which also ends the search
        let limits = &trusted.limits;
        if visited.len() >= limits.delegated_roles {
            return limit_met(format!("{} roles", limits.delegated_roles));
        }
        if delegation.depth > limits.delegation_depth {
            return limit_met(format!("{} levels", limits.delegation_depth));
        }
        listed(trusted.snapshot(), &delegation.role.name)?;
        visited.insert(delegation.role.name.clone());
        return Ok(delegation);
    }
    // TUF 1.0.34 §5.7.2: no such target
    Err(Error::NoSuchTarget { path: path.to_string() })
}
