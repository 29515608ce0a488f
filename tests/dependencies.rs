//! What may and may not be in the device binary's dependency tree, read from `cargo tree` and `cargo metadata`.

use std::collections::BTreeSet;
use std::process::Command;

/// Crates that must never reach the device.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-rs", "ring is the only crypto provider"),
    ("aws-lc-sys", "ring is the only crypto provider"),
    ("openssl-sys", "rustls is the only TLS"),
    ("native-tls", "rustls is the only TLS"),
    ("clap", "lexopt is enough on the device"),
    ("rumqttd", "the broker belongs to the operator's tool"),
    ("axum", "no web framework on the device"),
    ("hyper", "no web framework on the device"),
    ("tract-transformers", "vision needs no transformers group"),
];

/// Licences that may be linked into a product without conditions beyond attribution.
const PERMISSIVE: &[&str] = &[
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "0BSD",
    "IJG",
];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--locked")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// `name version` of every crate linked into the programs of a device.
fn device_tree() -> BTreeSet<(String, String)> {
    let mut tree = linked("ocelli");
    tree.extend(linked("ocelli-slot"));
    tree
}

fn linked(program: &str) -> BTreeSet<(String, String)> {
    let tree = cargo(&["tree", "-p", program, "-e", "normal", "--prefix", "none"]);
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    tree.lines().filter_map(words).collect()
}

#[test]
fn the_device_tree_holds_nothing_banned() {
    let tree = device_tree();
    assert!(tree.iter().any(|(name, _)| name == "tract-core"), "the tree was not read: {tree:?}");
    let found: Vec<_> =
        BANNED.iter().filter(|(banned, _)| tree.iter().any(|(name, _)| name == banned)).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn what_brings_a_board_back_shares_no_code_with_the_agent() {
    let tree = linked("ocelli-slot");
    assert!(tree.iter().any(|(name, _)| name == "ocelli-slot"), "the tree was not read: {tree:?}");
    let agent: Vec<_> = tree
        .iter()
        .filter(|(name, _)| name.starts_with("ocelli") && name != "ocelli-slot")
        .collect();
    assert!(agent.is_empty(), "{agent:?}");
    assert!(tree.len() < 40, "{} crates: {tree:?}", tree.len());
}

#[test]
fn tls_is_verified_by_the_patched_webpki_and_only_rumqttc_links_the_old_one() {
    let dependents = |version: &str| {
        let spec = format!("rustls-webpki@{version}");
        let arguments = [
            "tree", "-p", "ocelli", "-e", "normal", "-i", &spec, "--depth", "1", "--prefix", "none",
        ];
        let text = cargo(&arguments);
        text.lines()
            .skip(1)
            .map(|line| line.split(' ').next().unwrap_or(line).to_owned())
            .collect::<Vec<_>>()
    };
    let versions: Vec<_> = device_tree()
        .into_iter()
        .filter(|(name, _)| name == "rustls-webpki")
        .map(|(_, version)| version.trim_start_matches('v').to_owned())
        .collect();
    for version in &versions {
        let dependents = dependents(version);
        if version.starts_with("0.102.") {
            assert_eq!(dependents, ["rumqttc"], "webpki {version}");
        } else {
            let patch: u32 =
                version.strip_prefix("0.103.").expect("0.103").parse().expect("a number");
            assert!(patch >= 13, "webpki {version} has RUSTSEC-2026-0104");
            assert!(dependents.contains(&"rustls".to_owned()), "{dependents:?}");
        }
    }
    assert!(versions.iter().any(|version| version.starts_with("0.103.")), "{versions:?}");
}

#[test]
fn every_crate_on_the_device_has_a_permissive_licence() {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1"])).expect("JSON");
    let tree = device_tree();
    let packages = metadata["packages"].as_array().expect("packages");
    let mut seen = 0;
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().expect("a name").to_owned();
        let version = format!("v{}", package["version"].as_str().expect("a version"));
        if !tree.contains(&(name.clone(), version)) {
            continue;
        }
        seen += 1;
        let licence = package["license"].as_str().unwrap_or_default();
        if !is_permissive(licence) {
            wrong.push(format!("{name}: \"{licence}\""));
        }
    }
    assert!(seen > 50, "only {seen} crates seen");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether an SPDX expression can be met with the licences of the list alone.
fn is_permissive(expression: &str) -> bool {
    let allowed = |request: &spdx::LicenseReq| {
        request.license.id().is_some_and(|id| PERMISSIVE.contains(&id.name))
    };
    spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX)
        .is_ok_and(|parsed| parsed.evaluate(allowed))
}

#[test]
fn the_licence_rule_tells_permissive_from_others() {
    assert!(is_permissive("MIT OR GPL-3.0-only"));
    assert!(is_permissive("Apache-2.0 AND ISC"));
    assert!(!is_permissive("MIT AND LGPL-3.0-only"));
    assert!(!is_permissive("(MIT OR Apache-2.0) AND LGPL-3.0-only"));
    assert!(!is_permissive(""));
}
