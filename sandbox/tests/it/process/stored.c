// Holds something of every kind across its first read, and tells of all of it in the reply.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef BIG
#define BIG 300000
#endif

static volatile sig_atomic_t caught;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t go = PTHREAD_COND_INITIALIZER;
static int gone;
static _Thread_local int local = 3;

static void handler(int n) { caught += n; }

static void *worker(void *number) {
    local += *(int *)number;
    pthread_mutex_lock(&lock);
    while (!gone) pthread_cond_wait(&go, &lock);
    pthread_mutex_unlock(&lock);
    return (void *)(intptr_t)local;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    uint64_t nonce, word;
    getrandom(&nonce, sizeof nonce, 0);
    printf("nonce %016lx\n", nonce);
    fflush(stdout);

    volatile double root = 2;
    __asm__ volatile("sqrtsd %0, %0" : "+x"(root));
    int *heap = malloc(3 << 20);
    heap[500000] = 42;
    char *large = mmap(0, 9 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(large + (8 << 20), "far");

    mkdir("/tmp/d", 0700);
    int file = open("/tmp/d/small", O_RDWR | O_CREAT, 0640);
    write(file, "0123456789", 10);
    lseek(file, 4, SEEK_SET);
    int big = open("/tmp/big", O_RDWR | O_CREAT, 0600);
    ftruncate(big, BIG);
    pwrite(big, "end", 3, BIG - 3);
    char *mapped = mmap(0, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE, big, 0);
    mapped[0] = 'm';
    unlink("/tmp/big");
    symlink("small", "/tmp/d/link");
    chdir("/tmp/d");
    int share = argc > 1 ? open(argv[1], O_RDONLY) : -1;
    if (share >= 0) lseek(share, 2, SEEK_SET);
    int status = open("/proc/self/status", O_RDONLY);
    int zero = open("/dev/zero", O_RDONLY);

    int ends[2], pair[2];
    pipe(ends);
    write(ends[1], "piped", 5);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    send(pair[0], "first", 5, 0);
    send(pair[0], "2nd", 3, 0);
    int event = eventfd(5, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(timer, 0, &(struct itimerspec){.it_value = {.tv_sec = 3600}}, 0);
    int epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, event, &(struct epoll_event){.events = EPOLLIN, .data.u64 = 77});
    struct rlimit limit = {100, 200};
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGUSR1, handler);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    kill(getpid(), SIGUSR1);
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_sec = 5000}}, 0);
    pthread_t threads[2];
    int numbers[2] = {10, 20};
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], 0, worker, &numbers[i]);
    double before = now();

    char line[100] = {0};
    if (read(0, line, 99) < 0) return 1;

    double waited = now() - before;
    printf("line %s fpu %d heap %d large %s\n", line, (int)(root * 1000), heap[500000], large + (8 << 20));
    char text[64] = {0};
    read(file, text, 3);
    printf("file %s at %ld\n", text, (long)lseek(file, 0, SEEK_CUR));
    int link = open("link", O_RDONLY);
    memset(text, 0, sizeof text);
    read(link, text, 20);
    printf("link %s\n", text);
    memset(text, 0, sizeof text);
    pread(big, text, 3, BIG - 3);
    printf("big %s mapped %c%c\n", text, mapped[0], mapped[BIG - 1]);
    memset(text, 0, sizeof text);
    if (share >= 0) read(share, text, 20);
    printf("share %s\n", text);
    memset(text, 0, sizeof text);
    read(status, text, 5);
    printf("status %s zero %ld\n", text, (long)read(zero, &word, 8));
    memset(text, 0, sizeof text);
    read(ends[0], text, 20);
    printf("pipe %s\n", text);
    for (int i = 0; i < 2; i++) {
        memset(text, 0, sizeof text);
        recv(pair[1], text, 20, 0);
        printf("socket %s\n", text);
    }
    struct epoll_event ready = {0};
    int count = epoll_wait(epoll, &ready, 1, 0);
    read(event, &word, 8);
    printf("epoll %d %ld event %ld\n", count, (long)ready.data.u64, (long)word);
    struct itimerspec left;
    timerfd_gettime(timer, &left);
    struct itimerval alarm;
    getitimer(ITIMER_REAL, &alarm);
    printf("timers %d %d\n", left.it_value.tv_sec > 3500, alarm.it_value.tv_sec > 4900);
    struct rlimit seen;
    getrlimit(RLIMIT_NOFILE, &seen);
    int pending = caught;
    sigprocmask(SIG_UNBLOCK, &set, 0);
    printf("limit %d %d signal %d %d\n", (int)seen.rlim_cur, (int)seen.rlim_max, pending, (int)caught);
    pthread_mutex_lock(&lock);
    gone = 1;
    pthread_cond_broadcast(&go);
    pthread_mutex_unlock(&lock);
    long sum = 0;
    for (int i = 0; i < 2; i++) {
        void *value;
        pthread_join(threads[i], &value);
        sum += (intptr_t)value;
    }
    printf("threads %ld waited %d local %d\n", sum, waited >= 0 && waited < 30, local);
    return 0;
}
