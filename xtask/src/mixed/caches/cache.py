"""A Python program with a bounded cache: ENTRIES values, full after SECONDS."""

import collections
import os
import random
import sys
import time

entries, seconds = int(sys.argv[1]), float(sys.argv[2])
cache = collections.OrderedDict()
pause = 0.02
batch = max(1, round(entries * pause / seconds))
print("READY", flush=True)
while True:
    for _ in range(batch):
        key = random.getrandbits(63)
        # A value, the objects that parsing would make, and garbage.
        cache[key] = {"body": os.urandom(random.randint(200, 3000)), "tags": [str(key), key]}
        if len(cache) > entries:
            cache.popitem(last=False)
    words = " ".join(str(number) for number in range(2000)).split()
    words.sort(reverse=True)
    time.sleep(pause)
