"""Which language is a surname from? A convolutional network over characters, compared with scikit-learn's character n-grams.

python examples/names.py                # needs faker and scikit-learn: pip install faker ".[sklearn]"
python examples/names.py --limit 200    # of each language
python examples/names.py --ask Rossi Virtanen

The names are those of the package faker. A name of several languages is left out: no answer would be right.
"""

import argparse
from collections import Counter
from importlib import import_module

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import nnlite as nn

LANGUAGES = {
    "Croatian": "hr_HR",
    "Dutch": "nl_NL",
    "English": "en_US",
    "Finnish": "fi_FI",
    "French": "fr_FR",
    "German": "de_AT",
    "Irish": "ga_IE",
    "Italian": "it_IT",
    "Slovak": "sk_SK",
    "Spanish": "es_ES",
}
LENGTH = 20  # characters of a name that are read


def surnames(limit: int | None, seed: int) -> tuple[list[str], np.ndarray]:
    """Names in lower case, in a drawn order, and the places of their languages."""
    lists = []
    for locale in LANGUAGES.values():
        try:
            found = import_module(f"faker.providers.person.{locale}").Provider.last_names
        except ImportError as error:
            raise SystemExit("the names need the package faker: pip install faker") from error
        lists.append(sorted({name.lower() for name in found}))
    count = Counter(name for names in lists for name in names)
    rng, pairs = np.random.default_rng(seed), []
    for label, names in enumerate(lists):
        own = [name for name in names if count[name] == 1]
        pairs += [(own[i], label) for i in rng.permutation(len(own))[:limit]]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return [name for name, _ in pairs], np.array([label for _, label in pairs])


def as_ids(names: list[str], alphabet: str) -> np.ndarray:
    """(N, LENGTH) ids: 0 before and behind a name, 1 for characters that are not in the alphabet."""
    ids = np.zeros((len(names), LENGTH), "uint8")
    for row, name in zip(ids, names, strict=True):
        row[1 : 1 + min(len(name), LENGTH - 2)] = [alphabet.find(c) + 2 for c in name[: LENGTH - 2]]
    return ids


def network(characters: int, seed: int) -> nn.Sequential:
    """The strongest match of each learnt group of 2, 3, 4 characters anywhere in the name."""
    groups = [[nn.Conv1D(96, k, padding="same"), nn.ReLU(), nn.GlobalMaxPool1D()] for k in (2, 3, 4)]
    layers = nn.Embedding(characters, 24), nn.Concat(*groups), nn.Dropout(0.5), nn.Dense(len(LANGUAGES))
    return nn.Sequential(*layers, input_shape=(LENGTH,), seed=seed)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use only this many names of each language")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ask", nargs="*", default=[], help="names to classify")
    args = parser.parse_args(arguments)

    names, t = surnames(args.limit, args.seed)
    cut = len(names) * 4 // 5
    alphabet = "".join(sorted(set("".join(names[:cut]))))
    x = as_ids(names, alphabet)

    model = network(len(alphabet) + 2, args.seed)
    trainer = nn.Trainer(model, nn.CrossEntropy(), nn.AdamW(nn.schedules.cosine(4e-3, args.epochs * -(-cut // 64))))
    trainer.fit((x[:cut], t[:cut]), epochs=args.epochs, batch_size=64, seed=args.seed, progress=False)
    grams = make_pipeline(CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)), LogisticRegression(C=3, max_iter=500))
    grams.fit(names[:cut], t[:cut])

    results = {
        "character CNN": float((model(x[cut:]).argmax(axis=1) == t[cut:]).mean()),
        "n-grams": float((grams.predict(names[cut:]) == t[cut:]).mean()),
    }
    print(f"{cut} names to learn from, {len(names) - cut} to test, {len(LANGUAGES)} languages, {len(alphabet)} characters")
    for name, accuracy in results.items():
        print(f"{name:<15}  accuracy {accuracy:.4f}")
    for name in args.ask:
        y = nn.softmax(model(as_ids([name.lower()], alphabet)))[0]
        best = np.argsort(-y)[:3]
        print(f"{name}: " + ", ".join(f"{list(LANGUAGES)[i]} {y[i]:.0%}" for i in best))
    return results


if __name__ == "__main__":
    main()
