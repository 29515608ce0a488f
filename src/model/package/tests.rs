//! Every way to refuse a package, and what an accepted one is.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::{EntryFault, MAX_FILES, Sha256};
use super::*;

const MANIFEST: &str = r#"format = 1
name = "cats"
version = "1.2.0"
task = "detection"
model = "model.onnx"
labels = "labels.txt"
license = "Apache-2.0"
[input]
tensor = "input"
width = 416
height = 416
color = "bgr"
resize = "letterbox"
anchor = "top-left"
fill = 0
mean = [103.53, 116.28, 123.675]
std = [57.375, 57.12, 58.395]
[head]
kind = "nanodet"
strides = [8, 16, 32]
score_threshold = 0.4
iou_threshold = 0.6
[[golden]]
image = "golden/a.jpg"
expect = "golden/a.json"
[budget]
latency_p90_ms = 40.0
memory_mib = 64
[budget.rk3588]
latency_p90_ms = 20.0
"#;
const EXPECT: &str =
    r#"[{"label":"cat","class":1,"score":0.5,"box":{"x":0.1,"y":0.1,"w":0.5,"h":0.5}}]"#;

type Contents = Vec<(String, Vec<u8>)>;

fn contents(manifest: &str) -> Contents {
    let files: [(&str, &str); 5] = [
        ("manifest.toml", manifest),
        ("model.onnx", "an ONNX file"),
        ("labels.txt", "person\ncat\n"),
        ("golden/a.jpg", "a picture"),
        ("golden/a.json", EXPECT),
    ];
    files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

fn with(mut files: Contents, name: &str, text: &[u8]) -> Contents {
    files.retain(|(known, _)| known != name);
    files.push((name.to_owned(), text.to_vec()));
    files
}

fn without(mut files: Contents, name: &str) -> Contents {
    files.retain(|(known, _)| known != name);
    files
}

fn folder(files: &Contents) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// A tar entry with a name that no tool would write.
fn entry(name: &str, kind: tar::EntryType, declared: u64, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(declared);
    header.set_mode(0o644);
    header.set_cksum();
    let mut block = header.as_bytes().to_vec();
    block.extend_from_slice(bytes);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    entry(name, tar::EntryType::Regular, bytes.len() as u64, bytes)
}

fn tar_of(files: &Contents) -> Vec<u8> {
    files.iter().flat_map(|(name, bytes)| file(name, bytes)).collect()
}

fn end(mut tar: Vec<u8>) -> Vec<u8> {
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn read(tar: &[u8]) -> Result<Package, PackageError> {
    Package::read_tar(tar, "x.tar")
}

fn refusal(manifest: &str) -> PackageError {
    read(&end(tar_of(&contents(manifest)))).err().unwrap_or_else(|| panic!("accepted {manifest}"))
}

#[test]
fn a_folder_and_its_tar_are_the_same_package() {
    let folder = folder(&with(contents(MANIFEST), "README.md", b"# Cats"));
    let package = Package::open(folder.path()).unwrap();
    let mut tar = Vec::new();
    package.write_tar(&mut tar).unwrap();
    let path = folder.path().with_extension("tar");
    fs::write(&path, &tar).unwrap();
    let again = Package::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let mut tar_again = Vec::new();
    again.write_tar(&mut tar_again).unwrap();
    assert_eq!(tar, tar_again);
    assert_eq!(package.spec().sha256(), again.spec().sha256());
    assert_eq!(package.spec().sha256(), Sha256::of(&tar));
    assert_eq!(package.tar_name(), "cats-1.2.0.tar");
}

#[test]
fn the_tar_has_one_documented_form() {
    let shuffled: Contents = contents(MANIFEST).into_iter().rev().collect();
    let mut tar = Vec::new();
    read(&end(tar_of(&shuffled))).unwrap().write_tar(&mut tar).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let rows: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let plain = header.mode().unwrap() == 0o644
                && header.mtime().unwrap() == 0
                && (header.uid().unwrap(), header.gid().unwrap()) == (0, 0)
                && header
                    .as_ustar()
                    .is_some_and(|ustar| ustar.uname[0] == 0 && ustar.gname[0] == 0);
            (entry.path().unwrap().display().to_string(), plain)
        })
        .collect();
    let names = ["manifest.toml", "golden/a.jpg", "golden/a.json", "labels.txt", "model.onnx"];
    assert_eq!(rows, names.map(|name| (name.to_owned(), true)));
}

