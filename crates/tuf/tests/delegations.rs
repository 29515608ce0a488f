//! The search for a target (§5.6.7) and what is found (§5.7), with and without an attacker.

mod support;

use ocelli_tuf::schema::TargetFile;
use ocelli_tuf::{Error, Hashes, Json, Limits};
use support::{STRANGER, World, key, path, version};

fn no_such(name: &str) -> Error {
    Error::NoSuchTarget { path: name.into() }
}

/// Roles in the order in which their metadata was asked for.
fn visited(world: &World) -> Vec<&str> {
    let fetched = world.log.iter().filter_map(|line| line.strip_prefix("fetch "));
    fetched.filter_map(|file| file.split('.').nth(1)).collect()
}

struct Graph {
    name: &'static str,
    /// (delegator, role, patterns, terminating)
    edges: &'static [(&'static str, &'static str, &'static str, bool)],
    visited: &'static [&'static str],
}

// §5.6.7, §5.6.7.1, §5.6.7.2
#[test]
fn delegations_are_searched_depth_first_in_order() {
    let cases = [
        Graph {
            name: "in order",
            edges: &[("targets", "a", "*", false), ("targets", "b", "*", false)],
            visited: &["a", "b"],
        },
        Graph {
            name: "depth first",
            edges: &[
                ("targets", "a", "*", false),
                ("targets", "b", "*", false),
                ("a", "c", "*", false),
                ("c", "d", "*", false),
            ],
            visited: &["a", "c", "d", "b"],
        },
        Graph {
            name: "a terminating role ends the search, also further up",
            edges: &[
                ("targets", "a", "*", false),
                ("targets", "b", "*", false),
                ("a", "c", "*", true),
                ("a", "d", "*", false),
                ("c", "e", "*", false),
            ],
            visited: &["a", "c", "e"],
        },
        Graph {
            name: "a terminating role for other paths ends nothing",
            edges: &[("targets", "a", "*.py", true), ("targets", "b", "*", false)],
            visited: &["b"],
        },
        Graph {
            name: "patterns bind on the way",
            edges: &[("targets", "a", "x*", false), ("a", "c", "*", false)],
            visited: &[],
        },
        Graph {
            name: "a cycle",
            edges: &[("targets", "a", "*", false), ("a", "b", "*", false), ("b", "a", "*", false)],
            visited: &["a", "b"],
        },
        Graph {
            name: "two ways to one role",
            edges: &[
                ("targets", "a", "*", false),
                ("targets", "b", "*", false),
                ("a", "c", "*", false),
                ("b", "c", "*", false),
            ],
            visited: &["a", "c", "b"],
        },
    ];
    for graph in cases {
        let mut world = World::updated();
        for (from, role, pattern, terminating) in graph.edges {
            world.delegate(from, role, 50, &[pattern]);
            world.next_targets(from, |targets| {
                let roles = &mut targets.delegations.as_mut().unwrap().roles;
                roles.last_mut().unwrap().terminating = *terminating;
            });
        }
        world.publish();
        assert_eq!(world.find("missing"), Err(no_such("missing")), "{}", graph.name);
        assert_eq!(visited(&world), graph.visited, "{}", graph.name);
    }
}

