// Makes file calls with hostile and odd arguments and prints what each gives. The same binary runs natively and in
// the sandbox; the outputs must be equal. argv[1] is an empty directory to work in.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void show(const char *what, long result) {
    if (result < 0) printf("%s: -1 %d\n", what, errno);
    else printf("%s: %ld\n", what, result);
}
#define T(call) show(#call, (long)(call))
#define S(number, ...) syscall(SYS_##number, ##__VA_ARGS__)

static char *page, *guard, *rdonly;
static void *bad[6];

static void pointers(int fd, int dir) {
    for (int i = 0; i < 6; i++) {
        void *p = bad[i];
        printf("-- pointer %d\n", i);
        T(S(open, p, O_RDONLY)); T(S(openat, AT_FDCWD, p, O_RDONLY)); T(S(creat, p, 0600)); T(S(stat, p, page));
        T(S(stat, "f", p)); T(S(lstat, "f", p)); T(S(fstat, fd, p)); T(S(newfstatat, AT_FDCWD, "f", p, 0));
        T(S(statx, AT_FDCWD, "f", 0, 0x7ff, p)); T(S(statfs, "f", p)); T(S(fstatfs, fd, p)); T(S(access, p, 0));
        T(S(lseek, fd, 0, SEEK_SET)); T(S(read, fd, p, 16)); T(S(pread64, fd, p, 16, 0)); T(S(readv, fd, p, 1));
        T(S(write, fd, p, 16)); T(S(pwrite64, fd, p, 16, 0)); T(S(writev, fd, p, 1));
        T(S(getdents64, dir, p, 4096)); T(S(lseek, dir, 0, SEEK_SET)); T(S(getcwd, p, 4096)); T(S(chdir, p));
        T(S(mkdir, p, 0700)); T(S(rmdir, p)); T(S(unlink, p)); T(S(rename, p, "x")); T(S(rename, "nx", p));
        T(S(link, p, "x")); T(S(symlink, p, "x")); T(S(symlink, "x", p)); T(S(readlink, p, page, 10));
        T(S(readlink, "l", p, 10)); T(S(chmod, p, 0600)); T(S(truncate, p, 0)); T(S(utimensat, AT_FDCWD, p, 0, 0) == -1 && errno != EFAULT && i);
        T(S(pipe2, p, 0)); T(S(poll, p, 1, 0)); T(S(select, 1, p, 0, 0, &(struct timeval){0, 0})); T(S(ioctl, fd, FIONREAD, p));
        T(S(fcntl, fd, F_GETLK, p)); T(S(memfd_create, p, 0)); T(S(socketpair, AF_UNIX, SOCK_STREAM, 0, p));
        int e = epoll_create1(0);
        struct epoll_event ev = {EPOLLIN, {.u64 = 1}};
        T(S(epoll_ctl, e, EPOLL_CTL_ADD, 0, p)); T(S(epoll_wait, e, p, 0, 0)); close(e);
        int t = timerfd_create(CLOCK_MONOTONIC, 0);
        T(S(timerfd_settime, t, 0, p, 0)); T(S(timerfd_gettime, t, p)); close(t);
        int v = eventfd(1, EFD_NONBLOCK);
        T(S(write, v, p, 8)); T(S(read, v, p, 8)); close(v);
        int q[2]; pipe2(q, O_NONBLOCK); write(q[1], "0123456789abcdef", 16);
        T(S(read, q[0], p, 16)); T(S(write, q[1], p, 16)); close(q[0]); close(q[1]);
    }
}

static void edges(int fd) {
    puts("-- buffers that end in nothing");
    char *edge = guard - 8;
    memcpy(edge, "straddle", 8);
    T(ftruncate(fd, 0)); T(pwrite(fd, edge, 8, 0)); T(pwrite(fd, edge, 16, 100)); T(pread(fd, edge, 16, 0)); T(pread(fd, guard, 16, 0));
    T(pread(fd, page, 4096, 0));
    struct iovec some[3] = {{edge, 8}, {guard, 8}, {page, 8}};
    T(preadv(fd, some, 3, 0)); T(preadv(fd, some + 1, 2, 0)); T(preadv(fd, some, 0, 0));
    struct iovec same[2] = {{page, 64}, {page, 64}};
    memset(page, 'a', 128); T(pwritev(fd, same, 2, 0)); T(preadv(fd, same, 2, 0));
    struct iovec huge[2] = {{page, SSIZE_MAX}, {page, SSIZE_MAX}}, neg[1] = {{page, (size_t)-1}};
    T(preadv(fd, neg, 1, 0)); T(pwritev(fd, neg, 1, 0)); T(preadv(fd, huge, 2, 0) >= 0);
    static struct iovec many[1025];
    for (int i = 0; i < 1025; i++) many[i] = (struct iovec){page, 1};
    T(preadv(fd, many, 1024, 0)); T(preadv(fd, many, 1025, 0)); T(preadv(fd, many, -1, 0)); T(preadv(fd, many, INT_MAX, 0));
    T(S(read, fd, page, (size_t)-1)); T(S(write, fd, page, (size_t)-1)); T(S(pread64, fd, page, 16, -1L)); T(S(pwrite64, fd, page, 16, LONG_MIN));
    T(S(pread64, fd, page, 16, LONG_MAX)); T(S(pread64, fd, page, 16, LONG_MAX - 16)); T(S(read, fd, rdonly, 4)); T(S(pwrite64, fd, rdonly, 4, 0));
    T(S(preadv2, fd, same, 2, -1L, 0, 0)); T(S(preadv2, fd, same, 2, 0L, 0, 0x8000));
    T(S(lseek, fd, -1L, SEEK_SET)); T(S(lseek, fd, 0, 99)); T(S(ftruncate, fd, -1L)); T(S(fallocate, fd, 0, 0, 0L)); T(S(fallocate, fd, 0, -1L, 5L));
    T(S(fallocate, fd, 0xffff, 0, 5L)); T(S(lseek, fd, 0, SEEK_SET));
}

