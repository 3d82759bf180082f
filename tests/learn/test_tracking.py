"""A run that logs to a real MLflow server, and to an unreachable Weights & Biases."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from learn.servers import wait_until_it_answers
from learn.test_local_files import Machine
from mlflow import MlflowClient
from tunemill_api.stage_report import Stage
from tunemill_dev.cluster.ports import free_ports

MLFLOW = Path(__file__).parents[2] / "build" / "mlflow" / "bin"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server that stores the files of its runs."""
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = free_ports(1)
    command = [MLFLOW / "python", MLFLOW / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(process, f"{url}/health", log)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_run_is_logged_with_settings_losses_metrics_and_report(server: str, tmp_path: Path) -> None:
    """Train and evaluate log to one run, which is then finished; the unreachable tracker has no effect."""
    machine = Machine(tmp_path)
    (port,) = free_ports(1)
    nowhere = {"endpoint": f"http://127.0.0.1:{port}", "tokenSecretRef": {"name": "wandb"}}
    machine.spec["tracking"] = {"mlflow": {"uri": server, "experiment": "help desk"}, "wandb": nowhere}
    code, printed, executed = machine.run()
    assert (code, executed) == (0, list(Stage)), printed
    assert "Weights & Biases: cannot open the run" in printed
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("help desk")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.maxSteps"] == "3"
    assert run.data.params["adapter.lora.rank"] == "4"
    assert run.data.tags["tunemill.object"] == "default/t"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [each.step for each in losses] == [1, 2, 3]
    assert {"base/exact_match", "tuned/exact_match", "train/learning_rate", "eval/loss"} <= run.data.metrics.keys()
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"report.json", "report.html"}
    texts = [str(each) for each in (run.data.params, run.data.tags)]
    assert not [text for text in texts if str(tmp_path / "data") in text], "the place of the data is in the tracker"
