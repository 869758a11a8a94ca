"""`make bench`: how fast longeval is and how much memory it takes, beside a plain transformers loop in the same run.

    python bench/run.py                                  # about 5 minutes on two idle cores
    python bench/run.py --quick                          # under a minute, coarse
    python bench/run.py --lengths 2k,8k --json bench.json

Tables go to stdout, what is being measured to stderr.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Run as a script, only this folder is on the path; with its parent there `bench` is a package, as it is for the tests.
_TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)

if TYPE_CHECKING:
    from bench.batches import Batch
    from bench.engines import Engines
    from bench.measure import Curve, Sliding, Throughput
    from bench.peak import Peak
    from bench.sharing import Sharing
    from bench.show import Results
    from bench.subject import Request

DEFAULT_LENGTHS = "1k,2k,3k"
QUICK_LENGTHS = "256,512"
DEFAULT_REPEATS = 3


def main(
    lengths: Annotated[str | None, typer.Option(help=f"Comma list of tokens; {DEFAULT_LENGTHS} unless given.")] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Comma list; bfloat16 (where the hardware has it) and float32 unless given.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help=f"Of each timing; {DEFAULT_REPEATS} unless given.")] = None,
    model: Annotated[str, typer.Option(help="As longeval's --model.")] = "smollm2-135m-q4",
    device: Annotated[str, typer.Option(help="As longeval's --device.")] = "auto",
    json_path: Annotated[
        str | None, typer.Option("--json", help="Raw numbers with provenance into this file; - is stdout.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Lengths {QUICK_LENGTHS}, one dtype, once each, unless given.")
    ] = False,
) -> None:
    """Measures longeval's speed and memory against a plain transformers loop, in one run on this machine."""
    from longeval.errors import LongEvalError

    try:
        if json_path is not None:
            check_json_path(json_path)
        request = make_request(model, device, lengths=lengths, dtypes=dtypes, repeats=repeats, quick=quick)
        started = time.perf_counter()
        results, device_name = measure(request)
        elapsed_s = time.perf_counter() - started
    except LongEvalError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if json_path is not None:
        write_json(raw_numbers(request, results, device_name, elapsed_s), json_path)
    if json_path != "-":
        from bench.show import open_console, show

        show(results, open_console())
    say(f"{elapsed_s:.0f} s in all, on {device_name}")


def make_request(
    model: str, device: str, *, lengths: str | None, dtypes: str | None, repeats: int | None, quick: bool
) -> Request:
    """The request that the flags make; raises LongEvalError for values that make none."""
    from bench.subject import Request
    from longeval.errors import LongEvalError
    from longeval.models.device import native_bfloat16, resolve_device, resolve_dtype
    from longeval.values import parse_lengths, split_list

    device = resolve_device(device)
    if dtypes is not None:
        names = tuple(dict.fromkeys(resolve_dtype(name, device) for name in split_list(dtypes, flag="--dtypes")))
    else:
        names = ("bfloat16", "float32") if native_bfloat16(device) else ("float32",)
        names = names[:1] if quick else names
    if repeats is None:
        repeats = 1 if quick else DEFAULT_REPEATS
    if repeats < 1:
        raise LongEvalError(f"--repeats {repeats}: must be at least 1", "3 is the default; odd numbers have a median.")
    tokens = parse_lengths(lengths or (QUICK_LENGTHS if quick else DEFAULT_LENGTHS))
    return Request(model=model, lengths=tokens, dtypes=names, repeats=repeats, device=device)


