// Ruins itself in the way that argv[1] names. What is printed and how it ends is the same natively.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define END 0x7ffffffff000UL
static volatile int seen;
static void note(int signal) { seen++; }
static void leave(int signal) { _exit(7); }
static int again(int depth) { volatile char room[4096]; room[0] = depth; return again(depth + 1) + room[0]; }
static void fault_again(int signal) { *(volatile int *)8 = 1; }
static int thread(void *unused) { for (;;) syscall(SYS_futex, &seen, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0); }
static int ends(void *unused) { return 0; }
static void alternate(void *at) { stack_t stack = {at, 0, 1 << 16}; sigaltstack(&stack, 0); }
static void handle(int signal, void (*handler)(int), int flags) { struct sigaction action = {.sa_handler = handler, .sa_flags = flags}; sigaction(signal, &action, 0); }

static void no_stack(void) { handle(SIGUSR1, note, 0); __asm__ volatile("mov $0x1000, %rsp; mov $1, %edi; mov $39, %eax; syscall; mov %eax, %edi; mov $10, %esi; mov $62, %eax; syscall"); }
static void recursion(void) { again(0); }
static void recursion_handled(void) { alternate(malloc(1 << 16)); handle(SIGSEGV, leave, SA_ONSTACK); again(0); }
static void alternate_nowhere(void) { alternate((void *)0x1000); handle(SIGUSR1, note, SA_ONSTACK); raise(SIGUSR1); }
static void alternate_wraps(void) { alternate((void *)-4096UL); handle(SIGUSR1, note, SA_ONSTACK); raise(SIGUSR1); }
static void frame_of_ones(void) { char *frame = malloc(8192); memset(frame, 0xff, 8192); __asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall" ::"r"(frame)); }
static void frame_nowhere(void) { __asm__ volatile("mov $-64, %rsp; mov $15, %eax; syscall"); }
static void unmap_all(void) { syscall(SYS_munmap, 0x10000, END - 0x10000); }
static void map_over_code(void) { syscall(SYS_mmap, (uint64_t)map_over_code & ~0xfffUL, 4096, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); }
static void protect_all(void) { for (uint64_t at = 0x400000; at < 0x800000; at += 4096) syscall(SYS_mprotect, at, 4096, 0); }
static void move_code(void) { syscall(SYS_mremap, (uint64_t)move_code & ~0xfffUL, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, 0x10000000, 0); }
static void over_the_end(void) {
    for (int i = 0; i < 4; i++) printf("%d ", mmap((void *)(END - i * 4096), 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
    printf("%d %d %d\n", munmap((void *)END, 4096), mprotect((void *)END, 4096, 7), madvise((void *)END, 4096, MADV_DONTNEED));
    printf("%d %d\n", mmap((void *)0xffff800000000000, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED, mremap((void *)END, 4096, 8192, 1) == MAP_FAILED);
}
static void faulting_handler(void) { handle(SIGSEGV, fault_again, 0); fault_again(0); }
static void faulting_handler_nested(void) { handle(SIGSEGV, fault_again, SA_NODEFER); fault_again(0); }
static void storm(void) {
    handle(SIGALRM, note, 0);
    struct itimerval tick = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &tick, 0);
    while (seen < 20) if (getppid() < 0) _exit(9);
    _exit(7);
}
static void thread_without_stack(void) { clone(thread, (char *)0x2000, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, 0); pause(); }
static void threads_without_end(void) {
    int made = 0;
    char *stacks = mmap(0, 600 << 14, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    while (made < 600 && clone(thread, stacks + (made << 14) + 16000, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, 0) > 0) made++;
    _exit(made >= 400 ? 7 : 8);
}
static void cyclic_robust_list(void) {
    static struct { void *next; long offset; void *pending; } head;
    static int word;
    head.next = &head.pending; head.pending = &head.pending; head.offset = (char *)&word - (char *)&head;
    syscall(SYS_set_robust_list, &head, 24);
    char *stack = malloc(1 << 16);
    clone(ends, stack + 65000, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, 0);
    usleep(20000);
}
static void wild_robust_list(void) { syscall(SYS_set_robust_list, 0xffff800000000000, 24); syscall(SYS_set_tid_address, -8L); }
static void futexes(void) {
    static int words[4]; uint64_t bad[] = {0, 1, (uint64_t)words + 1, 0x700000000000, 0xffff800000000000, -4UL};
    struct timespec soon = {0, 1000}, odd = {-1, 5}, wrong = {0, 1000000000};
    for (int op = 0; op < 14; op++) {
        if (op == 2) continue; // a file descriptor of long ago
        for (int i = 0; i < 6; i++) printf("%ld ", syscall(SYS_futex, bad[i], op | FUTEX_PRIVATE_FLAG, 0, op >= 3 && op <= 5 || op == 12 ? 0 : &soon, bad[i], 0));
        printf("%ld\n", syscall(SYS_futex, words, FUTEX_WAIT_PRIVATE, 0, &wrong) + syscall(SYS_futex, words, FUTEX_WAIT_PRIVATE, 0, &odd));
    }
    printf("%ld %ld\n", syscall(SYS_futex, words, FUTEX_WAKE_PRIVATE, -1), syscall(SYS_futex, words, FUTEX_CMP_REQUEUE_PRIVATE, 1, 0x7fffffff, words, 0));
}
static void write_vvar(void) { uint64_t vdso = getauxval(AT_SYSINFO_EHDR); *(volatile char *)vdso = 1; }
static void without_vdso(void) {
    uint64_t vdso = getauxval(AT_SYSINFO_EHDR);
    munmap((void *)(vdso - 16384), 4 * 4096 + 8192);
    struct timespec now;
    _exit(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now) ? 8 : 7);
}
static void unmapped_stack(void) { uint64_t here = (uint64_t)__builtin_frame_address(0) & ~0xfffUL; syscall(SYS_munmap, here - (64 << 12), 128 << 12); }
static void many_mappings(void) {
    // Every second page with other rights: a mapping each, on the host too.
    size_t pages = 200000; char *at = mmap(0, pages << 12, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t i = 0; i < pages; i += 2) if (mprotect(at + (i << 12), 4096, PROT_READ | PROT_WRITE)) _exit(errno == ENOMEM ? 7 : 8);
    _exit(9);
}

#define CASE(name) {#name, name}
static struct { const char *name; void (*run)(void); } cases[] = {
    CASE(no_stack), CASE(recursion), CASE(recursion_handled), CASE(alternate_nowhere), CASE(alternate_wraps), CASE(frame_of_ones), CASE(frame_nowhere), CASE(unmap_all), CASE(map_over_code), CASE(protect_all), CASE(move_code), CASE(over_the_end),
    CASE(faulting_handler), CASE(faulting_handler_nested), CASE(storm), CASE(thread_without_stack), CASE(threads_without_end), CASE(cyclic_robust_list), CASE(wild_robust_list), CASE(futexes), CASE(write_vvar), CASE(without_vdso), CASE(unmapped_stack), CASE(many_mappings),
};
int main(int argc, char **argv) {
    for (int i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc == 1) puts(cases[i].name);
        else if (!strcmp(argv[1], cases[i].name)) { cases[i].run(); fflush(stdout); _exit(0); }
    return argc == 1 ? 0 : 9;
}
