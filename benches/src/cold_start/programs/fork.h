/* A server of forks: for every byte on standard input a copy of this warmed process serves one request that is empty;
 * its output is followed by a zero byte once it has ended. */
#include <fcntl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static int serve_forks(int (*request)(void)) {
    char byte;
    while (read(0, &byte, 1) == 1) {
        pid_t child = fork();
        if (child == 0) {
            int empty = open("/dev/null", O_RDONLY);
            if (dup2(empty, 0) < 0) _exit(1);
            _exit(request());
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
        if (write(1, "", 1) != 1) return 1;
    }
    return 0;
}
