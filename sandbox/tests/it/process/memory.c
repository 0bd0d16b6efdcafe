// Memory as Linux has it: prints what the program of the same name prints natively.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static sigjmp_buf back;
static void *where;

static void on_fault(int signal, siginfo_t *info, void *context) {
    where = info->si_addr;
    siglongjmp(back, 1);
}

// Whether the statement faults, and where.
#define FAULTS(name, address, statement)                                  \
    if (!sigsetjmp(back, 1)) {                                            \
        statement;                                                        \
        printf(name ": no fault\n");                                      \
    } else                                                                \
        printf(name ": fault, address %s\n", where == (void *)(address) ? "right" : "wrong")

static char *map(size_t len, int prot) {
    return mmap(0, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    const size_t MIB = 1 << 20;

    unsigned char *code = (unsigned char *)map(8 * MIB, PROT_READ | PROT_WRITE);
    memset(code, 0x90, 4096);
    memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
    FAULTS("run data", code, ((int (*)(void))code)());
    mprotect(code, 8 * MIB, PROT_READ | PROT_EXEC);
    printf("run code: %d\n", ((int (*)(void))code)());
    FAULTS("write code", code + 1, *(volatile char *)(code + 1) = 5);
    mprotect(code, 8 * MIB, PROT_READ | PROT_WRITE | PROT_EXEC);
    code[1] = 7;
    printf("run changed code: %d\n", ((int (*)(void))code)());
    munmap(code, 8 * MIB);
    FAULTS("read unmapped", code, *(volatile char *)code);
    char *data = mmap(code, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    data[0] = 0xc3;
    FAULTS("run data where code was", data, ((int (*)(void))data)());

    char *old = map(3 * MIB, PROT_READ | PROT_WRITE);
    memset(old, 5, 3 * MIB);
    char *moved = mremap(old, 3 * MIB, 40 * MIB, MREMAP_MAYMOVE);
    printf("mremap: %d %d %d\n", moved[0], moved[3 * MIB - 1], moved[3 * MIB]);
    moved[39 * MIB] = 1;
    char *shrunk = mremap(moved, 40 * MIB, MIB, 0);
    printf("shrunk in place: %d\n", shrunk == moved);
    FAULTS("read cut end", moved + MIB, *(volatile char *)(moved + MIB));

    char *hole = map(3 * 4096, PROT_READ | PROT_WRITE);
    munmap(hole + 4096, 4096);
    printf("mprotect over a hole: %d\n", mprotect(hole, 3 * 4096, PROT_READ));
    FAULTS("first part has changed", hole, *(volatile char *)hole = 1);
    hole[2 * 4096] = 1;
    printf("the part behind has not\n");

    char *reserved = map(1024 * MIB, PROT_NONE);
    FAULTS("read reserved", reserved + 5, *(volatile char *)(reserved + 5));
    mprotect(reserved + 512 * MIB, MIB, PROT_READ | PROT_WRITE);
    reserved[512 * MIB] = 3;
    printf("committed: %d\n", reserved[512 * MIB]);
    madvise(reserved + 512 * MIB, MIB, MADV_DONTNEED);
    printf("dropped: %d\n", reserved[512 * MIB]);

    FILE *file = tmpfile();
    fwrite("0123456789", 1, 10, file);
    fflush(file);
    int fd = fileno(file);
    char *private = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    private[0] = 'p';
    shared[1] = 's';
    char bytes[11] = {0};
    pread(fd, bytes, 10, 0);
    printf("file %s private %.10s shared %.10s\n", bytes, private, shared);
    FAULTS("behind the file's end", shared + 4096, *(volatile char *)(shared + 4096));
    printf("exec of a file for reading: %d\n", mprotect(private, 4096, PROT_READ | PROT_EXEC));

    char *top = sbrk(0);
    printf("brk: %d", sbrk(5 * MIB) == top);
    memset(top, 9, 5 * MIB);
    sbrk(-(long)(5 * MIB));
    sbrk(MIB);
    printf(" %d\n", top[4096]);
    volatile char deep[4 * MIB];
    deep[0] = 1;
    printf("deep stack: %d\n", deep[0]);
    printf("null: ");
    FAULTS("", 0x18, *(volatile char *)0x18 = 1);
    printf("errors: %d %d %d %d\n", mmap(0, 0, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED,
           mmap(code, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED,
           munmap((void *)1, 4096), mprotect((void *)0x10000, 4096, 1));
    return 0;
}
