'use strict';
// A web application: hashes of what it is sent, and a list of notes that is kept in a file.
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');

const file = process.env.NOTES || '/home/node/notes';
const notes = fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n').slice(0, -1) : [];

function answer(res, code, text) {
  res.writeHead(code, { 'Content-Type': 'text/plain', 'Content-Length': Buffer.byteLength(text) });
  res.end(text);
}

function body(req, done) {
  const parts = [];
  req.on('data', (part) => parts.push(part));
  req.on('end', () => done(Buffer.concat(parts)));
}

const server = http.createServer((req, res) => {
  switch (`${req.method} ${req.url}`) {
    case 'GET /':
      return answer(res, 200, `hello from ${process.env.HOSTNAME}, node ${process.version}\n`);
    case 'POST /sha256':
      return body(req, (data) => answer(res, 200, crypto.createHash('sha256').update(data).digest('hex') + '\n'));
    case 'GET /notes':
      return answer(res, 200, notes.map((n) => n + '\n').join(''));
    case 'POST /notes':
      return body(req, (data) => {
        const note = String(data).trim();
        const fd = fs.openSync(file, 'a');
        fs.writeSync(fd, note + '\n');
        fs.fsyncSync(fd);
        fs.closeSync(fd);
        notes.push(note);
        answer(res, 201, 'kept\n');
      });
  }
  answer(res, 404, 'not found\n');
});

const port = Number(process.env.PORT || 3000);
server.listen(port, () => console.log(`listening on ${port}`));
process.on('SIGTERM', () => {
  console.log('closing');
  server.close(() => {
    console.log('closed');
    process.exit(0);
  });
  server.closeIdleConnections();
});