def measure(request: Request) -> tuple[Results, str]:
    """Makes all measurements, and returns them with the device's name."""
    from bench.batches import LENGTHS, measure_batches
    from bench.engines import measure_engines
    from bench.measure import measure_curve, measure_sliding, measure_throughput
    from bench.peak import peak_in_own_process
    from bench.posgen import measure_stepping
    from bench.scale import measure_overheads
    from bench.sharing import measure_sharing
    from bench.show import Results
    from bench.subject import open_ours, open_plain, open_text, serve_shipped

    throughputs: list[Throughput] = []
    peaks: list[Peak] = []
    own: tuple[Curve, Sliding, list[Sharing], list[Batch], list[Engines]] | None = None
    device_name = ""
    texts = {dtype: open_text(request, dtype) for dtype in request.dtypes}  # finds what is wrong with the request
    for dtype in request.dtypes:  # first, while this process holds no memory of the device
        say(f"{dtype}: peak memory and start-up, in processes of their own")
        peaks.append(peak_in_own_process("ours", request, dtype))
        peaks.append(peak_in_own_process("plain", request, dtype))
    for dtype, text in texts.items():
        say(f"{dtype}: tokens per second at {', '.join(map(str, request.lengths))} tokens")
        backend, plain = open_ours(text), open_plain(text)
        device_name = backend.device
        throughputs += measure_throughput(request, dtype, text, backend, plain)
        del plain  # the rest needs one model only
        if own is None:
            say(f"{dtype}: a curve of four lengths against the longest alone")
            curve = measure_curve(request, dtype, backend)
            say(f"{dtype}: a sliding window with and without all logits")
            sliding = measure_sliding(request, dtype, text, backend)
            say(f"{dtype}: choices with and without a shared context")
            sharing = measure_sharing(request, dtype, text, backend)
            say(f"{dtype}: windows of equal length alone and in batches")
            serve_shipped(backend, text)
            batches = measure_batches(
                backend,
                request.model,
                vocab_size=text.work.model.config.get_text_config().vocab_size,
                lengths=[length for length in LENGTHS if length <= request.longest],
                device=request.device,
                repeats=request.repeats if request.warm_up else 1,  # on a CPU these are many seconds
            )
            say(f"{dtype}: transformers against vLLM")
            own = curve, sliding, sharing, batches, measure_engines(request, dtype, text, backend)
        del backend
    assert own is not None
    curve, sliding, sharing, batches, engines = own
    say("PosGen: training steps of one seed; then units of work that do nothing, in this process and with Ray")
    results = Results(
        throughputs=throughputs,
        curve=curve,
        sliding=sliding,
        sharing=sharing,
        batches=batches,
        engines=engines,
        peaks=peaks,
        stepping=list(measure_stepping(request.device, request.repeats)),
        overheads=measure_overheads(),
    )
    return results, device_name


def raw_numbers(request: Request, results: Results, device_name: str, elapsed_s: float) -> dict[str, Any]:
    """All that was measured as plain JSON types: every repeat's seconds, the figures made of them, the provenance."""
    from longeval.store.records import provenance

    def row(
        part: Throughput | Curve | Sliding | Sharing | Batch | Engines, first: str, second: str, **figures: object
    ) -> dict[str, Any]:
        plain = {item.name: getattr(part, item.name) for item in dataclasses.fields(part) if item.name != "timed"}
        timed = part.timed
        errors = {f"{first}_error": timed.first.error, f"{second}_error": timed.second.error}
        seconds = {f"{first}_s": list(timed.first.seconds), f"{second}_s": list(timed.second.seconds)}
        return plain | seconds | {key: error for key, error in errors.items() if error} | figures

    return {
        "request": dataclasses.asdict(request),
        "throughput": [
            row(
                part,
                "longeval",
                "plain",
                tokens_per_s=part.tokens_per_s,
                plain_tokens_per_s=part.plain_tokens_per_s,
                speedup=part.speedup,
            )
            for part in results.throughputs
        ],
        "curve": row(
            results.curve,
            "curve",
            "longest",
            ratio=results.curve.timed.ratio,
            within_limit=results.curve.within_limit,
        ),
        "sliding": row(results.sliding, "all_logits", "tail_only", ratio=results.sliding.timed.ratio),
        "sharing": [row(part, "less", "shared", ratio=part.timed.ratio) for part in results.sharing],
        "batches": [row(part, "single", "batch", ratio=part.timed.ratio) for part in results.batches],
        "engines": [row(part, "hf", "vllm", ratio=part.timed.ratio) for part in results.engines],
        "stepping": [
            dataclasses.asdict(part) | {"steps_per_s": part.steps_per_s, "of_floor": part.of_floor}
            for part in results.stepping
        ],
        "overheads": [dataclasses.asdict(part) | {"ratio": part.ratio} for part in results.overheads],
        "peak": [dataclasses.asdict(peak) | {"extra_bytes": peak.extra_bytes} for peak in results.peaks],
        "elapsed_s": elapsed_s,
        "provenance": dataclasses.asdict(provenance(device_name)),
    }


def check_json_path(path: str) -> None:
    """Raises LongEvalError, minutes before it would be too late, unless a file can be written there."""
    from longeval.errors import LongEvalError

    folder = os.path.dirname(os.path.abspath(path))
    if path != "-" and (os.path.isdir(path) or not os.access(folder, os.W_OK)):
        raise LongEvalError(
            f"--json {path}: no file can be written there", "Name a file in a folder that exists, or - for stdout."
        )


def write_json(numbers: dict[str, Any], path: str) -> None:
    """Whole into a file, or to stdout."""
    import json

    from longeval.files import write_whole

    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        write_whole(path, text.encode())


def say(text: str) -> None:
    """One line on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
