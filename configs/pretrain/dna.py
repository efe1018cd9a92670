"""ModernBERT on DNA, whose tokens are k-mers (Ji et al. 2021, Bioinformatics 37(15)).

  plmjax pretrain genome.txt --config=dna:base --workdir=runs/dna

Argument: tiny (two cores) or base (default). A line of the text is a sequence; letters
that are no base (N) are pieces of their own. The k-mers follow each other, as in the
Nucleotide Transformer; DNABERT's overlap, so that a masked one can be read off its
neighbours: with --config.tokenizer.stride=1 add --config.objective.unit=word, which
masks k of them together. For proteins set --config.tokenizer.kind=characters, or k=3
with the size it needs (20 letters give 8,000). The shape is ModernBERT's: in short
runs its tiny one learned more than bert-tiny (docs/tokenizer.md: one seed, and the two
differ in more than positions). Steps, batch and rate of base are DNABERT's, as
recalled; nobody has trained it with plmjax yet.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("tiny", "base")


def get_config(size: str = "base") -> ConfigDict:
    tiny = size == "tiny"
    k, length = (3, 128) if tiny else (6, 512)
    # All k-mers of A, C, G, T and N, the letters and the special tokens, rounded up.
    pieces = 192 if tiny else 15_680
    return ConfigDict(
        {
            "name": f"dna-{size}",
            "data": {
                "source": {"kind": "text", "document": "line"},
                "length": length,
                "held_out_percent": 5.0 if tiny else 0.5,
            },
            "tokenizer": {"kind": "kmer", "k": k, "vocab_size": pieces},
            "model": {"preset": f"modernbert-{size}", "dtype": "bfloat16"},
            "objective": {"kind": "mlm", "unit": "token"},
            "train": {
                "steps": 1500 if tiny else 120_000,
                "batch": 16 if tiny else 2000,
                "evaluate_every_steps": 500 if tiny else 5000,
                "checkpoint_every_steps": 500 if tiny else 5000,
                "optimizer": {
                    "learning_rate": 2e-3 if tiny else 4e-4,
                    "b2": 0.98,
                    "weight_decay": 0.01,
                },
                "schedule": {"warmup_steps": 100 if tiny else 10_000},
            },
        }
    )
