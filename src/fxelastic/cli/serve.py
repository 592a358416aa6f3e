"""``fxelastic serve``: answer requests with the best subnet as the device's load changes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.interrupts import Interrupts
from fxelastic.cli.options import HelpFormatter
from fxelastic.cli.size_options import sizes_of
from fxelastic.errors import UsageError
from fxelastic.extras import required

if TYPE_CHECKING:
    from fxelastic.edge.bundle import Bundle
    from fxelastic.edge.serving.runtime import Runtime

SCHEMA = "fxelastic.serve/1"
DEFAULT_PORT = 8765

_DESCRIPTION = """\
Serve the best subnet of a pool that keeps a latency budget. When other programs
slow the device down, serving switches to a quicker subnet, and back to the better
one when they end. Does not need torch.

Requests come from a folder, from stdin, or over HTTP. Run fxelastic prepare
first: subnets that are not prepared are prepared in the background, which takes
longer and slows requests."""

_EPILOG = f"""\
examples:
  fxelastic serve bundle/ --pool bundle.pool.json --budget-ms 20 --inputs images/ --outputs results/
  fxelastic serve bundle/ --pool bundle.pool.json --budget-ms 20 --stdin < frames.npy > results.npy
  fxelastic serve bundle/ --pool bundle.pool.json --budget-ms 20 --http {DEFAULT_PORT}
  curl -H Content-Type:application/x-npy --data-binary @image.npy \
http://127.0.0.1:{DEFAULT_PORT}/infer > result.npy

