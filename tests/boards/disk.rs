//! The data partition of an emulated board: an ext4 image, or the same behind a disk whose cache is lost with the power.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is written whole or not at all.
const SECTOR: usize = 512;

/// A disk to give to a machine.
pub struct Disk {
    image: PathBuf,
    volatile: Option<Arc<Volatile>>,
    socket: PathBuf,
}

impl Disk {
    /// An image of `size_mib` (a power of two, as SD cards want) with what is in `content`.
    pub fn make(image: &Path, content: &Path, size_mib: u32) -> Self {
        // Made anew, whatever a run before left.
        let _ = std::fs::remove_file(image);
        let mut command = Command::new("mke2fs");
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args([
            "-q",
            "-t",
            "ext4",
            "-E",
            "root_owner=0:0",
            "-d",
        ]);
        let made = command.arg(content).arg(image).arg(format!("{size_mib}M")).status().unwrap();
        assert!(made.success(), "mke2fs failed");
        Self { image: image.to_owned(), volatile: None, socket: PathBuf::new() }
    }

    /// Puts a volatile write cache in front of the image, as SD cards, eMMC and SSDs have one.
    pub fn with_volatile_cache(mut self, socket: PathBuf) -> Self {
        let file = File::options().read(true).write(true).open(&self.image).unwrap();
        let size = file.metadata().unwrap().len();
        let disk = Arc::new(Volatile { file, size, ..Default::default() });
        // Left by a run before.
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let served = Arc::clone(&disk);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // A machine that is killed breaks its connection.
                let _ = served.serve(client.unwrap());
            }
        });
        self.volatile = Some(disk);
        self.socket = socket;
        self
    }

    /// Value of QEMU's `-drive`, without `if`.
    pub fn drive(&self) -> String {
        if self.volatile.is_some() {
            return format!(
                "file=nbd+unix:///?socket={},format=raw,cache=writeback",
                self.socket.display()
            );
        }
        format!("file={},format=raw,cache=writeback", self.image.display())
    }

    /// From now on nothing is answered, and of what was not flushed each sector is there or not, by `seed`.
    /// Gives how many sectors were kept and lost.
    pub fn lose_cache(&self, seed: u64) -> (usize, usize) {
        let volatile = self.volatile.as_ref().expect("a disk with a cache");
        volatile.frozen.store(true, Ordering::SeqCst);
        volatile.lose(seed)
    }

    /// The power is back.
    pub fn restore(&self) {
        self.volatile.as_ref().expect("a disk with a cache").frozen.store(false, Ordering::SeqCst);
    }

    /// Copies a file out of the image, which no machine may use.
    pub fn extract(&self, path: &str, to: &Path) {
        let request = format!("dump {path} {}", to.display());
        let mut command = Command::new("debugfs");
        command
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["-R", &request])
            .arg(&self.image);
        let done = command.output().unwrap();
        assert!(to.exists(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// A network block device (NBD) whose writes reach the image only when flushed, or written with "force unit access".
#[derive(Debug)]
struct Volatile {
    file: File,
    size: u64,
    /// Sectors written and not flushed, by number.
    cache: Mutex<BTreeMap<u64, [u8; SECTOR]>>,
    frozen: AtomicBool,
}

impl Default for Volatile {
    fn default() -> Self {
        let file = File::open("/dev/null").expect("every system has it");
        Self { file, size: 0, cache: Mutex::default(), frozen: AtomicBool::default() }
    }
}

// Numbers of the protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
const INIT_PASSWORD: &[u8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Fixed newstyle handshake, without 124 zeros.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// The flags are valid, flush, force unit access.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;
const OPT_GO: u32 = 7;
const OPT_INFO: u32 = 6;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;

impl Volatile {
    fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        client.write_all(INIT_PASSWORD)?;
        client.write_all(OPTION_MAGIC)?;
        client.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
        number::<4>(&mut client)?;
        self.agree(&mut client)?;
        loop {
            assert_eq!(number::<4>(&mut client)?, u64::from(REQUEST), "a request");
            let flags = number::<2>(&mut client)? as u16;
            let kind = number::<2>(&mut client)? as u16;
            let handle = number::<8>(&mut client)?;
            let offset = number::<8>(&mut client)?;
            let mut data = vec![0; number::<4>(&mut client)? as usize];
            match kind {
                CMD_READ => self.read(offset, &mut data)?,
                CMD_WRITE => {
                    client.read_exact(&mut data)?;
                    self.write(offset, &data, flags & FLAG_FUA != 0)?;
                }
                CMD_FLUSH => self.flush()?,
                CMD_DISCONNECT => return Ok(()),
                other => panic!("request {other} was not offered"),
            }
            // A disk without power says nothing, not even that it failed.
            let mut alive = true;
            while self.frozen.load(Ordering::SeqCst) {
                alive = false;
                std::thread::sleep(Duration::from_millis(5));
            }
            if !alive {
                return Ok(());
            }
            client.write_all(&REPLY.to_be_bytes())?;
            client.write_all(&0_u32.to_be_bytes())?;
            client.write_all(&handle.to_be_bytes())?;
            if kind == CMD_READ {
                client.write_all(&data)?;
            }
        }
    }

    /// The handshake up to the agreed export; everything optional is refused.
    fn agree(&self, client: &mut UnixStream) -> io::Result<()> {
        loop {
            number::<8>(client)?;
            let option = number::<4>(client)? as u32;
            let mut data = vec![0; number::<4>(client)? as usize];
            client.read_exact(&mut data)?;
            if !matches!(option, OPT_GO | OPT_INFO) {
                answer(client, option, REP_ERR_UNSUP, &[])?;
                continue;
            }
            let mut export = vec![0, 0];
            export.extend(self.size.to_be_bytes());
            export.extend(EXPORT_FLAGS.to_be_bytes());
            answer(client, option, REP_INFO, &export)?;
            answer(client, option, REP_ACK, &[])?;
            if option == OPT_GO {
                return Ok(());
            }
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)?;
        let cache = self.cache.lock().unwrap();
        for (number, part) in (offset / SECTOR as u64..).zip(data.chunks_mut(SECTOR)) {
            if let Some(sector) = cache.get(&number) {
                part.copy_from_slice(sector);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], through: bool) -> io::Result<()> {
        assert!(offset.is_multiple_of(SECTOR as u64) && data.len().is_multiple_of(SECTOR));
        let mut cache = self.cache.lock().unwrap();
        if self.frozen.load(Ordering::SeqCst) {
            return Ok(());
        }
        for (number, part) in (offset / SECTOR as u64..).zip(data.chunks(SECTOR)) {
            if through {
                cache.remove(&number);
                self.file.write_all_at(part, number * SECTOR as u64)?;
            } else {
                cache.insert(number, part.try_into().expect("whole sectors, checked above"));
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut cache = self.cache.lock().unwrap();
        if !self.frozen.load(Ordering::SeqCst) {
            for (number, sector) in std::mem::take(&mut *cache) {
                self.file.write_all_at(&sector, number * SECTOR as u64)?;
            }
        }
        Ok(())
    }

    fn lose(&self, mut seed: u64) -> (usize, usize) {
        let (mut kept, mut lost) = (0, 0);
        for (number, sector) in std::mem::take(&mut *self.cache.lock().unwrap()) {
            // Knuth's linear congruential generator; its upper bits are good.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number | 1);
            if seed >> 63 == 0 {
                lost += 1;
            } else {
                self.file.write_all_at(&sector, number * SECTOR as u64).unwrap();
                kept += 1;
            }
        }
        (kept, lost)
    }
}

/// A big-endian number of `N` bytes.
fn number<const N: usize>(client: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    client.read_exact(&mut bytes[8 - N..])?;
    Ok(u64::from_be_bytes(bytes))
}

fn answer(client: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    client.write_all(&OPTION_REPLY.to_be_bytes())?;
    client.write_all(&option.to_be_bytes())?;
    client.write_all(&kind.to_be_bytes())?;
    client.write_all(&u32::try_from(data.len()).expect("short").to_be_bytes())?;
    client.write_all(data)
}
