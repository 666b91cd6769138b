import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Client } from 'consentd';
import { clientOf, freePort, marketing, newUser, sidecarOf } from './helpers.mjs';

/** Makes a CA, and a certificate of it for this machine. */
function certificates(t, name) {
  const folder = mkdtempSync(join(tmpdir(), 'consentd-tls-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = (kind) => join(folder, kind);
  const openssl = (...args) => {
    try {
      execFileSync('openssl', args, { stdio: 'pipe', cwd: folder });
    } catch (error) {
      if (error.code === 'ENOENT') throw new Error('openssl is missing: apt-get install openssl');
      throw error;
    }
  };
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  openssl('req', '-x509', ...key, '-days', '2', '-subj', `/CN=${name}-ca`, '-keyout', 'ca.key', '-out', 'ca.crt');
  openssl('req', ...key, '-subj', `/CN=${name}`, '-keyout', 'tls.key', '-out', 'tls.csr');
  writeFileSync(file('names'), 'subjectAltName=DNS:localhost,IP:127.0.0.1');
  const issue = '-req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out tls.crt';
  openssl('x509', ...issue.split(' '), '-extfile', 'names');
  return { ca: file('ca.crt'), certificate: file('tls.crt'), key: file('tls.key') };
}

test('a sidecar with TLS is asked with a certificate, and refuses those without', async (t) => {
  const server = certificates(t, 'server');
  const own = certificates(t, 'client');
  const listen = `127.0.0.1:${await freePort()}`;
  const args = ['--listen', listen, '--tls-listeners', 'listen'];
  const tls = ['--tls-cert-file', server.certificate, '--tls-key-file', server.key];
  await sidecarOf(t, ...args, ...tls, '--tls-client-ca-file', own.ca);
  const files = { caFile: server.ca, certFile: own.certificate, keyFile: own.key };

  for (const address of [listen, listen.replace('127.0.0.1', 'localhost')]) {
    const client = clientOf(t, address, { tls: files });
    await client.ready();
    assert.equal((await client.verdict(marketing(newUser()))).reason, 'NO_CONSENT');
  }

  const wrong = [false, true, { caFile: own.ca }, { caFile: server.ca }];
  for (const one of wrong) {
    const client = clientOf(t, listen, { tls: one, deadlineMs: 500 });
    const verdict = await client.verdict(marketing(newUser()));
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.unavailable, true);
  }
  assert.throws(() => new Client({ address: listen, tls: { caFile: '/nonexistent' } }), /ENOENT/);
});
