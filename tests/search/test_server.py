"""The page's server, asked from outside: by strangers, for what is none of its business, and too often at once."""

import concurrent.futures
import hashlib
import http.client
import json
import os
import shutil
import socket
import threading
import time
from urllib.parse import quote

import av
import pytest

from helpers.search.index import JPEG, SECONDS, SETTINGS, add, made_part, make_index, make_videos
from helpers.videos import read_numbers
from search import playing
from search import server as server_module
from search.playing import CLIP_SECONDS, ClipError, Clips
from search.server import Access, access_of, parse_range
from search.store import open_for_writing

SECRET = b"nobody may read this"


def ask(served, path, method="GET", **headers):
    """An answer to a request: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def ask_raw(served, data):
    """The status of the answer to some bytes; 0 where the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while b"\r\n" not in answer and (part := connection.recv(65536)):
            answer += part
    return (int(answer.split()[1]) if answer else 0), answer


def find(served, text, more=""):
    status, _, body = ask(served, f"/api/search?q={quote(text)}{more}")
    assert status == 200, body
    return json.loads(body)


def snapshot(folder):
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "clips"
    }


def test_a_query_finds_its_moment_and_filters_hold(server):
    answer = find(server, "b 3")
    first = answer["moments"][0]
    assert (first["file"], first["from"], first["to"]) == ("videos/more/b.mp4", 3, 5)
    assert answer["stands_out"] and first["similarity"] > 0.99 and first["playable"] and "path" not in first
    assert find(server, "a 2", "&folder=videos/more&all=1")["moments"][0]["file"] == "videos/more/b.mp4"
    assert {m["file"] for m in find(server, "b 3", "&folder=videos/mo&all=1")["moments"]} == set()
    for limits in ("&min=9", "&max=7.5"):
        assert find(server, "b 3", limits)["moments"] == []
    assert find(server, "b 3", "&min=7.9&max=8.1")["moments"][0] == first
    assert find(server, "b 3", "&not=b%203&all=1")["moments"][0] != first
    absent = find(server, "nothing like this")
    assert not absent["stands_out"] and absent["moments"] == [] and absent["excess"] < 0.5
    assert len(find(server, "nothing like this", "&all=1&top=4")["moments"]) == 4
    like = json.loads(ask(server, f"/api/search?like={first['window']}")[2])
    assert like["query"]["like_file"] == first["file"] and like["moments"]
    assert all(m["file"] != first["file"] or m["to"] <= 3 or m["from"] >= 5 for m in like["moments"])


def test_what_the_index_holds_is_said(server):
    info = json.loads(ask(server, "/api/info")[2])
    assert (info["videos"], info["windows"], info["seconds"], info["growing"]) == (3, 21, 24, False)
    assert info["folders"] == ["videos", "videos/more"]


def test_an_index_that_grows_says_so_and_what_came_is_found(tmp_path, serve):
    root = tmp_path / "videos"
    paths = make_videos(root, ["a.mp4", "b.mp4"])
    with serve(make_index(tmp_path / "index", root, []), root) as served:
        assert find(served, "a 1")["windows"] == 0
        with open_for_writing(served.index_dir, SETTINGS) as store:
            add(store, root, paths[0], made_part("a"))
            store.set(done=1, total=2)
            served.searcher._load_again_at = 0
            answer = find(served, "a 1")
            assert (answer["growing"], answer["done"], answer["total"]) == (True, 1, 2)
            assert answer["moments"][0]["file"] == "videos/a.mp4"
        assert not find(served, "a 1")["growing"]


