/* Nanoseconds of one getpid(2), the call itself: `calls COUNT`. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 1;
    for (int i = 0; i < 100; i++) syscall(SYS_getpid);
    double start = now();
    for (long i = 0; i < count; i++) syscall(SYS_getpid);
    printf("%f\n", (now() - start) / count);
    return 0;
}
