"""Models on the feature store: will the flight arrive more than 15 minutes late?

They are judged by AUC on the last part of the year.

A linear model by dask-ml on all workers, one that learns as it reads (`Incremental`), a random search, and boosted
trees of scikit-learn whose candidates are trained side by side through joblib.
"""

import contextlib
import os
import socket
import time
from pathlib import Path

import dask
import joblib
import numpy as np
from dask_ml.impute import SimpleImputer
from dask_ml.linear_model import LogisticRegression
from dask_ml.model_selection import RandomizedSearchCV
from dask_ml.preprocessing import Categorizer, DummyEncoder, StandardScaler
from dask_ml.wrappers import Incremental
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression as LocalLogisticRegression
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from features import CATEGORIES
from store import read_store

LEAST_TRAIN, LEAST_TEST = 50, 10  # flights that arrived; fewer teach, or say, nothing
FOLDS = 3  # of the random search
# Of each model: how many late and as many other flights it must have, and in which part of the training flights.
NEEDS = {
    "logistic_regression": [(1, "the training part")],
    "incremental": [(1, "the training part")],
    "random_search": [(FOLDS, "its sample of the training part")],
    "boosted_trees": [(1, "the first four fifths of the training part"), (1, "the last fifth of the training part")],
}


def read(config, part, columns):
    """(features: a Dask frame, late: a Dask series of 0.0 and 1.0) of the flights of one part that arrived."""
    table = read_store(config, [*columns, "late", "part"])
    table = table[(table["part"] == part) & table["late"].notnull()]
    return table[columns], table["late"]


def lacking(late, least, where):
    """Why labels (0.0 and 1.0) are not enough to learn from or to judge by, or None."""
    for value, kind in ((1.0, "late"), (0.0, "not late")):
        if (found := int(np.sum(late == value))) < least:
            return f"{where} has {found} of {len(late):,} flights that are {kind}; {least} or more are needed"
    return None


def unfit(train_late, test_late, columns):
    """Why nothing can be learned, or None."""
    for late, least, where in ((train_late, LEAST_TRAIN, "training"), (test_late, LEAST_TEST, "test")):
        if len(late) < least:
            return f"the {where} part has {len(late)} flights with a label (arr_delay); {least} or more are needed"
    if not columns:
        return "no feature differs among the training flights"
    return lacking(train_late, 1, "the training part") or lacking(test_late, 1, "the test part")


