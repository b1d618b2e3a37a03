"""Weights & Biases and TensorBoard as mirrors: whatever becomes of process, server or login, both
end up with each row once, and training does not wait. The server is a small one of our own.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Halts, config, until

from attnlab.benchmarks.gpu.logs import offline_rows
from attnlab.errors import FolderInUse
from attnlab.run import run
from attnlab.runs.folder import RunFolder

SMALL = ["data=nt", "scale=smoke", "model=dot_product", "data.eval_size=8", "runtime.threads=1"]
LONG = [
    *SMALL,
    "trainer.max_steps=120",
    "trainer.eval_every=30",
    "trainer.save_every=40",
    "hydra.run.dir=run",
    "logger=wandb",
]
KEY = {"WANDB_API_KEY": 40 * "a"}
SOON = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # seconds to the next upload; else 15


class Server(ThreadingHTTPServer):
    """What wandb 0.31 asks of a W&B server that has one run; keeps its history and summary."""

    daemon_threads = True

    def __init__(self):
        self.lines, self.summary, self.known = [], {}, False
        self.login, self.gone, self.lock = True, False, threading.Lock()
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", **KEY}

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]

    def leave(self) -> None:
        """Gone from the network: no new connections, and those there are break."""
        with self.lock:
            self.gone = True
        self.shutdown()
        self.server_close()

    def answer(self, query: str, given: dict) -> dict:
        project = {"id": "p", "name": "attnlab", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": given.get("name"), "displayName": "x", "config": "{}"}
        bucket |= {"project": project, "historyLineCount": len(self.lines), "tags": []}
        if "mutation UpsertBucket" in query:
            self.known = True
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "mutation CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        if "query RunResumeStatus" in query:
            bucket |= {"summaryMetrics": json.dumps(self.summary), "wandbConfig": '{"t": 1}'}
            bucket |= {"historyTail": json.dumps(self.lines[-1:]), "eventsTail": "[]"}
            bucket |= {"logLineCount": 0, "eventsLineCount": 0}
            return {"model": {**project, "bucket": bucket if self.known else None}}
        return {}

    def stream(self, files: dict) -> None:
        for name, part in files.items():
            if name == "wandb-history.jsonl":
                self.lines[part["offset"] :] = part["content"]
            if name == "wandb-summary.json":
                self.summary = json.loads(part["content"][-1])


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            if self.server.gone:  # though the connection is older
                self.close_connection = True
            else:
                self.answer(body)

    def answer(self, body: dict) -> None:
        if not self.server.login:
            self.reply({"errors": [{"message": "no such user"}]}, 401)
        elif self.path == "/graphql":
            self.reply({"data": self.server.answer(body["query"], body.get("variables") or {})})
        else:
            self.server.stream(body.get("files") or {})
            self.reply({})

    def reply(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        yield server
        server.shutdown()


def record(folder: Path) -> dict[int, dict]:
    """The files that W&B mirrors: for each step, the values of both."""
    steps: dict[int, dict] = defaultdict(dict)
    for name in ("metrics.jsonl", "timing.jsonl"):
        for line in (folder / name).read_text().splitlines():
            row = json.loads(line)
            steps[row.pop("step")] |= row
    return steps


def mirrored(history: list[dict]) -> dict[int, dict]:
    """The same of W&B's rows; each step must be there once, and in order."""
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps))
    return {
        row["_step"]: {k: v for k, v in row.items() if not k.startswith("_")} for row in history
    }


