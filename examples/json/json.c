/* A JSON validator and pretty-printer (RFC 8259).
 *
 * Standard input is one JSON text; standard output the same text, indented, or on one line with the argument
 * `--compact`. Numbers and strings are passed on byte by byte, so nothing is rounded. A text that is not JSON ends
 * with exit code 1 and a line on standard error that says where and why. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 512 };

static char *text;
static size_t at, length;
static int compact, depth, printing;

static void put(const char *bytes, size_t n) {
    if (printing) fwrite(bytes, 1, n, stdout);
}

static void fail(const char *why) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < length; i++) {
        column++;
        if (text[i] == '\n') { line++; column = 1; }
    }
    fprintf(stderr, "line %zu, column %zu: %s\n", line, column, why);
    exit(1);
}

static int peek(void) { return at < length ? (unsigned char)text[at] : -1; }

static void skip_space(void) {
    while (at < length && memchr(" \t\r\n", text[at], 4)) at++;
}

static void new_line(void) {
    if (compact) return;
    put("\n", 1);
    for (int i = 0; i < depth; i++) put("  ", 2);
}

/* How many bytes the UTF-8 character at `p` has; 0 if it is none (Unicode 15 table 3-7). */
static size_t utf8(const unsigned char *p, size_t left) {
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (n == 0 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (n > 2) {
        unsigned low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
        unsigned high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
        if (p[1] < low || p[1] > high) return 0;
    }
    return n;
}

static void escape(void) {
    at++;
    int c = peek();
    if (c == 'u') {
        for (int i = 1; i <= 4; i++)
            if (at + i >= length || !strchr("0123456789abcdefABCDEF", text[at + i]) || !text[at + i])
                fail("\\u wants four hexadecimal digits");
        at += 5;
    } else if (c > 0 && strchr("\"\\/bfnrt", c)) {
        at++;
    } else {
        fail("no such escape");
    }
}

static void string(void) {
    size_t start = at++;
    while (peek() != '"') {
        if (at >= length) fail("the string does not end");
        if ((unsigned char)text[at] < 0x20) fail("a control character must be escaped");
        if (text[at] == '\\') { escape(); continue; }
        size_t n = utf8((unsigned char *)text + at, length - at);
        if (n == 0) fail("not UTF-8");
        at += n;
    }
    at++;
    put(text + start, at - start);
}

static void digits(void) {
    size_t start = at;
    while (peek() >= '0' && peek() <= '9') at++;
    if (at == start) fail("a digit is missing");
}

static void number(void) {
    size_t start = at;
    if (peek() == '-') at++;
    if (peek() == '0') at++;
    else digits();
    if (peek() == '.') { at++; digits(); }
    if (peek() == 'e' || peek() == 'E') {
        at++;
        if (peek() == '+' || peek() == '-') at++;
        digits();
    }
    put(text + start, at - start);
}

static void word(const char *expected) {
    size_t n = strlen(expected);
    if (length - at < n || memcmp(text + at, expected, n) != 0) fail("a value is expected here");
    at += n;
    put(expected, n);
}

static void value(void);

static void member(void) {
    if (peek() != '"') fail("a member's name in quotes is expected here");
    string();
    skip_space();
    if (peek() != ':') fail("a colon is expected here");
    at++;
    put(": ", compact ? 1 : 2);
    value();
}

/* `[ value, ... ]` and `{ member, ... }` */
static void list(char close, void (*item)(void)) {
    put(&text[at++], 1);
    if (++depth > MAX_DEPTH) fail("nested too deeply");
    skip_space();
    if (peek() != close) {
        for (;;) {
            new_line();
            item();
            skip_space();
            if (peek() != ',') break;
            at++;
            put(",", 1);
            skip_space();
        }
        depth--;
        new_line();
        depth++;
    }
    if (peek() != close) fail(close == ']' ? "a comma or ] is expected here" : "a comma or } is expected here");
    at++;
    depth--;
    put(&close, 1);
}

static void value(void) {
    skip_space();
    switch (peek()) {
    case '{': list('}', member); break;
    case '[': list(']', value); break;
    case '"': string(); break;
    case 't': word("true"); break;
    case 'f': word("false"); break;
    case 'n': word("null"); break;
    case '-': case '0': case '1': case '2': case '3': case '4':
    case '5': case '6': case '7': case '8': case '9': number(); break;
    default: fail("a value is expected here");
    }
}

static void read_all(void) {
    size_t room = 0, got = 1;
    while (got > 0) {
        if (length == room) {
            room = room ? room * 2 : 64 << 10;
            text = realloc(text, room);
            if (!text) { fputs("out of memory\n", stderr); exit(3); }
        }
        got = fread(text + length, 1, room - length, stdin);
        length += got;
    }
}

/* Checked from end to end before anything is printed: a reply is either whole or empty. */
static void whole(int print) {
    printing = print;
    at = 0;
    value();
    skip_space();
    if (at != length) fail("the text goes on after its value");
}

int main(int argc, char **argv) {
    compact = argc > 1 && strcmp(argv[1], "--compact") == 0;
    read_all();
    whole(0);
    whole(1);
    puts("");
    return fflush(stdout) == 0 ? 0 : 3;
}
