// Drives an engine by dockerode and testcontainers, which speak without a version in the path and without
// upgrades. Prints a line for each check: its name, a tab, and ok or what is wrong.
const assert = require('node:assert');
const { PassThrough } = require('node:stream');
const Docker = require('dockerode');
const { GenericContainer, Network, Wait } = require('testcontainers');

const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace('unix://', '') });
const checks = [];
const check = (name, f) => checks.push([name, f]);
const text = async (stream) => {
  const parts = [];
  for await (const p of stream) parts.push(p);
  return Buffer.concat(parts).toString();
};
// Takes frames apart as dockerode does, once the stream has ended.
const demux = (stream) => new Promise((resolve, reject) => {
  const out = new PassThrough(), err = new PassThrough();
  docker.modem.demuxStream(stream, out, err);
  stream.on('error', reject);
  stream.on('end', () => { out.end(); err.end(); });
  Promise.all([text(out), text(err)]).then(resolve, reject);
});

check('dockerode: ping, version, info', async () => {
  await docker.ping();
  assert.ok((await docker.version()).ApiVersion);
  assert.strictEqual((await docker.info()).OSType, 'linux');
});
check('dockerode: images', async () => {
  assert.ok((await docker.listImages({ filters: { label: ['kind=test'] } })).length > 0);
  assert.ok((await docker.getImage('bb').inspect()).Id);
  await assert.rejects(docker.getImage('nope').inspect(), { statusCode: 404 });
});
check('dockerode: create, inspect, list, rename, remove', async () => {
  const c = await docker.createContainer({ Image: 'bb', name: 'node1', Cmd: ['echo', 'x'], Labels: { l: 'node' } });
  assert.strictEqual((await c.inspect()).State.Status, 'created');
  await c.rename({ name: 'node2' });
  const list = await docker.listContainers({ all: true, filters: { label: ['l=node'] } });
  assert.deepStrictEqual(list[0].Names, ['/node2']);
  await assert.rejects(c.kill(), { statusCode: 409 });
  await c.remove();
  await assert.rejects(c.inspect(), { statusCode: 404 });
});

let box;
check('dockerode: attach before the start, output in two streams', async () => {
  box = await docker.createContainer({
    Image: 'bb', Cmd: ['sh', '-c', 'echo out; echo err >&2; trap "exit 6" TERM; read x; echo "got $x"; while :; do sleep 0.1; done'],
    OpenStdin: true, ExposedPorts: { '80/tcp': {} }, HostConfig: { PortBindings: { '80/tcp': [{ HostPort: '' }] } },
  });
  const stream = await box.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
  let seen = '';
  // The two streams come in any order.
  const done = new Promise((resolve, reject) => {
    stream.on('data', (d) => { seen += d; if (['out', 'err', 'got node'].every((s) => seen.includes(s))) resolve(); });
    stream.on('end', () => reject(new Error(`ended after ${seen}`)));
  });
  await box.start();
  stream.write('node\n');
  await done;
  stream.destroy();
});
check('dockerode: exec without an upgrade', async () => {
  const e = await box.exec({ Cmd: ['sh', '-c', 'echo one; echo two >&2; exit 3'], AttachStdout: true, AttachStderr: true });
  const [out, err] = await demux(await e.start({}));
  assert.deepStrictEqual([out, err], ['one\n', 'two\n']);
  assert.strictEqual((await e.inspect()).ExitCode, 3);
});
check('dockerode: exec with an upgrade and input', async () => {
  const e = await box.exec({ Cmd: ['cat'], AttachStdin: true, AttachStdout: true });
  const stream = await e.start({ hijack: true, stdin: true });
  const got = demux(stream);
  stream.end('through');
  assert.strictEqual((await got)[0], 'through');
});
check('dockerode: logs and following them', async () => {
  const all = await box.logs({ stdout: true, stderr: false });
  assert.ok(all.toString().includes('out'));
  const follow = await box.logs({ stdout: true, follow: true, tail: 1 });
  await new Promise((resolve) => follow.once('data', resolve));
  follow.destroy();
});
check('dockerode: stats once', async () => assert.ok((await box.stats({ stream: false })).memory_stats.usage > 0));
check('dockerode: wait is told by stop', async () => {
  const code = box.wait();
  await box.stop({ t: 20 });
  assert.strictEqual((await code).StatusCode, 6);
  await assert.rejects(box.stop(), { statusCode: 304 });
  await box.remove({ v: true });
});

check('testcontainers: a network of its own', async () => {
  const n = await new Network().start();
  await n.stop();
});

// Waits for three things at once, by its logs, by execs and by requests, each until it ends or 80 s are over.
let served;
check('testcontainers: files before the start, wait for a log, a port and HTTP', async () => {
  served = await new GenericContainer('bb')
    .withCopyContentToContainer([{ content: 'from node\n', target: '/www/index.html' }])
    .withCommand(['sh', '-c', 'echo ready; exec httpd -f -p 80 -h /www'])
    .withExposedPorts(80)
    .withWaitStrategy(Wait.forAll([Wait.forLogMessage('ready'), Wait.forListeningPorts(), Wait.forHttp('/', 80)]))
    .withStartupTimeout(80000)
    .start();
  const page = await fetch(`http://127.0.0.1:${served.getMappedPort(80)}/`);
  assert.strictEqual(await page.text(), 'from node\n');
});
check('testcontainers: exec, logs, restart, stop', async () => {
  const { output, exitCode } = await served.exec(['sh', '-c', 'echo out; exit 3']);
  assert.deepStrictEqual([output, exitCode], ['out\n', 3]);
  const logs = await served.logs();
  await new Promise((resolve) => logs.once('data', resolve));
  logs.destroy();
  await served.restart();
  await served.stop();
});
check('testcontainers: wait for health and for an end', async () => {
  const health = await new GenericContainer('bb').withCommand(['sleep', '600'])
    .withHealthCheck({ test: ['CMD-SHELL', 'true'], interval: 1000, timeout: 20000, retries: 3, startPeriod: 0 })
    .withWaitStrategy(Wait.forHealthCheck()).withStartupTimeout(80000).start();
  await health.stop();
  const once = await new GenericContainer('bb').withCommand(['true'])
    .withWaitStrategy(Wait.forOneShotStartup()).withStartupTimeout(80000).start();
  await once.stop();
});

(async () => {
  for (const [name, f] of checks) {
    let timer; // which also keeps node from ending when nothing else is waited for
    try {
      await Promise.race([f(), new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('hangs')), 90000); })]);
      console.log(`${name}\tok`);
    } catch (e) {
      console.log(`${name}\t${String(e && e.message || e).split(/\s+/).join(' ')}`);
    } finally {
      clearTimeout(timer);
    }
  }
  if (box) await box.remove({ force: true, v: true }).catch(() => {});
  process.exit(0);
})();