#[test]
fn an_accepted_package_says_what_it_holds() {
    let package = read(&end(tar_of(&contents(MANIFEST)))).unwrap();
    let spec = package.spec();
    assert_eq!((spec.id().name.as_str(), spec.id().version.as_str()), ("cats", "1.2.0"));
    assert_eq!(spec.labels()[..], ["person", "cat"]);
    assert_eq!(spec.onnx(), b"an ONNX file");
    let golden = &spec.golden()[0];
    assert_eq!((golden.name.as_str(), &golden.image[..]), ("golden/a.jpg", &b"a picture"[..]));
    assert_eq!(golden.score_tolerance, 0.05);
    assert!(crate::model::golden::compare(&golden.expected, &golden.expected, 0.0).is_ok());
    assert_eq!(spec.budget(&[]).latency_p90_ms, Some(40.0));
    let board = spec.budget(&["warehouse".into(), "rk3588".into()]);
    assert_eq!((board.latency_p90_ms, board.memory_mib), (Some(20.0), Some(64)));
}

#[test]
fn refuses_values_that_do_not_fit_and_names_key_value_and_expectation() {
    let crop = |rest: &str| {
        MANIFEST
            .replace("\"letterbox\"\nanchor = \"top-left\"\nfill = 0", &format!("\"crop\"\n{rest}"))
    };
    let change = |from: &str, to: &str| {
        assert!(MANIFEST.contains(from), "{from} is not in the manifest");
        MANIFEST.replace(from, to)
    };
    let cases: Vec<(String, &[&str])> = vec![
        (change("format = 1", "format = 2"), &["format", "2", "expected 1"]),
        (change("format = 1", "format = \"1\""), &["format", "expected 1"]),
        (change("\"cats\"", "\"Cats\""), &["name", "\"Cats\"", "a-z"]),
        (change("1.2.0", "1.2"), &["version", "\"1.2\"", "1.0.0"]),
        (change("Apache-2.0", " "), &["license", "SPDX"]),
        (change("\"model.onnx\"", "\"../model.onnx\""), &["model", "../model.onnx", "relative"]),
        (change("\"golden/a.jpg\"", "\"/etc/passwd\""), &["golden[0].image", "/etc/passwd"]),
        (change("\"input\"", "\"\""), &["input.tensor", "graph input"]),
        (change("width = 416", "width = 0"), &["input.width", "0", "1 to 4096"]),
        (change("height = 416", "height = 4097"), &["input.height", "4097", "1 to 4096"]),
        (change("width = 416", "width = -1"), &["input.width", "-1", "whole number"]),
        (change("width = 416", "width = \"wide\""), &["input.width", "wide", "whole number"]),
        (change("fill = 0", "fill = 256"), &["input.fill", "256", "0 to 255"]),
        (change("\"bgr\"", "\"gbr\""), &["input.color", "\"gbr\"", "rgb, bgr, gray"]),
        (change("\"bgr\"", "\"gray\""), &["input.mean", "1 value"]),
        (change("57.12, ", ""), &["input.std", "3 value"]),
        (change("57.12", "0.0"), &["input.std", "not 0"]),
        (change("103.53", "nan"), &["input.mean", "finite"]),
        (change("57.12", "inf"), &["input.std", "finite"]),
        (change("fill = 0", "crop_fraction = 0.5"), &["input.crop_fraction", "0.5", "\"crop\""]),
        (crop("anchor = \"center\""), &["input.anchor", "\"letterbox\""]),
        (crop("fill = 3"), &["input.fill", "3", "\"letterbox\""]),
        (crop("crop_fraction = 1.5"), &["input.crop_fraction", "1.5", "at most 1"]),
        (crop("crop_fraction = 0.0"), &["input.crop_fraction", "0", "above 0"]),
        (change("\"detection\"", "\"classification\""), &["task", "\"detection\""]),
        (change("\"detection\"", "\"detecting\""), &["task", "\"detecting\"", "detection"]),
        (change("\"nanodet\"", "\"nanodot\""), &["head.kind", "\"nanodot\"", "`nanodet`?"]),
        (change("[8, 16, 32]", "[]"), &["head.strides", "stride of each output"]),
        (change("[8, 16, 32]", "[8, 0]"), &["head.strides", "[8, 0]", "1 to 256"]),
        (change("[8, 16, 32]", "\"all\""), &["head.strides", "all"]),
        (change("= 0.4", "= 1.4"), &["head.score_threshold", "1.4", "0 to 1"]),
        (change("= 0.6", "= -0.1"), &["head.iou_threshold", "-0.1", "0 to 1"]),
        (change("= 0.6", "= nan"), &["head.iou_threshold", "NaN", "0 to 1"]),
        (change("= 0.6", "= \"0.6\""), &["head.iou_threshold", "\"0.6\"", "a number"]),
        (
            change("golden/a.json\"", "golden/a.json\"\nscore_tolerance = 0"),
            &["score_tolerance", "above 0"],
        ),
        (change("= 40.0", "= -1.0"), &["budget.latency_p90_ms", "-1", "above 0"]),
        (change("= 20.0", "= 0.0"), &["budget.rk3588.latency_p90_ms", "0", "above 0"]),
        (change("[budget.rk3588]", "[budget.\"RK 3588\"]"), &["budget", "RK 3588", "a-z"]),
        (change("= 64", "= 0"), &["budget.memory_mib", "0", "1 or more"]),
    ];
    assert_named(cases, |error| matches!(error, PackageError::Value { .. }));
}

