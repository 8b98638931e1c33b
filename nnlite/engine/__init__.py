"""Running a model: its plan, the cut of a batch into shards, and the passes of shards through the plan."""
