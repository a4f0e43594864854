import pytest

from experiments.runs import execute
from experiments.workspace import Workspace


@pytest.fixture(scope="session")
def make_workspace(data_dir, tmp_path_factory):
    """Describe a world of the tiny prepared domains, trained in a moment."""

    def make(folder=None, **changes):
        folder = folder or tmp_path_factory.mktemp("studies")
        described = {
            "name": "tiny",
            "data_dir": data_dir,
            "runs_dir": folder / "runs",
            "reports_dir": folder / "reports",
            "pretraining": ("MiniFood", "MiniHome"),
            "downstream": ("MiniOffice",),
            "presets": {},
            "settings": SETTINGS,
        }
        return Workspace(**(described | changes))

    return make


SETTINGS = (
    "model.d_model=16",
    "model.d_feed_forward=16",
    "model.d_state=4",
    "model.head_dim=8",
    "model.num_groups=2",
    "model.max_len=6",
    "optimizer.lr=0.01",
    "data.batch_size=64",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "evaluation.bootstrap_samples=100",
)


@pytest.fixture
def run_study():
    """Do the runs of a study as `reproduce` does them; return its sections."""

    def run(study, workspace, seeds=1):
        study.prepare(workspace, lambda line: None)
        lines = []
        outcomes = execute(study.specs(workspace, seeds), workspace, echo=lines.append, jobs=1)
        failed = [outcome.failure for outcome in outcomes.values() if outcome.failure]
        assert failed == []
        return study.sections(workspace, seeds, outcomes)

    return run
