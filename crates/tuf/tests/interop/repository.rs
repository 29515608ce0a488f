//! The repository that python-tuf is shown: made by our writing side from fixed keys and times, so always the same bytes.
//! The keys are for tests only.

use std::collections::BTreeMap;

use ocelli_tuf::repository::{Document, SigningKey};
use ocelli_tuf::schema::{MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp};
use ocelli_tuf::{DateTime, Json, TargetPath};

/// Targets by path, with the role that names them and their content.
pub(crate) const TARGETS: [(&str, &str, &str); 3] = [
    ("targets", "readme.txt", "named by targets"),
    ("releases", "releases/nanodet-1.0.0.tar", "named by releases"),
    ("rollout", "rollout/nanodet.json", "named by rollout"),
];

/// All files of the repository: `metadata/…` and `targets/…`.
pub(crate) fn files() -> BTreeMap<String, Vec<u8>> {
    let expires: DateTime = "2126-01-01T00:00:00Z".parse().expect("a date-time");
    let mut files = BTreeMap::new();

    let mut root = Root::new(expires);
    for seed in [1, 2, 3] {
        root.allow("root", key(seed).public());
    }
    root.set_threshold("root", 2);
    for (role, seed) in [("targets", 4), ("snapshot", 5), ("timestamp", 6)] {
        root.allow(role, key(seed).public());
    }
    let mut root = Document::new(root);
    publish(&mut files, "root", &mut root, &[1, 2]);
    let next = root.next_version(expires).expect("not the last version");
    next.revoke("root", &key(1).public().id());
    next.allow("root", key(7).public());
    publish(&mut files, "root", &mut root, &[1, 2, 7]);

    let mut roles: BTreeMap<_, _> = [("targets", 4), ("releases", 8), ("rollout", 10)]
        .map(|(role, seed)| (role, (Targets::new(expires), vec![seed])))
        .into();
    for (role, path, content) in TARGETS {
        let path: TargetPath = path.parse().expect("a safe path");
        let mut file = TargetFile::of(content.as_bytes());
        file.custom = Json::parse(r#"{"ocelli":{"note":"é \"quoted\" \\ \n"}}"#.as_bytes()).ok();
        let digest = file.hashes.get("sha256").expect("made with it").to_owned();
        let (folder, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
        let slash = if folder.is_empty() { "" } else { "/" };
        files.insert(format!("targets/{folder}{slash}{digest}.{name}"), content.into());
        roles.get_mut(role).expect("one of the three").0.add(&path, file);
    }
    let (targets, _) = roles.get_mut("targets").expect("one of the three");
    targets.delegate("releases", &[8, 9].map(|seed| key(seed).public()), 2, &["releases/*"]);
    targets.delegate("rollout", &[key(10).public()], 1, &["rollout/*.json"]);
    roles.get_mut("releases").expect("one of the three").1.push(9);

    let mut snapshot = Snapshot::new(expires);
    for (role, (targets, seeds)) in roles {
        snapshot.list(role, publish(&mut files, role, &mut Document::new(targets), &seeds));
    }
    let snapshot = publish(&mut files, "snapshot", &mut Document::new(snapshot), &[5]);
    let mut timestamp = Document::new(Timestamp::new(snapshot, expires));
    publish(&mut files, "timestamp", &mut timestamp, &[6]);
    files
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).expect("32 bytes")
}

fn publish<T: Role>(
    files: &mut BTreeMap<String, Vec<u8>>,
    role: &str,
    document: &mut Document<T>,
    seeds: &[u8],
) -> MetaFile {
    for seed in seeds {
        document.sign(&key(*seed));
    }
    let bytes = document.to_bytes();
    let listed = MetaFile::of(document.signed().version(), &bytes);
    files.insert(format!("metadata/{}", document.file(role)), bytes);
    listed
}