static void descriptors(int fd) {
    puts("-- descriptors never opened");
    int none[] = {-1, 77, 100000, INT_MAX, INT_MIN};
    struct stat st; struct pollfd p;
    for (int i = 0; i < 5; i++) {
        int n = none[i];
        T(S(read, n, page, 1)); T(S(write, n, page, 1)); T(S(close, n)); T(S(fstat, n, &st)); T(S(lseek, n, 0, 0)); T(S(dup, n)); T(S(dup2, n, 5)); T(S(dup2, fd, n > 70 && n < 80 ? -5 : n));
        T(S(dup3, n, n, 0)); T(S(fcntl, n, F_GETFD)); T(S(fcntl, n, F_GETFL)); T(S(ioctl, n, FIONREAD, page)); T(S(ftruncate, n, 0L)); T(S(fsync, n)); T(S(fchdir, n));
        T(S(fchmod, n, 0600)); T(S(getdents64, n, page, 4096)); T(S(readv, n, page, 1)); T(S(openat, n, "x", 0)); T(S(openat, n, "/", 0) >= 0); T(S(flock, n, LOCK_SH)); T(S(sendfile, n, fd, 0, 1));
        T(S(sendfile, fd, n, 0, 1)); T(S(copy_file_range, n, 0, fd, 0, 1, 0)); T(S(epoll_ctl, n, EPOLL_CTL_ADD, fd, page)); T(S(epoll_wait, n, page, 1, 0)); T(S(timerfd_gettime, n, page));
        T(S(recvfrom, n, page, 1, 0, 0, 0)); T(S(shutdown, n, 0)); p = (struct pollfd){n, POLLIN, 0}; T(poll(&p, 1, 0)); printf("%x\n", p.revents);
        for (int m = 3; m < 1000; m++) if (m != fd) close(m);
    }
    T(S(dup3, fd, fd, 0)); T(S(dup3, fd, 20, 0x1234)); T(S(fcntl, fd, 9999)); T(S(fcntl, fd, F_DUPFD, -1)); T(S(fcntl, fd, F_DUPFD, 1 << 30)); T(S(close_range, 9, 3, 0)); T(S(close_range, 500, ~0U, 0));
    T(S(lseek, 0, 0, SEEK_CUR)); T(S(pread64, 0, page, 1, 0)); T(S(fcntl, fd, F_GETPIPE_SZ)); T(S(ioctl, fd, TCGETS, page)); T(S(ioctl, 1, TIOCGWINSZ, page)); T(S(recvfrom, fd, page, 1, 0, 0, 0));
}

static void paths(void) {
    puts("-- odd paths");
    static char name[300], deep[5000];
    memset(name, 'n', 299); T(mkdir(name, 0700)); name[256] = 0; T(mkdir(name, 0700)); name[255] = 0; T(mkdir(name, 0700)); T(rmdir(name));
    memset(deep, '/', 4999); T(access(deep, 0)); deep[4095] = 0; T(access(deep, 0)); deep[4094] = 0; T(chdir(deep) == 0 ? 0 : -1); T(chdir("-") );
}

