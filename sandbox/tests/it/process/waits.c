// Waits of one thread end while another thread never makes a call.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int stop;

static void *spin(void *unused) {
    while (!stop) {
    }
    return unused;
}

static void *sleeper(void *unused) {
    for (int i = 0; i < 20; i++) usleep(1000);
    return unused;
}

int main(void) {
    pthread_t thread, other;
    pthread_create(&thread, 0, spin, 0);
    usleep(20000);
    puts("slept");

    pthread_create(&other, 0, sleeper, 0);
    pthread_join(other, 0);
    puts("joined");

    // sem_timedwait(3): ETIMEDOUT
    sem_t semaphore;
    sem_init(&semaphore, 0, 0);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 10000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    int got = sem_timedwait(&semaphore, &until);
    printf("%d %d\n", got, errno == ETIMEDOUT);

    // poll(2): 0 when the time is over, and input that comes later
    struct pollfd in = {.fd = 0, .events = POLLIN};
    printf("%d\n", poll(0, 0, 5));
    got = poll(&in, 1, 10000);
    printf("%d %d\n", got, in.revents & POLLIN);
    char byte = 0;
    got = read(0, &byte, 1);
    printf("%d %c\n", got, byte);
    stop = 1;
    pthread_join(thread, 0);
    puts("end");
    return 0;
}
