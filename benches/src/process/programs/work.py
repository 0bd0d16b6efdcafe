# Work on the CPU in an interpreter: calls, dictionaries, strings, big numbers. Prints nanoseconds of processor time, then a result.
import time


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


start = time.process_time()
result = 0
for turn in range(8):
    words = {}
    for i in range(100_000):
        key = f"k{i * 7919 % 20_021}"
        words[key] = words.get(key, turn) + i
    result += fib(20) + sum(words.values()) + sum(len(str(3**n)) for n in range(7_900, 7_950))
print((time.process_time() - start) * 1e9)
print(result)
