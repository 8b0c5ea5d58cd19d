import os

# One thread: on two cores, two workers with two threads each wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
