"""The proving ground: ordinary training scripts, healthy and faulty, and what became of each; see README.md."""

import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# Before NumPy is imported, which starts its threads at once: scripts are forked from this process, one core each.
os.environ.update(dict.fromkeys(THREADS, "1"))
# Where scikit-learn finds pandas, and pandas Arrow, that one's memory would be cleaned up by a thread.
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
