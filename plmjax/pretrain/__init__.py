"""Pretraining: text in, a trained model in the Hugging Face format out."""


def __getattr__(name: str):
    # `from plmjax import pretrain; pretrain.pretrain(config, path)`, as scripts do.
    if name == "pretrain":
        from plmjax.pretrain.run import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
