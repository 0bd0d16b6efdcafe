/* Calls that may be answered without leaving the VM: what they answer, and what they leave alone, is what Linux answers
 * and leaves alone. Takes a directory that is its own to read. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

enum { RAX, RDI, RSI, RDX, R10, R8, R9, RBX, RBP, R12, R13, R14, R15, FLAGS, WORDS };

/* Makes a call with a pattern in every register and in the arithmetic flags; which registers and flags it changes. */
static long probe(long n, long a, long b, long c, long d, unsigned *changed) {
    uint64_t in[WORDS] = {n, a, b, c, d, 0x808, 0x909, 0xb0b}, out[WORDS];
    in[R12] = 0xc12, in[R13] = 0xd13, in[R14] = 0xe14, in[FLAGS] = 0x8d5; /* CF PF AF ZF SF OF */
    register uint64_t *from __asm__("r15") = in;
    __asm__ volatile(
        "push %[out]\n mov 0(%%r15), %%rax\n mov 8(%%r15), %%rdi\n mov 16(%%r15), %%rsi\n mov 24(%%r15), %%rdx\n"
        "mov 32(%%r15), %%r10\n mov 40(%%r15), %%r8\n mov 48(%%r15), %%r9\n mov 56(%%r15), %%rbx\n mov 72(%%r15), %%r12\n"
        "mov 80(%%r15), %%r13\n mov 88(%%r15), %%r14\n pushq 104(%%r15)\n popfq\n syscall\n pushfq\n pop %%rcx\n pop %%r11\n"
        "mov %%rax, 0(%%r11)\n mov %%rdi, 8(%%r11)\n mov %%rsi, 16(%%r11)\n mov %%rdx, 24(%%r11)\n mov %%r10, 32(%%r11)\n"
        "mov %%r8, 40(%%r11)\n mov %%r9, 48(%%r11)\n mov %%rbx, 56(%%r11)\n mov %%r12, 72(%%r11)\n mov %%r13, 80(%%r11)\n"
        "mov %%r14, 88(%%r11)\n mov %%rcx, 104(%%r11)\n"
        : "+r"(from) : [out] "r"(out)
        : "rax", "rdi", "rsi", "rdx", "r10", "r8", "r9", "rbx", "rcx", "r11", "r12", "r13", "r14", "memory", "cc");
    in[RBP] = out[RBP] = in[R15] = out[R15] = 0;
    out[FLAGS] &= 0x8d5 | 1 << 10; /* and DF */
    *changed = 0;
    for (int i = RDI; i < WORDS; i++)
        if (in[i] != out[i]) *changed |= 1u << i | (i == FLAGS ? (unsigned)(in[i] ^ out[i]) << 16 : 0);
    return out[RAX];
}

static void say(const char *what, long n, long a, long b, long c, long d) {
    unsigned changed;
    long value = probe(n, a, b, c, d, &changed);
    printf("%s: %ld, changed %x\n", what, value, changed);
}

static char *ends(void) { /* at the last bytes of a page before one that is not there */
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    return page + 4096;
}

static void show(const char *what, const struct stat *s) {
    printf("%s: %o %ld\n", what, s->st_mode, s->st_mode & S_IFDIR ? 0 : (long)s->st_size);
}