def sample_of(y, config):
    """Numbers of the blocks that the random search is done on."""
    return list(range(0, y.numblocks[0], max(1, y.numblocks[0] // config.search_blocks)))


def unfit_for(name, y, config):
    """Why a model cannot be trained on these labels (a Dask array), or None."""
    if name == "random_search":
        parts = [y.blocks[sample_of(y, config)].compute()]
    elif name == "boosted_trees":
        late = y.compute()
        parts = np.split(late, [int(0.8 * len(late))])
    else:
        parts = [y.compute()]
    return next(
        (problem for part, need in zip(parts, NEEDS[name], strict=True) if (problem := lacking(part, *need))), None
    )


def learn(config, run, client, columns):
    """Trains, saves, loads and judges the models on the features `columns`; returns {model}_auc.

    A model that lacks what it needs (NEEDS) is skipped, with the reason.
    """
    (train, late), (test, test_late) = read(config, "train", columns), read(config, "test", columns)
    if reason := unfit(*dask.compute(late, test_late), columns):
        run.skip("learn", reason)
        return {}
    categories = [name for name in CATEGORIES if name in columns]
    # Distributed: every step of the preprocessing is fitted by all workers (means, medians, categories), and stays
    # lazy until then.
    prepare = make_pipeline(
        *([Categorizer(columns=categories), DummyEncoder(columns=categories)] if categories else []),
        FunctionTransformer(as_floats),
        SimpleImputer(strategy="mean"),
        StandardScaler(),
    )
    # Distributed: kept in the workers' memory, as blocks; every model below reads them there.
    frames = prepare.fit_transform(train), late, prepare.transform(test), test_late
    x, y, x_test, truth = dask.persist(*[blocks_of(frame) for frame in frames])
    truth = truth.compute()
    rows, result = [{"model": "all flights alike", "auc": 0.5, "seconds": 0.0, "best setting": ""}], {}
    candidates = {
        "logistic_regression": lambda: linear(x, y),
        "incremental": lambda: incremental(x, y, config),
        "random_search": lambda: random_search(x, y, config),
        "boosted_trees": lambda: boosted_trees(x, y, config, client),
    }
    for name, train_model in candidates.items():
        if name not in config.models:
            continue
        if reason := unfit_for(name, y, config):
            run.skip(f"learn/{name}", reason)
            continue
        started = time.perf_counter()
        model, setting = train_model()
        path = Path(config.output_dir) / "models" / f"{name}.joblib"
        path.parent.mkdir(exist_ok=True)
        joblib.dump(model, path)
        # What was saved is what is judged.
        score = roc_auc_score(truth, chances(joblib.load(path), x_test))
        rows.append(
            {
                "model": name.replace("_", " "),
                "auc": score,
                "seconds": time.perf_counter() - started,
                "best setting": setting,
            }
        )
        result[f"{name}_auc"] = float(score)
    run.table("late flights", rows)
    best = {"auc": max(result.values())} if result else {}
    return result | best | {"late_share": float(np.mean(truth)), "test_flights": len(truth)}


def blocks_of(frame):
    """A Dask array with a block for each partition that has rows.

    Equal rows give equal blocks, whatever the columns.
    """
    array = frame.to_dask_array(lengths=True)
    return array.blocks[[number for number, rows in enumerate(array.chunks[0]) if rows]]


def as_floats(frame):
    """Dummies are true or false; the array of all columns shall have one kind of number."""
    return frame.astype("float64")


def chances(model, x):
    """Probability of being late of each row of a Dask array, float64 (rows,)."""
    return np.concatenate(
        dask.compute(*[dask.delayed(model.predict_proba)(block)[:, 1] for block in x.to_delayed().ravel()])
    )


def linear(x, y):
    # Distributed: each round every worker sums the gradient over its blocks, and one optimizer (L-BFGS) takes the step.
    model = LogisticRegression(solver="lbfgs", C=10.0, max_iter=30).fit(x, y)
    # The coefficients in scikit-learn's own model: it needs neither Dask nor a cluster to predict.
    local = LocalLogisticRegression()
    local.classes_, local.coef_ = np.array([0.0, 1.0]), model.coef_[None, :]
    local.intercept_ = np.atleast_1d(model.intercept_)
    return local, ""


def incremental(x, y, config):
    # Distributed: one model walks from block to block, each on the worker that has it: no parallel work, but no
    # block travels.
    sgd = SGDClassifier(loss="log_loss", alpha=1e-3, average=True, random_state=config.seed)
    model = Incremental(sgd, shuffle_blocks=False, random_state=config.seed)
    model.fit(x, y, classes=[0.0, 1.0])
    return model.estimator_, ""


def random_search(x, y, config):
    """Settings of the same linear model by chance, each judged by cross-validation on a sample of the blocks."""
    blocks = sample_of(y, config)
    sample, labels = dask.compute(x.blocks[blocks], y.blocks[blocks])
    estimator = SGDClassifier(loss="log_loss", average=True, random_state=config.seed)
    grid = {"alpha": np.logspace(-5, -1, 9).tolist(), "penalty": ["l2", "l1", "elasticnet"]}
    # Distributed: every candidate and fold is a task of one graph; folds and the like that they share are
    # computed once.
    search = RandomizedSearchCV(
        estimator, grid, n_iter=config.search_candidates, cv=FOLDS, scoring="roc_auc", random_state=config.seed
    ).fit(sample, labels)
    return search.best_estimator_, str(search.best_params_)


def boosted_trees(x, y, config, client):
    """Candidates of a grid side by side.

    Each fits on the first four fifths of the training part, and the last fifth decides.
    """
    if client and config.learner_resource:
        check_learner(client, config.learner_resource)
    x, y = dask.compute(x, y)
    cut = int(0.8 * len(x))
    trees = HistGradientBoostingClassifier(max_iter=config.num_trees, random_state=config.seed)
    grid = {"max_depth": [4, 8], "learning_rate": [0.05, 0.1]}
    search = GridSearchCV(
        trees,
        grid,
        scoring="roc_auc",
        cv=[(np.arange(cut), np.arange(cut, len(x)))],
        n_jobs=-1 if client else 1,
        refit=False,
    )
    # Distributed: scikit-learn hands its fits to joblib, and joblib to Dask's workers; the data goes there once, not
    # with each fit.
    with joblib.parallel_config("dask", scatter=[x, y]) if client else contextlib.nullcontext():
        search.fit(x, y)
    trees.set_params(**search.best_params_)
    if not client or not config.learner_resource:
        return trees.fit(x, y), str(search.best_params_)
    # Distributed: on a cluster of unequal workers this fit runs only where there is what it asks for.
    model, place = client.submit(fit_there, trees, x, y, resources={config.learner_resource: 1}).result()
    return model, f"{search.best_params_}, trained by {place}"


def check_learner(client, resource):
    """Raises SystemExit when no worker has the resource: a task that asks for it would wait for ever."""
    # Distributed: the scheduler knows what each worker has.
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if not any(resource in worker["resources"] for worker in workers):
        raise SystemExit(
            f"learner_resource={resource}: none of the {len(workers)} workers has it. Start one with dask worker "
            f"--resources '{resource}=1', say worker_resources, or leave learner_resource out"
        )


def fit_there(model, x, y):
    """Runs on a worker: (fitted model, where)."""
    return model.fit(x, y), f"{socket.gethostname()} pid {os.getpid()}"
