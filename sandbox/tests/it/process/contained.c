// Attacks on what all sandboxes share, one for each first letter of the input. What each came to is printed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MIB (1L << 20)
#define FILE_BYTES (200 << 10)

static void show(const char *what, long result) {
    if (result < 0) printf("%s: %s\n", what, strerrorname_np(errno));
    else printf("%s: %ld\n", what, result);
}

static void *map(size_t len, int prot, int flags, int fd) { return mmap(0, len, prot, flags, fd, 0); }

static void make_file(const char *path, char byte) {
    char *bytes = malloc(FILE_BYTES);
    memset(bytes, byte, FILE_BYTES);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    write(fd, bytes, FILE_BYTES);
    close(fd);
    free(bytes);
}

// Whether all of the file is this byte.
static void look(const char *path, char byte) {
    static char bytes[FILE_BYTES];
    int fd = open(path, O_RDONLY);
    long got = read(fd, bytes, sizeof bytes), same = 0;
    for (long i = 0; i < got; i++) same += bytes[i] == byte;
    close(fd);
    printf("%ld of %ld\n", same, got);
}

// To store into a file that every sandbox of the image has.
static void poison(void) {
    int fd = open("/tmp/shared", O_RDONLY);
    char *p = map(FILE_BYTES, PROT_READ, MAP_SHARED, fd);
    long done = mprotect(p, FILE_BYTES, PROT_READ | PROT_WRITE);
    show("mprotect", done);
    if (done == 0) memset(p, 'X', FILE_BYTES);
    show("remove", madvise(p, 4096, MADV_REMOVE));
    show("shared", map(FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd) == MAP_FAILED ? -1 : 0);
}

// The same as a program may do it: its own from the first store on.
static void change(void) {
    int fd = open("/tmp/shared", O_RDWR);
    char *p = map(FILE_BYTES, PROT_READ, MAP_SHARED, fd);
    show("mprotect", mprotect(p, FILE_BYTES, PROT_READ | PROT_WRITE));
    memset(p, 'Y', FILE_BYTES);
    look("/tmp/shared", 'Y');
}

// Memory of files that are closed but for their mappings.
static void closed(int flags) {
    enum { MOST = 40 };
    void *maps[MOST];
    static char bytes[4 * MIB];
    for (int round = 0; round < 3; round++) {
        int n = 0;
        while (n < MOST) {
            int fd = memfd_create("f", 0);
            if (fd < 0 || ftruncate(fd, 4 * MIB) < 0) {
                printf("%s after %s\n", strerrorname_np(errno), n > 8 && n < 20 ? "some" : "all");
                close(fd);
                break;
            }
            pwrite(fd, bytes, 4 * MIB, 0);
            maps[n++] = map(4 * MIB, PROT_READ, flags, fd);
            close(fd);
        }
        if (n == MOST) puts("no limit");
        while (n) munmap(maps[--n], 4 * MIB);
    }
}

// To use more memory than there is for it without a call that could be refused.
static void overcommit(void) {
    char *p = map(256 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    if (p == MAP_FAILED) exit(1);
    memset(p, 1, 256 * MIB);
    for (;;) ;
}

// A read that is cut short by its buffer says nothing about the end of the file.
static void read_on(void) {
    make_file("/tmp/two", 'b');
    char *p = map(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    mprotect(p + 4096, 4096, PROT_NONE);
    int fd = open("/tmp/two", O_RDONLY);
    show("first", syscall(SYS_read, fd, p, 8192));
    show("second", syscall(SYS_read, fd, p, 4096));
}

// Calls that no Linux has.
static void unknown(void) {
    for (long n = 600; n < 1000; n++) syscall(n);
}

int main(void) {
    char line[100];
    make_file("/tmp/shared", 'a');
    if (read(0, line, sizeof line) < 1) return 1;
    switch (line[0]) {
    case 'l': look("/tmp/shared", 'a'); break;
    case 'p': poison(); break;
    case 'c': change(); break;
    case 's': closed(MAP_SHARED); break;
    case 'm': closed(MAP_PRIVATE); break;
    case 'o': overcommit(); break;
    case 'r': read_on(); break;
    case 'u': unknown(); break;
    }
    return 0;
}
