"""Classifies the texts of `models.text_classification` by TF-IDF and logistic regression.

  .venv/bin/pip install -c constraints.txt -e '.[compare]' && make data-text_classification
  python -m benchmarks.tfidf

scikit-learn's classifiers see the same texts, and are judged by the same ones that are held out.
The strength of the regularization, and whether all classes weigh the same, are chosen by five-fold
cross-validation on the texts to train on.
"""

import numpy as np
from absl import app, flags
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from models import packages, tables
from models.text_classification import confusion, examples

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(packages)

_CHOICES = {
    "logisticregression__C": [0.5, 2.0, 8.0],
    "logisticregression__class_weight": [None, "balanced"],
}


def main(argv: list[str]) -> None:
    """Prints a line for words, and one for words and pairs of words."""
    found = examples.Examples.of(examples.reviews(), examples.REVIEW_TEXT, examples.REVIEW_LABEL)
    training, held = tables.held_out(len(found.classes))
    texts, classes = found.texts[training], found.classes[training]
    print("| TF-IDF of | macro-F1 | accuracy | chosen |\n|---|---:|---:|---|")
    for title, longest in {"words": 1, "words and pairs of words": 2}.items():
        pipeline = make_pipeline(
            TfidfVectorizer(ngram_range=(1, longest), min_df=2, sublinear_tf=True),
            LogisticRegression(max_iter=1000),
        )
        search = GridSearchCV(pipeline, _CHOICES, scoring="f1_macro", n_jobs=2)
        search.fit(texts, classes)
        counts = confusion.matrix(
            found.classes[held], search.predict(found.texts[held]), len(found.names)
        )
        accuracy = np.diag(counts).sum() / counts.sum()
        chosen = ", ".join(f"{k.rpartition('_')[2]} {v}" for k, v in search.best_params_.items())
        print(f"| {title} | {confusion.macro_f1(counts):.4f} | {accuracy:.4f} | {chosen} |")


if __name__ == "__main__":
    app.run(main)
