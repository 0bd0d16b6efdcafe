/* The least that a function does: reads its request, answers. */
#include <unistd.h>
#ifndef __wasm__
#include "fork.h"
#endif

static int request(void) {
    char bytes[4096];
    while (read(0, bytes, sizeof bytes) > 0) {
    }
    return write(1, "hello\n", 6) != 6;
}

int main(int argc, char **argv) {
#ifndef __wasm__
    if (argc > 1) return serve_forks(request);
#endif
    (void)argv;
    return request();
}
