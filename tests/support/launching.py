"""Runs whose worker or machine is lost, by Ray on a cluster of two nodes of this machine and by submitit's local
executor. tests/experiments/test_launchers.py starts it as a program, with this file as a plug-in too.

Each run waits in its reward, once its first checkpoint is there, until this program has done to it what is due.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path

from sdpo_bench.rewards.base import Reward

ROOT = "SDPO_BENCH_TEST_FOLDER"  # environment variable, which launchers pass on to workers


class Waiting(Reward):
    """The mean brightness, at the price of a wait: see the file's docstring."""

    title = "Waiting"
    licence = "MIT"
    revision = "1"
    scale = "0..1"

    def __call__(self, images, prompts):
        root = Path(os.environ[ROOT])
        marker = root / f"{self.name}.json"
        if any(root.glob(f"*/raw/*-{self.name}-*/checkpoint.pt")) and not marker.exists():
            place = {"pid": os.getpid(), "node": node()}
            marker.with_suffix(".new").write_text(json.dumps(place))
            marker.with_suffix(".new").rename(marker)
            end = time.monotonic() + 600
            while not (root / "go").exists() and time.monotonic() < end:
                time.sleep(0.05)
        return images.float().mean((1, 2, 3)).cpu()


class First(Waiting):
    name = "first"


class Second(Waiting):
    name = "second"


class Third(Waiting):
    name = "third"


class Fourth(Waiting):
    name = "fourth"


def node() -> str:
    """The Ray node that this process is of, if any."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


def main(root: Path, model: Path) -> None:
    from conftest import TINY

    from sdpo_bench.config import RunConfig
    from sdpo_bench.experiments import cost_model, remote, runner
    from sdpo_bench.experiments.progress import Progress
    from sdpo_bench.experiments.runs import plan
    from sdpo_bench.training.loop import train

    remote.LOOK_SECONDS = 0.2
    told, found = io.StringIO(), {}

    class Acting(Progress):
        """Does to the waiting runs what is due, once all of them wait."""

        def update(self, worker=None, reward=None):
            places = {run.config.reward: root / f"{run.config.reward}.json" for run in self.runs}
            if all(path.exists() for path in places.values()) and not self.acted:
                self.acted = True
                self.act({name: json.loads(path.read_text()) for name, path in places.items()})
            super().update(worker, reward)

    def make(launcher, options, names, act, epochs=4):
        configs = [RunConfig(model=str(model), **TINY | {"reward": name, "epochs": epochs}) for name in names]
        folder = root / names[0]
        runs = plan(folder, configs, cost_model.Cost())

        def progress(runs, workers, remote):
            made = Acting(runs, workers, told, remote)
            made.act, made.acted = act, False
            return made

        runner.Progress = progress
        try:
            runner.execute_elsewhere(runs, 2, folder, launcher, options)
        finally:
            files = len(list(folder.glob("logs/*")))
            for run in runs:
                result = {"folder": str(run.folder), "state": run.state, "message": run.message, "files": files}
                found[run.config.reward] = result
        return runs

    def kill(places):
        for place in places.values():
            os.kill(place["pid"], signal.SIGKILL)

    (run,) = make("slurm", {"cluster": "local"}, ["third"], kill)
    with_ray(root, make)
    # What the interrupted run has to be like, from this process and without an interruption.
    train(run.config, root / "whole" / run.name)
    (root / "found.json").write_text(json.dumps(found | {"told": told.getvalue()}))


def with_ray(root, make):
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args=small | without)
    try:
        other = cluster.add_node(**small)
        options = {"address": cluster.address}

        def lose(places):
            """A worker of the one node, and the other node as a whole."""
            assert {place["node"] for place in places.values()} > {other.node_id}, "each node has a run"
            for place in places.values():
                if place["node"] != other.node_id:
                    os.kill(place["pid"], signal.SIGKILL)
            cluster.remove_node(other, allow_graceful=False)

        def interrupt(_):
            (root / "go").touch()
            raise KeyboardInterrupt

        make("ray", options, ["first", "second"], lose)
        try:
            make("ray", options, ["fourth"], interrupt, epochs=5000)
        except KeyboardInterrupt:
            (root / "interrupted").touch()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(Path(os.environ[ROOT]), Path(sys.argv[1]))
