"""Files from elsewhere run no code: checkpoints, weights, and what the code itself never does."""

import ast
import pickle

import pytest
import torch

import main_task_retrieval
from common.errors import UserError
from helpers.paths import ROOT
from helpers.tiny import TINY_TRAINING, save_clip_folder
from modules.clip.loader import WeightsError, load_clip
from modules.runtime.run_folder import load_checkpoint


class Payload:
    """Unpickled, it makes a file: code has run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write_checkpoint(path, payload):
    """A checkpoint in the form that this program writes, with something more in it."""
    torch.save({"method": "stop", "model": {}, "identity": {}, "more": payload}, path)


@pytest.mark.parametrize("form", ["torch.save", "old torch.save", "pickle"])
def test_a_checkpoint_runs_no_code(tmp_path, form):
    ran, path = tmp_path / "ran", tmp_path / "last.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(ran)))
    else:
        content = {"method": "stop", "model": {}, "more": Payload(ran)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch.save")
    with pytest.raises(UserError, match=r"last\.pt cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not ran.exists()
    if form != "pickle":  # so that the assertion above could fail
        torch.load(path, weights_only=False)
        assert ran.exists()


@pytest.mark.parametrize("place", ["--init_model", "last.pt"])
def test_a_run_does_not_run_a_checkpoints_code(tiny_run, tmp_path, place, capsys):
    ran, folder = tmp_path / "ran", tmp_path / "run"
    folder.mkdir()
    path = tmp_path / "given.pt" if place == "--init_model" else folder / "last.pt"
    write_checkpoint(path, Payload(ran))
    more = ["--init_model", str(path)] if place == "--init_model" else []
    assert main_task_retrieval.main([*tiny_run, "--output_dir", str(folder), *TINY_TRAINING, *more]) == 1
    assert "cannot be read as a checkpoint" in capsys.readouterr().err
    assert not ran.exists()


def test_weights_run_no_code(tmp_path, tiny_clip):
    ran = tmp_path / "ran"
    folder = save_clip_folder(tmp_path / "clip", tiny_clip.model)
    (folder / "open_clip_model.safetensors").write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        load_clip(str(folder))
    archive = tmp_path / "ViT-B-32.pt"
    torch.save({"model": Payload(ran)}, archive)
    with pytest.raises(WeightsError, match="TorchScript archive can run code when it is loaded"):
        load_clip(str(archive))
    with pytest.raises(WeightsError, match="expected a TorchScript archive"):
        load_clip(str(archive), trust_weights=True)
    assert not ran.exists()


def calls_in(path):
    """The calls in a source file: name as written, and keywords with constant values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), keywords


FOLDERS = ("common", "dataloaders", "modules", "preprocess", "scripts", "search")
OF_TESTS = ("tests/helpers", "tests/soak")  # what scripts/soak.sh runs, on real videos as well
SOURCES = sorted(
    path for pattern in ("*.py", *(f"{folder}/**/*.py" for folder in FOLDERS + OF_TESTS)) for path in ROOT.glob(pattern)
)
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads", "yaml.load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_runs_no_text_and_loads_no_pickles(path):
    for name, keywords in calls_in(path):
        assert name not in FORBIDDEN
        assert keywords.get("shell") is not True
        assert keywords.get("allow_pickle") is not True
        if name == "torch.load":
            assert keywords.get("weights_only") is True
        if name == "torch.jit.load":  # behind the checksum
            assert path.relative_to(ROOT).as_posix() == "modules/clip/loader.py"


def test_no_folder_of_sources_is_left_out():
    tops = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py")}
    assert tops - {"tests", "runs", "data", "ckpts"} == set(FOLDERS)


def test_what_is_forbidden_is_found(tmp_path):
    source = tmp_path / "bad.py"
    source.write_text("subprocess.run('ls', shell=True)\neval('1')\ntorch.load('x')\n")
    assert list(calls_in(source)) == [("subprocess.run", {"shell": True}), ("eval", {}), ("torch.load", {})]
