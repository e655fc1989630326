"""`dslc calibrate`: what forwards, rows and context cost on this machine, measured and kept for the schedules."""

from __future__ import annotations

import argparse
from typing import Any

from .cli_run import add_engine_options, engine_options


def add_calibrate(verbs: Any) -> None:
    parser = verbs.add_parser(
        "calibrate",
        help="measure what a model costs on this machine, for the choices of the schedule",
        description="Run a model for about a second, fit what a forward, a row and a token of context cost, and keep "
        "the three on this machine. Which of several orders is cheapest is decided with them.",
    )
    parser.add_argument("--model", metavar="PATH", help="a model folder or hub name (default: the built-in model)")
    add_engine_options(parser)
    parser.set_defaults(verb=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    from . import Engine
    from .compiler.cost import calibrate
    from .compiler.cost_kept import keep

    engine = Engine(model_path=arguments.model, **engine_options(arguments))
    try:
        model = calibrate(engine)
        path = keep(model, engine)
    finally:
        engine.close()
    print(f"per forward            {model.per_forward_s * 1e3:10.4f} ms")
    print(f"per row                {model.per_row_s * 1e6:10.4f} us")
    print(f"per row and token      {model.per_context_s * 1e9:10.4f} ns")
    print(f"kept in {path}" if path is not None else "not kept: DSLC_CACHE_DIR is off")
    return 0
