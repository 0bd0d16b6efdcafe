/* Work on the CPU without system calls: `work compute`: integers in order and floating point, or `work memory`: stores out of
 * order. Prints the nanoseconds of processor time, then a number that follows from all results. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIDE = 192, WORDS = 4 << 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static uint64_t hash(uint64_t rounds) {
    uint64_t sum = 0, state = 88172645463325252u;
    for (uint64_t i = 0; i < rounds; i++) sum += next(&state) % 1000003;
    return sum;
}

static uint64_t multiply(void) {
    static double a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) a[i][j] = i % 7 - 3, b[i][j] = j % 5 - 2;
    for (int times = 0; times < 10; times++)
        for (int i = 0; i < SIDE; i++)
            for (int k = 0; k < SIDE; k++)
                for (int j = 0; j < SIDE; j++) c[i][j] += a[i][k] * b[k][j];
    double sum = 0;
    for (int i = 0; i < SIDE; i++) sum += c[i][SIDE - 1 - i];
    return (uint64_t)(int64_t)sum;
}

static uint64_t scatter(void) {
    uint64_t *words = calloc(WORDS, sizeof *words), state = 42, sum = 0;
    if (!words) abort();
    for (int i = 0; i < WORDS * 2; i++) words[next(&state) % WORDS] += i;
    for (int i = 0; i < WORDS; i++) sum = sum * 31 + words[i];
    free(words);
    return sum;
}

int main(int argc, char **argv) {
    int memory = argc > 1 && !strcmp(argv[1], "memory");
    double start = now();
    uint64_t result = memory ? scatter() : hash(40000000) ^ multiply();
    printf("%f\n%llu\n", now() - start, (unsigned long long)result);
    return 0;
}
