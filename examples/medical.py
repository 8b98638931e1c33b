"""Is a tumour malignant? A network searched, calibrated, and asked to say when it does not know.

python examples/medical.py               # needs scikit-learn: pip install ".[sklearn]"
python examples/medical.py --limit 200   # on a few samples

The data, 569 biopsies of breast tumours, come with scikit-learn. Malignant is the class to be found.
"""

import argparse

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import brier_score_loss, classification_report
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnlite.interop.sklearn import NNClassifier

RISK = 0.05  # how often the set of labels may miss the true one


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use only this many samples")
    args = parser.parse_args(arguments)

    x, benign = load_breast_cancer(return_X_y=True)
    x, t = x[: args.limit], 1 - benign[: args.limit]
    x, x_test, t, t_test = train_test_split(x, t, test_size=0.25, stratify=t, random_state=0)
    x, x_held_out, t, t_held_out = train_test_split(x, t, test_size=0.4, stratify=t, random_state=0)

    network = make_pipeline(StandardScaler(), NNClassifier((32,), max_iter=60, random_state=0))
    grid = {"nnclassifier__learning_rate": [1e-3, 1e-2], "nnclassifier__weight_decay": [1e-4, 1e-2]}
    search = GridSearchCV(network, grid, scoring="recall", cv=3).fit(x, t)
    print(f"the best of {len(search.cv_results_['params'])}: {search.best_params_}, recall {search.best_score_:.3f}")

    calibrated = CalibratedClassifierCV(search.best_estimator_, cv=3).fit(x, t)
    p = calibrated.predict_proba(x_test)
    print(classification_report(t_test, p.argmax(axis=1), target_names=["benign", "malignant"]))

    # Split conformal prediction (Vovk et al. 2005): the labels whose probability is not unusually small for a true one.
    unlikeliness = np.sort(1 - calibrated.predict_proba(x_held_out)[np.arange(len(t_held_out)), t_held_out])
    place = min(len(unlikeliness) - 1, int(np.ceil((len(unlikeliness) + 1) * (1 - RISK))) - 1)
    labels = 1 - p <= unlikeliness[place]
    results = {
        "recall": float((p.argmax(axis=1) == 1)[t_test == 1].mean()),
        "precision": float(t_test[p.argmax(axis=1) == 1].mean()),
        "brier": float(brier_score_loss(t_test, p[:, 1])),
        "covered": float(labels[np.arange(len(t_test)), t_test].mean()),
        "undecided": float((labels.sum(axis=1) != 1).mean()),
    }
    print(f"Brier score {results['brier']:.4f}; the sets hold the true label for {results['covered']:.1%} (wanted: 95%)")
    print(f"for a doctor: {results['undecided']:.1%} of the test samples have no single label")
    return results


if __name__ == "__main__":
    main()
