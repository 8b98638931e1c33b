"""The parts of peers.py: the tasks, each system, the processes that they run in, and the report."""