def events(folder: Path) -> dict[int, dict]:
    """The scalars of all event files: for each step, its values; each must be there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    steps: dict[int, dict] = defaultdict(dict)
    for key in found.Tags()["scalars"]:
        for event in found.Scalars(key):
            assert key not in steps[event.step]
            steps[event.step][key] = event.value
    return steps


def row(number: int) -> tuple[str, int]:
    """The moment before a process writes its own row of that number."""
    return "open a metrics.jsonl", number


def kill(process: subprocess.Popen) -> tuple[str, str]:
    """SIGKILL; what it has written to stdout and stderr."""
    process.kill()
    return process.communicate()


def test_killed_run_is_whole_in_one_offline_run_and_in_tensorboard(start, train, server, tmp_path):
    """First with a server that refuses, then with neither key nor terminal."""
    folder, both = tmp_path / "run", (*LONG[:-1], "logger=[wandb,tensorboard]")
    halts = Halts(tmp_path, row(61))
    process = start(*both, **KEY, WANDB_BASE_URL="http://127.0.0.1:9", **halts.env)
    halts.wait(process)
    _, err = kill(process)
    ahead = events(folder)
    assert max(ahead) == 59  # written row by row, and beyond the checkpoint of step 40
    assert "\nW&B runs offline: http://127.0.0.1:9 does not answer\n" in err
    assert "\nW&B: offline, in run/wandb/offline-run-" in err
    code, _, err = train(*both)
    assert code == 0 and err.count("W&B") == 1  # where it is
    assert "from step 40" in err  # 20 steps were to be done again
    rows = mirrored(offline_rows(folder))
    assert rows == record(folder)
    assert events(folder) == {
        step: {key: pytest.approx(value) for key, value in values.items()}
        for step, values in rows.items()
    }
    assert rows[120].keys() >= {"train/loss", "val/loss", "test/loss", "memory/peak_mib"}

    (directory,) = folder.glob("wandb/offline-run-*")
    sync = [sys.executable, "-m", "wandb", "sync", directory]
    env = {**os.environ, **server.env, "HOME": str(tmp_path)}
    subprocess.run(sync, env=env, check=True, capture_output=True)
    assert mirrored(server.rows) == rows


def test_killed_online_run_continues_its_curve(start, train, server, tmp_path):
    """Killed with the server ahead of the checkpoint, then where the server let nobody in."""
    folder = tmp_path / "run"
    halts = Halts(tmp_path, row(61))
    process = start(*LONG, **server.env, **SOON, **halts.env)
    halts.wait(process)
    until(process, lambda: len(server.lines) > 50)
    kill(process)
    with server.lock:
        ahead, server.login = len(server.lines), False
    halts = Halts(tmp_path, row(61))  # of those from step 40 on
    process = start(*LONG, **server.env, **halts.env)
    halts.wait(process)
    assert re.search("^W&B runs offline: .*no such user", kill(process)[1], re.M)
    server.login = True
    assert len(server.lines) == ahead
    code, _, err = train(*LONG, **server.env)
    assert code == 0 and err.count("W&B") == 1 and "\nW&B: online, http" in err
    rows = record(folder)
    found = mirrored(server.rows)
    assert found.keys() == rows.keys() and not list(folder.glob("wandb/offline-run-*"))
    twice = range(41, ahead + 1)  # timed twice; W&B has the first measurement
    assert [s for s in rows if rows[s] != found[s] and s not in twice] == []
    result = json.loads((folder / "result.json").read_text())
    assert {k: server.summary[k] for k in result} == result


@pytest.mark.parametrize(("mode", "said"), [("offline", "W&B: offline"), ("disabled", "W&B: off")])
def test_the_configuration_decides_and_no_variable(mode, said, train, tmp_path):
    words = (*SMALL, "logger=wandb", f"logger.mode={mode}", "trainer.max_steps=2")
    words += ("trainer.eval_every=2", "hydra.run.dir=run")
    other = {"offline": "disabled", "disabled": "offline"}[mode]
    code, _, err = train(*words, WANDB_MODE=other, WANDB_PROJECT="another")
    assert code == 0 and said in err, err
    assert bool(list(tmp_path.glob("run/wandb/offline-run-*"))) == (mode == "offline")


def test_unreachable_server_does_not_hold_up_training(train, tmp_path):
    """It accepts connections, and that is all."""
    folder = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = (*SMALL, "logger=wandb", "hydra.run.dir=run")
        code, _, err = train(*options, **KEY, WANDB_BASE_URL=silent)
        listener.setblocking(False)
        listener.accept()  # the question whether it answers
        with pytest.raises(BlockingIOError):  # and nothing of wandb, which would wait for answers
            listener.accept()
    assert code == 0 and f"W&B runs offline: {silent} does not answer\n" in err
    assert mirrored(offline_rows(folder)) == record(folder)


MOVING = """
import os
import sys
from pathlib import Path

