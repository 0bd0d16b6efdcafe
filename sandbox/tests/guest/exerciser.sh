# What programs do with files, in the current folder, by programs that we did not write: tar, a compiler, Python with SQLite.
# Leaves files that must be the same wherever it ran.
set -e
export LC_ALL=C TZ=UTC TMPDIR=$PWD
umask 022
mkdir src
for number in 1 2 3 4; do
  echo "int part$number(int x) { int i, s = 0; for (i = 0; i < x; i++) s += i % $number; return s; }" > src/part$number.c
done
cat > src/main.c <<'C'
#include <stdio.h>
int part1(int), part2(int), part3(int), part4(int);
int main(void) { printf("%d %d %d %d\n", part1(9), part2(99), part3(999), part4(9999)); return 0; }
C
(cd src && for file in *.c; do cc -O1 -c $file; done && ar rcD libparts.a part*.o && cc -o program main.o libparts.a)
./src/program > program-said
mkdir unpacked
ln src/main.c src/hard; ln -s main.c src/soft; chmod 640 src/part1.c; touch -d 2001-02-03T04:05:06 src/part2.c
tar -cf - src | tar -C unpacked -xpf -
diff -r src unpacked/src && echo the same > tar-said
stat -c '%n %F %a %s %h' unpacked/src/* > stat-said
date -r unpacked/src/part2.c >> stat-said
rm -r src/*.o unpacked/src/program

python3 - > python-said <<'PYTHON'
import errno, fcntl, os, sqlite3, subprocess, sys

def fails(what, *args):
    try:
        return what(*args)
    except OSError as error:
        return errno.errorcode[error.errno]

# Names.
os.mkdir("names")
for number in range(500):
    open(f"names/{number:04}-" + "n" * (number % 200), "w").close()
print(len(os.listdir("names")), sorted(os.listdir("names"))[::100])
for name in sorted(os.listdir("names")):
    if int(name[:4]) % 3:
        os.unlink("names/" + name)
print(len(os.listdir("names")))
print(fails(os.rmdir, "names"), fails(os.mkdir, "names"), fails(os.unlink, "names"), fails(os.open, "none", 0))
print(fails(os.open, "x" * 256, os.O_CREAT), fails(os.listdir, "python-said"), fails(os.readlink, "names"))
print(fails(os.open, "python-said", os.O_CREAT | os.O_EXCL), fails(os.symlink, "a", "src/soft"))
os.mkdir("one"); os.mkdir("one/two"); os.rename("one", "three"); print(os.listdir("three"))
print(fails(os.rename, "three", "three/two/four"), fails(os.rename, "three", "names"), fails(os.rename, "none", "x"))
os.symlink("loop", "loop"); print(fails(os.stat, "loop"))

# Contents: holes, appending, positions, truncation, an open file without a name or with another.
with open("holes", "wb+") as file:
    file.seek(1 << 20); file.write(b"end"); file.seek(5); file.write(b"start"); file.flush()
    print(os.fstat(file.fileno()).st_size, os.pread(file.fileno(), 12, 0), os.pread(file.fileno(), 9, 1 << 20))
    file.truncate(7); print(os.pread(file.fileno(), 100, 0)); file.truncate(20); print(os.pread(file.fileno(), 100, 0))
one, two = open("log", "ab", 0), open("log", "ab", 0)
for number in range(20):
    (one if number % 2 else two).write(b"%d," % number)
print(open("log").read())
file = open("gone", "w+b", 0); file.write(b"still there"); os.unlink("gone"); file.seek(0); print(file.read(), os.path.exists("gone"))
file = open("moved", "w+b", 0); file.write(b"first "); os.rename("moved", "there"); file.write(b"second"); print(open("there").read())
file = os.open("there", os.O_RDONLY); print(fails(os.write, file, b"x"), fails(os.ftruncate, file, 0))
print(os.stat("there").st_size, oct(os.stat("there").st_mode)); os.chmod("there", 0o400); print(oct(os.stat("there").st_mode))
# Whole seconds: Linux's 9p client cuts the rest of a time that is set.
os.utime("there", (10**9, 10**9 + 5)); print(os.stat("there").st_mtime_ns, os.stat("there").st_nlink)
big = os.urandom(3 << 20)
with open("big", "wb") as file: file.write(big)
print(open("big", "rb").read() == big); os.unlink("big")

# Locks between processes.
lock = open("lock", "w"); fcntl.lockf(lock, fcntl.LOCK_EX, 10, 0)
other = """
import fcntl
file = open("lock", "r+")
def tries(*args):
    try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *args); return "had"
    except OSError as error: return error.errno in (11, 13)
print(tries(5, 0), tries(5, 20))
"""
print(subprocess.run([sys.executable, "-c", other], capture_output=True, text=True).stdout)

# A database, twice open.
one, two = sqlite3.connect("base"), sqlite3.connect("base", timeout=0)
one.execute("create table t (n integer primary key, text)")
one.executemany("insert into t values (?, ?)", ((n, "text " * (n % 50)) for n in range(3000)))
one.commit(); one.execute("create index i on t (text)"); one.commit()
one.execute("begin exclusive")
try: print(two.execute("select count(*) from t").fetchone())
except sqlite3.OperationalError as error: print(error)
one.execute("delete from t where n % 2"); one.rollback(); print(two.execute("select count(*), sum(length(text)) from t").fetchone())
one.execute("delete from t where n % 2"); one.commit(); one.execute("vacuum")
print(two.execute("select count(*) from t").fetchone(), two.execute("pragma integrity_check").fetchone())
open("dump", "w").write("\n".join(one.iterdump()))
one.close(); two.close(); os.unlink("base")
PYTHON
