"""What the server refuses: each with its status, each logged with its reason, nothing given away."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from polarice.cli import main
from polarice.types import InputError
from polarice.web.command import _listening
from polarice.web.guard import MOST_BODY_BYTES, Keys, Refused, require_host, require_session
from polarice.web.server import MOST_CONNECTIONS, Server
from polarice.web.site import Site
from web.served import a_job, a_map, classes_in, serving

SECRET = "what nobody may read"
MARKUP = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A project with a job and a report, a secret beside it, and links that lead there."""
    around = tmp_path_factory.mktemp("around")
    root = around / "project"
    (around / "secret.txt").write_text(SECRET)
    (around / "outside").mkdir()
    (around / "outside/report.html").write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        root.mkdir()
        patch.chdir(root)
        classes_in(a_job(root / "job1", "class2d", k=6))
        (root / "job1/report.html").write_text("<html>a report</html>")
        (root / "job1/link.txt").symlink_to(around / "secret.txt")
        (root / "linked").symlink_to(around / "outside")
        (root / ".hidden.txt").write_text(SECRET)
        (root / "job1/program.py").write_text(SECRET)
        os.mkfifo(root / "job1/pipe.txt")
        a_map(root / "job1/map.mrc")
        with serving(root) as found:
            yield found


def refused(served, status: int, reason: str, answer) -> None:
    """The answer has the status, its reason is the last that was logged, and no secret is in it."""
    assert answer.status == status, answer.text
    assert re.search(rf"refused {status} .*{reason}", served.log[-1]), served.log[-1]
    assert SECRET not in answer.text and served.site.keys.session not in answer.text
    assert "\n" not in served.log[-1]


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/file/../secret.txt", 403, "not a path in the project"),
        ("/file/%2e%2e/secret.txt", 403, "not a path in the project"),
        ("/file/job1/..%2f..%2fsecret.txt", 403, "not a path in the project"),
        ("/file/job1/%2e%2e/%2e%2e/secret.txt", 403, "not a path in the project"),
        ("/file/%252e%252e/secret.txt", 404, "not there"),
        ("/file/..\\secret.txt", 403, "not a path in the project"),
        ("/file//etc/passwd", 403, "not a path in the project"),
        ("/file/%2fetc%2fpasswd", 403, "not a path in the project"),
        ("/file/job1/report.html%00.png", 403, "not a path in the project"),
        ("/file/job1/%ff.txt", 400, "cannot be read"),
        ("//etc/passwd", 404, "no such page"),
        ("/file/job1/link.txt", 403, "leads out of the project"),
        ("/file/linked/report.html", 403, "leads out of the project"),
        ("/files/linked", 403, "leads out of the project"),
        ("/job/linked", 403, "leads out of the project"),
        ("/files/../", 403, "not a path in the project"),
        ("/file/.hidden.txt", 403, "not a path in the project"),
        ("/file/job1/pipe.txt", 403, "neither file nor folder"),
        ("/file/job1/program.py", 403, "not a kind of file"),
        ("/file/job1", 403, "not a kind of file"),
        ("/file/nothing.txt", 404, "not there"),
        ("/slice/job1/run_it003_data.star?axis=z", 400, "no such slice"),
        ("/slice/job1/map.mrc?axis=z&at=16", 400, "not a number from 0 to 15"),
        ("/average/job1?n=7", 400, "not a number from 1 to 6"),
        ("/average/job1?n=-1", 400, "not a number"),
        ("/static/../guard.py", 404, "no such file"),
        ("/static/..%2fguard.py", 404, "no such file"),
        ("/nothing", 404, "no such page"),
        ("/new/serve", 404, "no job that is started here"),
        ("/new/bench", 404, "no job that is started here"),
        ("/job/" + quote(MARKUP), 404, "not there"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused_and_logged(served, path, status, reason):
    answer = served.get(path)
    refused(served, status, reason, answer)
    assert MARKUP not in answer.text


def test_what_is_in_the_project_is_sent(served):
    answer = served.get("/file/job1/report.html")
    assert (answer.status, answer.text) == (200, "<html>a report</html>")
    assert "sandbox" in answer.headers["Content-Security-Policy"] and "script-src 'sha256-" in str(answer.headers)
    assert "form-action 'none'" in answer.headers["Content-Security-Policy"]
    star = served.get("/file/job1/run_it003_model.star")
    assert star.status == 200 and star.headers["Content-Type"].startswith("text/plain")


def test_a_report_of_ours_may_run_its_own_script_and_no_other(served):
    """The digest in the policy is that of the script as a report has it."""
    import base64
    import hashlib
    from importlib.resources import files
    from string import Template

    page = Template(files("polarice.report").joinpath("report.html").read_text()).safe_substitute()
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = served.get("/file/job1/report.html").headers["Content-Security-Policy"]
    assert policy.count("script-src") == 1 and f"script-src 'sha256-{digest}'" in policy


def test_a_token_lets_in_and_turns_into_a_cookie(served):
    answer = served.ask(f"/?token={served.site.keys.token}")
    cookie = answer.headers["Set-Cookie"]
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and served.site.keys.token not in cookie
    assert served.ask("/", Cookie=cookie.partition(";")[0]).status == 200
    assert len(served.site.keys.token) >= 43 and served.site.keys.token != served.site.keys.session
    assert Keys() != Keys()


@pytest.mark.parametrize(
    ("path", "headers", "reason"),
    [
        ("/", {}, "no token"),
        ("/?token=", {}, "wrong token"),
        ("/?token=" + 43 * "A", {}, "wrong token"),
        ("/?token=%C3%A9", {}, "wrong token"),
        ("/job/job1?token=x", {}, "no token"),
        ("/file/job1/report.html", {}, "no token"),
        ("/static/page.js", {}, "no token"),
        ("/status.json", {"Cookie": "NAME=wrong"}, "wrong cookie"),
        ("/status.json", {"Cookie": "a=b; NAME="}, "wrong cookie"),
    ],
)
def test_without_the_token_nothing_is_shown(served, path, headers, reason):
    given = {name: value.replace("NAME", served.server.cookie) for name, value in headers.items()}
    answer = served.ask(path, **given)
    refused(served, 403, reason, answer)
    assert "AAAA" not in served.log[-1]  # no token in the log


def test_a_foreign_host_is_refused(served):
    for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", "", "a b", "[::1", "0"):
        refused(served, 421, "foreign Host", served.ask("/status.json", Cookie=served.cookie, Host=host))
    for host in ("localhost:9999", "127.0.0.1", "[::1]:5"):  # a forwarded port
        assert served.ask("/status.json", Cookie=served.cookie, Host=host).status == 200
    require_host([f"{socket.gethostname()}:1"], "0.0.0.0")
    with pytest.raises(Refused):
        require_host(["evil.example"], "0.0.0.0")
    with pytest.raises(Refused):
        require_host([], "127.0.0.1")


def test_a_form_of_another_site_is_refused(served):
    origin = f"http://{served.host}"
    for wrong in ("http://evil.example", "null", "", f"https://{served.host}", f"{origin}.evil.example", f"{origin}0"):
        refused(served, 403, "from another site", served.post("/new/select", {"table": "job1"}, Origin=wrong))
    refused(served, 403, "cross-site", served.post("/new/select", Origin=origin, Sec_Fetch_Site="cross-site"))
    refused(served, 403, "no token", served.post("/new/select", Cookie="a=b"))
    absent = served.ask("/new/select", "POST", b"", Cookie=served.cookie)
    refused(served, 403, "from another site", absent)


def test_bodies_are_bounded_and_must_be_forms(served):
    refused(served, 413, "a form of", served.post("/new/select", b"a=" + MOST_BODY_BYTES * b"x"))
    refused(served, 413, "a form of", served.post("/new/select", b"", Content_Length="9" * 30))
    refused(served, 400, "Content-Length", served.post("/new/select", b"", Content_Length="-5"))
    refused(served, 411, "without its length", served.post("/new/select", b"", Transfer_Encoding="chunked"))
    refused(served, 415, "a body of", served.post("/new/select", b"{}", Content_Type="application/json"))
    refused(served, 415, "a body of", served.post("/new/select", b"x", Content_Type="multipart/form-data; boundary=x"))
    for body in (b"a=%ff", b"\xff\xfe", b"no equals sign", b"&".join([b"a=1"] * 401)):
        refused(served, 400, "a malformed form", served.post("/new/select", body))


def test_lines_that_are_no_http_are_refused(served):
    for sent in (b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.port), 10) as client:
            client.sendall(sent)
            answer = client.recv(1000)
        assert re.match(rb"HTTP/1.1 (400|505|501) ", answer), answer
        assert "refused" in served.log[-1] and b"Content-Security-Policy" in answer


def test_every_answer_has_the_headers_that_keep_it_apart(served):
    for path in ("/", "/status.json", "/static/page.js", "/nothing", "/file/../x", "/average/job1?n=1"):
        headers = served.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        policy = headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy and "unsafe" not in policy


def test_pages_hold_no_inline_script_or_style_and_fetch_nothing_from_outside(served):
    for path in ("/", "/job/job1", "/classes/job1", "/map/job1", "/new", "/new/class2d", "/files/job1"):
        text = served.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|<style", text), path
        for address in re.findall(r"""(?:src|href|action)="([^"]*)\"""", text):
            assert address.startswith(("/", "#", "data:,")) and not address.startswith("//"), address


def test_names_with_markup_are_shown_as_text(tmp_path, monkeypatch):
    """Of a folder, of an optics group, of a class's stack, in errors and in the log."""
    monkeypatch.chdir(tmp_path)
    name = "a<img src=x onerror=alert(1)>b\x1b[31m"
    classes_in(a_job(tmp_path / name, "class2d", [], note=MARKUP))
    (tmp_path / name / "run.err").write_text(MARKUP)
    table = tmp_path / name / "run_it003_data.star"
    table.write_text(table.read_text().replace("1 a ", f"1 {quote(MARKUP)} ").replace("particles.mrcs", "<b>no.mrcs"))
    (tmp_path / name / "micrographs.star").write_text(
        f"data_micrographs\nloop_\n_rlnMicrographName\n_rlnDefocusU\n'{MARKUP}.mrc' 1\nb.mrc 2\n"
    )
    with serving(tmp_path) as served:
        for page in ("/", f"/job/{quote(name)}", f"/classes/{quote(name)}", f"/files/{quote(name)}",
                     f"/micrographs/{quote(name)}", "/new/select?table=" + quote(MARKUP)):  # fmt: skip
            answer = served.get(page)
            assert answer.status == 200, answer.text
            assert "<img src=x" not in answer.text and MARKUP not in answer.text and "<b>no" not in answer.text
        for page in ("micrographs.json", "job.json", "classes.json"):
            answer = served.get(f"/{page}/{quote(name)}")
            assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
        answer = served.get(f"/particles/{quote(name)}?n=1")
        assert answer.status == 422 and "<b>no" not in answer.text and "&lt;b&gt;no" in answer.text
        assert "\x1b" not in served.log[-1] and "422" in served.log[-1]


def test_names_that_are_no_text_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = a_job(tmp_path / "good é", "class2d", note="\udcff")
    a_job(Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff")), "class2d")
    for name in (b"a\xff.png", b"b\xff.mrc"):
        Path(os.fsdecode(bytes(good) + b"/" + name)).write_text("x")
    with serving(tmp_path) as served:
        for page in ("/", f"/job/{quote('good é')}", f"/files/{quote('good é')}", "/files/", "/status.json"):
            answer = served.get(page)
            assert answer.status == 200 and "bad" not in answer.text, served.log
        assert served.get("/job/bad%ff").status == 400
    assert not served.log[0].startswith("a fault"), served.log


def test_stacks_behind_links_are_read_where_that_is_allowed(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    classes_in(a_job(root / "job1", "class2d"))
    (root / "job1/particles.mrcs").rename(tmp_path / "raw/particles.mrcs")
    (root / "job1/particles.mrcs").symlink_to(tmp_path / "raw/particles.mrcs")
    with serving(root) as served:
        refused(served, 403, "leads out of the project", served.get("/particles/job1?n=1"))
    with serving(root, also=(tmp_path / "raw",)) as served:
        assert served.get("/particles/job1?n=1").body.startswith(b"\x89PNG")
        assert served.get("/file/../raw/particles.mrcs").status == 403
    (root / "job1/run_it003_classes.mrcs").rename(tmp_path / "raw/c.mrcs")
    (root / "job1/run_it003_classes.mrcs").symlink_to(tmp_path / "raw/c.mrcs")
    with serving(root) as served:
        refused(served, 403, "leads out of the project", served.get("/average/job1?n=1"))


def test_read_only_changes_nothing(tmp_path):
    with serving(tmp_path, read_only=True) as served:
        for path in ("/new/select", "/check/select", "/stop/a", "/again/a"):
            refused(served, 403, "read-only", served.post(path, {"act": "start"}))
        refused(served, 403, "read-only", served.get("/new"))
        assert "New job" not in served.get("/").text


def test_cookies_are_compared_as_a_whole():
    keys = Keys()
    require_session([f"x=1; n={keys.session}"], "n", keys)
    for wrong in (f"m={keys.session}", f"n={keys.session}x", f"n={keys.session[:-1]}", f"xn={keys.session}"):
        with pytest.raises(Refused):
            require_session([wrong], "n", keys)


def test_an_open_host_is_refused_unasked(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--i-know" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_port_in_use_is_told_and_a_second_server_takes_the_next(tmp_path, capsys):
    with serving(tmp_path) as first, serving(tmp_path) as second:
        assert first.port != second.port and first.server.cookie != second.server.cookie
        assert second.ask("/", Cookie=first.cookie).status == 403
        assert main(["serve", str(tmp_path), "--port", str(first.port)]) == 2
    assert "choose another with --port" in capsys.readouterr().err


def test_with_a_certificate_the_page_is_served_over_tls(tmp_path):
    """Over TLS alone; the cookie is then sent over TLS only, and a form's origin is https."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    made = [*words.split(), "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(["openssl", *made], check=True, capture_output=True)
    site = Site.of(tmp_path, log=[].append)
    with Server(_listening("127.0.0.1", None), site, tmp_path / "cert.pem", tmp_path / "key.pem") as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        client = http.client.HTTPSConnection("localhost", server.server_port, timeout=30, context=context)
        client.request("GET", f"/?token={site.keys.token}")
        answer = client.getresponse()
        assert answer.status == 303 and "; Secure" in answer.headers["Set-Cookie"] and not answer.read()
        client.close()
        assert server.address.startswith("https://")
        with socket.create_connection(("127.0.0.1", server.server_port), 10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with suppress(ConnectionError):
                assert b"HTTP" not in plain.recv(100)
        server.shutdown()
    with pytest.raises(InputError, match="--cert"):
        Server(_listening("127.0.0.1", None), site, tmp_path / "key.pem")


def test_more_connections_than_are_served_are_closed(tmp_path):
    with serving(tmp_path) as served:
        held = [socket.create_connection(("127.0.0.1", served.port), 10) for _ in range(MOST_CONNECTIONS + 5)]
        try:
            held[-1].settimeout(10)
            with suppress(ConnectionError):
                assert held[-1].recv(10) == b""
            assert any("are open" in line for line in served.log)
        finally:
            for each in held:
                each.close()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with suppress(ConnectionError, http.client.HTTPException):
                if served.get("/status.json").status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("it serves nobody any more")
