"""Running a model: its plan, the cut of a batch into shards, and the passes of shards through the plan."""

from nnlite.engine.engine import Engine as Engine
