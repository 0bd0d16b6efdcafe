# Works on files through Python's library and prints what it sees; run natively and in the sandbox.
# sys.argv[1] is an empty directory.
import asyncio, fcntl, glob, hashlib, io, json, mmap, os, select, shutil, socket, sqlite3, stat, sys, tempfile, threading, zipfile, tarfile

os.chdir(sys.argv[1])
for i in range(20):
    os.makedirs(f"tree/{i % 4}/deep", exist_ok=True)
    with open(f"tree/{i % 4}/f{i}", "w") as f:
        f.write("line\n" * (i * 400))
print(sorted(glob.glob("tree/**", recursive=True)))
print([(os.path.relpath(d, "tree"), sorted(dirs), sorted(files)) for d, dirs, files in sorted(os.walk("tree"))])

shutil.copytree("tree", "copy")
shutil.move("copy/1", "copy/moved")
os.rename("copy/2", "copy/0/inner")
shutil.rmtree("copy/3")
print(sorted(os.listdir("copy")), sorted(os.listdir("copy/0")))

with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as z:
    for path in sorted(glob.glob("tree/*/f*")):
        z.write(path)
with zipfile.ZipFile("a.zip") as z:
    print(z.testzip(), hashlib.sha256(b"".join(z.read(n) for n in sorted(z.namelist()))).hexdigest())
with tarfile.open("a.tar.gz", "w:gz") as t:
    t.add("tree")
with tarfile.open("a.tar.gz") as t:
    t.extractall("untarred")
print(sum(os.path.getsize(p) for p in glob.glob("untarred/**", recursive=True) if os.path.isfile(p)))

db = sqlite3.connect("x.db")
db.execute("pragma journal_mode=wal")
db.execute("create table t(a, b)")
with db:
    db.executemany("insert into t values(?, ?)", ((i, str(i) * 10) for i in range(2000)))
other = sqlite3.connect("x.db")
print(other.execute("select count(*), sum(a), max(b) from t").fetchall(), db.execute("pragma integrity_check").fetchall())
other.close(); db.close()

with open("m", "w+b") as f:
    f.truncate(20000)
    with mmap.mmap(f.fileno(), 0) as m:
        m[5000:5005] = b"hello"
        m.flush()
    f.seek(4999)
    print(f.read(8), os.fstat(f.fileno()).st_size)
    with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as m:
        m[0:1] = b"x"
    print(f.seek(0), f.read(1))

with tempfile.NamedTemporaryFile(dir=".") as t, tempfile.TemporaryFile(dir=".") as u, tempfile.TemporaryDirectory(dir=".") as d:
    u.write(b"gone"); u.seek(0)
    print(u.read(), os.path.exists(t.name), stat.filemode(os.stat(t.name).st_mode), os.path.isdir(d))
print([n for n in os.listdir(".") if n.startswith("tmp")])

r, w = os.pipe()
p = select.poll(); p.register(r, select.POLLIN)
print(p.poll(0)); os.write(w, b"x"); print([(fd == r, e) for fd, e in p.poll(1000)], select.select([r], [], [], 0)[0] == [r])
with select.epoll() as e:
    e.register(r, select.EPOLLIN | select.EPOLLET)
    print(len(e.poll(0)), len(e.poll(0)))
a, b = socket.socketpair()
got = []
reader = threading.Thread(target=lambda: got.append(b.recv(100)))
reader.start(); a.sendall(b"through a thread"); reader.join(); print(got)
a.close(); print(b.recv(1))
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("127.0.0.1", 9))
    print("network")
except OSError:
    print("no network")

async def main():
    queue = asyncio.Queue()
    async def make():
        for i in range(3):
            await asyncio.sleep(0.001)
            await queue.put(i)
    task = asyncio.create_task(make())
    loop = asyncio.get_running_loop()
    size = await loop.run_in_executor(None, os.path.getsize, "a.zip")
    print([await queue.get() for _ in range(3)], size > 0)
    await task
asyncio.run(main())

with open("lock", "w") as f:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open("lock") as g:
        try:
            fcntl.flock(g, fcntl.LOCK_SH | fcntl.LOCK_NB)
            print("not locked")
        except BlockingIOError:
            print("locked")
fd = os.open("tree", os.O_RDONLY | os.O_DIRECTORY)
print(sorted(os.listdir(fd)), os.stat("0/f4", dir_fd=fd).st_size, os.readlink(f"/proc/self/fd/{fd}") == os.path.realpath("tree"))
print(os.path.exists("/proc/self/exe"), os.cpu_count() > 0, len(open("/proc/self/maps").read()) > 100, "MemTotal" in open("/proc/meminfo").read())
print(json.load(io.StringIO(json.dumps({"end": True}))), sys.stdin.read())
