"""What a run notes of the machine and the code."""

import subprocess

from modules.runtime import run_folder


def test_a_commit_is_dirty_by_its_code_and_not_by_what_was_measured(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    code, measured = tmp_path / "modules" / "runtime" / "run_folder.py", tmp_path / "docs" / "results" / "a.json"
    monkeypatch.setattr(run_folder, "__file__", str(code))
    for path in (code, measured):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    assert run_folder.git_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    measured.write_text("2")
    (tmp_path / "new.txt").touch()
    assert run_folder.git_commit() == commit
    code.write_text("2")
    assert run_folder.git_commit() == f"{commit}-dirty"
