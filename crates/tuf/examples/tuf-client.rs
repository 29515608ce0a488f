//! A TUF client with the command line of the public conformance suite (theupdateframework/tuf-conformance, CLIENT-CLI.md).
//!
//! Files and plain HTTP around the sans-I/O client; for tests only. Exit code 0: done, 1: anything else.

use std::error::Error;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ocelli_tuf::{
    Action, Answer, DateTime, Limits, Progress, Refresh, Search, Target, TargetPath, Trusted,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Default)]
struct Arguments {
    metadata_dir: PathBuf,
    metadata_url: String,
    target_names: Vec<String>,
    target_base_url: String,
    target_dir: PathBuf,
    command: Vec<String>,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "tuf-client: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments> {
    use lexopt::prelude::*;
    let mut arguments = Arguments::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("metadata-dir") => arguments.metadata_dir = parser.value()?.into(),
            Long("metadata-url") => arguments.metadata_url = parser.value()?.string()?,
            Long("target-name") => arguments.target_names.push(parser.value()?.string()?),
            Long("target-base-url") => arguments.target_base_url = parser.value()?.string()?,
            Long("target-dir") => arguments.target_dir = parser.value()?.into(),
            Value(value) => arguments.command.push(value.string()?),
            _ => return Err(argument.unexpected().into()),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<()> {
    let command: Vec<_> = arguments.command.iter().map(String::as_str).collect();
    match command[..] {
        ["init", root] => {
            fs::create_dir_all(&arguments.metadata_dir)?;
            write(&arguments.metadata_dir, "root.json", &fs::read(root)?)
        }
        ["refresh"] => refresh(arguments).map(|_| ()),
        ["download"] => {
            let trusted = refresh(arguments)?;
            arguments.target_names.iter().try_for_each(|name| download(arguments, &trusted, name))
        }
        _ => Err("give one command: init ROOT, refresh or download".into()),
    }
}

fn refresh(arguments: &Arguments) -> Result<Trusted> {
    let root = fs::read(arguments.metadata_dir.join("root.json"))?;
    let mut refresh = Refresh::start(&root, now()?, Limits::default())?;
    loop {
        let answer = carry_out(arguments, refresh.action())?;
        refresh = match refresh.answer(answer)? {
            Progress::Continue(refresh) => refresh,
            Progress::Done(trusted) => return Ok(trusted),
        };
    }
}

fn find(arguments: &Arguments, trusted: &Trusted, path: &TargetPath) -> Result<Target> {
    let mut progress = Search::start(trusted, path)?;
    loop {
        progress = match progress {
            Progress::Done(target) => return Ok(target),
            Progress::Continue(search) => {
                let answer = carry_out(arguments, search.action())?;
                search.answer(answer)?
            }
        };
    }
}

fn download(arguments: &Arguments, trusted: &Trusted, name: &str) -> Result<()> {
    let target = find(arguments, trusted, &name.parse()?)?;
    let file = encode(name);
    if fs::read(arguments.target_dir.join(&file)).is_ok_and(|held| target.verify(&held).is_ok()) {
        return Ok(());
    }
    let parts: Vec<_> = target.repository_path().split('/').map(encode).collect();
    let bytes = get(&arguments.target_base_url, &parts.join("/"), target.length())?;
    let bytes = bytes.ok_or("the repository does not have the target")?;
    target.verify(&bytes)?;
    write(&arguments.target_dir, &file, &bytes)
}

fn carry_out(arguments: &Arguments, action: Action<'_>) -> Result<Answer> {
    let folder = &arguments.metadata_dir;
    Ok(match action {
        Action::Load { file } => match fs::read(folder.join(file)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Answer::Absent,
            read => Answer::Bytes(read?),
        },
        Action::Fetch { file, max_bytes } => {
            get(&arguments.metadata_url, &file, max_bytes)?.map_or(Answer::Absent, Answer::Bytes)
        }
        Action::Persist { file, bytes } => {
            write(folder, &file, bytes)?;
            Answer::Done
        }
        Action::Remove { file } => match fs::remove_file(folder.join(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => Answer::Done,
        },
    })
}

/// Whole or not at all.
fn write(folder: &Path, file: &str, bytes: &[u8]) -> Result<()> {
    let temporary = folder.join(format!("{file}.new"));
    let mut new = fs::File::create(&temporary)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&temporary, folder.join(file))?;
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the example is its own agent; the library takes `now`"
)]
fn now() -> Result<DateTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(DateTime::from_unix_seconds(since.as_secs()))
}

/// A file name and URL part without any special character.
fn encode(part: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    part.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

/// HTTP/1.0 GET, so that the end of the body is the end of the stream. `None`: 404. One byte more than the cap is
/// read at most, which the client then refuses.
fn get(base: &str, file: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    const MAX_HEAD: u64 = 16 * 1024;
    let url = format!("{}/{file}", base.trim_end_matches('/'));
    let rest = url.strip_prefix("http://").ok_or("only http:// is spoken here")?;
    let (host, path) = rest.split_once('/').ok_or("the URL has no path")?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut response = Vec::new();
    stream.take(MAX_HEAD + max_bytes + 1).read_to_end(&mut response)?;
    let end = response.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or("the server sent no HTTP head")?;
    let head = String::from_utf8_lossy(&response[..end]).into_owned();
    let body = response.split_off(end + 4);
    match head.split(' ').nth(1) {
        Some("200") => Ok(Some(body)),
        Some("404") => Ok(None),
        _ => Err(format!("{url}: {}", head.lines().next().unwrap_or_default()).into()),
    }
}
