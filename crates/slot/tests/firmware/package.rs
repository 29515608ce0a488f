//! `firmware/package.sh`: the Debian package for boards that run Debian or Raspberry Pi OS already.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{folder, project, run};

/// The package of an architecture that `firmware/test.sh` built.
fn package(architecture: &str) -> Option<PathBuf> {
    let images = std::env::var_os("OCELLI_FIRMWARE_IMAGES");
    let images =
        PathBuf::from(images.expect("OCELLI_FIRMWARE_IMAGES is not set: run firmware/test.sh"));
    let end = format!("_{architecture}.deb");
    let found = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path());
    found.into_iter().find(|path| path.to_string_lossy().ends_with(&end))
}

#[test]
#[ignore = "looks at packages that firmware/test.sh builds"]
fn packages_hold_agent_service_models_and_nothing_that_belongs_to_a_person() {
    for architecture in ["arm64", "armhf", "amd64"] {
        let package =
            package(architecture).unwrap_or_else(|| panic!("no package for {architecture}"));
        let path = package.to_str().unwrap();
        assert_eq!(run("dpkg-deb", &["-f", path, "Architecture"]).trim(), architecture);
        // On ARM the agent is static, and the worker asks for the C library of Debian 10.
        let needs = run("dpkg-deb", &["-f", path, "Depends"]);
        let libraries =
            if architecture == "amd64" { "libc6 (>= 2." } else { "libc6 (>= 2.28), systemd" };
        assert!(needs.starts_with(libraries), "{architecture}: {needs}");
        let list = run("dpkg-deb", &["-c", path]);
        for file in [
            "-rwxr-xr-x root/root",
            "./usr/bin/ocelli\n",
            "./usr/bin/ocelli-npu-worker\n",
            "./lib/systemd/system/ocelli.service\n",
            "./usr/lib/sysusers.d/ocelli.conf\n",
            "./lib/udev/rules.d/60-ocelli.rules\n",
            "./usr/share/ocelli/models/nanodet-g-coco/model.onnx\n",
            "./usr/share/doc/ocelli/ocelli-example.toml\n",
        ] {
            assert!(list.contains(file), "{architecture}: {file} is missing in\n{list}");
        }
        let foreign: Vec<_> = list.lines().filter(|line| !line.contains(" root/root ")).collect();
        assert!(foreign.is_empty(), "{foreign:?}");
        // Its own configuration is the owner's: the package must never ask about it.
        assert!(!list.contains("/etc/ocelli/ocelli.toml"), "{list}");
        let lint = Command::new("lintian").args(["--fail-on", "error", path]).output().unwrap();
        let told = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success(), "{told}");
    }
}

#[test]
#[ignore = "unpacks packages that firmware/test.sh builds"]
fn the_service_is_shut_in() {
    let folder = folder("package");
    let package = package("arm64").unwrap();
    let tree = folder.join("tree");
    run("dpkg-deb", &["-x", package.to_str().unwrap(), tree.to_str().unwrap()]);
    let unit = tree.join("lib/systemd/system/ocelli.service");
    let text = fs::read_to_string(&unit).unwrap();
    for line in
        ["Type=notify", "WatchdogSec=", "Restart=always", "User=ocelli", "DevicePolicy=closed"]
    {
        assert!(text.contains(line), "{line} is missing");
    }
    // Exposure in tenths: 10.0 is a service without any fence, 2.0 and below systemd calls OK.
    let unit = unit.to_str().unwrap();
    run("systemd-analyze", &["security", "--offline=true", "--threshold=20", unit]);
    // It knows every word of the file; the program is looked for on this machine, where it need not be.
    let verify = Command::new("systemd-analyze").args(["verify", unit]).output().unwrap();
    let told = String::from_utf8_lossy(&verify.stderr);
    let wrong: Vec<_> = told
        .lines()
        .filter(|line| line.contains("ocelli.service:") && !line.contains("/usr/bin/ocelli"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
#[ignore = "builds packages: firmware/test.sh"]
fn the_same_inputs_give_the_same_package_and_a_foreign_agent_is_refused() {
    let folder = folder("package-twice");
    let agent = std::env::var("OCELLI_AARCH64_AGENT").expect("run firmware/test.sh");
    let worker = std::env::var("OCELLI_AARCH64_WORKER").expect("run firmware/test.sh");
    let script = project("firmware/package.sh");
    let script = script.to_str().unwrap();
    let (one, two) = (folder.join("1"), folder.join("2"));
    for out in [&one, &two] {
        let out = out.to_str().unwrap();
        run(script, &["arm64", "--agent", &agent, "--worker", &worker, "--out", out]);
    }
    let bytes = |folder: &PathBuf| {
        let entry = fs::read_dir(folder).unwrap().next().unwrap().unwrap();
        fs::read(entry.path()).unwrap()
    };
    assert!(bytes(&one) == bytes(&two), "two builds differ");
    let output =
        Command::new(script).args(["armhf", "--agent", &agent, "--worker", &worker]).output();
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("is no program for armhf"), "{told}");
}
