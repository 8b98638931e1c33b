"""How a model is run: its plan, how a batch is cut into shards, and the passes of shards through the plan."""

from nnlite.engine.engine import Engine as Engine
