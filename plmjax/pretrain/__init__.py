"""Pretraining: trains a model on text and exports it in the Hugging Face format."""


def __getattr__(name: str):
    # Scripts use `from plmjax import pretrain; pretrain.pretrain(config, path)`.
    if name == "pretrain":
        from plmjax.pretrain.run import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
