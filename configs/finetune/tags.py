"""One tag a word: names of persons and locations, parts of speech.

  plmjax finetune --config=tags --config.model=runs/mine \\
      --config.task.train=train.conll --config.task.held_out=dev.conll \\
      --config.task.test=test.conll --workdir=runs/names
  plmjax finetune --config=tags:upos --config.model=runs/mine \\
      --config.task.train=train.conllu --config.task.held_out=dev.conllu \\
      --workdir=runs/upos

CoNLL: token and tag on a line, a blank line between sentences. With B- and I- (or
BILOU, BMES, ...) the score is the F1 of entities, else the accuracy of tags. Arguments:
names, upos, xpos (columns of CoNLL-U).
"""

from ml_collections import ConfigDict

COLUMNS = {"names": {}, "upos": {"tags": "UPOS"}, "xpos": {"tags": "XPOS"}}
ARGUMENTS = tuple(COLUMNS)


def get_config(what: str = "names") -> ConfigDict:
    return ConfigDict(
        {
            "task": {"kind": "tags", "length": 128, "columns": COLUMNS[what]},
            "start": {"dropout": 0.1},
            "train": {
                "epochs": 5.0,
                "batch": 32,
                "optimizer": {"learning_rate": 5e-5, "b2": 0.999},
                "schedule": {"warmup_percent": 10.0},
            },
        }
    )
