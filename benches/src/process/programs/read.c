/* Nanoseconds of reading a file several times from start to end: `read FILE BLOCK_BYTES TIMES`.
 * Prints them, then the bytes read. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int file = open(argv[1], O_RDONLY);
    size_t block = strtoul(argv[2], NULL, 10);
    char *buffer = malloc(block);
    if (file < 0 || !buffer) return 3;
    for (size_t i = 0; i < block; i += 4096) buffer[i] = 1;
    unsigned long long total = 0;
    double start = now();
    for (int times = atoi(argv[3]); times > 0; times--) {
        ssize_t got;
        while ((got = read(file, buffer, block)) > 0) total += got;
        if (got < 0 || lseek(file, 0, SEEK_SET) != 0) return 4;
    }
    printf("%f\n%llu\n", now() - start, total);
    return 0;
}
