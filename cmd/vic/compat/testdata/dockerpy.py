"""Drives an engine by docker-py. Prints a line for each check: its name, a tab, and ok or what is wrong."""
import io
import os
import tarfile
import threading

import docker
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound

client = docker.from_env(timeout=120)
checks = []


def check(name):
    return lambda f: checks.append((name, f)) or f


def raises(kind, f, text=""):
    try:
        f()
    except kind as e:
        assert text in str(e), "%r lacks %r" % (str(e), text)
        return
    raise AssertionError("no %s" % kind.__name__)


def same(got, want):
    assert got == want, "%r, want %r" % (got, want)


def tar_of(name, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def untar(chunks):
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


@check("automatic version")
def _():
    auto = docker.DockerClient(base_url=os.environ["DOCKER_HOST"], version="auto")
    same(auto.api.api_version, client.version()["ApiVersion"])


@check("ping, info and df")
def _():
    assert client.ping()
    same(client.info()["OSType"], "linux")
    assert "LayersSize" in client.df()


@check("images: get, list, tag, history, remove")
def _():
    image = client.images.get("bb")
    assert image.id in [i.id for i in client.images.list(filters={"label": "kind=test"})]
    assert image.tag("py", "1")
    assert "py:1" in client.images.get("bb").tags
    assert image.history()
    client.images.remove("py:1")
    raises(ImageNotFound, lambda: client.images.get("py:1"))


@check("images: save and load")
def _():
    loaded = client.images.load(b"".join(client.images.get("bb").save(named=True)))
    same([i.id for i in loaded], [client.images.get("bb").id])


@check("errors have their classes")
def _():
    raises(NotFound, lambda: client.containers.get("nope"), "No such container: nope")
    raises(ImageNotFound, lambda: client.containers.create("nope"))
    raises(NotFound, lambda: client.volumes.get("nope"))
    raises(NotFound, lambda: client.networks.get("nope"))
    raises(APIError, lambda: client.containers.create("bb", working_dir="rel"), "absolute path")


@check("create, rename, list, reload, remove")
def _():
    c = client.containers.create("bb", ["echo", "x"], name="py1", environment={"A": "1"}, labels={"l": "v"})
    same(c.status, "created")
    c.rename("py2")
    same([x.name for x in client.containers.list(all=True, filters={"label": ["l=v"], "status": "created"})], ["py2"])
    c.reload()
    same(c.name, "py2")
    assert "A=1" in c.attrs["Config"]["Env"]
    c.remove()
    raises(NotFound, c.reload)


@check("put_archive and get_archive before the start")
def _():
    c = client.containers.create("bb", ["cat", "/tmp/in"])
    try:
        assert c.put_archive("/tmp", tar_of("in", b"hello"))
        chunks, stat = c.get_archive("/tmp/in")
        same((stat["name"], stat["size"]), ("in", 5))
        same(untar(chunks), {"in": b"hello"})
        raises(NotFound, lambda: c.get_archive("/nope"))
    finally:
        c.remove(force=True)


@check("run returns output, and raises for an exit code")
def _():
    def run():
        client.containers.run("bb", ["sh", "-c", "echo out; echo err >&2; exit 3"], remove=True, stderr=True)
    try:
        run()
        raise AssertionError("no error")
    except ContainerError as e:
        same(e.exit_status, 3)
        assert b"err" in e.stderr, e.stderr


box = None
loop = ["sh", "-c", "echo one; echo two >&2; trap 'exit 9' TERM; while :; do sleep 0.1; done"]


@check("run in the background with ports, volume and network")
def _():
    global box
    client.networks.create("pynet", labels={"l": "py"})
    client.volumes.create("pyvol", labels={"l": "py"})
    box = client.containers.run(
        "bb", loop, detach=True, name="pybox",
        ports={"80/tcp": None}, volumes={"pyvol": {"bind": "/v", "mode": "rw"}}, network="pynet", hostname="h", mem_limit="256m")
    box.reload()
    same(box.status, "running")
    assert int(box.ports["80/tcp"][0]["HostPort"]) > 0
    assert "pynet" in box.attrs["NetworkSettings"]["Networks"]
    same([(m["Type"], m["Name"], m["Destination"]) for m in box.attrs["Mounts"]], [("volume", "pyvol", "/v")])


@check("logs: streams, tail, follow")
def _():
    stream = box.logs(stream=True, follow=True)
    seen = b""
    while b"two" not in seen or b"one" not in seen:
        seen += next(stream)
    stream.close()
    same(box.logs(stdout=True, stderr=False), b"one\n")
    same(len(box.logs(tail=1).splitlines()), 1)


@check("exec_run: output, code, environment, user, streams apart")
def _():
    same(box.exec_run("echo hello"), (0, b"hello\n"))
    same(box.exec_run(["sh", "-c", "exit 4"]).exit_code, 4)
    same(box.exec_run(["sh", "-c", "echo $X"], environment={"X": "y"}).output, b"y\n")
    same(box.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True).output, (b"o\n", b"e\n"))
    same(b"".join(box.exec_run("echo s", stream=True).output), b"s\n")


@check("exec through a socket: input and half-close")
def _():
    e = client.api.exec_create(box.id, "cat", stdin=True)
    sock = client.api.exec_start(e["Id"], socket=True)
    raw = getattr(sock, "_sock", sock)
    raw.sendall(b"through")
    raw.shutdown(1)
    got = b""
    while True:
        part = raw.recv(4096)
        if not part:
            break
        got += part
    sock.close()
    assert got.endswith(b"through"), got
    same(client.api.exec_inspect(e["Id"])["ExitCode"], 0)