#[test]
fn refuses_unknown_missing_and_broken_keys() {
    let change = |from: &str, to: &str| MANIFEST.replace(from, to);
    let unknown: Vec<(String, &[&str])> = vec![
        (
            change("iou_threshold", "iou_treshold"),
            &["`iou_treshold`", "`iou_threshold`?", "line 22"],
        ),
        (change("fill = 0", "fil = 0"), &["`fil`", "`fill`?", "line 15"]),
        (change("license", "licence"), &["`licence`", "`license`?", "line 7"]),
        (change("memory_mib", "memory"), &["`memory`", "`memory_mib`?", "line 28"]),
        (change("expect =", "expected ="), &["`expected`", "`expect`?", "line 25"]),
        (format!("zebra = 1\n{MANIFEST}"), &["`zebra`", "one of", "labels", "line 1"]),
    ];
    assert_named(unknown, |error| matches!(error, PackageError::UnknownKey { .. }));
    let missing: Vec<(String, &[&str])> = vec![
        (change("format = 1\n", ""), &["`format`"]),
        (change("license = \"Apache-2.0\"\n", ""), &["`license`"]),
        (change("width = 416\n", ""), &["`input.width`"]),
        (change("score_threshold = 0.4\n", ""), &["`head.score_threshold`"]),
        (change("kind = \"nanodet\"\n", ""), &["`head.kind`"]),
        (change("image = \"golden/a.jpg\"\n", ""), &["`golden", "image`"]),
    ];
    assert_named(missing, |error| matches!(error, PackageError::MissingKey { .. }));
    let broken: Vec<(String, &[&str])> = vec![
        (change("width = 416", "width = "), &["manifest.toml", "line 10"]),
        (change("[head]", "[head"), &["line 18"]),
        (change("width = 416", "width = 416\nwidth = 416"), &["line 11"]),
    ];
    assert_named(broken, |error| matches!(error, PackageError::Syntax { .. }));
}

