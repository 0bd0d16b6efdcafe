// Signals that a program sends itself, handlers with details, an alternate stack, timers, restarted and interrupted calls, masks.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int seen;
static volatile void *where;
static sigjmp_buf back;

static void count(int signal, siginfo_t *info, void *context) {
    seen = seen * 10 + 1;
    (void)signal, (void)context;
    where = info->si_addr;
}

static void jump(int signal, siginfo_t *info, void *context) {
    where = info->si_addr;
    (void)context;
    siglongjmp(back, signal);
}

static int recurse(volatile char *above) {
    volatile char frame[4096];
    frame[0] = above[0] + 1;
    return recurse(frame) + frame[0];
}

static void *waiter(void *set) {
    int signal = 0;
    int result = sigwait(set, &signal);
    printf("sigwait %d %d\n", result, signal);
    return NULL;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    kill(getpid(), SIGUSR1);
    union sigval value = {.sival_int = 42};
    sigqueue(getpid(), SIGUSR1, value);
    printf("handled %d\n", seen);

    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &old);
    seen = 0;
    raise(SIGUSR1);
    raise(SIGUSR1);
    sigset_t pending;
    sigpending(&pending);
    printf("blocked %d %d\n", seen, sigismember(&pending, SIGUSR1));
    sigprocmask(SIG_SETMASK, &old, NULL);
    printf("let through %d\n", seen);

    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    struct sigaction fatal = {.sa_sigaction = jump, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    for (int signal = 1; signal < 32; signal++)
        if (signal == SIGSEGV || signal == SIGBUS || signal == SIGFPE || signal == SIGILL || signal == SIGTRAP)
            sigaction(signal, &fatal, NULL);
    int got = sigsetjmp(back, 1);
    if (!got) *(volatile int *)0x10 = 1;
    printf("null: %d at %p\n", got, where);
    got = sigsetjmp(back, 1);
    if (!got) recurse((volatile char *)"");
    printf("stack: %d\n", got);
    got = sigsetjmp(back, 1);
    volatile int zero = 0;
    if (!got) printf("%d\n", 1 / zero);
    printf("divide: %d\n", got);
    got = sigsetjmp(back, 1);
    if (!got) __asm__ volatile("ud2");
    printf("undefined: %d\n", got);
    got = sigsetjmp(back, 1);
    if (!got) __asm__ volatile("int3");
    printf("breakpoint: %d\n", got);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    got = sigsetjmp(back, 1);
    if (!got) page[7] = 1;
    printf("protected: %d %d\n", got, (int)((char *)where - page));
    got = sigsetjmp(back, 1);
    if (!got) ((void (*)(void))page)();
    printf("no execution: %d\n", got);
    got = sigsetjmp(back, 1);
    if (!got) *(volatile char *)0x8000000000000000 = 1;
    printf("not canonical: %d at %p\n", got, where);
    got = sigsetjmp(back, 1);
    if (!got) __asm__ volatile("hlt");
    printf("privileged: %d\n", got);

    signal(SIGALRM, SIG_IGN);
    action.sa_flags = 0;
    sigaction(SIGALRM, &action, NULL);
    // Again and again: on a busy machine the first one may come before the call that it is to interrupt.
    struct itimerval timer = {{0, 50000}, {0, 50000}}, none = {0};
    setitimer(ITIMER_REAL, &timer, NULL);
    struct timespec long_time = {5, 0}, left;
    int result = nanosleep(&long_time, &left);
    const char *error = strerrorname_np(errno);
    setitimer(ITIMER_REAL, &none, NULL);
    printf("sleep %d %s %d\n", result, error, left.tv_sec == 4);
    int ends[2];
    if (pipe(ends)) return 1;
    setitimer(ITIMER_REAL, &timer, NULL);
    char byte;
    result = read(ends[0], &byte, 1);
    error = strerrorname_np(errno);
    setitimer(ITIMER_REAL, &none, NULL);
    printf("read %d %s\n", result, error);

    sigset_t waited;
    sigemptyset(&waited);
    sigaddset(&waited, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &waited, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, waiter, &waited);
    kill(getpid(), SIGUSR2);
    pthread_join(thread, NULL);
    signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    result = write(ends[1], "x", 1);
    printf("pipe %d %s\n", result, strerrorname_np(errno));
    fflush(stdout);
    abort();
}
