// splice(2): what it moves, what it refuses, and that nothing is lost where the other side is full.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHOW(call) (errno = 0, printf("%s = %ld (%s)\n", #call, (long)(call), strerror(errno)))

int main(void) {
    char name[] = "/tmp/spliceXXXXXX", other[] = "/tmp/spliceXXXXXX", text[65536], back[65536];
    int file = mkstemp(name), out = mkstemp(other), p[2], q[2];
    pipe2(p, O_NONBLOCK);
    pipe2(q, O_NONBLOCK);
    for (int i = 0; i < (int)sizeof text; i++) text[i] = i * 7;
    write(file, text, sizeof text);
    loff_t at = 100, to = 5;

    SHOW(splice(file, &at, p[1], 0, 50, 0));
    printf("%ld %ld\n", (long)at, (long)lseek(file, 0, SEEK_CUR));
    SHOW(splice(p[0], 0, out, &to, 30, SPLICE_F_MOVE));
    printf("%ld\n", (long)to);
    SHOW(splice(p[0], 0, out, 0, 1000, 0));
    SHOW(splice(p[0], 0, out, 0, 1000, 0));
    SHOW(splice(p[0], 0, out, 0, 1000, SPLICE_F_NONBLOCK));
    int got = pread(out, back, 100, 0);
    printf("%d %d\n", got, !memcmp(back + 5 + 15, text + 100 + 15, 15));

    SHOW(splice(file, 0, out, 0, 10, 0));
    SHOW(splice(file, 0, p[0], 0, 10, 0));
    SHOW(splice(p[1], 0, out, 0, 10, 0));
    SHOW(splice(p[0], &at, out, 0, 10, 0));
    SHOW(splice(file, 0, p[1], &at, 10, 0));
    SHOW(splice(p[0], 0, p[1], 0, 10, 0));
    SHOW(splice(file, 0, p[1], 0, 10, 0x40));
    SHOW(splice(99, 0, p[1], 0, 10, 0));
    SHOW(splice(99, 0, p[1], 0, 0, 0));
    lseek(file, 0, SEEK_END);
    SHOW(splice(file, 0, p[1], 0, 10, 0));

    // The second pipe takes a part of what the first one holds; the rest stays there, in order.
    write(p[1], text, 30000);
    write(q[1], text, 50000);
    ssize_t moved = splice(p[0], 0, q[1], 0, 30000, 0), left = read(p[0], back, sizeof back);
    printf("%d %d %d\n", moved > 0, moved + left == 30000, !memcmp(back, text + moved, left));
    close(p[1]);
    SHOW(splice(p[0], 0, out, 0, 10, 0));
    close(q[0]);
    unlink(name);
    unlink(other);
    return 0;
}