@check("top and stats")
def _():
    assert any("sh" in " ".join(p) for p in box.top()["Processes"])
    stats = box.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0 and stats["precpu_stats"]["cpu_usage"]["total_usage"] > 0, stats


@check("diff, export and commit")
def _():
    box.exec_run(["sh", "-c", "echo x >/added"])
    assert {"Path": "/added", "Kind": 1} in box.diff(), box.diff()
    assert untar(box.export())["added"] == b"x\n"
    image = box.commit("pycommit", "1", changes="ENV Z=1")
    assert "Z=1" in image.attrs["Config"]["Env"]
    client.images.remove("pycommit:1")


@check("archives of a running container")
def _():
    assert box.put_archive("/tmp", tar_of("live", b"data"))
    same(box.exec_run("cat /tmp/live").output, b"data")
    same(untar(box.get_archive("/tmp/live")[0]), {"live": b"data"})


@check("pause and unpause")
def _():
    box.pause()
    box.reload()
    same(box.status, "paused")
    box.unpause()
    box.reload()
    same(box.status, "running")


@check("update")
def _():
    box.update(restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
    box.reload()
    same(box.attrs["HostConfig"]["RestartPolicy"]["MaximumRetryCount"], 2)


@check("networks: connect, disconnect, aliases")
def _():
    net = client.networks.create("pynet2")
    net.connect(box, aliases=["other"])
    box.reload()
    assert "other" in box.attrs["NetworkSettings"]["Networks"]["pynet2"]["Aliases"]
    net.reload()
    same([c.name for c in net.containers], ["pybox"])
    net.disconnect(box)
    net.remove()


@check("events")
def _():
    stream = client.events(decode=True, filters={"container": "pybox", "event": "kill"})
    threading.Thread(target=lambda: box.kill(signal="CONT")).start()
    event = next(stream)
    stream.close()
    same((event["Action"], event["status"], event["Actor"]["Attributes"]["signal"]), ("kill", "kill", "18"))


@check("stop, wait, exit code")
def _():
    box.stop(timeout=20)
    same(box.wait()["StatusCode"], 9)
    box.reload()
    same((box.status, box.attrs["State"]["ExitCode"]), ("exited", 9))


@check("what is in use is refused, what is not is removed")
def _():
    raises(APIError, lambda: client.volumes.get("pyvol").remove(), "volume is in use")
    box.remove(v=True)
    client.volumes.get("pyvol").remove()
    client.networks.get("pynet").remove()
    same(client.volumes.list(filters={"label": "l=py"}), [])


@check("build")
def _():
    context = os.path.join(os.environ["T"], "pybuild")
    os.makedirs(context, exist_ok=True)
    with open(os.path.join(context, "Dockerfile"), "w") as f:
        f.write("FROM bb\nARG WHO\nRUN echo for $WHO >/who\nCOPY data /data\n")
    with open(os.path.join(context, "data"), "w") as f:
        f.write("data")
    image, lines = client.images.build(path=context, tag="pybuilt", rm=True, buildargs={"WHO": "py"}, labels={"l": "py"}, extra_hosts={"h": "10.1.1.1"},
                                       container_limits={"memory": 256 << 20}, shmsize=64 << 20, network_mode="none", platform="linux/amd64", cache_from=[])
    said = "".join(line.get("stream", "") for line in lines)
    assert "Successfully built " + image.short_id.split(":")[1] in said, said
    same(image.labels["l"], "py")
    same(client.containers.run("pybuilt", "cat /who /data", remove=True), b"for py\ndata")
    again, lines = client.images.build(path=context, tag="pybuilt", rm=True, buildargs={"WHO": "py"}, labels={"l": "py"})
    same(again.id, image.id)
    raises(BuildError, lambda: client.images.build(fileobj=io.BytesIO(b"FROM bb\nRUN exit 3\n"), rm=True, forcerm=True), "returned a non-zero code: 3")
    raises(BuildError, lambda: client.images.build(fileobj=io.BytesIO(b"FROM bb\nCOPY nope /\n")), "stat nope")
    raises(APIError, lambda: client.images.build(fileobj=io.BytesIO(b"FOO\n")), "unknown instruction: FOO")
    client.images.remove("pybuilt")


@check("prune")
def _():
    client.containers.create("bb", name="pruned")
    assert len(client.containers.prune()["ContainersDeleted"]) >= 1
    client.images.prune()
    client.volumes.prune()
    client.networks.prune()


for name, f in checks:
    try:
        f()
        print(name, "ok", sep="\t", flush=True)
    except Exception as e:  # whatever it is, it is what the check found
        print(name, " ".join(("%s: %s" % (type(e).__name__, e)).split()), sep="\t", flush=True)
        if box is None and name.startswith("run in the background"):  # what follows needs one
            box = client.containers.run("bb", loop, detach=True, name="pybox", ports={"80/tcp": None})
if box is not None:
    try:
        box.remove(force=True, v=True)
    except APIError:
        pass
for objects in (client.volumes.list(filters={"label": "l=py"}), client.networks.list(filters={"label": "l=py"})):
    for o in objects:
        o.remove()
