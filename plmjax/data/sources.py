"""Sources of documents: one function for each kind, all with the same interface."""

from plmjax import PlmjaxError
from plmjax.data.corpus import ERRORS, Source, SourceConfig
from plmjax.data.docstrings import open_docstrings
from plmjax.data.tables import open_hf, open_jsonl, open_parquet, open_prepared
from plmjax.data.text import open_text

__all__ = ["SOURCES", "Source", "SourceConfig", "open_source"]

SOURCES = {
    "docstrings": open_docstrings,
    "text": open_text,
    "jsonl": open_jsonl,
    "parquet": open_parquet,
    "hf": open_hf,
    "tfds": open_prepared,
}


def open_source(config: SourceConfig, errors: str = "strict") -> Source:
    """Opens the corpus that config names; `errors` (strict, replace): invalid UTF-8.

    Raises PlmjaxError: code 2 for an error in the config, 3 for one in the data.
    """
    if config.kind not in SOURCES:
        raise PlmjaxError(
            f"data.source.kind={config.kind!r} is not known.",
            hint=f"Known kinds: {', '.join(SOURCES)}.",
        )
    if errors not in ERRORS:
        raise PlmjaxError(
            f"data.errors={errors!r} is not known.",
            hint=f"Choose one of {', '.join(ERRORS)}.",
        )
    return SOURCES[config.kind](config, errors)
