"""Documents that are a field of records: jsonl, parquet, Hugging Face datasets, tfds."""

from plmjax.data.corpus import Source, SourceConfig


def open_jsonl(config: SourceConfig, errors: str) -> Source: raise NotImplementedError
def open_parquet(config: SourceConfig, errors: str) -> Source: raise NotImplementedError
def open_hf(config: SourceConfig, errors: str) -> Source: raise NotImplementedError
def open_tfds(config: SourceConfig, errors: str) -> Source: raise NotImplementedError
