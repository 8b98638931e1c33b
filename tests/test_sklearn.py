"""Networks as scikit-learn estimators: scikit-learn's own checks, and what people do with estimators."""

import pickle
import warnings

import numpy as np
import pytest

import nnlite as nn

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits, make_multilabel_classification  # noqa: E402
from sklearn.inspection import partial_dependence, permutation_importance  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from nnlite.interop.sklearn import NNClassifier, NNRegressor  # noqa: E402

rng = np.random.default_rng(0)
X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)[:200]
Y = Y[:200]


def network(input_shape, outputs, width=20):
    return nn.Sequential(nn.Dense(width), nn.Tanh(), nn.Dense(outputs))


ABSENT = {"check_array_api_input", "check_classifiers_multilabel_output_format_decision_function"}


@pytest.mark.parametrize("estimator", [NNClassifier(), NNRegressor(), NNClassifier(model=network)], ids=repr)
def test_scikit_learn_s_own_checks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] not in ("passed", "skipped")}
    assert not failed and {result["check_name"] for result in results if result["status"] == "skipped"} <= ABSENT
    assert len(results) >= 57


def small(**options):
    return NNClassifier((16,), max_iter=30, learning_rate=0.01, random_state=0, **options)


def test_a_pipeline_learns():
    raw, y = load_breast_cancer(return_X_y=True)
    assert cross_val_score(make_pipeline(StandardScaler(), small()), raw, y, cv=3).mean() > 0.96


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (small(), {"learning_rate": [1e-6, 0.01]}),
        (small(optimizer=nn.SGD(0.1, momentum=0.9)), {"optimizer__learning_rate": [1e-6, 0.1]}),
        (small(model=network), {"model__width": [1, 8]}),
        (small(model=network), {"model_params": [{"width": 1}, {"width": 8}]}),
    ],
)
def test_grid_searches(estimator, grid):
    search = GridSearchCV(estimator, grid, cv=2).fit(X, Y)
    ((name, values),) = grid.items()
    assert search.best_score_ > 0.85 and search.cv_results_["params"] == [{name: value} for value in values]
    scores = search.cv_results_["mean_test_score"]
    assert name.startswith("model") or scores[0] < scores[1]


def test_the_same_bits_in_worker_processes():
    results = [GridSearchCV(small(), {"learning_rate": [0.01]}, cv=2, n_jobs=jobs).fit(X, Y) for jobs in (1, 2)]
    assert results[0].best_score_ == results[1].best_score_
    assert np.array_equal(*(r.best_estimator_.predict_proba(X) for r in results))


def how_it_trains():
    """Threads of nnlite that compute, or wait to; threads of BLAS; the kernels."""
    import threading

    from threadpoolctl import threadpool_info

    model = NNClassifier((256, 256), batch_size=200, max_iter=2).fit(X, Y).model_
    computing = 1 + sum(thread.name == "nnlite" for thread in threading.enumerate())
    return nn.get_num_threads(), computing, max(pool["num_threads"] for pool in threadpool_info()), model.kernels


