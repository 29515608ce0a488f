//! The socket pair between agent and worker, and the memory files that go with it. No decisions.
//!
//! System calls that std has no safe form of: each checks its answer, and every descriptor is owned at once.

use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// One end of the pair.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What happened while waiting.
#[derive(Debug)]
pub enum Received {
    /// A packet of so many bytes, and the file that came with it.
    Packet(usize, Option<File>),
    /// The other end is gone.
    Closed,
    /// Nothing came in time.
    TimedOut,
}

/// Two connected ends; closed in programs that are started, unless handed to them.
///
/// # Errors
/// What the system says.
pub fn pair() -> io::Result<(Link, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors.
    answer(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } as isize)?;
    // SAFETY: two new descriptors that nobody else has.
    let [own, other] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    Ok((Link(own), other))
}

/// A file in memory that can be neither shortened nor lengthened, zero at first.
///
/// # Errors
/// What the system says.
pub fn memory(n_bytes: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a valid name.
    let fd = unsafe { libc::memfd_create(c"ocelli-npu".as_ptr(), flags) };
    answer(fd as isize)?;
    // SAFETY: a new descriptor that nobody else has.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(n_bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: takes numbers only.
    answer(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } as isize)?;
    Ok(file)
}

/// Waits until the other end of a socket is closed; packets do not wake it.
pub fn wait_for_end(socket: &OwnedFd) {
    while !matches!(wait(socket.as_fd(), 0, None), Ok(true)) {}
}

fn answer(value: isize) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

/// Whether one of the events, or the end, came in time. A signal counts as silence.
fn wait(socket: BorrowedFd<'_>, events: i16, limit: Option<Duration>) -> io::Result<bool> {
    let mut ready = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let limit = limit.map(|limit| libc::timespec {
        // At most 68 years: seconds have 32 or 64 bits.
        tv_sec: i32::try_from(limit.as_secs()).unwrap_or(i32::MAX).into(),
        tv_nsec: limit.subsec_nanos() as libc::c_long,
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one descriptor, and a time that lives until the call returns.
    let found = unsafe { libc::ppoll(&mut ready, 1, limit, std::ptr::null()) };
    match answer(found as isize) {
        Ok(found) => Ok(found > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// Room for the control message that carries one descriptor, aligned as the system wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Bytes of that message, without the padding behind it: on 64 bit a second descriptor would fit there.
fn control_length() -> usize {
    // SAFETY: arithmetic only.
    unsafe { libc::CMSG_LEN(size_of::<i32>() as u32) as usize }
}

impl Link {
    /// The end that a worker was started with.
    #[must_use]
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The socket.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sends a packet, with a file if one goes with it. Does not wait.
    ///
    /// # Errors
    /// What the system says; a full or closed socket among them.
    pub fn send(&self, packet: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let Some(file) = file else {
            // SAFETY: a packet of the length given.
            let sent = unsafe {
                libc::send(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), flags)
            };
            return answer(sent).map(drop);
        };
        let mut control = Control([0; 64]);
        let mut part =
            libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
        // SAFETY: all-zero bytes are a valid header; it gets one part and room for one control message, into which a
        // descriptor's number is written where the system's own macros say.
        let sent = unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut control.0).cast();
            message.msg_controllen = control_length() as _;
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
            libc::CMSG_DATA(head).cast::<i32>().write_unaligned(file.as_raw_fd());
            libc::sendmsg(self.0.as_raw_fd(), &raw const message, flags)
        };
        answer(sent).map(drop)
    }

    /// Waits for a packet at most `limit`; `None`: for ever. A packet longer than `buffer` counts as closed.
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(&self, buffer: &mut [u8], limit: Option<Duration>) -> io::Result<Received> {
        if limit.is_some() && !wait(self.0.as_fd(), libc::POLLIN, limit)? {
            return Ok(Received::TimedOut);
        }
        let mut control = Control([0; 64]);
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: as in `send`; the system writes no further than the lengths given. Descriptors that it made are owned
        // at once, and no second one fits.
        let (length, flags, file) = unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut control.0).cast();
            message.msg_controllen = control_length() as _;
            let flags = libc::MSG_CMSG_CLOEXEC;
            let length = libc::recvmsg(self.0.as_raw_fd(), &raw mut message, flags);
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            let carries = length >= 0
                && !head.is_null()
                && (*head).cmsg_level == libc::SOL_SOCKET
                && (*head).cmsg_type == libc::SCM_RIGHTS
                && (*head).cmsg_len as usize >= libc::CMSG_LEN(size_of::<i32>() as u32) as usize;
            let file = carries.then(|| {
                let fd = libc::CMSG_DATA(head).cast::<i32>().read_unaligned();
                File::from(OwnedFd::from_raw_fd(fd))
            });
            (length, message.msg_flags, file)
        };
        match answer(length) {
            Ok(0) => Ok(Received::Closed),
            Ok(_) if flags & libc::MSG_TRUNC != 0 => Ok(Received::Closed),
            Ok(length) => Ok(Received::Packet(length, file)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::Closed),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn of_two_files_in_a_packet_one_arrives_and_none_is_left_over() {
        let (own, other) = pair().unwrap();
        let other = Link::from_fd(other);
        let (first, second) = (memory(4096).unwrap(), memory(4096).unwrap());
        let mut control = Control([0; 64]);
        let mut byte = 7_u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: as in `send`, with two descriptors, for which 64 bytes have room.
        let sent = unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut control.0).cast();
            message.msg_controllen = libc::CMSG_SPACE(8) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(8) as _;
            let data = libc::CMSG_DATA(head).cast::<i32>();
            data.write_unaligned(first.as_raw_fd());
            data.add(1).write_unaligned(second.as_raw_fd());
            libc::sendmsg(own.0.as_raw_fd(), &raw const message, 0)
        };
        assert_eq!(sent, 1);
        let open = |file: &File| {
            let inode = |path: std::path::PathBuf| std::fs::metadata(path).ok().map(|of| of.ino());
            let wanted = file.metadata().unwrap().ino();
            let all = std::fs::read_dir("/proc/self/fd").unwrap();
            all.filter(|one| inode(one.as_ref().unwrap().path()) == Some(wanted)).count()
        };
        let received = other.receive(&mut [0; 16], None).unwrap();
        assert_eq!((open(&first), open(&second)), (2, 1));
        assert!(matches!(received, Received::Packet(1, Some(_))));
    }

    #[test]
    fn a_file_goes_with_a_packet_and_cannot_change_its_length() {
        let (own, other) = pair().unwrap();
        let other = Link::from_fd(other);
        let file = memory(4096).unwrap();
        file.write_all_at(b"frame", 100).unwrap();
        own.send(b"hello", Some(file.as_fd())).unwrap();
        let mut buffer = [0; 16];
        let Received::Packet(5, Some(file)) = other.receive(&mut buffer, None).unwrap() else {
            panic!("no packet with a file");
        };
        let mut there = [0; 5];
        file.read_exact_at(&mut there, 100).unwrap();
        assert_eq!((&buffer[..5], &there), (&b"hello"[..], b"frame"));
        assert!(file.set_len(10).is_err() && file.set_len(5000).is_err());
    }

    #[test]
    fn silence_and_the_end_are_told_apart() {
        let (own, other) = pair().unwrap();
        let brief = Some(Duration::from_millis(1));
        assert!(matches!(own.receive(&mut [0; 8], brief).unwrap(), Received::TimedOut));
        drop(other);
        assert!(matches!(own.receive(&mut [0; 8], brief).unwrap(), Received::Closed));
        assert!(own.send(b"x", None).is_err());
    }
}
