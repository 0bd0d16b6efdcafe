// One thread must go on while another, that only computes, has the CPU: each case by its name.
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t count;
static volatile int spinning;

static void on_signal(int signal) {
    (void)signal;
    count++;
}

static void handle(int signal) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(signal, &action, 0);
}

static void block(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(SIG_BLOCK, &set, 0);
}

// The timer goes off while the only thread waits, and then while it computes.
static void timer(void) {
    handle(SIGALRM);
    struct itimerval every = {{0, 10000}, {0, 10000}};
    setitimer(ITIMER_REAL, &every, 0);
    pause();
    while (count < 3) {
    }
}

// Two sleep; the first one to wake computes until the other one wakes.
static void *sleep_longer(void *unused) {
    usleep(40000);
    count = 1;
    return unused;
}

static void sleepers(void) {
    pthread_t other;
    pthread_create(&other, 0, sleep_longer, 0);
    usleep(10000);
    while (!count) {
    }
    pthread_join(other, 0);
}

// A thread that waits gets a signal from one that computes on.
static void *wait_for_signal(void *unused) {
    sigset_t none;
    sigemptyset(&none);
    while (!count) sigsuspend(&none);
    return unused;
}

static void signalled(void) {
    handle(SIGUSR1);
    block(SIGUSR1);
    pthread_t other;
    pthread_create(&other, 0, wait_for_signal, 0);
    usleep(20000);
    pthread_kill(other, SIGUSR1);
    while (!count) {
    }
    pthread_join(other, 0);
}

// The timer's signal is for the thread that waits.
static void alarmed(void) {
    handle(SIGALRM);
    block(SIGALRM);
    pthread_t other;
    pthread_create(&other, 0, wait_for_signal, 0);
    struct itimerval once = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &once, 0);
    while (!count) {
    }
    pthread_join(other, 0);
}

// sigwait(3) takes what another thread sends.
static void *take_signal(void *unused) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    int signal;
    sigwait(&set, &signal);
    count = signal == SIGUSR1;
    return unused;
}

static void taken(void) {
    block(SIGUSR1);
    pthread_t other;
    pthread_create(&other, 0, take_signal, 0);
    usleep(20000);
    kill(getpid(), SIGUSR1);
    while (!count) {
    }
    pthread_join(other, 0);
}

// The signal was there before sigsuspend(2) and ppoll(2) let it in.
static void *spin(void *unused) {
    while (count < 2) spinning = 1;
    return unused;
}

static void let_in(void) {
    handle(SIGUSR1);
    block(SIGUSR1);
    pthread_t other;
    pthread_create(&other, 0, spin, 0);
    while (!spinning) {
    }
    sigset_t none;
    sigemptyset(&none);
    pthread_kill(pthread_self(), SIGUSR1);
    sigsuspend(&none);
    pthread_kill(pthread_self(), SIGUSR1);
    ppoll(0, 0, 0, &none);
    pthread_join(other, 0);
}

int main(int count_of_args, char **args) {
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"timer", timer}, {"sleepers", sleepers}, {"signalled", signalled},
        {"alarmed", alarmed}, {"taken", taken}, {"let_in", let_in},
    };
    for (size_t i = 0; count_of_args > 1 && i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(args[1], cases[i].name) != 0) continue;
        cases[i].run();
        puts(cases[i].name);
        return 0;
    }
    return 1;
}
