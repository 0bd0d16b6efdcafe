/* Writes that wait end when all is written (pipe(7), write(2), send(2)); a signal ends them with what is written. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LEN = 1 << 20 };
static char data[LEN];

static void *drain(void *end) {
    char piece[3000];
    size_t total = 0;
    unsigned sum = 0;
    ssize_t n;
    while ((n = read(*(int *)end, piece, sizeof piece)) > 0) {
        for (ssize_t i = 0; i < n; i++) sum = sum * 31 + (unsigned char)piece[i];
        total += n;
        usleep(total % 7 == 0 ? 1000 : 0);
    }
    printf("read %zu, sum %u\n", total, sum);
    return NULL;
}

static void meanwhile(int *ends, ssize_t (*give)(int)) {
    pthread_t reader;
    pthread_create(&reader, NULL, drain, &ends[0]);
    ssize_t given = give(ends[1]);
    close(ends[1]);
    pthread_join(reader, NULL);
    close(ends[0]);
    printf("gave %zd\n", given);
}

static ssize_t by_write(int fd) { return write(fd, data, LEN); }
static ssize_t by_send(int fd) { return send(fd, data, LEN, 0); }
static ssize_t by_writev(int fd) {
    struct iovec parts[4] = {{data, 7}, {data + 7, 200000}, {data, 0}, {data + 200007, LEN - 200007}};
    return writev(fd, parts, 4);
}

static void nothing(int signal) { (void)signal; }

int main(void) {
    int ends[2];
    for (int i = 0; i < LEN; i++) data[i] = i * 7 + i / 300;
    pipe(ends), meanwhile(ends, by_write);
    pipe(ends), meanwhile(ends, by_writev);
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends), meanwhile(ends, by_send);
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends), meanwhile(ends, by_write);

    /* A handler runs in between: what fitted is the result, with and without SA_RESTART. */
    for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
        struct sigaction action = {.sa_handler = nothing, .sa_flags = flags};
        sigaction(SIGALRM, &action, NULL);
        pipe(ends);
        ualarm(50000, 0);
        printf("interrupted: %zd\n", write(ends[1], data, LEN));
        close(ends[0]), close(ends[1]);
    }

    /* One that does not wait gives what fits. */
    pipe2(ends, O_NONBLOCK);
    printf("not waiting: %zd\n", write(ends[1], data, LEN));
    printf("full: %zd %d\n", write(ends[1], data, LEN), errno == EAGAIN);
    close(ends[0]);

    /* The reader goes away. */
    signal(SIGPIPE, SIG_IGN);
    printf("no reader: %zd %d\n", write(ends[1], data, LEN), errno == EPIPE);

    fflush(stdout);
    return write(1, data, LEN) != LEN;
}