exit codes: 0 success, 1 a request failed, 2 usage error, 130 interrupted"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "serve",
        help="answer requests with the best subnet as the device's load changes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_bundle(parser)
    parser.add_argument(
        "--pool", metavar="FILE", required=True, help="the pool that fxelastic search wrote"
    )
    parser.add_argument(
        "--budget-ms",
        metavar="MS",
        type=float,
        required=True,
        help="maximum latency of a request",
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="the latency table that fxelastic profile wrote; it is corrected in place when the "
        "device has changed",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="an .npz file of samples, with targets if the pool was searched with targets: while "
        "no subnet of the pool keeps the budget, a search on this data looks for quicker subnets "
        "and adds them to the pool; needs --table",
    )
    parser.add_argument(
        "--force", action="store_true", help="search on --data even if the table is unusable"
    )
    options.add_score(parser, "the pool's")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--inputs", metavar="DIR", help="make a request of each .npy and .npz file in a folder"
    )
    source.add_argument(
        "--stdin",
        action="store_true",
        help="requests are .npy arrays on stdin, results .npy arrays on stdout",
    )
    source.add_argument(
        "--http",
        metavar="[HOST:]PORT",
        help="serve POST /infer, and GET /status, /metrics, /livez and /readyz "
        "(default HOST: 127.0.0.1)",
    )
    parser.add_argument("--outputs", metavar="DIR", help="the folder for the results of --inputs")
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=options.at_least(1),
        default=1,
        help="number of passes over --inputs (default: 1)",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        default="auto",
        help="assembled runs a subnet as one model, paged loads only the branches in use; "
        "auto chooses by the free memory (default: auto)",
    )
    add_sizes(parser)
    add_limit(parser)
    parser.add_argument(
        "--forecast",
        action="store_true",
        help="switch before the budget is broken, by the load that is expected in a second",
    )
    options.add_values(
        parser,
        (
            "--latency-percentile",
            "P",
            float,
            None,
            "the share of requests, in percent, that are "
            "to keep the budget, such as 95 (default: 50)",
        ),
    )
    parser.add_argument(
        "--prepared",
        metavar="DIR",
        help="the folder that fxelastic prepare wrote (default: BUNDLE.prepared)",
    )
    parser.add_argument("--memory-mb", metavar="MB", type=float, help="maximum memory for weights")
    options.add_threads(parser)
    parser.add_argument(
        "--max-body-mb",
        metavar="MB",
        type=float,
        default=64.0,
        help="largest request over HTTP and stdin (default: 64)",
    )
    parser.add_argument(
        "--run-timeout",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="how long a model may run for a request, which fails then (default: 30)",
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="write requests, subnets and r over time as JSON lines"
    )
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        help="write Prometheus metrics every second, for the textfile collector",
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add ``--sizes``, which `sizes_of` reads."""
    parser.add_argument(
        "--sizes",
        metavar="NAME=SIZE,…",
        help="the sizes of inputs that the budget is for, such as seq=128, if others than the "
        "batch may vary (default: those of the search)",
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add ``--limit``, which `limits_of` reads."""
    parser.add_argument(
        "--limit",
        metavar="RESOURCE=BOUND",
        action="append",
        help="serve only subnets within a limit on another resource, such as weight_bytes=70%%; "
        "may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0 if every request was answered, 1 otherwise.
    """
    _check(args)
    from fxelastic import edge
    from fxelastic.cli.serve_monitor import ServeMonitor
    from fxelastic.edge.serving.forecast_policy import ForecastPolicy
    from fxelastic.edge.serving.policy import RatioPolicy
    from fxelastic.report.trace import Trace

    bundle = options.load_bundle(args)
    pool = read_pool(args.pool, bundle)
    table = read_table(args.table, bundle)
    metrics = _metrics(args)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        monitors: list[ServeMonitor] = []

        def show() -> None:
            """Show the status again after the runtime is closed, to include its last requests."""
            for monitor in monitors:
                monitor.show()

        stack.callback(show)
        trace = None
        if args.trace is not None:
            trace = stack.enter_context(Trace(args.trace, args.budget_ms, time.perf_counter()))

        def on_tick(situation: Any, decision: Any) -> None:
            if metrics is not None:
                metrics.add(situation.load.fresh)
            if trace is not None:
                trace.on_tick(situation, decision)

        options.progress(args, f"loading the best subnet of {args.pool}")
        runtime = stack.enter_context(
            edge.serve(
                bundle,
                table,
                pool,
                budget_ms=args.budget_ms,
                mode=args.mode,
                memory_bytes=options.megabytes(args.memory_mb),
                threads=args.threads,
                run_timeout_s=args.run_timeout,
                sizes=sizes_of(args.sizes),
                latency_percentile=args.latency_percentile,
                policy=ForecastPolicy() if args.forecast else RatioPolicy(),
                data=None if args.data is None else Path(args.data),
                score=options.score(args.score),
                held_out=args.held_out,
                limits=limits_of(args.limit),
                prepared=args.prepared,
                table_path=args.table,
                pool_path=args.pool,
                force=args.force,
                listener=None if trace is None else trace.on_event,
                on_tick=on_tick,
            )
        )
        monitor = stack.enter_context(
            ServeMonitor(runtime, metrics, args.metrics, quiet=args.quiet)
        )
        monitors.append(monitor)
        failed = _serve(args, bundle, runtime, metrics, monitor, interrupts)
        serving = runtime.status()
    # The last requests are counted when the runtime is closed.
    closed = runtime.status()
    status = replace(
        serving, latency=closed.latency, n_over=closed.n_over, n_unmeasured=closed.n_unmeasured
    )
    if trace is not None and trace.error:
        print(f"fxelastic: warning: the trace is incomplete: {trace.error}", file=sys.stderr)
    code = int(failed > 0 or status.n_failed > 0)
    if args.json:
        report = {"schema": SCHEMA, "exit_code": code, "refused": failed, **status.to_json()}
        print(json.dumps(report, indent=2))
    else:
        options.progress(args, f"{status}, {failed + status.n_failed} failed")
    return code


def _serve(
    args: argparse.Namespace,
    bundle: Bundle,
    runtime: Runtime,
    metrics: Any,
    monitor: Any,
    interrupts: Interrupts,
) -> int:
    """Serve one source until it ends; returns the number of invalid requests."""
    from fxelastic.cli import serve_sources

    max_bytes = int(args.max_body_mb * 2**20)
    names = tuple(info.name for info in bundle.inputs)
    results = tuple(result.name for result in bundle.manifest.results)
    if args.inputs is not None:
        outputs = None if args.outputs is None else Path(args.outputs)
        return serve_sources.serve_folder(
            *(runtime, Path(args.inputs), outputs, names, results, args.repeat),
            *(monitor.complain, interrupts),
        )
    if args.stdin:
        return serve_sources.serve_stdin(runtime, names, max_bytes, interrupts)
    serve_sources.serve_http(runtime, names, results, metrics, args.http, max_bytes, monitor.note)
    return 0


def _metrics(args: argparse.Namespace) -> Any:
    """The metrics, if an option requests them."""
    if args.metrics is None and args.http is None:
        return None
    required("prometheus_client", "metrics need prometheus_client", "serve")
    from fxelastic.cli.serve_metrics import Metrics

    return Metrics()


def limits_of(texts: list[str] | None) -> dict[str, str]:
    """Parse texts ``RESOURCE=BOUND`` into bounds by resource."""
    found = {}
    for text in texts or []:
        name, equals, bound = text.partition("=")
        if not equals or not bound or name in found:
            raise UsageError(
                "--limit must be RESOURCE=BOUND, once for each resource",
                expected="for example --limit weight_bytes=70%",
                got=repr(text),
            )
        found[name] = bound
    return found


def read_pool(path: str, bundle: Bundle) -> Any:
    """Read a pool, which must belong to the bundle."""
    from fxelastic.edge.pool import SubnetPool

    pool = SubnetPool.load(path)
    pool.check_bundle(bundle.digest)
    return pool


def read_table(path: str | None, bundle: Bundle) -> Any:
    """Read a latency table, if one was given."""
    if path is None:
        return None
    from fxelastic.spec.latency_table import LatencyTable

    return LatencyTable.load(path)


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError if options are out of range or can't be combined."""
    problem = ""
    if args.outputs is not None and args.inputs is None:
        problem = "--outputs needs --inputs"
    elif args.stdin and args.json:
        problem = "--json and --stdin both write to stdout"
    elif args.data is not None and args.table is None:
        problem = "--data needs --table"
    elif not 0 < args.max_body_mb < 2**20:
        problem = f"--max-body-mb must be above 0 and below {2**20}, got {args.max_body_mb}"
    if problem:
        raise UsageError(problem, fix="see fxelastic serve --help")
