// Preloaded into a process: counts what it does to the files below some folders, and lets one of these calls go wrong.
//
// It sees calls that reach libc by name, whoever makes them (Python, PyTorch, a Rust extension). It does not see what
// libc calls inside itself (stdio), pages written through a mapping, and io_uring.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { DESCRIPTORS = 4096, GO_ON = 0, FAIL = -1, HALF = 1, HALF_AND_DIE = 2 };

static char folders[4][PATH_MAX];
static char kind[16];
static long chosen;  // which call goes wrong, from 1 on; 0: none
static atomic_long counted;
static int journal = -1;
static char names[DESCRIPTORS][256];  // of the open files below the folders; "" for others

void arm(const char* first, const char* second, const char* fault, long n, int journal_descriptor) {
  snprintf(folders[0], PATH_MAX, "%s", first);
  snprintf(folders[1], PATH_MAX, "%s", second);
  snprintf(kind, sizeof kind, "%s", fault);
  journal = journal_descriptor;
  chosen = n;
  counted = 0;
}

static int below(const char* path) {
  for (int i = 0; i < 2; i++) {
    size_t length = strlen(folders[i]);
    if (length && !strncmp(path, folders[i], length) && (path[length] == '/' || !path[length])) return 1;
  }
  return 0;
}

static const char* absolute(int folder, const char* path, char* space) {
  if (path[0] == '/') return path;
  char link[64] = "/proc/self/cwd";
  if (folder != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  ssize_t length = readlink(link, space, PATH_MAX - 1);
  if (length < 0) return path;
  snprintf(space + length, PATH_MAX - length, "/%s", path);
  return space;
}

// What is to become of a call. `takes_room`: a full disk refuses it.
static int fate(const char* call, const char* path, int takes_room) {
  long n = atomic_fetch_add(&counted, 1) + 1;
  if (journal >= 0) {
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    syscall(SYS_write, journal, line, length);
  }
  if (!strcmp(kind, "full") && chosen && n >= chosen && takes_room) {
    errno = ENOSPC;
    return FAIL;
  }
  if (n != chosen || !strcmp(kind, "full")) return GO_ON;
  if (!strcmp(kind, "kill")) syscall(SYS_kill, getpid(), SIGKILL);
  if (!strcmp(kind, "torn")) return HALF_AND_DIE;
  if (!strcmp(kind, "short")) return HALF;
  errno = !strcmp(kind, "ENOSPC") ? ENOSPC : !strcmp(kind, "EIO") ? EIO : EACCES;
  return FAIL;
}

static int fate_of_path(const char* call, int folder, const char* path, int takes_room) {
  char space[PATH_MAX];
  const char* whole = absolute(folder, path, space);
  return below(whole) ? fate(call, whole, takes_room) : GO_ON;
}

static const char* name_of(int file) { return file >= 0 && file < DESCRIPTORS ? names[file] : ""; }

static int opened(int folder, const char* path, int flags, mode_t mode) {
  char space[PATH_MAX];
  const char* whole = absolute(folder, path, space);
  int watched = below(whole), writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
  if (watched && fate(writes ? "open" : "look", whole, writes) == FAIL) return -1;
  int file = syscall(SYS_openat, folder, path, flags, mode);
  if (file >= 0 && file < DESCRIPTORS) snprintf(names[file], sizeof names[file], "%s", watched ? whole : "");
  return file;
}

#define OPEN(name)                              \
  int name(const char* path, int flags, ...) {  \
    va_list more;                               \
    va_start(more, flags);                      \
    mode_t mode = va_arg(more, int);            \
    va_end(more);                               \
    return opened(AT_FDCWD, path, flags, mode); \
  }
#define OPENAT(name)                                       \
  int name(int folder, const char* path, int flags, ...) { \
    va_list more;                                          \
    va_start(more, flags);                                 \
    mode_t mode = va_arg(more, int);                       \
    va_end(more);                                          \
    return opened(folder, path, flags, mode);              \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
int creat(const char* path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char* path, mode_t mode) { return creat(path, mode); }

int close(int file) {
  if (file >= 0 && file < DESCRIPTORS) names[file][0] = 0;
  return syscall(SYS_close, file);
}

static ssize_t halved(int file, const void* data, size_t size, int what) {
  ssize_t done = syscall(SYS_write, file, data, size > 1 ? size / 2 : size);
  if (what == HALF_AND_DIE) syscall(SYS_kill, getpid(), SIGKILL);
  return done;
}

ssize_t write(int file, const void* data, size_t size) {
  const char* name = name_of(file);
  int what = *name ? fate("write", name, 1) : GO_ON;
  if (what == FAIL) return -1;
  return what == GO_ON ? syscall(SYS_write, file, data, size) : halved(file, data, size, what);
}

ssize_t writev(int file, const struct iovec* parts, int count) {
  const char* name = name_of(file);
  int what = *name ? fate("write", name, 1) : GO_ON;
  if (what == FAIL) return -1;
  return what == GO_ON ? syscall(SYS_writev, file, parts, count)
                       : halved(file, parts[0].iov_base, parts[0].iov_len, what);
}

ssize_t pwrite64(int file, const void* data, size_t size, off64_t place) {
  const char* name = name_of(file);
  if (*name && fate("write", name, 1) == FAIL) return -1;
  return syscall(SYS_pwrite64, file, data, size, place);
}
ssize_t pwrite(int file, const void* data, size_t size, off_t place) { return pwrite64(file, data, size, place); }

#define ON_FILE(call, name, takes_room, parameters, arguments)    \
  int name parameters {                                           \
    const char* path = name_of(file);                             \
    if (*path && fate(call, path, takes_room) == FAIL) return -1; \
    return REAL(name) arguments;                                  \
  }
ON_FILE("sync", fsync, 0, (int file), (file))
ON_FILE("sync", fdatasync, 0, (int file), (file))
ON_FILE("truncate", ftruncate, 0, (int file, off_t size), (file, size))
ON_FILE("truncate", ftruncate64, 0, (int file, off64_t size), (file, size))
ON_FILE("lock", flock, 0, (int file, int how), (file, how))

int posix_fallocate64(int file, off64_t place, off64_t size) {
  const char* name = name_of(file);
  if (*name && fate("allocate", name, 1) == FAIL) return errno;
  return REAL(posix_fallocate64)(file, place, size);
}
int posix_fallocate(int file, off_t place, off_t size) { return posix_fallocate64(file, place, size); }

#define ON_PATH(call, name, takes_room, folder, path, parameters, arguments) \
  int name parameters {                                                      \
    if (fate_of_path(call, folder, path, takes_room) == FAIL) return -1;     \
    return REAL(name) arguments;                                             \
  }
ON_PATH("rename", rename, 0, AT_FDCWD, to, (const char* from, const char* to), (from, to))
ON_PATH("rename", renameat, 0, b, to, (int a, const char* from, int b, const char* to), (a, from, b, to))
ON_PATH("rename", renameat2, 0, b, to, (int a, const char* from, int b, const char* to, unsigned flags),
        (a, from, b, to, flags))
ON_PATH("link", link, 1, AT_FDCWD, to, (const char* from, const char* to), (from, to))
ON_PATH("link", linkat, 1, b, to, (int a, const char* from, int b, const char* to, int flags), (a, from, b, to, flags))
ON_PATH("link", symlink, 1, AT_FDCWD, to, (const char* from, const char* to), (from, to))
ON_PATH("unlink", unlink, 0, AT_FDCWD, path, (const char* path), (path))
ON_PATH("unlink", unlinkat, 0, folder, path, (int folder, const char* path, int flags), (folder, path, flags))
ON_PATH("rmdir", rmdir, 0, AT_FDCWD, path, (const char* path), (path))
ON_PATH("mkdir", mkdir, 1, AT_FDCWD, path, (const char* path, mode_t mode), (path, mode))
ON_PATH("mkdir", mkdirat, 1, folder, path, (int folder, const char* path, mode_t mode), (folder, path, mode))
ON_PATH("times", utimensat, 0, folder, path, (int folder, const char* path, const struct timespec times[2], int flags),
        (folder, path, times, flags))
