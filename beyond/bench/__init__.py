"""What beyond/benchmark.py runs and writes: engines that complete text (engines), training loops (loops), and the table
and chart of what was measured (report)."""
