/* Makes one system call of this process fail: the one of a number among those below a directory, with an error of choice.

   Loaded by LD_PRELOAD. `arm` counts from there; calls on other files, and on sockets and pipes, are not counted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char below[PATH_MAX];
static long left = -1, seen = 0;
static int chosen = 0, is_armed = 0;
static char failed[64];

void arm(const char *directory, long call, int error) {
    snprintf(below, sizeof below, "%s", directory);
    left = call;
    chosen = error;
    seen = 0;
    failed[0] = 0;
    is_armed = 1;
}

long disarm(void) {
    is_armed = 0;
    return seen;
}

const char *failed_call(void) { return failed; }

static int fails(const char *name, const char *path) {
    if (!is_armed || !path || strncmp(path, below, strlen(below))) return 0;
    pthread_mutex_lock(&mutex);
    seen++;
    int now = left-- == 0;
    if (now) snprintf(failed, sizeof failed, "%s", name);
    pthread_mutex_unlock(&mutex);
    if (now) errno = chosen;
    return now;
}

static int fails_at(const char *name, int directory, const char *path) {
    if (!is_armed) return 0;
    if (path && (path[0] == '/' || directory == AT_FDCWD)) return fails(name, path);
    char link[64], found[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    int before = errno;
    ssize_t length = readlink(link, found, sizeof found - 1);
    errno = before;
    if (length < 0) return 0;
    found[length] = 0;
    return fails(name, found);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WITH_PATH(type, name, parameters, path, arguments) \
    type name parameters { return fails(#name, path) ? -1 : REAL(name) arguments; }
#define WITH_FILE(type, name, parameters, file, arguments) \
    type name parameters { return fails_at(#name, file, 0) ? -1 : REAL(name) arguments; }
#define OPEN(name, parameters, directory, path, arguments) \
    int name parameters { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return fails_at(#name, directory, path) ? -1 : REAL(name) arguments; \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, (path, flags, mode))
OPEN(openat, (int directory, const char *path, int flags, ...), directory, path, (directory, path, flags, mode))
OPEN(openat64, (int directory, const char *path, int flags, ...), directory, path, (directory, path, flags, mode))
WITH_FILE(ssize_t, read, (int file, void *data, size_t size), file, (file, data, size))
WITH_FILE(ssize_t, pread, (int file, void *data, size_t size, off_t at), file, (file, data, size, at))
WITH_FILE(ssize_t, pread64, (int file, void *data, size_t size, off64_t at), file, (file, data, size, at))
WITH_FILE(ssize_t, write, (int file, const void *data, size_t size), file, (file, data, size))
WITH_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), file, (file, data, size, at))
WITH_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), file, (file, data, size, at))
WITH_FILE(int, fsync, (int file), file, (file))
WITH_FILE(int, fdatasync, (int file), file, (file))
WITH_FILE(int, ftruncate, (int file, off_t size), file, (file, size))
WITH_FILE(int, ftruncate64, (int file, off64_t size), file, (file, size))
WITH_PATH(int, rename, (const char *from, const char *to), to, (from, to))
WITH_PATH(int, link, (const char *from, const char *to), to, (from, to))
WITH_PATH(int, unlink, (const char *path), path, (path))
WITH_PATH(int, mkdir, (const char *path, mode_t mode), path, (path, mode))
WITH_PATH(int, rmdir, (const char *path), path, (path))

int unlinkat(int directory, const char *path, int flags) {
    return fails_at("unlinkat", directory, path) ? -1 : REAL(unlinkat)(directory, path, flags);
}

int utimensat(int directory, const char *path, const struct timespec times[2], int flags) {
    return fails_at("utimensat", directory, path) ? -1 : REAL(utimensat)(directory, path, times, flags);
}
