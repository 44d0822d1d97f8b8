"""The video files of a folder, at any depth, or of a pack, and which of them a list of videos means.

The only way from a name in a dataset's list to a file. What is found was in a listing of the folder or of the pack's
index: no name leads out of them. Entries with a leading dot are left out: it marks what file managers leave behind
("._video0.mp4"), never a file of a dataset.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataloaders.annotations import folder_problem, show
from dataloaders.video.pack_index import PackIndex

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"}
)
MAX_SHOWN_SUFFIXES = 5
LEAVE_OUT = {
    "training": "--allow_missing leaves out training videos without a file, or those that a list of "
    "preprocess/check_videos.py names.",
    "evaluation": "--on_bad_eval_video drop leaves out evaluation videos without a file, which changes the metrics.",
}


# --- What there is ----------------------------------------------------------------------------------------


@dataclass
class Listing:
    """What lies in a folder and in those below it; paths are from that folder, with slashes.

    Attributes:
        files: files named like a video.
        no_files: what else is named like one: folders, pipes, links to what is gone.
        other_suffixes: the number of files with each other suffix, in lower case.
        hidden: the number of folders and videos with a leading dot; the folders are not listed.
        unread: why a folder could not be listed; "" is the outermost.
    """

    files: list[str] = field(default_factory=list)
    no_files: list[str] = field(default_factory=list)
    other_suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unread: dict[str, OSError] = field(default_factory=dict)

    def add_file(self, path: str) -> None:
        suffix = _suffix(path)
        if suffix in VIDEO_SUFFIXES:
            self.files.append(path)
        else:
            self.other_suffixes[suffix] += 1

    def describe(self) -> str:
        """What is there that is no video file, or not searched, for a message."""
        parts = []
        if count := sum(self.other_suffixes.values()):
            suffixes = sorted(self.other_suffixes, key=lambda suffix: (-self.other_suffixes[suffix], suffix))
            shown = [show(suffix or "none") for suffix in suffixes[:MAX_SHOWN_SUFFIXES]]
            more = ", …" if len(suffixes) > MAX_SHOWN_SUFFIXES else ""
            parts.append(f"{_count(count, 'file')} with other suffixes ({', '.join(shown)}{more})")
        if self.no_files:
            parts.append(f"{_count(len(self.no_files), 'folder or broken link', 'folders or broken links')} named so")
        if self.hidden:
            parts.append(f"{_count(self.hidden, 'entry', 'entries')} with a leading dot, not searched")
        if self.unread:
            parts.append(f"{_count(len(self.unread), 'folder')} that cannot be read")
        return ", ".join(parts) or "nothing"


def list_videos(folder: str | Path) -> Listing:
    """List a folder and all folders below it, those behind links too.

    A folder is listed under its own name and under those of the links to it, so that a link may stand for a class's
    folder. A link to a folder above it is not followed; nor is one that was itself found behind a link, where its
    folder was listed before: else folders that link to each other would be listed without end.
    """
    listing = Listing()
    listed: set[str] = set()
    # (path from the folder, real path, real paths of the folders above, whether a link led there)
    folders = [("", os.path.realpath(folder), (), False)]
    links: deque[tuple[str, str, tuple[str, ...], bool]] = deque()
    while folders or links:
        if folders:
            prefix, real, above, behind_link = folders.pop()
        else:
            prefix, real, above, behind_link = links.popleft()
            if _holds_any(real, above) or (behind_link and real in listed):
                continue
            behind_link = True
        listed.add(real)
        try:
            with os.scandir(os.path.join(folder, prefix)) as entries:
                for entry in entries:
                    kind = _kind_of(entry)
                    path = prefix + entry.name
                    is_named = _suffix(path) in VIDEO_SUFFIXES
                    if entry.name[0] == ".":
                        listing.hidden += is_named or kind != "file"
                        continue
                    if kind == "file":
                        listing.add_file(path)
                    elif is_named:
                        listing.no_files.append(path)
                    if kind == "folder":
                        folders.append((f"{path}/", os.path.join(real, entry.name), (*above, real), behind_link))
                    elif kind == "link":
                        links.append((f"{path}/", os.path.realpath(entry.path), (*above, real), behind_link))
        except OSError as error:
            listing.unread[prefix.rstrip("/")] = error
    return listing


def list_pack(pack: PackIndex) -> Listing:
    """What a pack holds, as the folder that was packed would be listed."""
    listing = Listing()
    for path in pack.videos:
        if path.startswith(".") or "/." in path:
            listing.hidden += 1
        else:
            listing.add_file(path)
    return listing


def no_videos(place: str, folder: str | Path | PackIndex, listing: Listing) -> str:
    """The message that there are none.

    place: what the folder is, with article or flag.
    """
    wanted = f"({', '.join(sorted(VIDEO_SUFFIXES))})"
    return f"{place} {folder} holds no videos {wanted}, in no folder below it either; found: {listing.describe()}"


def _kind_of(entry: os.DirEntry) -> str:
    """What an entry of a folder is: "file", "folder", "link" to a folder, or "other"."""
    # The first two questions cost nothing; what follows links costs a look at the disk, and is no error where they
    # lead nowhere or in a circle.
    if entry.is_file(follow_symlinks=False):
        return "file"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    if os.path.isdir(entry.path):
        return "link"
    return "file" if os.path.isfile(entry.path) else "other"


def _holds_any(folder: str, paths: tuple[str, ...]) -> bool:
    """Whether a real path is one of others, or that of a folder above one."""
    start = os.path.join(folder, "")
    return any(os.path.join(path, "").startswith(start) for path in paths)


def _distinct(paths: list[Path]) -> list[Path]:
    """Files that are not the same by links, each under the path with the fewest folders, in alphabetical order."""
    files: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        files.setdefault(os.path.realpath(path), path)
    return sorted(files.values())


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def stem_of(name: str) -> str:
    """The name of a video alone, of a path or file name as a list may give it."""
    name = name.rpartition("/")[2]
    return _stem(name) if _suffix(name) in VIDEO_SUFFIXES else name


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


# --- What a list means ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Located:
    """Which files the videos of a list have.

    Attributes:
        paths: the file of each video id that has exactly one.
        missing: the ids that have none, in order.
        problems: one line each. remedies: a sentence for each kind of problem, of what helps against it.
    """

    paths: dict[str, Path]
    missing: list[str]
    problems: list[str]
    remedies: list[str]


class VideoFiles:
    """The videos in a folder, at any depth, or in a pack, found by the names that lists give them.

    Attributes:
        folder: as a path.
        flag: the one that names it.
        problems: what is wrong with the folder as a whole: it cannot be read, or holds no videos.
    """

    def __init__(
        self, folder: str | Path | PackIndex, classes: Collection[str] | None = None, ignore_case: bool = False
    ):
        """List the folder, with every folder below it, or the pack.

        classes: of a dataset whose lists name videos `<class>/<stem>`; else names are stems or paths.
        ignore_case: go by upper and lower case only where several files differ in nothing else.
        """
        self.folder = Path(folder)
        self._pack = folder if isinstance(folder, PackIndex) else None
        self.flag = "--features_path" if self._pack is None else "--packed"
        listing = list_videos(folder) if self._pack is None else list_pack(self._pack)
        self._unread = listing.unread
        self._classes = None if classes is None else {name.casefold() for name in classes}
        self._normalize = str.casefold if ignore_case else str
        self._by_stem: dict[str, list[str]] = {}  # case-folded stem -> paths from the folder
        # Texts, and not a Path for every file, of which Something-Something V2 has 220,000.
        for path in sorted(listing.files):
            self._by_stem.setdefault(_stem(path).casefold(), []).append(path)
        self.problems: list[str] = []
        if "" in listing.unread:
            self.problems.append(folder_problem(folder, "video folder", listing.unread[""]))
        elif not listing.files:
            self.problems.append(no_videos("the video folder" if self._pack is None else "the pack", folder, listing))

    def find(self, video_id: str) -> list[Path]:
        """The files that a name may mean: one, if all is well; files that are one by links count as one.

        A name is a path from the folder, or else the end of one, from a folder or the file on; without the file's
        suffix, or else with it. In a dataset of class folders, `<class>/<stem>` is also a file directly in the folder
        or, where neither is there, a file of that stem anywhere but in the folder of another class.
        """
        found = self._find(video_id) if self._classes is None else self._find_in_class(video_id)
        name = video_id.rpartition("/")[2]
        exact = [path for path in found if name in (_stem(path), path.rpartition("/")[2])]
        paths = [self.folder / path for path in exact or found]
        return paths if len(paths) < 2 else _distinct(paths)

    def _find(self, video_id: str) -> list[str]:
        wanted, name = self._normalize(video_id), video_id.rpartition("/")[2]
        named = [(os.path.splitext(path)[0], path) for path in self._with_stem(name)]
        whole = [(path, path) for path in self._with_stem(os.path.splitext(name)[0])]
        pairs = [[(self._normalize(text), path) for text, path in kind] for kind in (named, whole)]
        for fits in (lambda text: text == wanted, lambda text: text.endswith("/" + wanted)):
            for kind in pairs:
                if found := [path for text, path in kind if fits(text)]:
                    return found
        return []

    def _find_in_class(self, video_id: str) -> list[str]:
        name, slash, stem = video_id.partition("/")
        name, wanted = name.casefold(), video_id.casefold()
        if not slash or "/" in stem or name not in self._classes:
            return self._find(video_id)
        files = [(os.path.splitext(path)[0].casefold(), path) for path in self._with_stem(stem)]
        for fits in (
            lambda text: text in (wanted, stem.casefold()),
            lambda text: text.endswith("/" + wanted),
            lambda text: not any(folder in self._classes and folder != name for folder in text.split("/")[:-1]),
        ):
            if found := [path for text, path in files if fits(text)]:
                return found
        return []

    def _with_stem(self, stem: str) -> list[str]:
        return self._by_stem.get(stem.casefold(), [])

    def locate(self, listed: Mapping[str, str], list_name: str, source: str, allow_missing: bool) -> Located:
        """Find the videos of a list, and say what is wrong with those that do not have exactly one file.

        Where `problems` says that there are no videos at all, this does not say so again for each.

        Args:
            listed: where each video id is listed, for messages.
            list_name: "training" or "evaluation".
            source: the list, for messages.
            allow_missing: videos without a file are no problem, as long as there are others and all folders were read.
        """
        paths, missing, problems, remedies = {}, [], [], []
        if self.problems:
            return Located(paths, missing, problems, remedies)
        ambiguous = []
        for video_id, where in listed.items():
            found = self.find(video_id)
            if len(found) == 1:
                paths[video_id] = found[0]
            elif found:
                files = ", ".join(show(path.relative_to(self.folder).as_posix()) for path in found)
                ambiguous.append(f"{where}: {show(video_id)}: more than one video file in {self.folder}: {files}")
            else:
                missing.append(video_id)
        all_missing = len(missing) == len(listed)
        if missing and self._unread:
            problems += [
                folder_problem(self.folder / path, "folder of videos", error) for path, error in self._unread.items()
            ]
            remedies.append("Videos may be in what cannot be read: make that readable.")
        if not allow_missing:
            problems += [
                f"{listed[video_id]}: {show(video_id)}: no video file in {self.folder}" for video_id in missing
            ]
        elif missing and all_missing:
            problems.append(f"none of the {len(listed)} videos in {source} has a video file in {self.folder}")
        if missing and problems and self._pack is not None:
            remedies.append("A pack (--packed) lacks what its failed_videos.csv lists.")
        if missing and not (allow_missing or all_missing or self._unread):
            remedies.append(LEAVE_OUT[list_name])
        if ambiguous:
            remedies.append(self._how_to_tell_apart())
        return Located(paths, missing, ambiguous + problems, remedies)

    def _how_to_tell_apart(self) -> str:
        if self._classes is None:
            return (
                f"For a video with more than one file, the list may give the path from {self.folder} in place of the "
                "name, with slashes."
            )
        if self._pack is None:
            return "Of a video with more than one file, rename or move away all files but one."
        return "Of a video with more than one file, remove all lines but one from the pack's index.jsonl."
