/* burglar.c: a plug-in that tries what the worker's fence forbids, and says in its error what each attempt got (errno, 0: it went).
 *
 * Options: outside = a folder that it must not write in, cache = one that it may.
 */
#define _GNU_SOURCE
#include "ocelli_delegate.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct ocelli_context {
  char error[1024];
};

static int said(long done) { return done < 0 ? errno : 0; }

static int write_in(const char *folder) {
  char path[512];
  snprintf(path, sizeof path, "%s/burglar-%d", folder, getpid());
  int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  int error = said(file);
  if (file >= 0) close(file), unlink(path);
  return error;
}

/* A file of the agent's user that nobody gave to the plug-in. */
static int empty(const char *folder) {
  char path[512];
  snprintf(path, sizeof path, "%s/file", folder);
  return said(truncate(path, 0));
}

static int open_up(const char *folder) {
  char path[512];
  snprintf(path, sizeof path, "%s/file", folder);
  int one = said(chmod(path, 0666)), other = said(syscall(452 /* fchmodat2 */, AT_FDCWD, path, 0666, 0));
  return one == other ? one : -1;
}

static int limit_agent(void) {
  const struct rlimit limit = {1 << 20, 1 << 20};
  return said(prlimit(getppid(), RLIMIT_NOFILE, &limit, NULL));
}

/* A program that is not there: ENOENT where programs are allowed. */
static int run_program(void) {
  char *const words[] = {"true", NULL}, *const none[] = {NULL};
  return said(execve("/nowhere/true", words, none));
}

static ocelli_status create(const ocelli_options *options, ocelli_context **out) {
  ocelli_context *c = *out = calloc(1, sizeof **out);
  if (!c) return OCELLI_OUT_OF_MEMORY;
  const char *outside = "/", *cache = "/";
  for (uint32_t i = 0; i < options->count; i++) {
    if (!strcmp(options->keys[i], "outside")) outside = options->values[i];
    if (!strcmp(options->keys[i], "cache")) cache = options->values[i];
  }
  int n = snprintf(c->error, sizeof c->error, "outside %d, cache %d, shared memory %d, program %d, internet %d, ",
                   write_in(outside), write_in(cache), write_in("/dev/shm"), run_program(),
                   said(socket(AF_INET, SOCK_STREAM, 0)));
  n += snprintf(c->error + n, sizeof c->error - (size_t)n, "unix %d, trace %d, mount %d, ring %d, ", said(socket(AF_UNIX, SOCK_STREAM, 0)),
                said(ptrace(PTRACE_TRACEME, 0, 0, 0)), said(mount("none", "/nowhere", "tmpfs", 0, "")),
                said(syscall(SYS_io_uring_setup, 1, NULL)));
  n += snprintf(c->error + n, sizeof c->error - (size_t)n, "empty %d, open up %d, signal %d, group %d, limit %d, own %d, ", empty(outside), open_up(outside),
                said(kill(getppid(), 0)), said(kill(0, 0)), limit_agent(), said(kill(getpid(), 0)));
#ifdef __x86_64__
  /* The same call by its number of the x32 interface. */
  snprintf(c->error + n, sizeof c->error - (size_t)n, "x32 %d, end", said(syscall(0x40000000 + SYS_socket, AF_INET, SOCK_STREAM, 0)));
#else
  snprintf(c->error + n, sizeof c->error - (size_t)n, "x32 %d, end", EPERM);
#endif
  return OCELLI_INTERNAL;
}

/* Never reached: the API is to be whole before a context is made. */
static ocelli_status device(ocelli_context *c, uint32_t index, ocelli_device *out) { return (void)c, (void)index, (void)out, OCELLI_NO_DEVICE; }
static ocelli_status compile(ocelli_context *c, uint32_t index, const ocelli_source *source, ocelli_executable **out) {
  return (void)c, (void)index, (void)source, (void)out, OCELLI_INTERNAL;
}
static void release(ocelli_executable *e) { (void)e; }
static ocelli_status io(ocelli_executable *e, uint32_t direction, uint32_t index, const ocelli_tensor **tensor) {
  return (void)e, (void)direction, (void)index, (void)tensor, OCELLI_INTERNAL;
}
static ocelli_status submit(ocelli_executable *e, const ocelli_buffer *const *inputs, uint32_t n_inputs,
                            const ocelli_buffer *const *outputs, uint32_t n_outputs, uint64_t *ticket) {
  return (void)e, (void)inputs, (void)n_inputs, (void)outputs, (void)n_outputs, (void)ticket, OCELLI_INTERNAL;
}
static ocelli_status wait_for(ocelli_executable *e, uint64_t ticket, uint64_t timeout_ns) {
  return (void)e, (void)ticket, (void)timeout_ns, OCELLI_INTERNAL;
}

static void destroy(ocelli_context *context) { free(context); }

static const char *last_error(ocelli_context *context) { return context->error; }

static const ocelli_delegate_api API = {
    .size = sizeof API,
    .abi_major = OCELLI_DELEGATE_ABI_MAJOR,
    .abi_minor = OCELLI_DELEGATE_ABI_MINOR,
    .plugin_name = "burglar",
    .plugin_version = "1.0.0",
    .create = create,
    .destroy = destroy,
    .last_error = last_error,
    .device = device,
    .compile = compile,
    .release = release,
    .io = io,
    .submit = submit,
    .wait = wait_for,
};

const ocelli_delegate_api *ocelli_delegate_get_api(uint32_t abi_major) {
  return abi_major == OCELLI_DELEGATE_ABI_MAJOR ? &API : NULL;
}
