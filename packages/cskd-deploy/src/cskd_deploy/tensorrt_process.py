"""TensorRT in a process of its own, so that its crash is a message and not the end of ours."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import IO, Any

from cskd_deploy.errors import BackendMissing, DeployError

MOST_LINES = 5


def run_apart(
    action: str, arguments: Mapping[str, Any], progress: Callable[[float], None] = lambda done: None
) -> dict[str, Any]:
    """Let `tensorrt_child` do something.

    Args:
        action: a key of `tensorrt_child.ACTIONS`.
        arguments: plain data.
        progress: called with the done part of the work, from 0 to 1.

    Returns:
        Plain data.

    Raises:
        DeployError: what the child reported, or that it crashed, by which signal, and what it said last.
        BackendMissing: as the child reported.
    """
    command = [sys.executable, "-m", "cskd_deploy.tensorrt_child"]
    with tempfile.TemporaryFile() as errors:
        # In a session of its own: an interrupt reaches this process alone, which then ends the child.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            result = _talk(child, {"action": action, "arguments": dict(arguments)}, progress)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        if result is None:
            raise DeployError(_crash(action, code, errors))
    if "error" in result:
        kind = BackendMissing if result["missing"] else DeployError
        raise kind(result["error"])
    return result


def _talk(child: subprocess.Popen[bytes], job: Any, progress: Callable[[float], None]) -> dict[str, Any] | None:
    """Hand the job over and read what comes back, line by line; None when it ends without a result."""
    assert child.stdin is not None
    assert child.stdout is not None
    result = None
    try:
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()
    except BrokenPipeError:  # it has crashed already
        return None
    for line in child.stdout:
        if not line.endswith(b"\n"):  # it was ended while it wrote
            break
        message = json.loads(line)
        if "progress" in message:
            progress(message["progress"])
        else:
            result = message
    child.stdout.close()
    return result


def _crash(action: str, code: int, errors: IO[bytes]) -> str:
    if code < 0:
        names = {one.value: one.name for one in signal.Signals}
        ended = f"was ended by {names.get(-code, f'signal {-code}')}"
        if -code == signal.SIGKILL:
            ended += " (did memory run out?)"
    else:
        ended = f"ended with code {code} and no result"
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    last = " | ".join(lines[-MOST_LINES:])
    return f"TensorRT crashed ({action}): its process {ended}" + (f". It said last: {last}" if last else "")
