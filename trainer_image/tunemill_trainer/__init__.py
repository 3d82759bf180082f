"""The four stages of a run, as they execute in the trainer image or on one machine."""

import os

# Before Arrow is imported, which reads it once: its own allocator reserves 1 GiB of address space at its first use, and
# that is what `bounds.MemoryBound` bounds.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
