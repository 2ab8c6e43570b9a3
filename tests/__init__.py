import os

# A worker of pytest trains with one thread: several threads wait for each other in loops, which takes ten times the work where
# other workers have the cores. Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
