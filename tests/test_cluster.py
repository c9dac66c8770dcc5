"""Several worker processes: what they learn and judge together is what one does, and losing one loses nothing saved."""

import json
import signal

import pytest

from caps_tf.training.checkpoints import list_checkpoints
from tests.clusters import Cluster, free_ports
from tests.runs import assert_learned_the_same, assert_same_weights, log_lines, train, weights
from tests.small_norb import SMALL_DATA, TINY, expect_one_line, run_script

# Without dropout, whose masks depend on how many devices draw them.
SLOW = ("--network=cnn_baseline", "--dropout=0", "--lrn_rate=1e-5", "--checkpoint_every=4", "--log_every=2")


@pytest.fixture(scope="module")
def alone(storage):
    """Two epochs on one device, which clusters are compared with."""
    return train(storage, "alone", *SLOW, "--epoch=2")


def run_directory(storage, name):
    [directory] = (storage / "logs" / "smallNORB").glob(f"*_{name}")
    return directory


def last_step(storage, name):
    try:
        return log_lines(run_directory(storage, name), "train")[-1]["step"]
    except (ValueError, FileNotFoundError, IndexError):  # not yet, or a line is being written
        return 0


def report_of(directory):
    [path] = (directory / "test").glob("*/report.json")
    report = json.loads(path.read_text())
    path.unlink()
    return report["parts"]["test"]


@pytest.mark.campaign
@pytest.mark.parametrize("size", [2, 3])
def test_workers_learn_and_judge_what_one_process_does_and_their_checkpoints_serve_both(
    storage, alone, size, record_property
):
    # 32 examples are 11 + 11 + 10 for three workers; 37 leave a last batch of 8, filled up to 37.
    begun_alone = train(storage, f"then{size}", *SLOW, "--epoch=1")
    with Cluster(size) as cluster:
        flags = (*SMALL_DATA, *SLOW, f"--storage={storage}", f"--name=workers{size}_{{index}}", "--epoch=1")
        cluster.start("train_val.py", *flags)
        cluster.end()
        assert not list((storage / "logs" / "smallNORB").glob(f"*_workers{size}_1"))
        begun_together = run_directory(storage, f"workers{size}_0")
        run_script("train_val.py", f"--load_dir={begun_together}", "--epoch=2")
        assert_learned_the_same(begun_together, alone)

        cluster.start("train_val.py", f"--load_dir={begun_alone}", "--epoch=2")
        cluster.end()
        assert_learned_the_same(begun_alone, alone)

        run_script("test.py", f"--load_dir={begun_alone}", "--batch_size=37")
        expected = report_of(begun_alone)
        cluster.start("test.py", f"--load_dir={begun_alone}", "--batch_size=37")
        cluster.end()
        found = report_of(begun_alone)
    assert found["num_examples"] == expected["num_examples"] == 600
    assert found["confusion"] == expected["confusion"]
    record_property("examples lost", 600 - found["num_examples"])


@pytest.mark.campaign
def test_three_devices_judge_every_example_once(storage, alone, record_property):
    run_script("test.py", f"--load_dir={alone}", "--batch_size=37")
    expected = report_of(alone)
    run_script("test.py", f"--load_dir={alone}", "--batch_size=37", "--num_gpus=3")
    found = report_of(alone)
    assert found["num_examples"] == 600 and found["confusion"] == expected["confusion"]
    record_property("examples lost", 600 - found["num_examples"])


@pytest.fixture(scope="module")
def together(storage):
    """Two epochs of two workers that nobody disturbed."""
    with Cluster(2) as cluster:
        cluster.start("train_val.py", *SMALL_DATA, *SLOW, f"--storage={storage}", "--name=calm{index}", "--epoch=2")
        cluster.end()
    return run_directory(storage, "calm0")


@pytest.mark.campaign
@pytest.mark.parametrize("victim", [1, 0], ids=["a worker", "the chief"])
def test_when_one_is_killed_the_others_stop_with_one_line_and_the_restarted_cluster_resumes(
    storage, together, victim, record_property
):
    name = f"victim{victim}_"
    with Cluster(2) as cluster:
        cluster.start(
            "train_val.py", *SMALL_DATA, *SLOW, f"--storage={storage}", f"--name={name}{{index}}", "--epoch=2"
        )
        cluster.wait_until(lambda: last_step(storage, f"{name}0") >= 10)
        cluster.workers[victim].kill()
        printed, seconds = cluster.end(code=1, timeout=150)
        assert seconds < 120
        survivor = printed[1 - victim]
        errors = [line for line in survivor.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "Traceback" not in survivor, survivor
        assert "start all of them again with --load_dir" in errors[0]

        directory = run_directory(storage, f"{name}0")
        cluster.start("train_val.py", f"--load_dir={directory}")
        cluster.end()
    assert_same_weights(weights(directory), weights(together))
    record_property("workers lost and clusters resumed", 1)


@pytest.mark.campaign
def test_sigterm_to_one_worker_saves_and_stops_all_of_them_at_one_step(storage, together, record_property):
    with Cluster(2) as cluster:
        cluster.start(
            "train_val.py", *SMALL_DATA, *SLOW, f"--storage={storage}", "--name=preempted{index}", "--epoch=2"
        )
        cluster.wait_until(lambda: last_step(storage, "preempted0") >= 6)
        cluster.workers[1].send_signal(signal.SIGTERM)
        printed, seconds = cluster.end(code=143)
        assert seconds < 30
        directory = run_directory(storage, "preempted0")
        saved = list_checkpoints(directory / "train" / "checkpoints")[-1].removeprefix("step-")
        assert all(f"step {saved} is saved" in text and "Traceback" not in text for text in printed), printed
        cluster.start("train_val.py", f"--load_dir={directory}")
        cluster.end()
    assert_same_weights(weights(directory), weights(together))
    record_property("preemptions survived", 1)


@pytest.mark.campaign
def test_the_tasks_of_a_slurm_job_step_train_together(storage, alone):
    # What srun sets, for two tasks on this host.
    job = free_ports(1)[0] - 20_000
    variables = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    tasks = [{**variables, "SLURM_PROCID": str(index)} for index in range(2)]
    flags = (*SMALL_DATA, *SLOW, f"--storage={storage}", "--name=slurm{index}", "--epoch=2", "--cluster=slurm")
    with Cluster(2) as cluster:
        cluster.start("train_val.py", *flags, environments=tasks)
        cluster.end()
    assert_learned_the_same(run_directory(storage, "slurm0"), alone)


def test_a_cluster_that_cannot_be_is_one_clear_line(storage):
    process = run_script("train_val.py", *TINY, f"--storage={storage}", "--cluster=slurm", check=False)
    expect_one_line(process, "start the program with srun", "docs/CLUSTER.md")
