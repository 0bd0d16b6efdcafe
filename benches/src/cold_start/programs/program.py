import json, os, sys

def request():
    text = sys.stdin.read()
    sys.stdout.write(json.dumps({"length": len(text), "words": text.split()}) + "\n")
    sys.stdout.flush()

def serve_forks():
    while os.read(0, 1):
        child = os.fork()
        if child == 0:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            request()
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(1)
        os.write(1, b"\0")

serve_forks() if len(sys.argv) > 1 else request()
