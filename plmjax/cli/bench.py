"""`plmjax bench`."""

import os
from pathlib import Path

from plmjax import Exit
from plmjax.cli.options import (
    at_least_one,
    json_option,
    load_config,
    log,
    numbers,
    start_jax,
)


def add(verb) -> None:
    added = verb(
        "bench",
        None,
        "measure speed: of training, of preparing text, against Hugging Face, at scale",
        "plmjax bench peer --dtype=both --compile",
    )
    _bench_verbs(verb, added.add_subparsers(dest="what", metavar="WHAT", required=True))


def _bench_verbs(verb, benches) -> None:
    added = verb(
        "train",
        _bench_train,
        "time the training step of a config on its own data",
        "plmjax bench train --config=configs/pretrain/bert_mini.py --steps=50",
        config=True,
        of=benches,
    )
    added.add_argument("--steps", type=int, default=20, help="steps that are timed")
    added.add_argument("--workdir", help="a run whose config and data are used")
    json_option(added)

    added = verb(
        "peer",
        _bench_peer,
        "train the same model on the same text with plmjax and with Hugging Face",
        "plmjax bench peer --preset=bert-mini --dtype=both --compile --padding=both",
        of=benches,
    )
    add = added.add_argument
    kinds = ("mlm", "electra", "distill")
    add("--objective", choices=kinds, default="mlm", help="what is trained")
    add(
        "--preset",
        help="model; electra's discriminator, distill's teacher (default: bert-mini, "
        "electra-small)",
    )
    add("--length", type=int, default=128, help="tokens a row")
    add("--batch", type=int, default=16, help="rows a step")
    add("--dtype", choices=("float32", "bfloat16", "both"), default="both")
    padding = ("group_texts", "line_by_line", "both")
    add("--padding", choices=padding, default="group_texts", help="the peer's rows")
    add("--compile", action="store_true", help="measure torch.compile, too")
    add("--rounds", type=int, default=5, help="how often the sides take turns")
    add("--steps", type=int, default=10, help="steps a turn")
    add("--to_loss", type=int, default=0, metavar="STEPS", help="race so many steps")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="where both train")
    add("--paths", help="text files (default: docstrings of installed packages)")
    add("--vocab", metavar="PATH", help="a tokenizer (default: made from the text)")
    add("--vocab_size", type=int, help="rows of the model's table (default: 30522)")
    json_option(added)

    added = verb(
        "prepare",
        _bench_prepare,
        "time text to tokens against datasets.map(tokenizer) + group_texts",
        "plmjax bench prepare --paths='texts/*.txt' --workers=2",
        of=benches,
    )
    added.add_argument("--paths", required=True, help="text files")
    added.add_argument("--rounds", type=int, default=3)
    added.add_argument("--workers", type=int, default=1, help="processes a side")
    json_option(added)

    _scaling_verb(verb, benches)


def _scaling_verb(verb, benches) -> None:
    added = verb(
        "scaling",
        _bench_scaling,
        "compile the step for 8 to 512 virtual devices, and say what to expect, on "
        "paper, of 8 to 4,096 chips",
        "plmjax bench scaling --preset=bert-base --devices=8,64,512 --batch=4096",
        of=benches,
    )
    add = added.add_argument
    add("--preset", default="bert-base", help="model; its family says the objective")
    add("--devices", default="8,64,512", help="virtual devices that are compiled for")
    add("--length", type=int, default=128, help="tokens a row")
    add("--batch", type=int, default=4096, help="rows a step of the throughputs")
    add("--mfu", type=float, default=0.4, help="share of the peak that a chip reaches")
    add("--meshes", default="data,zero1,fsdp,tensor", help="some of these, by commas")
    add("--fsdp", type=int, default=8, help="devices along fsdp on that mesh")
    add("--tensor", type=int, default=4, help="devices along tensor on that mesh")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--full", action="store_true", help="compile all layers, not one and two")
    json_option(added)


def _bench_train(args) -> int:
    from plmjax import config as config_lib
    from plmjax.workdir import RunConfig, Workdir

    at_least_one(args, "steps")
    workdir = Path(args.workdir) if args.workdir else None
    if workdir and args.config is None:
        base = config_lib.to_dict(Workdir(workdir).config())
        config = config_lib.load(RunConfig, None, args.overrides, base)
    else:
        config = load_config(args, workdir)
    start_jax()
    from plmjax.bench import train

    return _bench_result(
        args, train, train.bench_train(config, args.steps, workdir, log)
    )


def _bench_peer(args) -> int:
    # This process prepares: the sides have the device, and one each.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    start_jax()
    from plmjax.bench import case, peer

    config = case.PeerConfig(
        paths=args.paths,
        vocab=args.vocab,
        vocab_size=args.vocab_size,
        objective=args.objective,
        preset=args.preset,
        length=args.length,
        batch=args.batch,
        dtypes=case.DTYPES if args.dtype == "both" else (args.dtype,),
        paddings=case.PADDINGS if args.padding == "both" else (args.padding,),
        compile=args.compile,
        rounds=args.rounds,
        steps=args.steps,
        to_loss=args.to_loss,
        device=args.device,
    )
    return _bench_result(args, peer, peer.bench_peer(config, log))


def _bench_prepare(args) -> int:
    from plmjax.bench import prepare

    at_least_one(args, "rounds", "workers")
    result = prepare.bench_prepare(args.paths, None, args.rounds, args.workers)
    return _bench_result(args, prepare, result)


def _bench_scaling(args) -> int:
    from plmjax.bench import scaling

    at_least_one(args, "length", "batch", "fsdp", "tensor")
    config = scaling.ScalingConfig(
        preset=args.preset,
        devices=numbers(args.devices, "devices"),
        length=args.length,
        batch=args.batch,
        mfu=args.mfu,
        meshes=tuple(args.meshes.split(",")),
        fsdp=args.fsdp,
        tensor=args.tensor,
        dtype=args.dtype,
        full=args.full,
    )
    return _bench_result(args, scaling, scaling.bench_scaling(config, log))


def _bench_result(args, bench, result: dict) -> int:
    import json

    print(json.dumps(result) if args.json else bench.as_text(result))
    return Exit.OK
