//! The shipped units that keep a repository fresh: systemd knows every word of them, and a refresh that fails does not keep what
//! it renewed from the broker.

use std::path::Path;
use std::process::Command;

use super::support::agent::project;

const UNITS: [&str; 2] = ["ocelctl-refresh.service", "ocelctl-refresh.timer"];

#[test]
fn systemd_knows_every_word_of_the_shipped_units() {
    let folder = tempfile::tempdir().unwrap();
    for unit in UNITS {
        std::fs::copy(project("docs/examples").join(unit), folder.path().join(unit)).unwrap();
    }
    let verify = |units: &[&str]| {
        let paths = units.iter().map(|unit| folder.path().join(unit));
        let output = Command::new("systemd-analyze").arg("verify").args(paths).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // It also looks at units of this machine that these name.
        let own = told.lines().filter(|line| line.contains("ocelctl-refresh"));
        own.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(verify(&UNITS), Vec::<String>::new());
    let timer = std::fs::read_to_string(folder.path().join(UNITS[1])).unwrap();
    let calendar = timer.lines().find_map(|line| line.strip_prefix("OnCalendar=")).unwrap();
    let next = Command::new("systemd-analyze").args(["calendar", calendar]).output().unwrap();
    assert!(String::from_utf8_lossy(&next.stdout).contains("Next elapse"), "{next:?}");
    // It does see what is wrong.
    std::fs::write(folder.path().join(UNITS[1]), timer.replace("Persistent", "Persistant"))
        .unwrap();
    assert!(verify(&UNITS).iter().any(|line| line.contains("Persistant")));
}

/// Runs the unit's command with a program in the place of `ocelctl`; gives its exit code and the subcommands that ran.
fn start(folder: &Path, program: &str) -> (Option<i32>, String) {
    let stub = folder.join("ocelctl");
    let log = folder.join("log");
    let text = format!("#!/bin/sh\necho \"$1\" >>'{}'\n{program}\n", log.display());
    std::fs::write(&stub, text).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&stub).status().unwrap().success());
    let unit = std::fs::read_to_string(project("docs/examples").join(UNITS[0])).unwrap();
    let unit = unit.replace("\\\n", " ");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/bin/sh -c '")).unwrap();
    // As systemd reads it: `$$` is a dollar sign, `%d` the folder of credentials.
    let line = line.trim_end_matches('\'').replace("$$", "$").replace("%d", "credentials");
    let line = line.replace("/usr/bin/ocelctl", &stub.display().to_string());
    let status = Command::new("/bin/sh").args(["-c", &line]).status().unwrap();
    let ran = std::fs::read_to_string(&log).unwrap().replace('\n', " ");
    std::fs::remove_file(log).unwrap();
    (status.code(), ran)
}

#[test]
fn a_failed_refresh_is_pushed_and_fails_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("exit 0", Some(0)),
        ("[ $1 = push ]", Some(1)),
        ("[ $1 = repo ]", Some(1)),
        ("[ $1 = push ] && exit 3; exit 0", Some(3)),
    ];
    for (program, code) in cases {
        assert_eq!(start(folder.path(), program), (code, "repo push ".to_owned()), "{program}");
    }
}