PATHS = [
    "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%252f..%252fetc%252fpasswd",
    "/..\\..\\etc\\passwd", "/%5c..%5cetc", "/%c0%ae%c0%ae/etc/passwd", "//etc/passwd", "/etc/passwd",
    "/video/../../etc/passwd", "/video/%2e%2e%2fetc", "/video/1/../../x", "/video/1%00", "/video/%31%2f..", "/video/-1",
    "/video/1.0", "/video/0x1", "/video/1e0", "/video/٣", "/video/" + "9" * 400, "/video/a.mp4", "/video/", "/video",
    "/video/1/", "/video/1;a", "/picture/../index.sqlite", "/picture/0", "/clip/0", "/clip/a.avi", "/index.sqlite",
    "/page/index.html", "/index.html", "/page.js%00", "/page.css/", "/search/server.py", "/.lock", "/clips/", "/%",
    "/video/99", "/picture/" + "9" * 18, "/videos/secret.txt", "/a.mp4", "/file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_address_leads_to_a_file_by_its_path(server, path):
    (server.root / "secret.txt").write_bytes(SECRET)
    line = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    status, answer = ask_raw(server, line)
    assert status in (400, 404)
    assert SECRET not in answer and b"root:" not in answer and b"Traceback" not in answer
    assert str(server.root).encode() not in answer


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example@localhost",
     "192.168.1.5", "0.0.0.0", "", "[::2]", "127.0.0.1:80:80", "localhost:http", "localhost/", "a" * 3000],
)  # fmt: skip
def test_a_foreign_host_is_refused(server, host):
    for path in ("/", "/api/info", "/video/1"):
        line = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        status, answer = ask_raw(server, line.encode())
        assert status in (400, 421) and b"videos" not in answer


def test_a_request_without_a_host_or_with_two_is_refused(server):
    assert ask_raw(server, b"GET / HTTP/1.0\r\n\r\n")[0] in (400, 421)
    assert ask_raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:9000", "[::1]:80", "LOCALHOST"])
def test_this_machines_own_names_are_known_also_through_a_forwarded_port(server, host):
    assert ask(server, "/", host=host)[0] == 200


def test_another_sites_page_can_ask_for_nothing_behind_the_first_page(server):
    for site in ("cross-site", "same-site"):
        for path in ("/api/search?q=a", "/api/info", "/video/1", "/picture/1", "/clip/1", "/page.js"):
            assert ask(server, path, sec_fetch_site=site)[0] == 403
    assert ask(server, "/", sec_fetch_site="cross-site")[0] == 200
    assert ask(server, "/api/info", sec_fetch_site="same-origin")[0] == 200


def test_every_answer_has_a_policy_that_lets_nothing_in_from_elsewhere(server):
    for path in (
        "/",
        "/page.js",
        "/page.css",
        "/icon.svg",
        "/api/info",
        "/nothing",
        "/video/1",
        "/picture/1",
        "/video/99",
    ):
        _, headers, _ = ask(server, path)
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"} and policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers
        assert "server" not in headers
    page = ask(server, "/")[2].decode()
    assert "<script>" not in page and " style=" not in page and " onclick=" not in page and "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
def test_nothing_but_reading_is_allowed(server, method):
    for path in ("/", "/api/search?q=a", "/video/1", "/clip/1"):
        assert ask(server, path, method)[0] in (400, 405)


def test_no_request_changes_a_file(server):
    before = snapshot(server.root), snapshot(server.index_dir)
    for path in ("/", "/api/search?q=a&not=b", "/api/info", "/video/1", "/picture/1", "/clip/15", *PATHS[:5]):
        ask_raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        ask(server, "/video/1", "DELETE")
    assert (snapshot(server.root), snapshot(server.index_dir)) == before


@pytest.mark.parametrize(
    "query",
    ["q=" + "a" * 501, "q=a&not=" + "b" * 501, "q=a&top=0", "q=a&top=201", "q=a&top=1e1", "q=a&like=x", "like=-1",
     "like=99999", "q=a&min=nan", "q=a&max=inf", "q=a&min=" + "9" * 40, "q=a&q=b", "q=a&path=/etc", "", "q=", "q=%20",
     "q=a&min=-1", "like=" + "1" * 31],
)  # fmt: skip
def test_a_query_that_is_none_is_refused_with_a_reason(server, query):
    status, _, body = ask(server, f"/api/search?{query}")
    assert status == 400 and json.loads(body)["error"]


