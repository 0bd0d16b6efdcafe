// Who the program is and how it is scheduled: credentials(7), sched(7), setpriority(2). Root natively and inside.
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHOW(call) (errno = 0, printf("%s = %ld (%s)\n", #call, (long)(call), strerror(errno)))

static void ids(void) {
    uid_t u[3];
    gid_t g[3];
    getresuid(&u[0], &u[1], &u[2]);
    getresgid(&g[0], &g[1], &g[2]);
    printf("user %d %d %d group %d %d %d\n", u[0], u[1], u[2], g[0], g[1], g[2]);
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "Uid:", 4) || !strncmp(line, "Gid:", 4) || !strncmp(line, "Groups:", 7)) fputs(line, stdout);
    fclose(status);
}

int main(void) {
    setpriority(PRIO_PROCESS, 0, 0); /* the tests may run under nice(1) */
    struct sched_param param = {0}, high = {.sched_priority = 5};
    SHOW(sched_get_priority_min(SCHED_FIFO));
    SHOW(sched_get_priority_max(SCHED_RR));
    SHOW(sched_get_priority_max(SCHED_OTHER));
    SHOW(sched_get_priority_max(77));
    SHOW(sched_getscheduler(0));
    SHOW(sched_getscheduler(-1));
    SHOW(sched_getscheduler(1 << 29));
    SHOW(sched_setscheduler(0, SCHED_BATCH, &param));
    SHOW(sched_getscheduler(0));
    SHOW(sched_setscheduler(0, SCHED_OTHER, &high));
    SHOW(sched_setparam(0, &param));
    SHOW(sched_setparam(-1, &param));
    SHOW(sched_getparam(0, &high));
    printf("%d\n", high.sched_priority);
    cpu_set_t none, set;
    CPU_ZERO(&none);
    SHOW(sched_getaffinity(0, sizeof set, &set));
    SHOW(sched_setaffinity(0, sizeof none, &none));
    SHOW(sched_setaffinity(0, sizeof set, &set));
    SHOW(sched_getaffinity(-1, sizeof set, &set));
    SHOW(getpriority(PRIO_PROCESS, 0));
    SHOW(setpriority(PRIO_PROCESS, 0, 7));
    SHOW(getpriority(PRIO_PROCESS, getpid()));
    SHOW(setpriority(PRIO_PROCESS, 0, 100));
    SHOW(getpriority(PRIO_PROCESS, 0));
    SHOW(getpriority(9, 0));

    // No children: wait(2).
    siginfo_t info;
    SHOW(wait(0));
    SHOW(waitpid(-1, 0, WNOHANG));
    SHOW(waitpid(1 << 29, 0, 0));
    SHOW(waitpid(-1, 0, 0x100));
    SHOW(waitid(P_ALL, 0, &info, WEXITED));
    SHOW(waitid(P_PID, 1 << 29, &info, WEXITED | WNOHANG));
    SHOW(waitid(P_PID, -1, &info, WEXITED));
    SHOW(waitid(P_ALL, 0, &info, WNOHANG));
    SHOW(waitid(77, 0, &info, WEXITED));
    SHOW(setpgid(0, -1));
    SHOW(setpgid(1 << 29, 0));

    gid_t groups[] = {7, 5, 6}, got[8] = {0};
    SHOW(setgroups(3, groups));
    SHOW(getgroups(0, got));
    SHOW(getgroups(2, got));
    SHOW(getgroups(8, got));
    printf("%d %d %d\n", got[0], got[1], got[2]);
    SHOW(setresgid(-1, 10, 11));
    SHOW(setgid(12));
    SHOW(seteuid(1000));
    ids();
    SHOW(setgroups(0, 0));
    SHOW(setgid(99));
    SHOW(setreuid(5, -1));
    SHOW(setpriority(PRIO_PROCESS, 0, 0));
    SHOW(seteuid(0));
    SHOW(setuid(-1));
    SHOW(setuid(65534));
    SHOW(seteuid(0));
    SHOW(setresuid(-1, -1, -1));
    ids();
    return 0;
}