#[test]
fn a_delegated_target_is_found_with_all_that_was_signed() {
    let mut world = World::updated();
    world.delegate("targets", "releases", 50, &["releases/*"]);
    world.next_targets("releases", |targets| {
        let mut file = TargetFile::of(b"package");
        file.custom = Json::parse(br#"{"ocelli":{"model":"m"}}"#).ok();
        targets.add(&path("releases/m.tar"), file);
    });
    world.publish();
    let target = world.find("releases/m.tar").unwrap();
    let digest = Hashes::sha256(b"package");
    assert_eq!(target.role(), "releases");
    assert_eq!(target.length(), 7);
    let name = format!("releases/{}.m.tar", digest.get("sha256").unwrap());
    assert_eq!(target.repository_path(), name);
    assert!(target.custom().unwrap().get("ocelli").is_some());
    assert_eq!(world.trusted().split(", ").next(), Some("releases 2"));
}

// §5.7.3
#[test]
fn only_the_signed_bytes_are_the_target() {
    let mut world = World::updated();
    world.add_target("targets", "file", b"content");
    world.publish();
    let target = world.find("file").unwrap();
    let file = || "file".to_owned();
    assert_eq!(target.verify(b"content"), Ok(()));
    assert_eq!(
        target.verify(b"CONTENT"),
        Err(Error::Digest { file: file(), algorithm: "sha256".into() })
    );
    assert_eq!(target.verify(b"content+"), Err(Error::TooLong { file: file(), limit: 7 }));
    assert_eq!(
        target.verify(b"conten"),
        Err(Error::Length { file: file(), expected: 7, found: 6 })
    );
}

// §5.7.3: a target whose digests cannot be checked is none
#[test]
fn a_target_without_a_known_digest_is_refused() {
    let mut world = World::updated();
    world.next_targets("targets", |targets| {
        let mut file = TargetFile::of(b"content");
        file.hashes = Hashes([("crc32".into(), "00".into())].into());
        targets.add(&path("file"), file);
    });
    world.publish();
    assert!(matches!(world.find("file"), Err(Error::Format { .. })));
}

// §4.5: path_hash_prefixes
#[test]
fn hash_prefixes_divide_paths_into_bins() {
    // SHA-256: "alpha" begins with 8ed3f6ad, "gamma" with be9d587d (GNU sha256sum)
    let mut world = World::updated();
    for (role, seed, prefixes) in [("low", 51, ["0", "8ed3"]), ("high", 52, ["be9d", "f"])] {
        world.delegate("targets", role, seed, &[]);
        world.next_targets("targets", |targets| {
            let roles = &mut targets.delegations.as_mut().unwrap().roles;
            let role = roles.last_mut().unwrap();
            role.paths = None;
            role.path_hash_prefixes = Some(prefixes.map(str::to_owned).to_vec());
        });
        world.add_target(role, "alpha", b"alpha");
        world.add_target(role, "gamma", b"gamma");
    }
    world.publish();
    assert_eq!(world.find("alpha").unwrap().role(), "low");
    assert_eq!(world.find("gamma").unwrap().role(), "high");
}

#[test]
fn attacks_through_delegations() {
    type Attack = fn(&mut World);
    let cases: [(&str, Attack, Error); 10] = [
        (
            "§4.5 a role speaks for a path it was not given",
            |world| world.add_target("team", "other/file", b"evil"),
            no_such("other/file"),
        ),
        (
            "§5.6.1 withheld",
            |world| drop(world.served.remove("1.team.json")),
            Error::Absent { file: "1.team.json".into() },
        ),
        (
            "§5.6.2 replaced",
            |world| {
                let bytes = world.served.get_mut("1.team.json").unwrap();
                bytes.reverse();
            },
            Error::Digest { file: "team.json".into(), algorithm: "sha256".into() },
        ),
        (
            "§5.6.3 signed by a stranger",
            |world| {
                world.signers.insert("team".into(), vec![STRANGER]);
                world.serve_targets("team");
            },
            Error::Threshold { role: "team".into(), needed: 1, valid: 0 },
        ),
        (
            "§5.6.4 another version",
            |world| {
                let bytes = world.served["1.team.json"].clone();
                world.served.insert("2.team.json".into(), bytes);
                let listed = ocelli_tuf::schema::MetaFile {
                    version: version(2),
                    length: None,
                    hashes: None,
                };
                world.snapshot.amend().list("team", listed);
            },
            Error::VersionMismatch { file: "team.json".into(), expected: 2, found: 1 },
        ),
        (
            "§5.6.5 expired",
            |world| {
                let now = world.now;
                world.targets.get_mut("team").unwrap().amend().expires = now;
                world.serve_targets("team");
            },
            Error::Expired {
                file: "team.json".into(),
                expires: World::new().now,
                now: World::new().now,
            },
        ),
        (
            "§4.4 not in the snapshot",
            |world| drop(world.snapshot.amend().meta.remove("team.json")),
            Error::NotInSnapshot { file: "team.json".into() },
        ),
        (
            "§4.5 a delegated role with the name of a top-level one",
            |world| {
                world.next_targets("targets", |targets| {
                    targets.delegate("root", &[key(50).public()], 1, &["*"]);
                });
            },
            Error::Format {
                file: "targets.json".into(),
                reason: "a delegated role has the name of a top-level role".into(),
            },
        ),
        (
            "§4.5 both patterns and hash prefixes",
            |world| {
                world.next_targets("targets", |targets| {
                    let roles = &mut targets.delegations.as_mut().unwrap().roles;
                    roles[0].path_hash_prefixes = Some(vec![String::new()]);
                });
            },
            Error::Format {
                file: "targets.json".into(),
                reason: "role team has both paths and path_hash_prefixes".into(),
            },
        ),
        (
            "§4.5 two delegations of one name",
            |world| {
                world.next_targets("targets", |targets| {
                    let roles = &mut targets.delegations.as_mut().unwrap().roles;
                    roles.push(roles[0].clone());
                });
            },
            Error::Format {
                file: "targets.json".into(),
                reason: "role team is delegated to twice".into(),
            },
        ),
    ];
    for (name, attack, error) in cases {
        let mut world = World::updated();
        world.delegate("targets", "team", 50, &["team/*"]);
        attack(&mut world);
        world.publish();
        let file = if error == no_such("other/file") { "other/file" } else { "team/file" };
        assert_eq!(world.find(file), Err(error), "{name}");
        assert!(!world.stored.contains_key("team.json"), "{name}: stored");
    }
}

// §5.6.7.1: bounded work
#[test]
fn number_and_depth_of_visited_roles_are_limited() {
    let limit =
        |limit: &str| Error::DelegationLimit { path: "missing".into(), limit: limit.into() };
    let mut wide = World::updated();
    wide.limits = Limits { delegated_roles: 3, ..Limits::default() };
    for index in 0..4u8 {
        wide.delegate("targets", &format!("role{index}"), 50 + index, &["*"]);
    }
    wide.publish();
    assert_eq!(wide.find("missing"), Err(limit("3 roles")));
    assert_eq!(visited(&wide).len(), 3);

    let mut deep = World::updated();
    deep.limits = Limits { delegation_depth: 2, ..Limits::default() };
    for (from, role) in [("targets", "a"), ("a", "b"), ("b", "c")] {
        deep.delegate(from, role, 50, &["*"]);
    }
    deep.publish();
    assert_eq!(deep.find("missing"), Err(limit("2 levels")));
    assert_eq!(visited(&deep), ["a", "b"]);
}

// One search never lends its trust to another: what python-tuf 7.0.0 and go-tuf get wrong
#[test]
fn a_stored_role_is_verified_against_the_delegation_it_is_reached_by() {
    let mut world = World::updated();
    world.delegate("targets", "parent-a", 50, &["team-a/*"]);
    world.delegate("targets", "parent-b", 51, &["team-b/*"]);
    world.delegate("parent-a", "release", 52, &["team-a/*"]);
    world.delegate("parent-b", "release", 53, &["team-b/*"]);
    world.add_target("release", "team-a/file", b"trusted");
    world.add_target("release", "team-b/file", b"malicious");
    world.publish();
    let trusted = world.refresh().unwrap();
    assert!(world.search(&trusted, "team-a/file").is_ok());
    assert!(world.stored.contains_key("release.json"));
    let error = Error::Threshold { role: "release".into(), needed: 1, valid: 0 };
    assert_eq!(world.search(&trusted, "team-b/file"), Err(error));
}

#[test]
fn stored_delegated_metadata_is_used_without_asking() {
    let mut world = World::updated();
    world.delegate("targets", "team", 50, &["team/*"]);
    world.add_target("team", "team/file", b"content");
    world.publish();
    world.find("team/file").unwrap();
    world.find("team/file").unwrap();
    assert_eq!(world.log, ["load team.json"]);
}

#[test]
fn odd_role_names_stay_within_one_level() {
    for (role, file) in [("../up", "..%2Fup.json"), ("/abs", "%2Fabs.json"), ("?#", "%3F%23.json")]
    {
        let mut world = World::updated();
        world.delegate("targets", role, 50, &["*"]);
        world.publish();
        assert_eq!(world.find("missing"), Err(no_such("missing")));
        let names = [format!("load {file}"), format!("fetch 1.{file}"), format!("persist {file}")];
        assert_eq!(world.log, names);
    }
}

// §5.7.2; a name in metadata that is no safe path can never be asked for
#[test]
fn unsafe_names_in_metadata_are_never_handed_out() {
    let mut world = World::updated();
    world.next_targets("targets", |targets| {
        targets.targets.insert("../../etc/passwd".into(), TargetFile::of(b"evil"));
    });
    world.publish();
    assert!(world.refresh().is_ok());
    assert!("../../etc/passwd".parse::<ocelli_tuf::TargetPath>().is_err());
}
