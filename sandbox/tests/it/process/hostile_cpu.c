// Runs odd and privileged instructions and prints which signal each raises, natively and in the sandbox alike. Lines that
// begin with '?' differ by right: the host serves them, or another KVM does. '~': a software KVM may call it an invalid instruction.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

static sigjmp_buf here;
static void caught(int signal) { siglongjmp(here, signal); }

static void try(const char *name, void (*code)(void)) {
    int signal = sigsetjmp(here, 1);
    if (!signal) code();
    // Whatever the code did to the flags.
    __asm__ volatile("cld; pushfq; andq $~0x40500, (%%rsp); popfq" ::: "memory", "cc");
    printf("%s: %d\n", name, signal);
}
#define TRY(name, text) { \
    __attribute__((naked)) void code(void) { __asm__("push %rbx; push %rbp; mov %rsp, %rbp;" text "; mov %rbp, %rsp; pop %rbp; pop %rbx; ret"); } \
    try(name, code); }

__attribute__((used)) static char area[8192] __attribute__((aligned(64)));
static volatile int steps;
static void stepped(int signal) { steps++; }
static void wild_return(int signal, siginfo_t *info, void *context) {
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] |= 0x3000 | 1 << 9 | 1 << 14 | 1 << 17;
}

int main(void) {
    setvbuf(stdout, 0, _IOLBF, 1 << 16);
    for (int s = 1; s < 32; s++) if (s != SIGKILL && s != SIGSTOP) signal(s, caught);
    TRY("int3", "int3"); TRY("int1", ".byte 0xf1"); TRY("int 3 long", ".byte 0xcd, 3"); TRY("int 4", "int $4"); TRY("ud2", "ud2"); TRY("ud1", ".byte 0x0f, 0xb9, 0xc0"); TRY("hlt", "hlt"); TRY("cli", "cli"); TRY("sti", "sti");
    TRY("in", "inb $0x60, %al"); TRY("in 0x90", "inb $0x90, %al"); TRY("out 0x90", "outl %eax, $0x90"); TRY("out dx", "movw $0x3f8, %dx; outb %al, %dx"); TRY("outs", "movw $0x3f8, %dx; rep outsb"); TRY("in 0x80 word", "inw $0x7f, %ax");
    TRY("? the stub's port", "outl %eax, $0x80"); TRY("? in from the stub's port", "inl $0x80, %eax"); TRY("? outs to the stub's port", "movw $0x80, %dx; lea area(%rip), %rsi; mov $5, %ecx; rep outsb"); TRY("? ins from it", "movw $0x80, %dx; lea area(%rip), %rdi; mov $5, %ecx; rep insb");
    TRY("rdmsr", "mov $0xc0000082, %ecx; rdmsr"); TRY("wrmsr", "mov $0xc0000082, %ecx; wrmsr"); TRY("cpuid", "xor %eax, %eax; cpuid"); TRY("cpuid -1", "mov $-1, %eax; cpuid"); TRY("rdtsc", "rdtsc"); TRY("? rdtscp", "rdtscp"); TRY("? rdpmc", "xor %ecx, %ecx; rdpmc");
    TRY("? sysenter", "sysenter"); TRY("? sysexit", "sysexit"); TRY("? sysret", "mov $0x10, %rcx; sysretq"); TRY("? vmcall", "vmcall"); TRY("? vmmcall", "vmmcall"); TRY("? vmlaunch", "vmlaunch"); TRY("? vmrun", "vmrun"); TRY("clts", "clts"); TRY("invd", "invd"); TRY("wbinvd", "wbinvd"); TRY("invlpg", "invlpg (%rsp)"); TRY("? monitor", "monitor"); TRY("? mwait", "mwait");
    TRY("mov cr0", "mov %cr0, %rax"); TRY("mov to cr3", "xor %eax, %eax; mov %rax, %cr3"); TRY("mov to cr4", "mov %rax, %cr4"); TRY("mov to cr8", "mov %rax, %cr8"); TRY("mov dr", "mov %dr7, %rax"); TRY("mov to dr", "mov %rax, %dr0"); TRY("lgdt", "lgdt (%rsp)"); TRY("lidt", "lidt (%rsp)"); TRY("lldt", "xor %eax, %eax; lldt %ax"); TRY("ltr", "xor %eax, %eax; ltr %ax"); TRY("lmsw", "lmsw %ax"); TRY("swapgs", "swapgs");
    TRY("? sgdt", "sgdt area(%rip)"); TRY("? sidt", "sidt area(%rip)"); TRY("? str", "str %eax"); TRY("? smsw", "smsw %eax"); TRY("? xsetbv", "xor %ecx, %ecx; xor %eax, %eax; xor %edx, %edx; xsetbv"); TRY("xgetbv", "xor %ecx, %ecx; xgetbv"); TRY("xgetbv 9", "mov $9, %ecx; xgetbv");
    TRY("? int 0x80", "mov $20, %eax; int $0x80"); TRY("~ int 0x81", "int $0x81"); TRY("~ int 14", "int $14"); TRY("~ int 8", "int $8"); TRY("~ int 2", "int $2"); TRY("~ int 0x20", "int $0x20");
    TRY("far jump to ring 0", ".data; 1: .quad 0x1000; .word 8; .text; rex.w ljmp *1b(%rip)"); TRY("~ far call to the TSS", ".data; 1: .quad 0; .word 0x30; .text; rex.w lcall *1b(%rip)"); TRY("far return to nothing", "pushq $0; pushq $0; lretq"); TRY("far return to ring 0", "pushq $8; lea 1f(%rip), %rax; pushq %rax; lretq; 1:");
    TRY("iretq to ring 0", "mov %rsp, %rax; pushq $0x10; pushq %rax; pushfq; pushq $8; lea 1f(%rip), %rax; pushq %rax; iretq; 1:"); TRY("iretq to nowhere", "mov %rsp, %rax; mov %ss, %ecx; pushq %rcx; pushq %rax; pushfq; mov %cs, %ecx; pushq %rcx; mov $1, %eax; shl $47, %rax; pushq %rax; iretq"); TRY("mov ss, 0", "xor %eax, %eax; mov %eax, %ss"); TRY("mov ds, ring 0", "mov $8, %eax; mov %eax, %ds"); TRY("mov fs, wild", "mov $0xfff8, %eax; mov %eax, %gs");
    TRY("div by 0", "xor %ecx, %ecx; div %ecx"); TRY("idiv overflow", "mov $0x80000000, %eax; cdq; mov $-1, %ecx; idiv %ecx"); TRY("x87 error", "fninit; pushq $0; fldcw (%rsp); fldz; fld1; fdivp; fwait"); TRY("x87 is well again", "fninit; fld1; fwait; fstp %st(0)"); TRY("simd error", "pushq $0; ldmxcsr (%rsp); xorps %xmm0, %xmm0; divps %xmm0, %xmm0"); TRY("~ ldmxcsr reserved", "pushq $-1; ldmxcsr (%rsp)"); { uint32_t usual = 0x1f80; __asm__ volatile("ldmxcsr %0" ::"m"(usual)); }
    TRY("movaps unaligned", "lea area+1(%rip), %rax; movaps (%rax), %xmm0"); TRY("fxrstor garbage", "lea area(%rip), %rax; movl $-1, 24(%rax); fxrstor (%rax)"); TRY("xrstor garbage", "lea area(%rip), %rax; movq $-1, 512(%rax); mov $-1, %eax; mov $-1, %edx; lea area(%rip), %rbx; xrstor (%rbx)"); TRY("xrstor unaligned", "lea area+8(%rip), %rbx; mov $-1, %eax; mov $-1, %edx; xrstor (%rbx)"); TRY("xrstor compact", "lea area(%rip), %rbx; movl $0, 24(%rbx); movq $0, 512(%rbx); movq $1, 520(%rbx); mov $7, %eax; xor %edx, %edx; xrstor (%rbx)"); TRY("~ xrstors", "lea area(%rip), %rbx; xrstors (%rbx)");
    TRY("non-canonical load", "mov $1, %eax; shl $47, %rax; mov (%rax), %rax"); TRY("non-canonical stack", "mov %rsp, %rbx; mov $1, %eax; shl $47, %rax; mov %rax, %rsp; mov %rbx, %rsp"); TRY("kernel half", "mov $-4096, %rax; mov (%rax), %rax"); TRY("jump to the kernel half", "mov $-4096, %rax; jmp *%rax"); TRY("non-canonical jump", "mov $1, %eax; shl $47, %rax; jmp *%rax"); TRY("jump to 0", "xor %eax, %eax; jmp *%rax"); TRY("lock nop", ".byte 0xf0, 0x90"); TRY("15 prefixes", ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90"); TRY("rep string into nothing", "xor %edi, %edi; mov $100, %ecx; rep stosb");
    TRY("AC and an odd address", "pushfq; orq $0x40000, (%rsp); popfq; mov area+1(%rip), %rax"); TRY("AC across a call", "pushfq; orq $0x40000, (%rsp); popfq; mov $39, %eax; syscall; mov area+1(%rip), %rax"); TRY("DF across a call", "std; mov $39, %eax; syscall; cld"); TRY("IOPL is not had", "pushfq; orq $0x3000, (%rsp); popfq; cli"); TRY("NT across a call", "pushfq; orq $0x4000, (%rsp); popfq; mov $39, %eax; syscall; pushfq; andq $~0x4000, (%rsp); popfq"); TRY("NT and iretq", "pushfq; orq $0x4000, (%rsp); popfq; iretq"); { uint64_t flags; __asm__ volatile("pushfq; andq $~0x4000, (%%rsp); popfq; pushfq; popq %0" : "=r"(flags)); }
    signal(SIGTRAP, stepped);
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; nop; nop; pushfq; andq $~0x100, (%%rsp); popfq" ::: "memory", "cc");
    printf("single steps: %d\n", steps > 3 && steps < 9);
    steps = 0;
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; mov $39, %%eax; syscall; nop; pushfq; andq $~0x100, (%%rsp); popfq" ::: "rax", "rcx", "r11", "memory", "cc");
    printf("single steps over a call: %d\n", steps > 3 && steps < 12);
    struct sigaction wild = {.sa_sigaction = wild_return, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &wild, 0); raise(SIGUSR1);
    uint64_t flags; __asm__ volatile("pushfq; popq %0" : "=r"(flags)); printf("flags after a wild return: %lx\n", flags & 0x23000);
    unsigned char *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 200; i++) {
        memcpy(code, (unsigned char[]){0xb8, i, 0, 0, 0, 0xc3}, 6);
        if (((int (*)(void))code)() != i) { printf("self-modified code runs stale at %d\n", i); break; }
    }
    memcpy(code, "\xc6\x05\x00\x00\x00\x00\x90\xcc\x90\xc3", 10); // overwrites the int3 behind it
    int s = sigsetjmp(here, 1); signal(SIGTRAP, caught); if (!s) ((void (*)(void))code)(); printf("code that mends itself: %d\n", s);
    return 0;
}