static void more(const char *dir) {
    T(chdir(dir)); T(open("", O_RDONLY)); T(mkdir("", 0700)); T(mkdir("d", 0700)); T(mkdir("d/", 0700)); T(mkdir("e/", 0700)); T(rmdir("e/.")); T(rmdir("e/..")); T(rmdir("e/"));
    T(open("d", O_WRONLY)); T(open("d", O_RDWR)); T(open("d", O_CREAT, 0600)); T(open("f/", O_RDONLY)); T(open("n/", O_CREAT | O_WRONLY, 0600)); T(open("f", O_RDONLY | O_DIRECTORY)); T(open("l", O_NOFOLLOW));
    T(open("f", O_CREAT | O_EXCL, 0600)); T(open("loop", O_RDONLY)); T(symlink("loop", "loop")); T(open("loop", O_RDONLY)); T(S(open, "loop", O_RDONLY | O_NOFOLLOW)); T(unlink("d")); T(unlink("f/")); T(rmdir("f"));
    T(rename("d", "d/x")); T(rename("f", "d")); T(rename("d", "f")); T(rename(".", "x")); T(rename("..", "x")); T(rename("none", "x")); T(link("d", "x")); T(link("f", "f")); T(symlink("", "x")); T(readlink("f", page, 10)); T(readlink("l", page, 0));
    T(readlink("l", page, 1)); T(chdir("f")); T(S(unlinkat, AT_FDCWD, "f", 0x1234)); T(S(renameat2, AT_FDCWD, "f", AT_FDCWD, "g", 0x80)); T(S(renameat2, AT_FDCWD, "f", AT_FDCWD, "d", 1)); T(S(renameat2, AT_FDCWD, "f", AT_FDCWD, "none", 2));
    T(S(renameat2, AT_FDCWD, "f", AT_FDCWD, "d", 2)); T(S(renameat2, AT_FDCWD, "f", AT_FDCWD, "d", 2)); T(S(faccessat2, AT_FDCWD, "f", 8, 0)); T(S(faccessat2, AT_FDCWD, "f", 0, 0x8000)); T(access("f", X_OK)); T(chmod("f", 0755)); T(access("f", X_OK));
    T(S(utimensat, AT_FDCWD, "f", ((struct timespec[]){{1, 2000000000}, {1, 1}}), 0)); T(S(utimensat, AT_FDCWD, "f", ((struct timespec[]){{1, 2}, {3, 4}}), 0)); struct stat st; T(stat("f", &st)); printf("%ld %ld %o\n", st.st_mtime, st.st_mtim.tv_nsec, st.st_mode);
    T(S(getcwd, page, 2)); T(truncate("f", 10)); T(stat("f", &st)); printf("%ld\n", (long)st.st_size); T(truncate("d", 0)); T(truncate("f", -1)); T(umask(0777)); T(umask(022)); T(S(statx, AT_FDCWD, "", AT_EMPTY_PATH, 0x7ff, page)); T(S(newfstatat, AT_FDCWD, "", page, 0));
    int fd = open("f", O_RDWR | O_APPEND); T(fcntl(fd, F_GETFL) & O_APPEND); T(write(fd, "x", 1)); T(lseek(fd, 0, SEEK_CUR)); T(pwrite(fd, "yz", 2, 0)); T(lseek(fd, 0, SEEK_END)); T(fcntl(fd, F_SETFL, O_NONBLOCK)); T(fcntl(fd, F_GETFL) & (O_APPEND | O_NONBLOCK));
    T(dup2(fd, 50)); T(lseek(50, 3, SEEK_SET)); T(lseek(fd, 0, SEEK_CUR)); T(fcntl(fd, F_SETFD, FD_CLOEXEC)); T(fcntl(50, F_GETFD)); T(close(50)); T(flock(fd, LOCK_EX)); T(flock(fd, 16)); T(flock(fd, LOCK_UN));
    T(S(getxattr, "f", "user.x", page, 10) == -1 && (errno == ENODATA || errno == EOPNOTSUPP)); T(S(getxattr, "none", "user.x", page, 10)); T(S(fadvise64, fd, 0, 0, 0)); T(S(fadvise64, fd, 0, 0, 99)); T(S(memfd_create, "m", 0x4000)); T(S(mknod, "fifo", S_IFREG | 0600, 0)); T(S(mknod, "f", S_IFREG, 0));
    int dfd = open(".", O_RDONLY); T(S(getdents64, dfd, page, 1)); T(S(getdents64, fd, page, 4096)); long total = 0, n; while ((n = S(getdents64, dfd, page, 64)) > 0) total++; printf("%d entries\n", (int)total); close(dfd); close(fd);
}

