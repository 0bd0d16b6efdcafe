"""Runs one module of CPython's regression tests and writes a line of JSON for each test.

    driver.py MODULE RECORDS ORDERS

RECORDS is a file to append to; ORDERS holds JSON: {"match": [pattern], "skip": [test id], "only": [test id],
"seconds": N, "hopeless_seconds": N, "folder": where to make a folder to work in}. A line is written before a test and after it, so that whoever
reads them knows which one a dead run was in. The same program runs natively and in the sandbox; it uses nothing but the
standard library, and the tests are as Debian ships them.
"""

import errno
import faulthandler
import fnmatch
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import unittest

# Tests replace these and forget to put them back.
_open, _write, _close = os.open, os.write, os.close
_dump_later, _cancel_dump = faulthandler.dump_traceback_later, faulthandler.cancel_dump_traceback_later

MOST_TEXT = 4000


class Records:
    def __init__(self, path):
        self.path = path

    def put(self, **record):
        line = json.dumps(record).encode() + b"\n"
        fd = _open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _write(fd, line)
        finally:
            _close(fd)


def chain(error):
    """The exception and all that led to it."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


# The interpreter's audit events before it makes a process.
MAKERS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec")


class Attempts:
    """What was tried that a sandbox has not: written at once, because the test may not end."""

    def __init__(self, records, seconds):
        self.records, self.seconds, self.first = records, seconds, None
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.first is None and (event in MAKERS or event == "socket.__new__"):
            if event in MAKERS:
                self.note("processes")
            elif arguments[1] in (socket.AF_INET, socket.AF_INET6):
                self.note("network")

    def note(self, what):
        self.first = what
        self.records.put(attempt=what)
        # Where it cannot succeed, many tests wait for ever.
        _dump_later(self.seconds, exit=True)

    def explain(self, error):
        """What the test wanted in vain, if that may be why it failed."""
        unknown = any(getattr(one, "errno", None) == errno.EAFNOSUPPORT for one in chain(error))
        # unittest tells of a failed import by its text only.
        unknown = unknown or (isinstance(error, ImportError) and f"[Errno {errno.EAFNOSUPPORT}]" in str(error))
        return self.first or ("network" if unknown else None)


class Result(unittest.TestResult):
    """Tells the verdict of each test as soon as it is known."""

    def __init__(self, records, attempts, seconds):
        super().__init__()
        self.records = records
        self.attempts = attempts
        self.seconds = seconds
        self.verdict = None

    def startTest(self, test):
        super().startTest(test)
        self.verdict = ("pass", "", None)
        self.attempts.first = None
        self.records.put(start=test.id())
        _dump_later(self.seconds, exit=True)

    def stopTest(self, test):
        _cancel_dump()
        verdict, why, lack = self.verdict
        self.records.put(test=test.id(), verdict=verdict, why=why, needs=lack)
        self.verdict = None
        self.attempts.first = None
        super().stopTest(test)

    def note(self, test, verdict, why="", lack=None):
        if self.verdict is None:
            # setUpModule, setUpClass and their like: unittest has no test for them.
            self.records.put(test=test.id(), verdict=verdict, why=why, needs=lack)
        elif self.verdict[0] in ("pass", "skip"):
            self.verdict = (verdict, why, lack)

    def fault(self, test, verdict, problem):
        text = "".join(traceback.format_exception(*problem))
        self.note(test, verdict, text[-MOST_TEXT:], self.attempts.explain(problem[1]))

    def addError(self, test, problem):
        self.fault(test, "error", problem)

    def addFailure(self, test, problem):
        self.fault(test, "fail", problem)

    def addSubTest(self, test, subtest, problem):
        if problem is not None:
            self.fault(test, "fail" if issubclass(problem[0], test.failureException) else "error", problem)

    def addSkip(self, test, reason):
        self.note(test, "skip", str(reason), self.attempts.first)

    def addExpectedFailure(self, test, problem):
        self.note(test, "pass")

    def addUnexpectedSuccess(self, test):
        self.note(test, "fail", "expected to fail and did not")


class Plan:
    """Which tests of the module run."""

    def __init__(self, orders):
        self.match, self.skip = orders["match"], set(orders["skip"])
        self.only = set(orders["only"])

    def takes(self, name):
        # What could not be imported stands for all that is in it.
        if name.startswith("unittest.loader."):
            return not self.only or name in self.only
        if name in self.skip or (self.only and name not in self.only):
            return False
        return not self.match or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.match)

    def filter(self, suite):
        kept = unittest.TestSuite()
        for test in suite:
            if isinstance(test, unittest.TestSuite):
                kept.addTest(self.filter(test))
            elif self.takes(test.id()):
                kept.addTest(test)
        return kept


def run_module(name, plan, result, records):
    from test import support

    def run_suite(suite):
        plan.filter(suite).run(result)

    def run_doctest(module, verbosity=None, optionflags=0):
        import doctest
        run_suite(unittest.TestSuite([doctest.DocTestSuite(module, optionflags=optionflags)]))
        return 0, 0

    # As `python3 -m test` without -u: what needs a network, much time or much room is left out.
    support.use_resources = []
    support.verbose = 0
    support._run_suite = run_suite
    support.run_doctest = run_doctest
    try:
        module = importlib.import_module("test." + name)
        if hasattr(module, "test_main"):
            module.test_main()
        else:
            run_suite(unittest.defaultTestLoader.loadTestsFromModule(module))
    except unittest.SkipTest as skip:
        records.put(test="test." + name, verdict="skip", why=str(skip), needs=None)
    except Exception as error:
        text = traceback.format_exc()
        records.put(test="test." + name, verdict="error", why=text[-MOST_TEXT:], needs=result.attempts.explain(error))


def main():
    name, path = sys.argv[1], sys.argv[2]
    with open(sys.argv[3]) as file:
        orders = json.load(file)
    records = Records(os.path.abspath(path))
    sys.argv = ["driver"]
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    faulthandler.enable()
    # Whoever started this may have asked for it to be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    directory = tempfile.mkdtemp(prefix="test_", dir=orders["folder"])
    os.chdir(directory)
    run_module(name, Plan(orders), Result(records, Attempts(records, orders["hopeless_seconds"]), orders["seconds"]), records)
    os.chdir("/")
    shutil.rmtree(directory, ignore_errors=True)
    records.put(done=True)
    sys.stdout.flush()
    # Threads that a test left behind must not hold up the end.
    os._exit(0)


if __name__ == "__main__":
    main()