def test_worker_processes_share_the_cores():
    from joblib import Parallel, cpu_count, delayed

    share, kernels = max(1, cpu_count() // 2), how_it_trains()[-1]
    for threads, computing, blas, theirs in Parallel(n_jobs=2)(delayed(how_it_trains)() for _ in range(2)):
        assert threads == blas == share and computing <= share and theirs == kernels


def test_workers_of_dask_share_the_cores():
    from joblib import Parallel, delayed, parallel_config

    client = pytest.importorskip("dask.distributed").Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with client, parallel_config("dask"):
        found = Parallel()(delayed(how_it_trains)() for _ in range(4))
    assert {numbers[:3] for numbers in found} == {(1, 1, 1)}


def test_copies_and_pickles_predict_the_same():
    fitted = small().fit(X, Y)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(fitted.predict_proba(X), again.predict_proba(X))
    assert np.array_equal(clone(fitted).fit(X, Y).predict_proba(X), fitted.predict_proba(X))


def test_partial_fit_is_an_epoch_of_fit():
    step = small(batch_size=50)
    for _ in range(3):
        step.partial_fit(X, Y, classes=[0, 1])
    assert step.n_iter_ == 3 and len(step.loss_curve_) == 3 and step.loss_curve_[2] < step.loss_curve_[0]
    with pytest.raises(ValueError, match="y has the label 7"):
        step.partial_fit(X, np.full(len(X), 7))


def test_labels_may_be_text_and_several():
    names = np.where(Y == 1, "benign", "malignant")
    fitted = small().fit(X, names)
    assert set(fitted.predict(X)) == {"benign", "malignant"} and fitted.score(X, names) > 0.95
    several, t = make_multilabel_classification(100, 8, n_classes=3, random_state=0)
    fitted = NNClassifier(random_state=0, learning_rate=0.01).fit(several, t)
    assert fitted.predict(several).shape == t.shape and fitted.predict_proba(several).shape == t.shape
    assert (fitted.predict(several) == t).mean() > 0.9


def test_weights_of_classes_are_weights_of_samples():
    weight = {0: 3.0, 1: 0.5}
    one = small(class_weight=weight).fit(X, Y).predict_proba(X)
    other = small().fit(X, Y, sample_weight=np.where(Y == 0, 3.0, 0.5)).predict_proba(X)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_images_go_through_a_convolution():
    images, t = load_digits(return_X_y=True)
    images, t = images.reshape(-1, 8, 8, 1)[:600].astype("float32") / 16, t[:600]

    def cnn(input_shape, outputs):
        return nn.Sequential(nn.Conv2D(8, 3), nn.ReLU(), nn.Flatten(), nn.Dense(outputs))

    fitted = NNClassifier(model=cnn, max_iter=20, learning_rate=0.01, batch_size=32, random_state=0).fit(images[:500], t[:500])
    assert fitted.score(images[500:], t[500:]) > 0.85 and fitted.model_.dtype == "float32"


def test_early_stopping_stops_and_keeps_the_best():
    fitted = NNClassifier((50,), early_stopping=True, learning_rate=0.05, max_iter=300, random_state=0).fit(X, Y)
    assert fitted.n_iter_ < 300 and "val_loss" in fitted.history_


def test_a_warm_start_goes_on():
    warm = small(warm_start=True).fit(X, Y)
    before = warm.loss_
    assert warm.fit(X, Y).n_iter_ == 60 and warm.loss_ < before


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_regressor_has_the_shape_of_its_targets(shape):
    t = X[:, :1] if not shape else X[:, :2] * 2
    t = t[:, 0] if not shape else t
    fitted = NNRegressor((30,), learning_rate=0.01, random_state=0).fit(X, t)
    assert fitted.predict(X).shape == t.shape and fitted.score(X, t) > 0.98


def test_other_tools_take_it_as_it_is():
    fitted = small().fit(X, Y)
    assert permutation_importance(fitted, X, Y, n_repeats=2, random_state=0).importances_mean.shape == (30,)
    assert partial_dependence(fitted, X, [0])["average"].shape[0] == 1
    assert CalibratedClassifierCV(small(), cv=2).fit(X, Y).score(X, Y) > 0.95


def test_clones_of_optimisers_losses_metrics_and_callbacks():
    for thing in (nn.Adam(0.1, clip_norm=1), nn.CrossEntropy(label_smoothing=0.1), nn.TopK(3), nn.EarlyStopping(patience=2)):
        assert repr(clone(thing)) == repr(thing)
    adam = nn.Adam().set_params(learning_rate=0.5, betas=(0.8, 0.9))
    assert adam.get_params() == nn.Adam(0.5, betas=(0.8, 0.9)).get_params()
    with pytest.raises(ValueError, match="Adam has no parameter 'lr'"):
        adam.set_params(lr=1)
    with pytest.raises(ValueError, match="learning_rate"):
        adam.set_params(learning_rate=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "step"}, "activation must be one of relu"),
        ({"model": lambda shape, outputs: nn.Sequential(nn.Dense(5))}, r"gives \(5,\) a sample"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(X, Y)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "nnlite.interop.sklearn")
    with pytest.raises(ImportError, match=r"pip install 'nnlite-numpy\[sklearn\]'"):
        importlib.import_module("nnlite.interop.sklearn")
