/* A program with much memory: 256 MiB that were filled before the first request, of which a request changes 16 pages. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifndef __wasm__
#include "fork.h"
#endif

#define MEMORY ((size_t)256 << 20)
#define PAGE 4096
#define CHANGED 16

static volatile uint8_t *memory;

static int request(void) {
    char bytes[4096];
    while (read(0, bytes, sizeof bytes) > 0) {
    }
    unsigned sum = 0;
    for (size_t i = 0; i < CHANGED; i++) {
        size_t at = i * (MEMORY / CHANGED);
        sum += memory[at];
        memory[at] = 2;
    }
    return sum == CHANGED ? write(1, "large\n", 6) != 6 : 1;
}

int main(int argc, char **argv) {
    memory = malloc(MEMORY);
    if (!memory) return 1;
    for (size_t at = 0; at < MEMORY; at += PAGE) memset((void *)(memory + at), 1, PAGE);
#ifndef __wasm__
    if (argc > 1) return serve_forks(request);
#endif
    (void)argv;
    return request();
}