static void queues(void) {
    puts("-- pipes, events, epoll, sockets");
    int p[2]; T(pipe2(p, 0x1234)); T(pipe2(p, O_NONBLOCK)); T(read(p[0], page, 1)); T(write(p[0], page, 1)); T(read(p[1], page, 1)); T(lseek(p[0], 0, 0)); T(write(p[1], page, 100)); int n; T(ioctl(p[0], FIONREAD, &n)); T(n);
    T(fcntl(p[0], F_GETPIPE_SZ)); T(fcntl(p[1], F_SETPIPE_SZ, 4096)); struct pollfd q[2] = {{p[0], POLLIN | POLLOUT}, {p[1], POLLIN | POLLOUT}}; T(poll(q, 2, 0)); printf("%x %x\n", q[0].revents, q[1].revents); T(read(p[0], page, 4096));
    T(poll(q, 2, 0)); printf("%x %x\n", q[0].revents, q[1].revents); close(p[1]); T(poll(q, 1, -1)); printf("%x\n", q[0].revents); T(read(p[0], page, 1)); close(p[0]);
    pipe2(p, 0); close(p[0]); signal(SIGPIPE, SIG_IGN); T(write(p[1], page, 1)); q[0] = (struct pollfd){p[1], POLLOUT}; T(poll(q, 1, 0)); printf("%x\n", q[0].revents); close(p[1]);
    int v = eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE); uint64_t x = 0; T(read(v, &x, 8)); T((long)x); T(read(v, &x, 4)); x = UINT64_MAX; T(write(v, &x, 8)); x = UINT64_MAX - 3; T(write(v, &x, 8)); T(write(v, &x, 8)); close(v);
    int s[2]; T(socketpair(AF_UNIX, 77, 0, s)); T(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, s)); T(send(s[0], "abc", 3, 0)); T(recv(s[1], page, 2, MSG_TRUNC)); T(recv(s[1], page, 2, 0)); T(shutdown(s[0], SHUT_WR));
    T(recv(s[1], page, 2, 0)); T(send(s[0], "x", 1, MSG_NOSIGNAL)); T(shutdown(s[0], 9)); int o, l = 4; T(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &o, (socklen_t *)&l)); T(o); T(listen(s[0], 1)); close(s[0]); close(s[1]);
    int e = epoll_create1(0); T(epoll_create1(99)); T(epoll_create(0)); pipe(p); struct epoll_event ev = {EPOLLIN | EPOLLET, {.u64 = 5}}, out[4]; T(epoll_ctl(e, EPOLL_CTL_ADD, p[0], &ev)); T(epoll_ctl(e, EPOLL_CTL_ADD, p[0], &ev)); T(epoll_ctl(e, EPOLL_CTL_MOD, p[1], &ev)); T(epoll_ctl(e, 9, p[0], &ev));
    T(epoll_ctl(e, EPOLL_CTL_ADD, e, &ev)); T(epoll_wait(e, out, 4, 0)); T(write(p[1], "a", 1)); T(epoll_wait(e, out, 4, -1)); T((long)out[0].data.u64); T(epoll_wait(e, out, 4, 0)); T(epoll_wait(e, out, 0, 0)); T(epoll_wait(e, out, -1, 0)); T(epoll_wait(p[0], out, 1, 0)); T(epoll_ctl(e, EPOLL_CTL_DEL, p[0], 0)); close(e); close(p[0]); close(p[1]);
    int t = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK); struct itimerspec it = {{0, 0}, {0, 1000000}}, bad_time = {{0, 0}, {0, 1000000000}}; T(timerfd_settime(t, 0, &bad_time, 0)); T(timerfd_settime(t, 99, &it, 0)); T(read(t, &x, 8)); T(timerfd_settime(t, 0, &it, 0)); q[0] = (struct pollfd){t, POLLIN}; T(poll(q, 1, -1)); T(read(t, &x, 8)); T((long)x); T(timerfd_create(55, 0)); close(t);
    close(fcntl(1, F_DUPFD, 200)); /* select ignores what lies behind the end of the table */ fd_set r; FD_ZERO(&r); FD_SET(90, &r); struct timeval tv = {0, 0}; T(select(91, &r, 0, 0, &tv)); T(select(-1, 0, 0, 0, &tv)); FD_ZERO(&r); T(select(0, 0, 0, 0, &tv)); tv.tv_usec = -1; T(select(0, 0, 0, 0, &tv)); tv.tv_usec = 2000; T(select(0, 0, 0, 0, &tv)); T(poll(0, 0, 2)); T(poll(0, 1 << 20, 0));
}

int main(int argc, char **argv) {
    close_range(3, ~0u, 0); // whoever runs the tests may have left descriptors open
    setvbuf(stdout, 0, _IOFBF, 1 << 20);
    char *base = mmap(0, 4 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page = mmap(0, 16 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guard = base + (2 << 12); mprotect(guard, 1 << 12, PROT_NONE);
    rdonly = mmap(0, 1 << 12, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *list[6] = {0, (void *)1, guard, (void *)0xffff800000000000UL, (void *)0x8000000000000000UL, (void *)-1L};
    memcpy(bad, list, sizeof bad);
    if (chdir(argv[1])) return 9;
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    write(fd, "0123456789abcdefghij", 20); symlink("f", "l");
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    pointers(fd, dir); close(dir); edges(fd); descriptors(fd); paths(); close(fd); more(argv[1]); queues();
    return 0;
}
