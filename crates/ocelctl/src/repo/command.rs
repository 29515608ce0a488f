//! What `ocelctl repo` takes: subcommands and their options.

use std::path::PathBuf;

use ocelli_protocol::Id;

use crate::keys::Passphrase;

/// Roles that every repository begins with.
pub(super) const ROLES: [&str; 6] =
    ["root", "timestamp", "snapshot", "targets", "releases", "rollout"];

/// Where the repository is, and who signs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// Folder of the repository
    #[arg(long, value_name = "DIR", default_value = "repo")]
    pub(crate) repo: PathBuf,
    /// Secret keys to sign with; each signs what it may
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) passphrase: Passphrase,
}

/// `ocelctl repo …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Begin a repository with the public keys of its roles
    Init(Init),
    /// Add a package, folder or tar
    Add {
        /// The package
        package: PathBuf,
        /// Role that signs it, see `delegate`
        #[arg(long, default_value = "releases")]
        role: String,
        #[command(flatten)]
        common: Common,
    },
    /// Withdraw a release: devices that run it keep it, no other gets it
    Remove {
        /// Name of the model
        model: Id,
        /// Version of the package
        version: String,
        /// Role that signs it
        #[arg(long, default_value = "releases")]
        role: String,
        /// Withdraw it although it is rolled out
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Name the version that devices get; an older one rolls back
    Rollout(RolloutArguments),
    /// Change the keys of a role; without a change, renew it: a next version with a new end
    Rotate {
        /// root, timestamp, snapshot, targets, or a delegated role
        role: String,
        /// Public key to add
        #[arg(long, value_name = "FILE")]
        add: Vec<PathBuf>,
        /// Key to remove: its id, the first characters of that, or its .pub file
        #[arg(long, value_name = "ID|FILE")]
        remove: Vec<String>,
        /// How many keys must sign
        #[arg(long)]
        threshold: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Let further keys release one model only
    Delegate {
        /// Name of the new role
        role: String,
        /// Model that it may release
        #[arg(long)]
        model: Id,
        /// Public keys of the role
        #[arg(long, value_name = "FILE", required = true)]
        public: Vec<PathBuf>,
        /// How many must sign
        #[arg(long, default_value_t = 1)]
        threshold: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Show what is staged and sign it; publish what has enough signatures
    Sign {
        /// Copy of a staged file that somebody else signed: ROLE.json, ROLE.NAME.json or VERSION.ROLE.json
        #[arg(long, value_name = "FILE")]
        merge: Vec<PathBuf>,
        /// Do not ask; without a terminal nothing is asked
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Renew snapshot, timestamp and, near its end, the roll-out; for a timer
    Refresh {
        #[command(flatten)]
        common: Common,
    },
    /// Show versions, ends and missing signatures
    Status {
        #[command(flatten)]
        common: Common,
    },
}

impl Command {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Init(Init { common, .. })
            | Self::Rollout(RolloutArguments { common, .. })
            | Self::Add { common, .. }
            | Self::Remove { common, .. }
            | Self::Rotate { common, .. }
            | Self::Delegate { common, .. }
            | Self::Sign { common, .. }
            | Self::Refresh { common }
            | Self::Status { common } => common,
        }
    }
}

/// Arguments of `ocelctl repo init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// Name of the repository, as in the devices' `update.repo`
    #[arg(long)]
    pub(super) id: Id,
    /// Public keys of the root role, offline
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) root: Vec<PathBuf>,
    /// Public keys of the targets role, offline
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) targets: Vec<PathBuf>,
    /// Public keys that sign packages, offline
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) releases: Vec<PathBuf>,
    /// Public keys that sign roll-outs, online
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) rollout: Vec<PathBuf>,
    /// Public keys that sign snapshots, online
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) snapshot: Vec<PathBuf>,
    /// Public keys that sign timestamps, online
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) timestamp: Vec<PathBuf>,
    /// How many keys of a role must sign, as root=2
    #[arg(long, value_name = "ROLE=N", value_parser = threshold)]
    pub(super) threshold: Vec<(String, u64)>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Arguments of `ocelctl repo rollout`.
#[derive(Debug, clap::Args)]
pub(crate) struct RolloutArguments {
    /// Name of the model
    pub(super) model: Id,
    /// Version that is rolled out
    pub(super) version: String,
    /// Channel
    #[arg(long, default_value = "stable")]
    pub(super) channel: Id,
    /// Part of the devices, 0 to 100
    #[arg(long, default_value_t = 100.0)]
    pub(super) percent: f64,
    /// Labels that devices must have
    #[arg(long, value_name = "LABEL")]
    pub(super) label: Vec<Id>,
    /// Raise it to have devices try again what they rejected
    #[arg(long)]
    pub(super) attempt: Option<u32>,
    #[command(flatten)]
    pub(super) common: Common,
}

fn threshold(text: &str) -> Result<(String, u64), String> {
    let (role, number) = text.split_once('=').ok_or("write it as root=2")?;
    let number = number.parse().map_err(|_| format!("{number} is no number"))?;
    Ok((role.to_owned(), number))
}
