// Limits that a program sets for itself: setrlimit(2).
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define SHOW(call) (errno = 0, printf("%s = %ld (%s), %d signals\n", #call, (long)(call), strerror(errno), signals))

static int signals;

static void count(int number) { signals += number == SIGXFSZ; }

static void set(int resource, rlim_t soft) {
    struct rlimit limit;
    getrlimit(resource, &limit);
    limit.rlim_cur = soft;
    printf("%d\n", setrlimit(resource, &limit));
    getrlimit(resource, &limit);
    printf("%ld\n", (long)limit.rlim_cur);
}

static void files(void) {
    set(RLIMIT_NOFILE, 10);
    int last = 0, n;
    while ((n = open("/dev/null", O_RDONLY)) >= 0) last = n;
    printf("%d %s\n", last, strerror(errno));
    SHOW(dup(0));
    SHOW(dup2(0, 10));
    SHOW(fcntl(0, F_DUPFD, 10));
    for (n = 3; n < 10; n++) close(n);
    set(RLIMIT_NOFILE, 64);
    SHOW(dup2(0, 40));
    char line[256];
    FILE *text = fopen("/proc/self/limits", "r");
    while (fgets(line, sizeof line, text))
        if (!strncmp(line, "Max open files", 14)) printf("%.40s\n", line);
    fclose(text);
}

static void sizes(void) {
    char name[] = "/tmp/limitXXXXXX", block[100] = {0};
    int file = mkstemp(name);
    signal(SIGXFSZ, count);
    set(RLIMIT_FSIZE, 250);
    SHOW(write(file, block, 100));
    SHOW(write(file, block, 100));
    SHOW(write(file, block, 100));
    SHOW(write(file, block, 100));
    SHOW(write(file, block, 0));
    SHOW(pwrite(file, block, 10, 300));
    SHOW(ftruncate(file, 251));
    SHOW(ftruncate(file, 250));
    SHOW(truncate(name, 1000));
    SHOW(lseek(file, 0, SEEK_CUR));
    set(RLIMIT_FSIZE, RLIM_INFINITY);
    SHOW(write(file, block, 100));
    unlink(name);
}

static void memory(void) {
    set(RLIMIT_AS, 64 << 20);
    SHOW(mmap(0, 65 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    SHOW(malloc(65 << 20) == 0);
    SHOW(sbrk(65 << 20) == (void *)-1);
    char *some = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SHOW(some == MAP_FAILED);
    SHOW(mremap(some, 1 << 20, 65 << 20, MREMAP_MAYMOVE) == MAP_FAILED);
    set(RLIMIT_AS, RLIM_INFINITY);
    SHOW(mmap(0, 65 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
}

int main(void) {
    struct rlimit wrong = {20, 10};
    SHOW(setrlimit(RLIMIT_NOFILE, &wrong));
    SHOW(setrlimit(77, &wrong));
    SHOW(prlimit(1 << 29, RLIMIT_NOFILE, 0, &wrong));
    files();
    sizes();
    memory();
    return 0;
}