from attnlab.config.compose import compose_config, plain
from attnlab.config.messages import validate
from attnlab.run import run

cfg = validate(plain(compose_config(sys.argv[1:])))
for place in ("here", "there"):
    os.makedirs(place)
    os.chdir(place)
    run(cfg, Path("run"))
    os.chdir("..")
"""


def test_a_later_run_of_a_process_that_has_moved_to_another_folder(start, cache, tmp_path):
    """W&B's service stays where the first run started it; a run's folder may be relative."""
    (tmp_path / "moving.py").write_text(MOVING)
    words = (*SMALL, "logger=wandb", "logger.mode=offline", f"runtime.cache={cache}")
    process = start(*words, script=str(tmp_path / "moving.py"))
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    for place in ("here", "there"):
        folder = tmp_path / place / "run"
        assert mirrored(offline_rows(folder)) == record(folder)


def test_server_lost_in_mid_run_and_the_rest_uploaded(start, train, server, tmp_path):
    folder = tmp_path / "run"
    halts = Halts(tmp_path, row(41))
    process = start(*LONG, **server.env, **SOON, **halts.env, WANDB_FINISH_TIMEOUT="2")
    halts.wait(process)
    until(process, lambda: len(server.lines) > 20)
    server.leave()
    halts.go_on(process)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0 and "W&B did not get all rows: Timed out" in err
    times = (folder / "timing.jsonl").read_text().splitlines()
    kept = len(server.lines)
    assert kept < len(times)

    back = Server()
    back.lines, back.summary, back.known = server.lines, server.summary, True
    total = len(record(folder))
    for new in (total - kept, 0):
        code, out, err = train("run=run", script="scripts/upload.py", **back.env)
        assert code == 0 and f"{new} of {total} rows are new: http" in out, err
        assert mirrored(back.rows) == record(folder)
    result = json.loads((folder / "result.json").read_text())
    assert {k: back.summary[k] for k in result} == result
    back.shutdown()


def test_a_run_whose_result_cannot_be_written_is_not_called_finished(start, server, tmp_path):
    """Its disk is full when result.json is due."""
    full = Halts(tmp_path, ("open w .result.json.part", 1, "ENOSPC"))
    process = start(*SMALL, "logger=wandb", "hydra.run.dir=run", **server.env, **full.env)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 5 and "result.json: cannot be written (No space left" in err
    assert server.summary["status"] == "failed"


@pytest.fixture
def unmirrored(tmp_path):
    """A finished run that W&B knows nothing of; it skipped its first step, so had no loss then."""
    cfg = config(*SMALL, "logger=none")
    run(cfg, tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text(re.sub('(?<="train/loss": )[^,]+', "null", file.read_text(), count=1))
    return cfg, tmp_path / "run"


def test_upload_writes_an_offline_run(unmirrored, train):
    _, folder = unmirrored
    for _ in range(2):
        code, out, err = train("run", "mode=offline", script="scripts/upload.py")
        assert code == 0 and out.startswith("5 of 5 rows are new: "), (out, err)
        found = mirrored(offline_rows(folder))
        assert found == record(folder) and found[1]["train/loss"] is None


def test_upload_refuses_in_one_line(unmirrored, train):
    cfg, folder = unmirrored
    refused = {"WANDB_BASE_URL": "http://127.0.0.1:9", **KEY}
    for words, env, message in (
        ([], {}, "mode=online: no API key is configured; mode=offline"),
        ([], refused, "mode=online: http://127.0.0.1:9 does not answer; mode=offline"),
        ([], {"WANDB_API_KEY": "short"}, "API key must have 40"),
        (["mode=on"], {}, "mode=on: must be online or offline"),
    ):
        code, _, err = train("run=run", *words, script="scripts/upload.py", **env)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    with RunFolder(folder, cfg):
        code, _, err = train("run=run", script="scripts/upload.py")
    assert code == FolderInUse.exit_code and "in use by process" in err
