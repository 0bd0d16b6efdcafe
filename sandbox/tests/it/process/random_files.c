// Makes random file calls with random arguments, many of them bad. argv[1] is the seed, argv[2] the number of calls.
// What matters is what becomes of the host: nothing.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static uint64_t state;
static uint64_t next(void) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return state;
}
static const int numbers[] = {
    SYS_read, SYS_write, SYS_open, SYS_close, SYS_stat, SYS_fstat, SYS_lstat, SYS_poll, SYS_lseek, SYS_ioctl, SYS_pread64, SYS_pwrite64,
    SYS_readv, SYS_writev, SYS_access, SYS_pipe, SYS_select, SYS_dup, SYS_dup2, SYS_sendfile, SYS_socket, SYS_socketpair, SYS_sendto, SYS_recvfrom,
    SYS_sendmsg, SYS_recvmsg, SYS_shutdown, SYS_getsockopt, SYS_setsockopt, SYS_getsockname, SYS_fcntl, SYS_flock, SYS_fsync, SYS_truncate, SYS_ftruncate,
    SYS_getdents64, SYS_getcwd, SYS_chdir, SYS_fchdir, SYS_rename, SYS_mkdir, SYS_rmdir, SYS_creat, SYS_link, SYS_unlink, SYS_symlink, SYS_readlink,
    SYS_chmod, SYS_fchmod, SYS_chown, SYS_umask, SYS_statfs, SYS_fstatfs, SYS_readahead, SYS_getxattr, SYS_listxattr, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_wait, SYS_epoll_pwait, SYS_utimensat, SYS_openat, SYS_mkdirat, SYS_mknodat, SYS_fchownat, SYS_newfstatat, SYS_unlinkat, SYS_renameat2,
    SYS_linkat, SYS_symlinkat, SYS_readlinkat, SYS_fchmodat, SYS_faccessat2, SYS_pselect6, SYS_ppoll, SYS_fallocate, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_timerfd_gettime, SYS_eventfd2, SYS_dup3, SYS_pipe2, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2, SYS_memfd_create, SYS_statx,
    SYS_copy_file_range, SYS_openat2, SYS_close_range, SYS_syncfs, SYS_splice,
};
static const char *paths[] = {
    "/", "/tmp", "/mnt/share", "/mnt/share/f", "/mnt/share/d", "/tmp/a", "/tmp/a/b", "a", "b", "..", ".", "", "/proc/self/fd/3", "/proc/self/root/tmp", "/proc/self",
    "/proc/self/maps", "/proc/self/task", "/dev/stdin", "/dev/null", "/dev/urandom", "/mnt/share/../share/l", "/mnt/share/out", "/proc/self/cwd/a", "/mnt/share/../../../../outside/secret", "a/b/../../c/",
};
static char *mapped;
static void nothing(int signal) {}

static uint64_t argument(void) {
    static const uint64_t odd[] = {0, 1, 2, 7, 8, 16, 64, 4095, 4096, 4097, 65536, 0x7fffffff, 0x80000000, 0xffffffff, 1ULL << 32, 1ULL << 47, 1ULL << 62, 1ULL << 63, -1ULL, -100ULL, -8ULL, 0x7ffffffff000ULL};
    switch (next() % 8) {
    case 0: return (uint64_t)paths[next() % (sizeof paths / sizeof *paths)];
    case 1: case 2: return next() % 24;
    case 3: return odd[next() % (sizeof odd / sizeof *odd)];
    case 4: return (uint64_t)mapped + next() % 8192;
    case 5: return 1ULL << (next() % 24) | 1ULL << (next() % 24);
    case 6: return AT_FDCWD;
    default: return next() >> (next() % 64);
    }
}

int main(int argc, char **argv) {
    state = strtoull(argv[1], 0, 10) * 0x9e3779b97f4a7c15ULL + 1;
    mapped = mmap(0, 3 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(mapped + (2 << 12), 1 << 12, PROT_NONE);
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, 0);
    signal(SIGPIPE, SIG_IGN);
    // Calls that wait are interrupted.
    struct itimerval tick = {{0, 3000}, {0, 3000}};
    setitimer(ITIMER_REAL, &tick, 0);
    long calls = atol(argv[2]);
    for (long i = 0; i < calls; i++) {
        if (next() % 4 == 0) {
            uint64_t *words = (uint64_t *)mapped;
            words[next() % 1024] = argument();
        }
        uint64_t first = next() % 3 ? (uint64_t)paths[next() % (sizeof paths / sizeof *paths)] : argument();
        if (next() % 3 == 0) first = next() % 24;
        syscall(numbers[next() % (sizeof numbers / sizeof *numbers)], first, argument(), argument(), argument(), argument(), argument());
    }
    _exit(42);
}
