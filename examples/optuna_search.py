"""Rate, width and dropout of a small CNN, searched by Optuna; trials that fall behind are pruned by a callback.

python examples/optuna_search.py                           # needs Optuna: pip install ".[optuna]"
python examples/optuna_search.py --trials 3 --limit 500    # a few trials on a few samples

The data are generated shapes. A trial is judged by its validation accuracy after each epoch.
"""

import argparse
import sys
from collections.abc import Mapping

import nnlite as nn

try:
    import optuna
except ImportError:
    sys.exit("the search needs Optuna: pip install 'nnlite-numpy[optuna]'")


class Prune(nn.Callback):
    """Report a column of the history to the trial after each epoch; end training where the trial is to be pruned."""

    def __init__(self, trial: optuna.Trial, monitor: str = "val_accuracy") -> None:
        self.trial, self.monitor = trial, monitor
        self.pruned = False

    def on_epoch_end(self, trainer: nn.Trainer, row: Mapping[str, float]) -> None:
        self.trial.report(row[self.monitor], trainer.epochs)
        self.pruned = self.trial.should_prune()
        if self.pruned:
            trainer.stop()


def make_model(filters: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Normalize(mean=128, std=64),
        nn.Conv2D(filters, 5, stride=2, bias=False),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Dense(10),
        input_shape=(32, 32, 3),
    )


def main(arguments: list[str] | None = None) -> optuna.Study:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--limit", type=int, default=2000, help="number of training images")
    args = parser.parse_args(arguments)
    train, held_out = nn.data.shapes(args.limit).train.split(0.2, stratify=True)

    def objective(trial: optuna.Trial) -> float:
        model = make_model(trial.suggest_categorical("filters", [8, 16, 32]), trial.suggest_float("dropout", 0, 0.5))
        optimizer = nn.Adam(trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True))
        prune = Prune(trial)
        trainer = nn.Trainer(model, nn.CrossEntropy(), optimizer, metrics=[nn.Accuracy()], callbacks=[prune])
        try:
            history = trainer.fit(train, epochs=args.epochs, validation=held_out, progress=False)
        except nn.NonFiniteError as error:
            raise optuna.TrialPruned from error
        if prune.pruned:
            raise optuna.TrialPruned
        return max(history["val_accuracy"])

    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=args.trials)
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    if pruned == len(study.trials):
        sys.exit(f"{pruned} of {pruned} trials pruned: ask for more of them")
    print(f"best: {study.best_value:.4f} with {study.best_params}; {pruned} of {len(study.trials)} trials pruned")
    return study


if __name__ == "__main__":
    main()