fn assert_named(cases: Vec<(String, &[&str])>, right: fn(&PackageError) -> bool) {
    let mut wrong = Vec::new();
    for (manifest, named) in cases {
        let error = refusal(&manifest);
        let text = error.to_string();
        let complete =
            named.iter().all(|word| text.contains(word)) && text.contains("manifest.toml");
        if !complete || !right(&error) || text.contains('\n') {
            wrong.push((named.to_vec(), error));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn refuses_files_that_contradict_the_manifest() {
    let files = || contents(MANIFEST);
    let row =
        |from: &str, to: &str| with(files(), "golden/a.json", EXPECT.replace(from, to).as_bytes());
    let blob = |digest: &str| {
        let manifest = format!(
            "{MANIFEST}[[delegate]]\nkind = \"rknn\"\nfile = \"model.rknn\"\nsha256 = \"{digest}\"\ntarget = \"rk3588\"\n"
        );
        with(contents(&manifest), "model.rknn", b"compiled")
    };
    let digest = Sha256::of(b"compiled").to_string();
    let accepted = read(&end(tar_of(&blob(&digest)))).unwrap();
    assert_eq!(&accepted.spec().delegates()[0].bytes[..], b"compiled");
    let named_digest = ["delegate[0].sha256", &digest];
    type Case<'a> = (Contents, &'a [&'a str], fn(&PackageError) -> bool);
    let value: fn(&PackageError) -> bool = |error| matches!(error, PackageError::Value { .. });
    let syntax: fn(&PackageError) -> bool = |error| matches!(error, PackageError::Syntax { .. });
    let missing: fn(&PackageError) -> bool =
        |error| matches!(error, PackageError::MissingFile { .. });
    let entry: fn(&PackageError) -> bool = |error| matches!(error, PackageError::Entry { .. });
    let large: fn(&PackageError) -> bool = |error| matches!(error, PackageError::TooLarge { .. });
    let cases: Vec<Case<'_>> = vec![
        (without(files(), "manifest.toml"), &["x.tar:manifest.toml"], missing),
        (without(files(), "model.onnx"), &["x.tar:model.onnx", "`model`"], missing),
        (without(files(), "golden/a.json"), &["golden/a.json", "`golden[0].expect`"], missing),
        (with(files(), "extra.bin", b"?"), &["x.tar:extra.bin", "does not name"], entry),
        (with(files(), "manifest.toml", &[0xff]), &["manifest.toml", "UTF-8"], syntax),
        (with(files(), "manifest.toml", &vec![b'#'; 65_537]), &["manifest.toml", "65536"], large),
        (with(files(), "labels.txt", b""), &["labels.txt", "empty"], syntax),
        (with(files(), "labels.txt", b"person\n\ncat\n"), &["labels.txt", "line 2"], syntax),
        (with(files(), "labels.txt", &[0xff, b'\n']), &["labels.txt", "UTF-8"], syntax),
        (with(files(), "labels.txt", &vec![b'a'; 1_048_577]), &["labels.txt", "1048576"], large),
        (with(files(), "golden/a.json", b"{}"), &["golden/a.json", "array of detections"], syntax),
        (with(files(), "golden/a.json", b"[{]"), &["golden/a.json", "line 1"], syntax),
        (row("\"class\":1", "\"class\":2"), &["golden/a.json", "[0].class", "2 labels"], value),
        (row("\"cat\"", "\"dog\""), &["golden/a.json", "[0].label", "\"dog\"", "\"cat\""], value),
        (row("0.5,\"box", "1.5,\"box"), &["golden/a.json", "[0].score", "1.5"], value),
        (row("\"x\":0.1", "\"x\":-0.1"), &["golden/a.json", "[0].box"], value),
        (blob(&digest.replace('a', "b")), &named_digest, value),
    ];
    let mut wrong = Vec::new();
    for (files, named, right) in cases {
        let error =
            read(&end(tar_of(&files))).err().unwrap_or_else(|| panic!("accepted: {named:?}"));
        let text = error.to_string();
        if !named.iter().all(|word| text.contains(word)) || !right(&error) {
            wrong.push((named, text));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn refuses_hostile_tars() {
    use tar::EntryType as Type;
    let good = || tar_of(&contents(MANIFEST));
    let plus = |more: Vec<u8>| end([good(), more].concat());
    let odd = |kind| plus(entry("odd", kind, 0, b""));
    let many = (0..=MAX_FILES).flat_map(|index| file(&format!("f{index}"), b"")).collect();
    let deep = format!("{}x", "a/".repeat(4));
    let unsafe_path: fn(&PackageError) -> bool =
        |error| fault(error) == Some(&EntryFault::UnsafePath);
    let link: fn(&PackageError) -> bool = |error| fault(error) == Some(&EntryFault::Link);
    let special: fn(&PackageError) -> bool = |error| fault(error) == Some(&EntryFault::NotRegular);
    let extension: fn(&PackageError) -> bool = |error| fault(error) == Some(&EntryFault::Extension);
    let twice: fn(&PackageError) -> bool = |error| fault(error) == Some(&EntryFault::Duplicate);
    let damaged: fn(&PackageError) -> bool =
        |error| matches!(fault(error), Some(EntryFault::Damaged(_)));
    let large: fn(&PackageError) -> bool = |error| matches!(error, PackageError::TooLarge { .. });
    let crowded: fn(&PackageError) -> bool =
        |error| matches!(error, PackageError::TooManyFiles { .. });
    let bad_checksum = {
        let mut tar = good();
        tar[0] ^= 1;
        end(tar)
    };
    type Case = (&'static str, Vec<u8>, fn(&PackageError) -> bool);
    let cases: Vec<Case> = vec![
        ("climbs", plus(file("../evil", b"")), unsafe_path),
        ("climbs inside", plus(file("golden/../../evil", b"")), unsafe_path),
        ("absolute", plus(file("/etc/evil", b"")), unsafe_path),
        ("dot", plus(file("./evil", b"")), unsafe_path),
        ("hidden", plus(file(".evil", b"")), unsafe_path),
        ("backslash", plus(file("a\\evil", b"")), unsafe_path),
        ("space", plus(file("a evil", b"")), unsafe_path),
        ("not UTF-8 safe", plus(file("\u{fc}", b"")), unsafe_path),
        ("empty part", plus(file("a//evil", b"")), unsafe_path),
        ("deep", plus(file(&deep, b"")), unsafe_path),
        ("climbing folder", plus(entry("../evil/", Type::Directory, 0, b"")), unsafe_path),
        ("symbolic link", odd(Type::Symlink), link),
        ("hard link", odd(Type::Link), link),
        ("character device", odd(Type::Char), special),
        ("block device", odd(Type::Block), special),
        ("pipe", odd(Type::Fifo), special),
        ("GNU long name", odd(Type::GNULongName), extension),
        ("GNU sparse", odd(Type::GNUSparse), extension),
        ("PAX header", odd(Type::XHeader), extension),
        ("PAX global header", odd(Type::XGlobalHeader), extension),
        ("unknown type", odd(Type::new(b'Z')), extension),
        ("same name twice", plus(file("model.onnx", b"other")), twice),
        ("huge size", plus(entry("huge", Type::Regular, 1 << 32, b"")), large),
        ("overflowing size", plus(entry("huge", Type::Regular, u64::MAX - 7, b"")), damaged),
        ("too many", plus(many), crowded),
        ("cut in a file", [good(), entry("cut", Type::Regular, 600, b"")].concat(), damaged),
        ("cut in a header", good()[..good().len() - 700].to_vec(), damaged),
        ("wrong checksum", bad_checksum, damaged),
        ("noise", vec![b'x'; 4096], damaged),
        ("nothing", Vec::new(), |error| matches!(error, PackageError::MissingFile { .. })),
    ];
    let mut wrong = Vec::new();
    for (name, tar, right) in cases {
        match read(&tar) {
            Ok(_) => wrong.push((name, "accepted".to_owned())),
            Err(error) if !right(&error) => wrong.push((name, error.to_string())),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn fault(error: &PackageError) -> Option<&EntryFault> {
    match error {
        PackageError::Entry { fault, .. } => Some(fault),
        _ => None,
    }
}

#[test]
fn refuses_folders_with_links_pipes_and_strays() {
    let base = || folder(&contents(MANIFEST));
    type Case = (&'static str, fn(&Path), EntryFault);
    let cases: Vec<Case> = vec![
        ("symbolic link", |path| link_to("/etc/hostname", &path.join("odd")), EntryFault::Link),
        ("linked folder", |path| link_to("/etc", &path.join("odd")), EntryFault::Link),
        (
            "socket",
            |path| drop(std::os::unix::net::UnixListener::bind(path.join("odd")).unwrap()),
            EntryFault::NotRegular,
        ),
        ("stray", |path| fs::write(path.join("odd"), "").unwrap(), EntryFault::Unlisted),
    ];
    let mut wrong = Vec::new();
    for (name, prepare, expected) in cases {
        let folder = base();
        prepare(folder.path());
        let result = Package::open(folder.path());
        if result.as_ref().err().and_then(fault) != Some(&expected) {
            wrong.push((name, result.map(|package| package.tar_name())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn link_to(target: &str, path: &Path) {
    std::os::unix::fs::symlink(target, path).unwrap();
}

#[test]
fn refuses_a_path_that_is_no_package() {
    let folder = tempfile::tempdir().unwrap();
    let empty = Package::open(folder.path()).unwrap_err();
    assert!(matches!(empty, PackageError::MissingFile { .. }), "{empty}");
    let absent = Package::open(&folder.path().join("absent")).unwrap_err();
    assert!(matches!(absent, PackageError::Read { .. }), "{absent}");
    let large = folder.path().join("large.tar");
    fs::File::create(&large).unwrap().set_len(MAX_PACKAGE_BYTES + 1).unwrap();
    let large = Package::open(&large).unwrap_err();
    assert!(matches!(large, PackageError::TooLarge { .. }), "{large}");
}

#[test]
fn the_zoo_and_the_fixture_are_valid_packages() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let cases = [
        ("models/efficientnet-lite0", 1000),
        ("models/nanodet-g-coco", 80),
        ("models/centerface", 1),
        ("tests/fixtures/tiny-classifier", 10),
    ];
    for (folder, labels) in cases {
        let package = Package::open(&root.join(folder)).unwrap();
        let spec = package.spec();
        assert!(folder.ends_with(&spec.id().name), "{folder} holds {}", spec.id().name);
        assert_eq!(spec.labels().len(), labels, "{folder}");
        assert!(!spec.golden().is_empty(), "{folder} has no golden picture");
    }
}
