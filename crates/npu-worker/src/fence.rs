//! What the plug-in's process may not do: limits, Landlock (Linux 5.13) and seccomp, where the kernel has them.
//!
//! Set before the plug-in is loaded, while the process has one thread; threads inherit it. What cannot be set is told, and
//! the agent logs it: a device without Landlock still runs its accelerator.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ocelli_delegate::wire::Sandbox;

/// Descriptors a plug-in may have open.
const MOST_FILES: u64 = 512;

/// Fences the process in; the list says what could not be done.
pub(crate) fn fence(sandbox: Sandbox, memory_bytes: u64, cache_dir: Option<&str>) -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |what: &str, done: io::Result<()>| {
        if let Err(error) = done {
            missing.push(format!("{what}: {error}"));
        }
    };
    note("no core files", limit(libc::RLIMIT_CORE, 0));
    note("limit of descriptors", limit(libc::RLIMIT_NOFILE, MOST_FILES));
    if memory_bytes > 0 {
        note("limit of memory", limit(libc::RLIMIT_AS, memory_bytes));
    }
    // SAFETY: takes numbers only.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    note("no new privileges", answer(privileges.into()).map(drop));
    // A folder that cannot be had costs the cache, not the fence.
    let made = cache_dir.map(std::fs::create_dir_all).transpose();
    let cache_dir = cache_dir.filter(|_| made.is_ok());
    note("cache folder", made.map(drop));
    if sandbox != Sandbox::Off {
        note("Landlock", write_only_in(sandbox, cache_dir));
        note("seccomp", filter(sandbox));
    }
    missing
}

/// Puts an empty file where the socket came in, so that a plug-in cannot read from it.
pub(crate) fn close_standard_input() -> io::Result<()> {
    let empty = std::fs::File::open("/dev/null")?;
    // SAFETY: both descriptors are open.
    answer(unsafe { libc::dup2(empty.as_raw_fd(), 0) }.into()).map(drop)
}

/// Ends the process without asking anybody: a plug-in that hangs would also hang in what it wants to do at the end.
pub(crate) fn leave() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

fn answer(value: i64) -> io::Result<i64> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = most as libc::rlim_t;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a valid limit.
    answer(unsafe { libc::setrlimit(resource, &limit) }.into()).map(drop)
}

/// `struct landlock_ruleset_attr` of its first version.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`, packed in the kernel's header.
#[repr(C, packed)]
struct Beneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Landlock's file rights of the first version that change something: write, remove (2), make (7).
const CHANGES: u64 = (1 << 1) | (0b1_1111_1111 << 4);
/// Same numbers on every architecture.
const LANDLOCK_CREATE_RULESET: libc::c_long = 444;

/// The right to write what is there: devices.
const WRITE: u64 = 1 << 1;

/// Files can be changed below the cache folder only, and what lies in `/dev` can be written; made there, as shared memory, only if
/// the sandbox is not strict.
fn write_only_in(sandbox: Sandbox, cache_dir: Option<&str>) -> io::Result<()> {
    let in_dev = if sandbox == Sandbox::Strict { WRITE } else { CHANGES };
    let ruleset = Ruleset { handled_access_fs: CHANGES };
    // SAFETY: a ruleset of the length given; returns a new descriptor.
    let rules = answer(i64::from(unsafe {
        libc::syscall(LANDLOCK_CREATE_RULESET, &raw const ruleset, size_of::<Ruleset>(), 0) as i32
    }))?;
    // SAFETY: a descriptor that nobody else has.
    let rules = unsafe { OwnedFd::from_raw_fd(i32::try_from(rules).map_err(io::Error::other)?) };
    for (folder, allowed_access) in
        [("/dev", in_dev)].into_iter().chain(cache_dir.map(|folder| (folder, CHANGES)))
    {
        let path = CString::new(folder).map_err(io::Error::other)?;
        // SAFETY: a valid path.
        let fd =
            answer(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }.into())?;
        // SAFETY: a descriptor that nobody else has.
        let folder = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
        let beneath = Beneath { allowed_access, parent_fd: folder.as_raw_fd() };
        // SAFETY: rule type 1 is a path, described by a struct of this layout.
        answer(i64::from(unsafe {
            let rules = rules.as_raw_fd();
            libc::syscall(LANDLOCK_CREATE_RULESET + 1, rules, 1, &raw const beneath, 0) as i32
        }))?;
    }
    // SAFETY: a ruleset's descriptor.
    let done = unsafe { libc::syscall(LANDLOCK_CREATE_RULESET + 2, rules.as_raw_fd(), 0) };
    answer(i64::from(done as i32)).map(drop)
}

