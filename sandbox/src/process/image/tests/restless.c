/* Sets up a little of everything, waits for a seed on standard input, then does random things until it ends somehow. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static unsigned long state;
static unsigned long rnd(unsigned long n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return n ? state % n : 0;
}

#define AREAS 24
#define PAGE 4096ul
static char *areas[AREAS];
static size_t sizes[AREAS];
static char *fixed;             /* mapped before the image was taken */
#define FIXED (64 * PAGE)
static char *heap[8];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static _Thread_local int local = 1;
static volatile int hits;
static char big[1 << 20];

static void on_signal(int n) { hits += n; local++; }
static void *waiter(void *arg) {
    local = 77;
    pthread_mutex_lock(&lock);
    for (;;) pthread_cond_wait(&cond, &lock);
    return arg;
}
static void *worker(void *arg) {
    char stack[20000];
    memset(stack, 'w', sizeof stack);
    usleep(rnd(300));
    hits += stack[100];
    if (rnd(2)) for (;;) pause();
    return arg;
}

static void change_fpu(void) {
    unsigned csr = 0x1f80 ^ (unsigned)(rnd(4) << 13);
    unsigned short word = 0x37f ^ (unsigned short)(rnd(4) << 10);
    unsigned long fill = rnd(0) | 1;
    __asm__ volatile("ldmxcsr %0; fldcw %1; fld1; movq %2, %%xmm5; movq %2, %%xmm15" ::"m"(csr), "m"(word), "r"(fill)
                     : "xmm5", "xmm15");
    if (__builtin_cpu_supports("avx2"))
        __asm__ volatile("vpbroadcastq %%xmm5, %%ymm7" ::: "xmm7");
}

static void print_fpu(void) {
    unsigned csr;
    unsigned short word;
    unsigned long low, high, gs = 0;
    __asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(csr), "=m"(word));
    __asm__ volatile("movq %%xmm15, %0; movq %%xmm5, %1" : "=r"(low), "=r"(high));
    syscall(SYS_arch_prctl, 0x1004, &gs);
    printf("%x %x %lx %lx %lx %d %d\n", csr, word, low, high, gs, local, hits);
}

static char *spot(size_t *room) {
    switch (rnd(4)) {
    case 0: *room = FIXED; return fixed;
    case 1: *room = sizeof big & ~(PAGE - 1); return (char *)(((unsigned long)big + PAGE - 1) & ~(PAGE - 1));
    default: {
        int i = rnd(AREAS);
        *room = sizes[i];
        return areas[i];
    }
    }
}

static void map_something(void) {
    int i = rnd(AREAS);
    if (areas[i] && rnd(2)) munmap(areas[i], sizes[i]), areas[i] = 0;
    size_t size = (1 + rnd(rnd(5) ? 20 : 1500)) * PAGE;
    int prot = rnd(6) ? PROT_READ | PROT_WRITE : PROT_READ;
    int file = rnd(3) ? -1 : open("/tmp/kept", O_RDWR);
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : rnd(2) ? MAP_PRIVATE : MAP_SHARED;
    if (file < 0 && !rnd(8)) flags = MAP_SHARED | MAP_ANONYMOUS;
    void *wish = rnd(4) ? 0 : (void *)(0x100000000ul + rnd(4000) * 0x1000000);
    char *got = mmap(wish, size, prot, flags, file, 0);
    if (file >= 0) close(file);
    if (got == MAP_FAILED) return;
    areas[i] = got, sizes[i] = size;
    if (file < 0 && prot & PROT_WRITE) memset(got, 's', rnd(size));
}