static void files(const char *dir) {
    char path[4096], missing[4096], bytes[64];
    struct stat s, again;
    snprintf(path, sizeof path, "%s/file", dir);
    snprintf(missing, sizeof missing, "%s/missing", dir);
    long bad = (long)ends(), constant = (long)"constant";
    for (int round = 0; round < 3; round++) {
        int fd = open(path, O_RDONLY);
        printf("fd %d\n", fd);
        say("fstat", SYS_fstat, fd, (long)&s, 0, 0), show("it", &s);
        say("fstatat", SYS_newfstatat, fd, (long)"", (long)&again, AT_EMPTY_PATH);
        printf("the same: %d\n", !memcmp(&s, &again, sizeof s));
        say("of another", SYS_fstat, fd + 1, (long)&s, 0, 0);
        say("of none", SYS_fstat, -1, (long)&s, 0, 0);
        fd = (close(fd), open(path, O_RDONLY));
        say("not all there", SYS_fstat, fd, bad - 8, 0, 0);
        say("nowhere", SYS_fstat, fd, 0, 0, 0);
        fd = (close(fd), open(path, O_RDONLY));
        say("a constant", SYS_newfstatat, fd, (long)"", constant, AT_EMPTY_PATH);
        fd = (close(fd), open(path, O_RDONLY));
        say("a bad path", SYS_newfstatat, fd, bad, (long)&s, AT_EMPTY_PATH);
        fd = (close(fd), open(path, O_RDONLY));
        say("terminal", SYS_ioctl, fd, TCGETS, (long)bytes, 0);
        say("position", SYS_lseek, fd, 0, SEEK_CUR, 0);
        say("read", SYS_read, fd, (long)bytes, 5, 0);
        say("position", SYS_lseek, fd, 0, SEEK_CUR, 0);
        say("the rest", SYS_read, fd, (long)bytes, sizeof bytes, 0);
        say("the end", SYS_read, fd, (long)bytes, sizeof bytes, 0);
        say("the end of nothing", SYS_read, fd, 1L << 62, 1, 0);
        say("close", SYS_close, fd, 0, 0, 0);
        say("close", SYS_close, fd, 0, 0, 0);
        say("closed", SYS_fstat, fd, (long)&s, 0, 0);
        say("closed", SYS_read, fd, (long)bytes, 1, 0);
        for (int i = 0; i < 3; i++) {
            say("path", SYS_newfstatat, AT_FDCWD, (long)path, (long)&s, 0), show(" it", &s);
            say("into nothing", SYS_newfstatat, AT_FDCWD, (long)path, bad - 100, 0);
            say("missing", SYS_newfstatat, AT_FDCWD, (long)missing, (long)&s, 0);
            say("missing", SYS_newfstatat, AT_FDCWD, (long)missing, (long)&s, 0);
            *(char *)(bad - 1) = 'x';
            say("bad", SYS_newfstatat, AT_FDCWD, bad - 1, (long)&s, 0);
        }
    }
}

static void directories(const char *dir) {
    static char bytes[32768];
    struct stat s;
    int fd = open(dir, O_RDONLY | O_DIRECTORY);
    say("directory", SYS_fstat, fd, (long)&s, 0, 0), show("it", &s);
    long n = syscall(SYS_getdents64, fd, bytes, sizeof bytes);
    printf("entries: %d\n", n > 0);
    say("no more", SYS_getdents64, fd, (long)bytes, sizeof bytes, 0);
    say("no more", SYS_getdents64, fd, (long)bytes, sizeof bytes, 0);
    lseek(fd, 0, SEEK_SET);
    printf("again: %d\n", syscall(SYS_getdents64, fd, bytes, sizeof bytes) == n);
    say("close", SYS_close, fd, 0, 0, 0);
    chdir(dir);
    int longest = strlen(dir) + 1;
    for (int i = 0; i < 3; i++) {
        memset(bytes, '!', 8192);
        long got = syscall(SYS_getcwd, bytes, 4096);
        printf("cwd: %d %d %c\n", got == longest, !strcmp(bytes, dir), bytes[got]);
        say("too short", SYS_getcwd, (long)bytes, longest - 1, 0, 0);
        say("nowhere", SYS_getcwd, 0, 4096, 0, 0);
        chdir("/");
        got = syscall(SYS_getcwd, bytes, 4096);
        printf("root: %ld %s\n", got, bytes);
        chdir(dir);
    }
}

static void handler(int n) { (void)n; }

static void signals(void) {
    struct { uint64_t handler, flags, restorer, mask; } action;
    struct sigaction wanted = {.sa_handler = handler, .sa_flags = SA_RESETHAND};
    sigaction(SIGUSR1, &wanted, 0);
    signal(SIGUSR2, SIG_IGN);
    for (int n = 0; n <= 65; n++) {
        if (n == 32 || n == 33) continue; /* the C library's own, and a parent's choice */
        memset(&action, 0xff, sizeof action);
        unsigned changed;
        long value = probe(SYS_rt_sigaction, n, 0, (long)&action, 8, &changed);
        printf("%d: %ld %x %d %lx\n", n, value, changed, action.handler > 1 ? 2 : (int)action.handler, (long)action.flags);
    }
    say("no size", SYS_rt_sigaction, 2, 0, (long)&action, 4);
    say("nowhere", SYS_rt_sigaction, 2, 0, (long)ends() - 8, 8);
    say("nothing", SYS_rt_sigaction, 2, 0, 0, 8);
    raise(SIGUSR1);
    syscall(SYS_rt_sigaction, SIGUSR1, 0, &action, 8);
    printf("once: %d\n", (int)action.handler);
}

int main(int argc, char **argv) {
    (void)argc;
    signals();
    files(argv[1]);
    directories(argv[1]);
    return 0;
}
