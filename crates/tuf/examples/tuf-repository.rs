//! Writes the interoperability repository into a new folder: `tuf-repository FOLDER`. See tests/interop.

#[path = "../tests/interop/repository.rs"]
mod repository;

use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("name the folder to write")?.into();
    for (name, bytes) in repository::files() {
        let place = folder.join(name);
        fs::create_dir_all(place.parent().ok_or("no folder")?)?;
        fs::write(place, bytes)?;
    }
    debug_assert_eq!(repository::TARGETS.len(), 3);
    Ok(())
}