def test_what_is_longer_than_any_request_is_refused(server):
    assert ask(server, "/api/search?q=" + "a" * 5000)[0] == 414
    assert ask_raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000)[0] in (0, 400, 431)
    assert ask(server, "/api/search?q=" + quote("é" * 500))[0] == 200
    assert ask(server, "/api/search?q=%ff%fe%00")[0] in (200, 400)


def test_a_thousand_queries_at_once_are_answered_or_told_to_come_again(server, monkeypatch):
    at_work, most, lock = 0, 0, threading.Lock()
    answer = server.searcher.answer

    def slow(query):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return answer(query)

    monkeypatch.setattr(server.searcher, "answer", slow)
    threads = threading.active_count()

    def one(number):
        try:
            return ask(server, f"/api/search?q=a+{number % 7}")[0]
        except OSError:  # turned away before it had said anything
            return 0

    with concurrent.futures.ThreadPoolExecutor(1000) as pool:
        found = list(pool.map(one, range(1000)))
    assert set(found) <= {0, 200, 503} and found.count(0) < 100
    assert found.count(200) >= 20 and found.count(503) > 0
    assert most == 1 and threading.active_count() <= threads + 45  # those of the server's pool
    monkeypatch.undo()
    assert find(server, "b 3")["moments"][0]["from"] == 3


@pytest.mark.parametrize(
    "header, first, last",
    [("bytes=0-9", 0, 9), ("bytes=5-", 5, 99), ("bytes=-10", 90, 99), ("bytes=90-500", 90, 99), ("bytes=-500", 0, 99),
     ("BYTES = 1-2", 1, 2)],
)  # fmt: skip
def test_ranges(header, first, last):
    assert parse_range(header, 100) == (first, last)


@pytest.mark.parametrize(
    "header", ["bytes=0-1,5-6", "bytes=a-b", "bytes=5-2", "lines=0-9", "bytes=", "bytes=-", "", None]
)
def test_what_is_no_range_is_left_out(header):
    assert parse_range(header, 100) is None


def test_a_part_of_a_video_is_sent(server):
    data = (server.root / "a.mp4").read_bytes()
    number = find(server, "a 1")["moments"][0]["video"]
    status, headers, body = ask(server, f"/video/{number}")
    assert (status, headers["content-type"], body) == (200, "video/mp4", data)
    status, headers, body = ask(server, f"/video/{number}", range="bytes=100-199")
    assert (status, headers["content-range"], body) == (206, f"bytes 100-199/{len(data)}", data[100:200])
    assert ask(server, f"/video/{number}", range=f"bytes={len(data)}-")[0] == 416
    status, headers, body = ask(server, f"/video/{number}", "HEAD")
    assert (status, int(headers["content-length"]), body) == (200, len(data), b"")
    assert ask(server, f"/video/{number}", range="bytes=0-1", if_range='"another"')[0] == 200


def test_no_file_stays_open_behind_an_answer(server):
    count = len(os.listdir("/proc/self/fd"))
    for method in ("GET", "HEAD"):
        for _ in range(5):
            ask(server, "/video/1", method)
            ask(server, "/video/1", method, range="bytes=999999999-")
    for _ in range(5):  # those who leave in the middle
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET /video/1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(10)
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > count + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= count + 2


def test_a_picture_is_sent(server):
    status, headers, body = ask(server, "/picture/1")
    assert (status, headers["content-type"], body) == (200, "image/jpeg", JPEG)


