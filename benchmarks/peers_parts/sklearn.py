"""The MLPs of `peers.py` in scikit-learn: one `partial_fit` over all batches, so that its checks are paid once for many."""

from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier

from peers_parts import tasks as net
from peers_parts.tasks import Built, Task


def build(task: Task, batches: list[tuple[Any, Any]], threads: int, system: str) -> Built:
    x = np.concatenate([x for x, _ in batches])
    t = np.concatenate([t for _, t in batches])
    model = MLPClassifier(
        task.hidden, solver="adam", alpha=0.0, batch_size=task.batch, learning_rate_init=net.LEARNING_RATE, shuffle=False
    )
    model.partial_fit(x, t, classes=np.arange(task.classes))
    parameters = sum(values.size for values in (*model.coefs_, *model.intercepts_))
    return Built({"partial_fit": lambda i: model.partial_fit(x, t)}, parameters, steps_per_call=len(batches))
