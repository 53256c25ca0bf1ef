"""The weights of the best step are held against their hashes before they are taken."""

import shutil

import pytest

from tunegate.core.errors import InfrastructureError
from tunegate.core.model_source import resolve
from tunegate.train import saving, sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.work import working_folder

pytestmark = pytest.mark.usefixtures("one_thread")

# At no rate to speak of the first evaluation is the best, and the last weights are others.
SHORT = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "validation_share": 0.1,
         "learning_rate": 1e-12, "save_steps": 1, "eval_steps": 1, "rank": 4}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def ended(tiny_model, tiny_dataset, tmp_path_factory):
    """A run that could not be written after its last step: its working folder is whole. Read-only: copy it."""

    def full(*_, **__):
        raise InfrastructureError("no space left on the device")

    out = tmp_path_factory.mktemp("ended") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "save", full)
        with pytest.raises(InfrastructureError):
            _train(tiny_model, tiny_dataset, out, resume=False)
    return working_folder(out)


def _train(model, dataset, out, *, resume):
    config = resolve_config([("test", {"model": str(model), **SHORT})])[0]
    return sft.train(dataset, resolve(str(model)), config, out, resume=resume, force=False)


@pytest.mark.parametrize("fault", ["removed", "changed", "cut", ""])
def test_damaged_best_weights_are_not_kept_and_it_is_said(ended, tiny_model, tiny_dataset, tmp_path, capsys, fault):
    """The last weights, or damaged ones, were written under the best step's name."""
    shutil.copytree(ended, working_folder(tmp_path / "run"))
    path = working_folder(tmp_path / "run") / "checkpoint-1" / WEIGHTS
    content = path.read_bytes()
    if fault == "removed":
        path.unlink()
    elif fault:
        path.write_bytes(content[: len(content) // 2] if fault == "cut" else content[:-64] + 64 * b"x")
    last = (working_folder(tmp_path / "run") / "checkpoint-3" / WEIGHTS).read_bytes()
    run = _train(tiny_model, tiny_dataset, tmp_path / "run", resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert run.manifest.facts["weights_of_step"] == (3 if fault else 1)
    assert (run.path / WEIGHTS).read_bytes() == (last if fault else content)
    assert ("its checkpoint is damaged (adapter_model.safetensors" in said) == bool(fault)