/// Never needed for running a net.
const NEVER: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_reboot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_swapon,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    // Its operations, sockets among them, are not seen here.
    libc::SYS_io_uring_setup,
    // Of the agent's files, what Landlock has no right for in old versions, or in none.
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    // Of the agent itself, which has the same user.
    libc::SYS_tkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_setpriority,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
];
/// Linux 6.6; the same number on every architecture.
const FCHMODAT2: libc::c_long = 452;
/// The same by their older names.
#[cfg(not(target_arch = "aarch64"))]
const NEVER_OLD: &[libc::c_long] = &[libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown];
#[cfg(target_arch = "aarch64")]
const NEVER_OLD: &[libc::c_long] = &[];
/// With its first argument a process: for the own one only.
const OWN_ONLY: &[libc::c_long] = &[
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_prlimit64,
];
/// Other programs.
const PROGRAMS: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(target_arch = "arm")]
const ARCHITECTURE: u32 = 0x4000_0028;

/// Answers forbidden calls with EPERM. Another architecture's calls end the process.
fn filter(sandbox: Sandbox) -> io::Result<()> {
    const LOAD: u32 = 0x20;
    const JUMP_IF_EQUAL: u32 = 0x15;
    #[cfg(target_arch = "x86_64")]
    const JUMP_IF_AT_LEAST: u32 = 0x35;
    const RETURN: u32 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32;
    let one =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    // Offsets in `struct seccomp_data`: number 0, architecture 4, low half of the first argument 16.
    let mut program = vec![
        one(LOAD, 0, 0, 4),
        one(JUMP_IF_EQUAL, 1, 0, ARCHITECTURE),
        one(RETURN, 0, 0, KILL),
        one(LOAD, 0, 0, 0),
    ];
    // The x32 interface: the same calls by other numbers.
    #[cfg(target_arch = "x86_64")]
    program.extend([one(JUMP_IF_AT_LEAST, 0, 1, 0x4000_0000), one(RETURN, 0, 0, REFUSE)]);
    let programs = if sandbox == Sandbox::Strict { PROGRAMS } else { &[] };
    for call in NEVER.iter().chain(NEVER_OLD).chain(programs) {
        program.push(one(JUMP_IF_EQUAL, 0, 1, u32::try_from(*call).map_err(io::Error::other)?));
        program.push(one(RETURN, 0, 0, REFUSE));
    }
    for call in OWN_ONLY {
        // 0 is this process for limits, and its whole group, the agent among them, for signals.
        let also = if *call == libc::SYS_prlimit64 { 0 } else { std::process::id() };
        program.extend([
            one(JUMP_IF_EQUAL, 0, 5, u32::try_from(*call).map_err(io::Error::other)?),
            one(LOAD, 0, 0, 16),
            one(JUMP_IF_EQUAL, 2, 0, std::process::id()),
            one(JUMP_IF_EQUAL, 1, 0, also),
            one(RETURN, 0, 0, REFUSE),
            one(LOAD, 0, 0, 0),
        ]);
    }
    if sandbox == Sandbox::Strict {
        let socket = u32::try_from(libc::SYS_socket).map_err(io::Error::other)?;
        program.push(one(JUMP_IF_EQUAL, 0, 4, socket));
        program.push(one(LOAD, 0, 0, 16));
        program.push(one(JUMP_IF_EQUAL, 1, 0, libc::AF_INET as u32));
        program.push(one(JUMP_IF_EQUAL, 0, 1, libc::AF_INET6 as u32));
        program.push(one(RETURN, 0, 0, REFUSE));
    }
    program.push(one(RETURN, 0, 0, ALLOW));
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: a program of the length given, which lives until the call returns.
    let done =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    answer(done.into()).map(drop)
}