static void step(void) {
    size_t room, at, len;
    char *p;
    char name[40];
    switch (rnd(26)) {
    case 0: case 1: map_something(); break;
    case 2:
        p = spot(&room);
        if (!p || !room) break;
        at = rnd(room / PAGE) * PAGE, len = (1 + rnd(8)) * PAGE;
        if (at + len <= room) munmap(p + at, len);
        break;
    case 3: case 4:
        p = spot(&room);
        if (!p || !room) break;
        at = rnd(room / PAGE) * PAGE, len = (1 + rnd(8)) * PAGE;
        if (at + len <= room) mprotect(p + at, len, (int[]){PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, 7}[rnd(4)]);
        break;
    case 5:
        p = spot(&room);
        if (!p || !room) break;
        at = rnd(room / PAGE) * PAGE, len = (1 + rnd(8)) * PAGE;
        if (at + len <= room)
            madvise(p + at, len, (int[]){MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_POPULATE_WRITE}[rnd(4)]);
        break;
    case 6:
        p = spot(&room);
        if (!p || !room) break;
        p = mremap(p, room, room + rnd(30) * PAGE, MREMAP_MAYMOVE);
        if (p != MAP_FAILED) areas[rnd(AREAS)] = 0;
        break;
    case 7: {
        int i = rnd(8);
        free(heap[i]);
        len = 1 + rnd(rnd(4) ? 4000 : 400000);
        heap[i] = malloc(len);
        if (heap[i]) memset(heap[i], 'h', len);
        break;
    }
    case 8: sbrk(rnd(2) ? (long)rnd(100000) : -(long)rnd(30000)); break;
    case 9: {
        sprintf(name, "/tmp/f%lu", rnd(6));
        int fd = open(name, O_RDWR | O_CREAT | (rnd(2) ? O_TRUNC : O_APPEND), 0600);
        if (fd >= 0) write(fd, big, rnd(5000));
        if (rnd(2)) close(fd);
        break;
    }
    case 10: unlink(rnd(2) ? "/tmp/kept" : "/tmp/f1"); break;
    case 11: rename("/tmp/kept", "/tmp/f2"); break;
    case 12: mkdir("/tmp/dir", 0700), chdir(rnd(2) ? "/tmp/dir" : "/"), umask(rnd(0777)); break;
    case 13: rnd(2) ? dup2(3 + rnd(8), 3 + rnd(8)) : close(3 + rnd(8)); break;
    case 14: signal(1 + rnd(31), rnd(2) ? on_signal : SIG_IGN); break;
    case 15: raise(rnd(2) ? SIGUSR1 : SIGUSR2); break;
    case 16: {
        sigset_t set;
        sigemptyset(&set), sigaddset(&set, 1 + rnd(31));
        pthread_sigmask(rnd(2) ? SIG_BLOCK : SIG_UNBLOCK, &set, 0);
        break;
    }
    case 17: setitimer(rnd(3), &(struct itimerval){{0, rnd(3000)}, {rnd(2), rnd(900)}}, 0); break;
    case 18: {
        timer_t t;
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
        if (!timer_create(CLOCK_MONOTONIC, &event, &t))
            timer_settime(t, 0, &(struct itimerspec){{0, 0}, {rnd(2), 1 + rnd(1000000)}}, 0);
        break;
    }
    case 19: {
        pthread_t t;
        if (!pthread_create(&t, 0, worker, 0) && rnd(2)) pthread_detach(t);
        break;
    }
    case 20: change_fpu(); break;
    case 21: syscall(SYS_arch_prctl, 0x1001, rnd(1ul << 40)); break;
    case 22: eventfd(rnd(5), 0), pipe((int[2]){0}), epoll_create1(0); break;
    case 23: pthread_cond_broadcast(&cond), usleep(1); break;
    case 24: {
        char name[16];
        sprintf(name, "n%lu", rnd(1000));
        prctl(PR_SET_NAME, name), sigaltstack(&(stack_t){.ss_sp = big, .ss_size = 1 << 16}, 0);
        break;
    }
    case 25: {
        char *code = mmap(fixed + rnd(32) * PAGE, PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS | (rnd(2) ? MAP_FIXED : 0), -1, 0);
        if (code != MAP_FAILED) memcpy(code, "\xb8\x05\0\0\0\xc3", 6), hits += ((int (*)(void))code)();
        break;
    }
    }
}

int main(void) {
    pthread_t t;
    stack_t alternate = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&alternate, 0);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGUSR1, &action, 0), sigaction(SIGUSR2, &action, 0), sigaction(SIGALRM, &action, 0);
    pthread_create(&t, 0, waiter, 0);
    fixed = mmap(0, FIXED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(fixed, 'F', FIXED / 2);
    memset(fixed + 8 * PAGE, 0, 2 * PAGE);
    mprotect(fixed + 40 * PAGE, 4 * PAGE, PROT_NONE);
    mprotect(fixed + 4 * PAGE, PAGE, PROT_READ);
    for (int i = 0; i < 8; i++) heap[i] = strdup("before the image");
    memset(big + 300000, 'b', 70000);
    int fd = open("/tmp/kept", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 10; i++) write(fd, big + 300000, 5000);
    lseek(fd, 777, SEEK_SET);
    areas[0] = mmap(0, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), sizes[0] = 10 * PAGE;
    areas[0][5 * PAGE] = 'p';
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {3600, 0}}, 0);
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(timer, 0, &(struct itimerspec){{0, 0}, {5000, 0}}, 0);
    unsigned csr = 0x3f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(csr));
    char line[40] = {0};
    read(0, line, sizeof line - 1);
    print_fpu();
    fflush(stdout);
    state = strtoul(line, 0, 10) * 2654435761u + 88172645463325252ul;
    for (int i = 0; i < 10; i++) rnd(0);
    for (int steps = rnd(300); steps > 0; steps--) step();
    switch (rnd(4)) {
    case 0: abort();
    case 1: *(volatile int *)8 = 1;
    case 2: for (;;) ;
    }
    _exit(0);
}