def test_a_video_that_no_browser_plays_is_sent_as_a_clip_which_is_kept(server):
    moment = find(server, "c 3")["moments"][0]
    assert not moment["playable"] and moment["from"] == 3
    status, headers, body = ask(server, f"/clip/{moment['first_window']}")
    assert (status, headers["content-type"]) == (200, "video/mp4")
    kept = list((server.index_dir / "clips").glob(f"{moment['first_window']}-*.mp4"))
    assert [path.read_bytes() for path in kept] == [body]
    with av.open(str(kept[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == pytest.approx((SECONDS - 3) * 25, abs=2) and CLIP_SECONDS > SECONDS
    assert read_numbers(frames[0][None])[0] == pytest.approx(75, abs=1)
    changed = kept[0].stat().st_ctime_ns
    assert ask(server, f"/clip/{moment['first_window']}", range="bytes=0-3")[2] == body[:4]
    assert kept[0].read_bytes() == body and changed <= kept[0].stat().st_ctime_ns


def test_what_is_wrong_with_the_index_is_said_without_its_place(tmp_path, serve, indexed):
    index_dir = shutil.copytree(indexed[0], tmp_path / "index", ignore=shutil.ignore_patterns("clips"))
    with serve(index_dir, indexed[1]) as served:
        moment = json.loads(ask(served, "/api/search?q=c%203")[2])["moments"][0]
        for folder in (indexed[1], indexed[1].name):  # by its name, and never by its path
            answer = json.loads(ask(served, f"/api/search?q=c%203&folder={quote(str(folder))}")[2])
            assert (answer["considered"] > 0) == (folder == indexed[1].name)
        (index_dir / "clips").touch()
        answers = [ask(served, f"/clip/{moment['first_window']}")]
        with open_for_writing(index_dir, SETTINGS) as store:
            store.remove([str(indexed[1] / "a.mp4")])
        (index_dir / "embeddings-0.f16").write_bytes(b"")
        answers += [ask(served, path) for path in ("/api/search?q=a", "/api/info")]
        assert [answer[0] for answer in answers] == [422, 503, 503]
        assert not any(str(tmp_path) in answer[2].decode() for answer in answers)


def test_a_clip_that_two_ask_for_is_made_once_and_what_a_killed_server_left_goes(tmp_path, indexed, monkeypatch):
    made = []
    make = playing.subprocess.run
    monkeypatch.setattr(playing.subprocess, "run", lambda *words, **how: (made.append(1), make(*words, **how))[1])
    clips = Clips(tmp_path / "clips", 2**20)
    clips.folder.mkdir()
    stale, fresh = clips.folder / ".1-2.mp4.3.partial", clips.folder / ".1-3.mp4.4.partial"
    for path in (stale, fresh):
        path.touch()
    os.utime(stale, (0, 0))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: clips.open(indexed[1] / "c.avi", 1, 15, 0.0, 1.0), range(3)))
    assert len({os.fstat(file).st_ino for file in found}) == len(made) == 1 and not stale.exists() and fresh.exists()


def test_a_playlist_with_the_name_of_a_video_shows_no_other_file(tmp_path, indexed):
    shutil.copy(indexed[1] / "a.mp4", tmp_path / "other.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    clips = Clips(tmp_path / "clips", 2**20)
    os.close(clips.open(tmp_path / "other.mp4", 1, 1, 0.0, 1.0))
    with pytest.raises(ClipError, match="Invalid argument"):
        clips.open(tmp_path / "list.mp4", 1, 2, 0.0, 1.0)


def test_the_clips_that_were_longest_unused_make_room(tmp_path, serve, indexed):
    index_dir = shutil.copytree(indexed[0], tmp_path / "index", ignore=shutil.ignore_patterns("clips"))
    with serve(index_dir, indexed[1], clip_limit=1) as served:
        windows = [find(served, f"c {second}")["moments"][0]["first_window"] for second in (1, 4)]
        assert [ask(served, f"/clip/{window}")[0] for window in windows] == [200, 200]
    assert [path.name.split("-")[0] for path in (index_dir / "clips").iterdir()] == [str(windows[1])]


def test_a_video_that_is_gone_changed_or_broken_is_said_to_be(tmp_path, serve):
    root = tmp_path / "videos"
    paths = make_videos(root, ["gone.mp4", "replaced.mp4", "linked.mp4", "pipe.mp4", "good.mp4"])
    broken = root / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    index_dir = make_index(tmp_path / "index", root, [*paths, broken])
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    with serve(index_dir, root) as served:
        moments = {name: find(served, f"{name} 2")["moments"][0] for name in
                   ("gone", "replaced", "linked", "pipe", "good", "broken")}  # fmt: skip
        for path in paths[:4]:
            path.unlink()
        paths[1].write_bytes(SECRET)
        paths[2].symlink_to(secret)
        os.mkfifo(paths[3])
        states = {name: find(served, f"{name} 2")["moments"][0]["state"] for name in moments}
        assert states == {"gone": "gone", "replaced": "changed", "linked": "changed", "pipe": "changed",
                          "good": "there", "broken": "there"}  # fmt: skip
        for name in ("gone", "replaced", "linked", "pipe"):
            for path in (f"/video/{moments[name]['video']}", f"/clip/{moments[name]['first_window']}"):
                status, _, body = ask(served, path)
                assert status == 410 and SECRET not in body and str(tmp_path) not in body.decode()
            assert ask(served, f"/picture/{moments[name]['window']}")[0] == 200
        assert ask(served, f"/video/{moments['good']['video']}")[0] == 200
        status, _, body = ask(served, f"/clip/{moments['broken']['first_window']}")
        assert status == 422 and "no clip can be made" in json.loads(body)["error"]
        assert str(tmp_path) not in body.decode()
        assert not list((index_dir / "clips").iterdir())


def test_another_address_needs_the_token(tmp_path, serve, indexed):
    with serve(*indexed, host="0.0.0.0", name="media.example") as served:
        assert served.token and len(served.token) >= 24
        for path in ("/", "/api/info", "/api/search?q=a", "/video/1", "/page.js"):
            assert ask(served, path)[0] == 401
            assert ask(served, path, authorization="Bearer wrong")[0] == 401
            assert ask(served, path, cookie="search_token=wrong")[0] == 401
            assert ask(served, path, authorization=f"Bearer {served.token}")[0] == 200
        status, headers, _ = ask(served, f"/?q=a&token={served.token}")
        assert (status, headers["location"]) == (303, "/?q=a")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie.replace("Strict", "strict")
        assert ask(served, "/", cookie=cookie.split(";")[0])[0] == 200
        assert ask(served, f"/?token={served.token}x")[0] == 401
        bearer = {"authorization": f"Bearer {served.token}"}
        for host, status in (("10.1.2.3:80", 200), ("media.example", 200), ("evil.example", 421)):
            assert ask(served, "/", host=host, **bearer)[0] == status


def test_who_may_ask():
    assert access_of("127.0.0.1", 80, None).token is None and access_of("::1", 80, None).token is None
    assert access_of("localhost", 80, None).knows("localhost:80")
    assert access_of("127.0.0.1", 80, "media.example").token  # a proxy lets others in
    there = access_of("192.0.2.7", 80, None)
    assert there.token is not None and there.knows("192.0.2.7") and not there.knows("192.0.2.8")
    assert access_of("192.0.2.7", 80, None).token != there.token
    assert not Access(frozenset({"a"}), False, 80, None).knows("10.0.0.1")


def test_an_error_inside_says_nothing_of_the_machine(server, monkeypatch):
    def fails(query):
        raise RuntimeError(f"of {server.root}")

    monkeypatch.setattr(server.searcher, "answer", fails)
    status, headers, body = ask(server, "/api/search?q=a")
    assert status == 500 and json.loads(body) == {"error": "internal server error"}
    assert "content-security-policy" in headers


def test_who_takes_nothing_of_a_video_does_not_keep_others_out_for_ever(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(server_module, "STREAMS", 2)
    monkeypatch.setattr(server_module, "STALLED", 0.5)
    [video] = make_videos(tmp_path / "videos", ["a.mp4"])
    with video.open("ab") as file:
        file.truncate(2**26)  # more than the system keeps of what was sent and not taken
    with serve(make_index(tmp_path / "index", tmp_path / "videos", [video]), tmp_path / "videos") as served:
        readers = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
        for reader in readers:
            reader.sendall(b"GET /video/1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert reader.recv(12) == b"HTTP/1.1 200"
        try:
            assert ask(served, "/video/1", range="bytes=0-3")[0] == 206
        finally:
            for reader in readers:
                reader.close()
        assert len(ask(served, "/video/1")[2]) == 2**26  # and who takes it gets all
