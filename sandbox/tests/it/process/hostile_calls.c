// Makes one system call with every class of hostile argument at every position. argv: its number, a seed, how many random
// attempts follow, and which part of all values is tried at each place (1: all). No C library: whatever the calls do to descriptors, handlers, FS or the heap, the program goes on as
// long as its code and stack are there. Ends with 42 (43: nobody serves the call), with 77 where an answer is none that Linux gives, with 78 where
// something of the outside was read; dying is fine too.
typedef unsigned long u64;

static long call(u64 n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
    register u64 r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}
enum { OPEN = 2, MMAP = 9, MPROTECT = 10, SIGACTION = 13, SIGPROCMASK = 14, SETITIMER = 38, PIPE2 = 293, EVENTFD2 = 290, EPOLL_CREATE1 = 291, MEMFD = 319, TIMERFD = 283 };

static void nothing(int signal) {}
__asm__("back: mov $15, %eax; syscall");
void back(void);

// Calls that wait are interrupted; what the last call did to that is mended.
static void arm(void) {
    struct { void *handler; u64 flags; void *restorer; u64 mask; } action = {nothing, 0x04000000, back, 0};
    u64 none = 0, tick[4] = {0, 1000, 0, 1000};
    call(SIGACTION, 14, (u64)&action, 0, 8, 0, 0);
    call(SIGPROCMASK, 2, (u64)&none, 0, 8, 0, 0);
    call(SETITIMER, 0, (u64)tick, 0, 0, 0, 0);
}

static char *page, *edge;
static const char constant[] = "/mnt/share/f";
static u64 values[64];
static int count;

static void list(void) {
    static const char *const texts[] = {"/mnt/share/f", "/mnt/share/out", "../../../../../outside/secret", "/proc/self/root/../outside", "/proc/self/fd/3", "/mnt/ro/f", ""};
    static const u64 numbers[] = {
        0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 4095, 4096, 1UL << 20, 0x7fffffff, 0x80000000, 0xffffffff, 1UL << 32, 1UL << 47, 1UL << 62, 1UL << 63, -1UL, -100UL /* AT_FDCWD */, -4096UL,
        0x10, 0x7fffffffe000 /* the last page */, 0x7fffffffeffc, 0x7ffffffff000 /* the stub */, 0xffff800000000000 /* system area */, 0xffff800000001000, 0x7fffffffffffffff,
    };
    for (int i = 0; i < sizeof texts / sizeof *texts; i++) values[count++] = (u64)texts[i];
    for (int i = 0; i < sizeof numbers / sizeof *numbers; i++) values[count++] = numbers[i];
    u64 pointers[] = {(u64)page, (u64)page + 8, (u64)edge, (u64)edge - 4, (u64)constant, (u64)list};
    for (int i = 0; i < sizeof pointers / sizeof *pointers; i++) values[count++] = pointers[i];
}

static u64 number, state, served;
static u64 next(void) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return state;
}

static void attempt(const u64 *a) {
    // What structures are made of: addresses and lengths from the same list.
    for (int i = 0; i < 32; i++) ((u64 *)page)[i] = values[next() % count];
    for (int i = 0; i < 3; i++) ((u64 *)edge)[-1 - i] = values[next() % count];
    long r = call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    served += r != -38;
    if (r < -133 && r > -4096) call(231, 77, 0, 0, 0, 0, 0);
    for (int i = 0; i < 64; i++)
        if (page[i] == 'T' && page[i + 1] == 'O' && page[i + 2] == 'P' && page[i + 3] == 'S' && page[i + 4] == 'E') call(231, 78, 0, 0, 0, 0, 0);
    if (number == SIGACTION || number == SIGPROCMASK || number == SETITIMER || number == 37 || number == 131) arm();
}

static u64 parse(const char *text) {
    u64 n = 0;
    while (*text) n = n * 10 + (*text++ - '0');
    return n;
}

__attribute__((used)) static void begin(u64 *stack) {
    char **argv = (char **)(stack + 1);
    number = parse(argv[1]);
    state = parse(argv[2]) * 0x9e3779b97f4a7c15 + number * 2 + 1;
    page = (char *)call(MMAP, 0, 3 << 12, 3, 0x22, -1UL, 0);
    edge = page + (2 << 12);
    call(MPROTECT, (u64)edge, 1 << 12, 0, 0, 0, 0);
    list();
    // Descriptors 3 to 9 are of every kind.
    call(OPEN, (u64)"/mnt/share/f", 2, 0, 0, 0, 0); call(OPEN, (u64)"/mnt/share", 0x10000, 0, 0, 0, 0); call(PIPE2, (u64)page, 0, 0, 0, 0, 0);
    call(EVENTFD2, 0, 0, 0, 0, 0, 0); call(EPOLL_CREATE1, 0, 0, 0, 0, 0, 0); call(MEMFD, (u64)"m", 0, 0, 0, 0, 0);
    arm();
    // What a call may expect: a descriptor first, a path first, a descriptor and a path; all the rest in order.
    int every = parse(argv[4]);
    u64 shapes[3][6] = {{3, (u64)page, 16, 0, 0, 0}, {(u64)constant, (u64)page, 16, 1, 0, 0}, {-100UL, (u64)constant, (u64)page, 64, 0, 0}};
    for (int shape = 0; shape < 3; shape++)
        for (int at = 0; at < 6; at++)
            for (int i = (at + shape) % every; i < count; i += every) {
                u64 a[6];
                for (int k = 0; k < 6; k++) a[k] = k == at ? values[i] : shapes[shape][k];
                attempt(a);
                // ENOSYS to everything so far: nobody serves it.
                if (i + every >= count && !served) call(231, 43, 0, 0, 0, 0, 0);
            }
    for (int i = 0; i < count; i++) {
        u64 a[6] = {values[i], values[i], values[i], values[i], values[i], values[i]};
        attempt(a);
    }
    for (u64 left = parse(argv[3]); left > 0; left--) {
        u64 a[6];
        for (int k = 0; k < 6; k++) a[k] = next() % 8 ? values[next() % count] : next() >> next() % 64;
        attempt(a);
    }
    call(231, 42, 0, 0, 0, 0, 0);
}
__asm__(".globl _start; _start: mov %rsp, %rdi; and $-16, %rsp; call begin");
