"""A table's columns in numbers: CSV in, JSON out.

For a column of numbers the count, least, greatest, mean, median and standard deviation; for any other column how many
different values it has and the most frequent of them.

The function sees no files, Python's library included: what it needs must be loaded when the component is built. The
warm-up at the end does one whole summary then, and so loads also what Python imports late.
"""

import collections
import csv
import io
import json
import statistics
import sys


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


def summary(values):
    values = [value for value in values if value != ""]
    numbers = [number(value) for value in values]
    if values and None not in numbers:
        stdev = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        return {
            "count": len(numbers),
            "min": min(numbers),
            "max": max(numbers),
            "mean": round(statistics.fmean(numbers), 6),
            "median": statistics.median(numbers),
            "stdev": round(stdev, 6),
        }
    counts = collections.Counter(values)
    return {"count": len(values), "distinct": len(counts), "most": counts.most_common(3)}


def summaries(table):
    rows = list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline="")))
    if not rows:
        raise ValueError("a first line with the columns' names and at least one row are needed")
    columns = [name for name in rows[0] if name is not None]
    by_column = {name: summary([row[name] or "" for row in rows]) for name in columns}
    return json.dumps({"rows": len(rows), "columns": by_column}, indent=1, ensure_ascii=False)


class Run:
    """wasi:cli/run"""

    def run(self):
        try:
            reply = summaries(sys.stdin.buffer.read())
        except (ValueError, csv.Error) as error:
            print(error, file=sys.stderr)
            raise SystemExit(1)
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


summaries(b"number,word\n1,a\n2.5,b\n")
